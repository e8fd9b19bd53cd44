from pathlib import Path

from benchmarks.provenance import Provenance
from benchmarks.results import merge, write


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


def test_lines_take_the_place_of_their_equals_and_leave_the_others(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"

    def at(date: str) -> Provenance:
        return Provenance(date=date, machine="box", commit="abc", versions="x 1", command="run")

    first = [{"a": 1, "b": "x", "v": 0.5}, {"a": 2, "b": "x", "v": 0.25}]
    merge(path, first, at("old"), ("a", "b"))
    every = merge(path, [{"a": 2, "b": "x", "v": None}], at("new"), ("a", "b"))
    assert [(x["a"], x["v"], x["date"]) for x in every] == [("1", "0.5", "old"), ("2", "", "new")]
    assert path.read_text().splitlines() == [
        "a,b,v,date,machine,commit,versions,command",
        "1,x,0.5,old,box,abc,x 1,run",
        "2,x,,new,box,abc,x 1,run",
    ]


def test_provenance_of_this_run_has_every_column() -> None:
    columns = Provenance.now("httpx").columns()
    assert all(columns.values())
    assert "httpx" in columns["versions"]
    assert "logical cores" in columns["machine"]
