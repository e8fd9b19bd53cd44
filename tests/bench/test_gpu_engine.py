"""The engine's benchmark for GPUs, on a CPU: what it counts, and that it runs."""

import csv
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_engine
from benchmarks.gpu_engine import CASES, Case, bandwidth_limit, line
from tests.tiny import save_tiny


def test_the_limit_is_one_read_of_the_weights_and_of_each_context() -> None:
    limit = bandwidth_limit(1000.0, weights_bytes=100, kv_bytes=50, sequences=2)
    assert limit == pytest.approx(2 * 1000 / 200)


def test_a_line_has_percentiles_and_the_share_of_the_limit() -> None:
    found = line("x", Case(sequences=2), [30.0, 10.0, 20.0], 8, 40.0)
    assert (found["p50_tokens_per_s"], found["share_of_limit"]) == (20.0, 0.5)
    assert line("x", Case(sequences=2), [1.0], 8, None)["share_of_limit"] is None


def test_every_figure_of_the_plan_has_a_case() -> None:
    plain = {f"plain-{n}{end}" for n in (1, 16, 64) for end in ("", "-no-graphs")}
    assert set(CASES) == {*plain, "jacobi-1", "jacobi-16", "long-full", "long-h2o"}


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    output = tmp_path / "found.csv"
    monkeypatch.setattr(gpu_engine, "long_model_folder", lambda name, positions: folder)  # type: ignore[misc]
    arguments = ["--device", "cpu", "--cases", "plain-1", "plain-1-no-graphs", "jacobi-1"]
    arguments += ["--rounds", "1", "--steps", "4", "--beside", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["gpu_engine.py", *arguments])
    assert gpu_engine.main() == 0
    with output.open(encoding="utf-8", newline="") as file:
        lines = {each["case"]: each for each in csv.DictReader(file)}
    assert set(lines) == {"plain-1", "plain-1-no-graphs", "jacobi-1", "answers"}
    assert all(float(each["p50_tokens_per_s"]) > 0 for each in lines.values())
    assert lines["answers"]["share_of_limit"] == ""


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_engine.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_engine.main() == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
