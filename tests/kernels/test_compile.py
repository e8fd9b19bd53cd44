"""What the compiler makes of the kernels for a GPU that is not here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
NO_LOADS_AHEAD = {"add_along", "add_up", "choose", "masses", "merge", "write"}
"""Kernels that read everything once, in no loop worth a pipeline."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """In a process of its own: in this one kernels are interpreted."""
    environment = dict(os.environ, TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.kernels.compile_gate"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kernels_compile_for_hopper_as_they_should(compiled: dict[str, dict[str, Any]]) -> None:
    for name, found in compiled.items():
        assert found["local_bytes"] == 0, f"{name} spills registers: {found}"
        assert found["registers"] < 255, f"{name} has no register left: {found}"
        assert found["shared_bytes"] <= 227 * 1024, f"{name} needs too much memory: {found}"
        if name.split()[-1] not in NO_LOADS_AHEAD:
            assert found["cp_async"], f"{name} does not load ahead: {found}"
