"""Results as CSV: one line a measurement, units in the column names, provenance behind."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import Provenance


def write(path: Path, lines: Sequence[Mapping[str, Any]], provenance: Provenance) -> None:
    """Write lines of equal columns; floats keep six digits."""
    columns = provenance.columns()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0], *columns], lineterminator="\n")
        writer.writeheader()
        for line in lines:
            short = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()}
            writer.writerow(short | columns)


def merge(
    path: Path, lines: Sequence[Mapping[str, Any]], provenance: Provenance, key: Sequence[str]
) -> list[dict[str, str]]:
    """Write lines in place of those with the same `key` columns; the others stay as they are.

    Returns all lines of the file, as text.
    """
    columns = provenance.columns()
    names = [*lines[0], *columns]
    kept: dict[tuple[str, ...], dict[str, str]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            old = list(csv.DictReader(file))
        if old and list(old[0]) == names:
            kept = {tuple(line[name] for name in key): line for line in old}
    for line in lines:
        text = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in line.items()}
        kept[tuple(text[name] for name in key)] = text | columns
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())
    return list(kept.values())
