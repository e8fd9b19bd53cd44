"""Results as CSV: one line a measurement, units in the column names, provenance behind."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import Provenance


def write(path: Path, lines: Sequence[Mapping[str, Any]], provenance: Provenance) -> None:
    """Write lines of equal columns; floats keep six digits."""
    _write(path, _texts(lines, provenance))


def merge(
    path: Path, lines: Sequence[Mapping[str, Any]], provenance: Provenance, key: Sequence[str]
) -> list[dict[str, str]]:
    """Write lines into a file in place of those with the same values in the columns `key`.

    The file's other lines stay, with where they came from. Returns all of them.
    """
    new = {tuple(line[name] for name in key): line for line in _texts(lines, provenance)}
    kept: list[dict[str, str]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            kept = [x for x in csv.DictReader(file) if tuple(x[n] for n in key) not in new]
    every = [*kept, *new.values()]
    _write(path, every)
    return every


def _texts(lines: Sequence[Mapping[str, Any]], provenance: Provenance) -> list[dict[str, str]]:
    """As they are written: floats with six digits, nothing for None."""
    columns = provenance.columns()
    return [{name: _text(value) for name, value in line.items()} | columns for line in lines]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write(path: Path, lines: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
