"""The runner and its Locust file, against a stand-in for the server."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.scripted import ScriptedServer, Step
from tests.loadtest.answers import BEFORE_TEXT_S, METRICS, answer

ROOT = Path(__file__).parents[2]


def run(server: ScriptedServer, folder: Path) -> "subprocess.CompletedProcess[str]":
    server.metrics = METRICS
    slo = folder / "slo.yaml"
    slo.write_text(
        "{requests_min: 1, error_ratio_max: 0, completion_p95_ms: 60000, "
        "ttft_p95_ms: 60000, inter_token_p95_ms: 60000}",
        encoding="utf-8",
    )
    command = [sys.executable, str(ROOT / "loadtest" / "run.py"), "--url"]
    command += [server.url.removesuffix("/v1"), "--users", "2", "--duration-s", "2"]
    command += ["--slo", str(slo), "--output", str(folder / "load.csv")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)


def test_good_server_passes(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = answer
    result = run(server, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "load test passed" in result.stdout
    with (tmp_path / "load.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["kind"], row["name"]): row for row in csv.DictReader(file)}
    assert {("TTFT", "chat"), ("ITL", "chat"), ("POST", "/v1/completions")} <= rows.keys()
    ttft = rows["TTFT", "chat"]
    assert int(ttft["requests"]) > 0
    assert float(ttft["p50_ms"]) >= BEFORE_TEXT_S * 1000 - 1
    assert float(ttft["p50_ms"]) <= float(ttft["p99_ms"]) <= float(ttft["max_ms"]) + 1
    assert ttft["command"].startswith("python loadtest/run.py")
    assert ttft["date"]


def test_broken_answers_fail_the_run(server: ScriptedServer, tmp_path: Path) -> None:
    def without_done(body: dict[str, Any]) -> Sequence[Step]:
        steps = answer(body)
        return [*steps[:-2], steps[-1]] if body.get("stream") else steps

    server.script = without_done
    result = run(server, tmp_path)
    assert result.returncode == 1
    assert "no [DONE]" in result.stdout + result.stderr
    assert "objective missed" in result.stdout
