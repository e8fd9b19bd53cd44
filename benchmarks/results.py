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
