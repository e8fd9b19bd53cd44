from pathlib import Path

from benchmarks.provenance import Provenance
from benchmarks.results import write


def test_every_line_says_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.csv"
    provenance = Provenance(
        date="2030-01-01", machine="box, 2 cores", commit="abc", versions="x 1", command="run"
    )
    write(path, [{"name": "chat", "p95_ms": 1.23456789}, {"name": "a", "p95_ms": None}], provenance)
    assert path.read_text().splitlines() == [
        "name,p95_ms,date,machine,commit,versions,command",
        'chat,1.23457,2030-01-01,"box, 2 cores",abc,x 1,run',
        'a,,2030-01-01,"box, 2 cores",abc,x 1,run',
    ]


def test_provenance_of_this_run_has_every_column() -> None:
    columns = Provenance.now("httpx").columns()
    assert all(columns.values())
    assert "httpx" in columns["versions"]
    assert "logical cores" in columns["machine"]
