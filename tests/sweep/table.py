"""Keeps what a whole sweep found, and writes the tables of docs/supported-models.md from it."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import transformers

from tests.sweep.outcome import Kind, Outcome

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "docs" / "supported-models.csv"
DOCUMENT: Final = ROOT / "docs" / "supported-models.md"
BEGIN: Final = "<!-- model types: begin (make sweep) -->\n"
END: Final = "<!-- model types: end -->\n"
_COLUMNS: Final = ("model_type", "outcome", "reason", "transformers")
_ALIKE: Final = (
    (r"^\d+ of its \d+ layers go", "not all of its layers go"),
    (r" \(by [^)]*\)", ""),
    (r"^a prompt of \d+ tokens", "a prompt"),
)
"""Numbers of a tiny model, which say nothing of others."""


def save(outcomes: Iterable[Outcome]) -> None:
    """Write the results of a whole sweep."""
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for each in sorted(outcomes, key=lambda each: each.model_type):
            row = each.model_type, each.kind, _alike(each.reason), transformers.__version__
            writer.writerow(row)


def saved() -> dict[str, Outcome]:
    """The results of the last whole sweep, by model type."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return {
            row["model_type"]: Outcome(
                model_type=row["model_type"], kind=Kind(row["outcome"]), reason=row["reason"]
            )
            for row in csv.DictReader(file)
        }


def document(text: str, outcomes: Mapping[str, Outcome]) -> str:
    """`text` with what is between its markers made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables(outcomes)}{END}{after}"


def tables(outcomes: Mapping[str, Outcome]) -> str:
    """Model types that are served, refused and not tried, with reasons."""
    of = {kind: [each for each in outcomes.values() if each.kind == kind] for kind in Kind}
    remarks = [each for each in of[Kind.SERVED] if each.reason]
    return "\n".join(
        [
            f"Of {len(outcomes)} model types, {len(of[Kind.SERVED])} are served, "
            f"{len(of[Kind.REFUSED])} refused and {len(of[Kind.UNBUILDABLE])} not tried.",
            "",
            "### Served",
            "",
            _names(of[Kind.SERVED]),
            *_grouped("remark", remarks),
            "",
            "### Refused at start",
            *_grouped("because", of[Kind.REFUSED]),
            "",
            "### Not tried",
            *_grouped("because", of[Kind.UNBUILDABLE]),
            "",
        ]
    )


def _grouped(heading: str, outcomes: Sequence[Outcome]) -> list[str]:
    by_reason: defaultdict[str, list[Outcome]] = defaultdict(list)
    for each in outcomes:
        by_reason[each.reason].append(each)
    if not by_reason:
        return []
    rows = sorted(by_reason.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return [
        "",
        f"| {heading} | model types |",
        "| --- | --- |",
        *(f"| {reason.replace('|', ' ')} | {_names(each)} |" for reason, each in rows),
    ]


def _names(outcomes: Iterable[Outcome]) -> str:
    return ", ".join(sorted(f"`{each.model_type}`" for each in outcomes))


def _alike(reason: str) -> str:
    for pattern, instead in _ALIKE:
        reason = re.sub(pattern, instead, reason)
    return reason
