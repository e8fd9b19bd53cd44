"""The command itself: help, mistakes, and the commands that are not the server."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock import __version__
from penstock.kernels import selfcheck
from penstock.server import cli
from penstock.server.commands import doctor
from tests.server.process import PENSTOCK
from tests.tiny import save_tiny


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PENSTOCK, *arguments], capture_output=True, text=True, timeout=60)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h", "help"):
        assert cli.main([word]) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in ("serve", "generate", "bench", "doctor"))
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"penstock {__version__}\n"
    assert cli.main([]) == 2
    assert "serve" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from penstock.server.cli import main; main(['--help']); "
        "from penstock.server.settings.serve import ServeSettings; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'fastapi')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "there is no command 'nope'"),
        (["serv"], "did you mean 'serve'?"),
        (["serve", "--port", "99999"], "penstock serve: --port"),
        (["generate", "x", "--chat", "--raw"], "penstock generate: --chat and --raw"),
        (["generate", "x", "-n", "2"], "penstock generate: -n is 2"),
        (["generate", "x", "--model", "/nowhere"], "no such model folder"),
    ],
    ids=["unknown", "close", "bound", "contradiction", "n", "model"],
)
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_unknown_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", "--nope"])
    assert end.value.code == 2
    assert "--nope" in capsys.readouterr().err


def test_taken_port_is_one_line() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("serve", "--port", str(port))
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("generate"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_THREADS", "1")
    monkeypatch.setenv("PENSTOCK_KV_CACHE_MEMORY", "8000000")


def test_generate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["generate", "Hello", "--model", str(folder), "--max-tokens", "12", "--ignore-eos"]
    greedy = [*call, "--temperature", "0", "--allowed-token-ids", "60,61,62,63"]
    assert cli.main([*greedy, "--raw"]) == 0
    raw = capsys.readouterr().out
    assert len(raw) == 13
    assert cli.main([*greedy, "--raw", "--stop", raw[4:6]]) == 0
    assert capsys.readouterr().out == raw[: raw.index(raw[4:6])] + "\n"
    assert cli.main([*greedy, "--chat"]) == 0
    chat = capsys.readouterr().out
    assert cli.main(greedy) == 0
    assert capsys.readouterr().out == chat


@pytest.mark.parametrize("decoding", ["jacobi", '{"ngram": {"window": 4}, "plain": {}}'])
def test_generate_with_a_method(
    decoding: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["generate", "Hello", "--model", str(folder), "--max-tokens", "12", "--temperature", "0"]
    assert cli.main(call) == 0
    plain = capsys.readouterr().out
    assert cli.main([*call, "--decoding", decoding]) == 0
    assert capsys.readouterr().out == plain
    assert cli.main([*call, "--decoding", "beam9"]) == 1
    assert "there is no method 'beam9'" in capsys.readouterr().err


def test_generate_with_a_schema(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.json"
    call = ["generate", "Hello", "--model", str(folder), "--schema", str(schema)]
    assert cli.main(call) == 2
    assert str(schema) in capsys.readouterr().err
    schema.write_text('{"enum": ["cat", "dog"]}')
    assert cli.main(call) == 0
    assert capsys.readouterr().out in ('"cat"\n', '"dog"\n')
    schema.write_text('{"not": {}}')
    assert cli.main(call) == 1
    assert "not" in capsys.readouterr().err


def test_generate_reads_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 600))
    assert cli.main(["generate", "-", "--model", str(folder), "--raw"]) == 1
    error = capsys.readouterr().err
    assert "600 tokens" in error
    assert "Traceback" not in error


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "transformers", "device", "threads", "memory", "backend", "embedded"):
        assert word in out
    assert "check paged_attention    ok" in out
    assert "check quantised cache    ok" in out
    checks = re.findall(r"^check (.+?) {2,}ok$", out, re.MULTILINE)
    assert set(checks) >= set(doctor.CHECKS)
    assert set(doctor.TRITON_CHECKS) <= set(checks) or "check triton             not run" in out
    assert re.search(r"^check triton +(ok|not run: .+)$", out, re.MULTILINE)
    assert re.search(r"^compiled kernels +for \w+$", out, re.MULTILINE)
    assert re.search(r"^attention backend +native \(.+\)$", out, re.MULTILINE)
    assert re.search(r"^KV cache dtypes +auto, bf16, fp8, int8$", out, re.MULTILINE)
    monkeypatch.setattr(doctor, "CHECKS", {"sums": lambda: "1 + 1 is not 3"})
    assert cli.main(["doctor"]) == 1
    assert "FAILED: 1 + 1 is not 3" in capsys.readouterr().out


def test_the_kernels_check_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(selfcheck, "TOLERANCE", -1.0)
    assert selfcheck.check_paged_attention() is not None
    monkeypatch.undo()

    def poisoned(*_: object, **__: object) -> torch.Tensor:
        return torch.full((11, 4, 16), torch.nan)

    monkeypatch.setattr("penstock.kernels.paged_attention.reference.paged_attention", poisoned)
    assert selfcheck.check_paged_attention() is not None


def test_the_check_of_compiled_kernels_sees_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from penstock.kernels.linear import native

    def wrong(library: Any, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        return pack(library, weight * 1.01, bias)

    pack = native.pack
    assert selfcheck.check_compiled() is None
    monkeypatch.setattr(native, "pack", wrong)
    assert selfcheck.check_compiled() is not None


def test_the_check_of_triton_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    kernels = pytest.importorskip("penstock.kernels.paged_attention.triton")
    right = kernels.paged_attention

    def wrong(*args: Any, **how: Any) -> torch.Tensor:
        return right(*args, **how) * 1.01

    assert selfcheck.check_triton() is None
    monkeypatch.setattr(kernels, "paged_attention", wrong)
    assert selfcheck.check_triton() is not None


@pytest.mark.parametrize(
    ("check", "kernel"),
    [
        ("triton scores", "scored_attention.triton.paged_scored_attention"),
        ("triton evict", "evict.triton.evict"),
    ],
)
def test_the_checks_of_eviction_see_a_wrong_kernel(
    check: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = f"penstock.kernels.{kernel}".rpartition(".")
    right = getattr(pytest.importorskip(module), name)

    def wrong(*args: Any, **how: Any) -> Any:
        found = right(*args, **how)
        if found is None:  # places are the last argument
            args[-1][1, 1] += 1
            return None
        return found[0], [weights * 1.01 for weights in found[1]]

    monkeypatch.setattr(f"{module}.{name}", wrong)
    told = selfcheck.TRITON_CHECKS[check]()
    assert told is not None
    assert told.startswith("off by")


def test_the_check_of_sparse_prompts_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = pytest.importorskip("penstock.kernels.sparse_prefill.triton")
    right = module.paged_sparse_prefill

    def wrong(*args: Any, **how: Any) -> Any:
        return right(*args, **how) * 1.01

    assert selfcheck.check_triton_sparse_prefill() is None
    monkeypatch.setattr(module, "paged_sparse_prefill", wrong)
    told = selfcheck.check_triton_sparse_prefill()
    assert told is not None
    assert told.startswith("off by")


def test_the_check_of_rows_sees_a_wrong_sum_and_one_that_depends_on_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module: Any = pytest.importorskip("penstock.kernels.row_invariant.triton")
    right = module.row_sum
    assert selfcheck.check_triton_rows() is None

    def of_others(x: Any) -> Any:
        return right(x) + len(x) * 1e-5

    def wrong(x: Any) -> Any:
        return right(x) * 1.01

    monkeypatch.setattr(module, "row_sum", of_others)
    assert selfcheck.check_triton_rows() == "a row has other bits alone"
    monkeypatch.setattr(module, "row_sum", wrong)
    told = selfcheck.check_triton_rows()
    assert told is not None
    assert told.startswith("off by")


def test_the_cache_check_sees_wrong_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from penstock.kernels import quantise

    def halved(elements: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return elements.to(dtype) * scales / 2

    monkeypatch.setattr(quantise, "dequantise", halved)
    assert selfcheck.check_quantised_cache() is not None
