"""The sweep finds faults of every kind; nothing that a type does ends it."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.engine.model.runner import ModelRunner
from penstock.errors import ConfigurationError
from tests.sweep import checks, crew, table
from tests.sweep.checks import try_folder
from tests.sweep.outcome import Kind, Outcome
from tests.sweep.tiny_models import make, model_types


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    make("llama", folder)
    return folder


def test_served(llama: Path) -> None:
    assert try_folder("llama", llama) == Outcome(model_type="llama", kind=Kind.SERVED)


def test_what_only_a_long_prompt_shows_is_a_fault(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ModelRunner._forward  # pyright: ignore[reportPrivateUsage]

    def wrong_when_long(self: ModelRunner, ids: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        logits = right(self, ids, positions, *rest)
        return -logits if int(positions.max()) > 1400 else logits

    monkeypatch.setattr(ModelRunner, "_forward", wrong_when_long)
    outcome = try_folder("llama", llama)
    assert outcome.kind == Kind.FAULT
    assert "chunks of 7, prompt of 1500 tokens: token 0" in outcome.reason


def test_a_failure_after_start_is_a_fault(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise IndexError("index 133 is out of bounds")

    monkeypatch.setattr(ModelRunner, "_forward", fail)
    outcome = try_folder("llama", llama)
    assert outcome.kind == Kind.FAULT
    assert "a request failed" in outcome.reason


@pytest.mark.parametrize(
    ("error", "kind"), [(ConfigurationError("no"), Kind.REFUSED), (KeyError("x"), Kind.FAULT)]
)
def test_start_refuses_or_is_a_fault(
    error: Exception, kind: Kind, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(checks, "LLM", start)
    assert try_folder("llama", llama).kind == kind


def test_a_model_that_repeats_one_token_is_a_fault(tmp_path: Path, llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros_like(tensors["lm_head.weight"])
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "repeats one token" in try_folder("llama", tmp_path).reason


def one(model_type: str) -> Outcome:
    if model_type == "dies":
        os._exit(3)
    if model_type == "hangs":
        time.sleep(60)
    if model_type == "raises":
        raise RuntimeError
    return Outcome(model_type=model_type, kind=Kind.SERVED)


def test_processes_that_die_or_hang_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "TYPE_S", 20.0)
    told: list[Outcome] = []
    types = ["dies", "hangs", "raises", "fine"]
    found = crew.sweep(types, one, workers=2, seconds=60, tell=told.append)
    assert found == told
    reasons = {outcome.model_type: outcome.reason for outcome in found}
    assert reasons == {
        "dies": "the process ended with 3",
        "hangs": "no end in 20 s",
        "raises": "the process ended with 1",
        "fine": "",
    }
    assert crew.sweep(types, one, workers=2, seconds=0, tell=told.append) == []


def test_the_tables_are_those_of_the_last_sweep() -> None:
    saved = table.saved()
    text = table.DOCUMENT.read_text(encoding="utf-8")
    assert table.document(text, saved) == text, "run make sweep"
    assert sorted(saved) == model_types(), "transformers has other types now: run make sweep"
    assert not [each for each in saved.values() if each.kind == Kind.FAULT]
    for model_type in saved:
        assert f"`{model_type}`" in text


def test_numbers_of_a_tiny_model_are_not_in_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results.csv")
    reasons = [
        "1 of its 4 layers go through transformers' attention interface, and all have to",
        "its logits differ (by 0.1 of their size, most at token 3 of 40)",
    ]
    table.save(
        Outcome(model_type=f"b{i}", kind=Kind.REFUSED, reason=reason)
        for i, reason in enumerate(reasons)
    )
    text = table.tables(table.saved())
    assert "| its logits differ | `b1` |" in text
    assert "| not all of its layers go through" in text
