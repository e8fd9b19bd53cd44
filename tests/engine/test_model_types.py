"""Model types with a way of their own, each of which once ran wrongly or not at all.

`make sweep` tries all types; these are its findings that were mended.
"""

from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, SamplingParams
from penstock.engine.loading import context
from penstock.engine.loading.loader import load_model
from penstock.engine.loading.settings import ModelSettings
from penstock.errors import UnsupportedModelError
from tests.sweep.oracle import Oracle
from tests.sweep.tiny_models import make

PROMPTS = [[*range(20, 25)], [*range(40, 100)]]
NEW_TOKENS = 8
SERVED = {
    "video_llama_3": "its logits are those of every row, whichever are asked for",
    "afmoe": "it views the output of attention in another shape",
    "jetmoe": "the same, with experts that choose heads",
    "stablelm": "its layers hand no keyword arguments to attention",
    "nemotron": "the same",
    "mistral4": "transformers lists it among models for pictures, and it is one of text",
    "deepseek_vl_hybrid": "its tower knows no attention but its own",
    "phi4_multimodal": "the same checkpoint adds adapters for pictures",
}


def settings(folder: Path) -> dict[str, Any]:
    return {"model": str(folder), "kv_cache_memory": 0.01}


@pytest.mark.parametrize("kind", SERVED)
def test_equals_generate(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path)
    oracle = Oracle(tmp_path)
    expected = [oracle.greedy(prompt, NEW_TOKENS) for prompt in PROMPTS]
    llm = LLM(**settings(tmp_path), chunk_tokens=7)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    for _ in range(2):
        found = llm.generate(PROMPTS, params, use_tqdm=False)
        assert [out.outputs[0].token_ids for out in found] == expected


REFUSED = {
    "kosmos-2.5": "its logits differ",  # its first token is not at position 0
    "deepseek_v32": "an index chooses the keys",
    "deepseek_v4": "an index chooses the keys",
    "glm_moe_dsa": "an index chooses the keys",
    "glm5_next": "an index chooses the keys",
    "qwen4_exp_text": "an index chooses the keys",
    "t5gemma2": "an encoder reads its prompts",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_at_start(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"is not supported: .*{REFUSED[kind]}"):
        load_model(ModelSettings(model=str(tmp_path), threads=1))


def test_a_context_that_the_position_table_does_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("whisper", tmp_path)
    loaded = load_model(ModelSettings(model=str(tmp_path), threads=1))
    assert loaded.info.max_length_tokens == 448
    monkeypatch.setattr(context, "CONTEXTS", ("max_position_embeddings",))
    with pytest.raises(UnsupportedModelError, match="no positions up to its context of 2048"):
        load_model(ModelSettings(model=str(tmp_path), threads=1))
    shorter = ModelSettings(model=str(tmp_path), threads=1, max_model_len=448)
    assert load_model(shorter).info.max_length_tokens == 448
