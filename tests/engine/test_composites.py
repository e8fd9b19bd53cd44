"""Checkpoints of several parts: their text model is served, and the other parts are not loaded."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from penstock import LLM
from penstock.engine.loading.loader import load_model
from penstock.engine.loading.settings import ModelSettings
from penstock.errors import ConfigurationError
from tests.conftest import TinyModel
from tests.engine.reference import greedy_of
from tests.engine.test_architectures import NEW_TOKENS, answers, prompts
from tests.tiny_composites import COMPOSITES


def reference(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("kind", COMPOSITES)
def test_equals_generate_of_the_whole(kind: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(kind)
    expected = greedy_of(reference(folder), prompts(), NEW_TOKENS)
    llm = LLM(str(folder), chunk_tokens=7, max_batch_tokens=64, kv_cache_memory=0.05)
    assert answers(llm) == expected
    assert answers(llm) == expected
    assert llm.stats().prefix_hit_tokens > 0


@pytest.mark.parametrize("kind", COMPOSITES)
def test_other_parts_take_no_memory(
    kind: str, tiny_model: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_model(kind)
    with caplog.at_level(logging.INFO, logger="penstock"):
        loaded = load_model(ModelSettings(model=str(folder)))
    assert "take pictures or sound and are not loaded" in caplog.text
    text = reference(folder)
    held = {id(p): p.numel() for p in text.get_decoder().parameters()}
    held |= {id(p): p.numel() for p in text.get_output_embeddings().parameters()}
    assert loaded.info.parameters == sum(held.values())


@pytest.mark.parametrize("kind", ["mistral3", "qwen3_vl"])
def test_16_bits_and_8(kind: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Also where the engine reads tensors itself: stored in bfloat16, or packed."""
    model = reference(tiny_model(kind)).bfloat16()
    model.save_pretrained(tmp_path)
    for file in tiny_model(kind).glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    expected = greedy_of(model.float(), prompts(), NEW_TOKENS)
    assert answers(LLM(str(tmp_path), kv_cache_memory=0.05)) == expected
    assert all(answers(LLM(str(tmp_path), kv_cache_memory=0.05, quantization="int8")))


def test_a_mention_of_code_that_is_not_trusted(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Many configs still name the code that a model had before transformers knew it."""
    for file in tiny_model("mistral3").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["auto_map"] = {"AutoModelForCausalLM": "modeling_old.OldModel"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    expected = greedy_of(reference(tiny_model("mistral3")), prompts(), NEW_TOKENS)
    assert answers(LLM(str(tmp_path), kv_cache_memory=0.05)) == expected


@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        ("model.language_model.norm.weight", None, "lack model.language_model.norm"),
        (None, "model.other.weight", "no place for model.other"),
        (None, "model.language_model.visual.weight", "no place for model.language_model.visual"),
    ],
)
def test_text_part_is_checked_as_ever(
    removed: str | None, added: str | None, message: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    for file in tiny_model("qwen3_vl").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    if removed is not None:
        del tensors[removed]
    if added is not None:
        tensors[added] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=message):
        load_model(ModelSettings(model=str(tmp_path)))
