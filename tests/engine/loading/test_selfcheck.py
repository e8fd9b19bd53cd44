"""What only longer contexts show is seen at start.

The kind: an architecture that is as ours up to a number in its config: it compresses, chooses or
cuts keys once there are enough of them, and a short prompt equals the reference.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from penstock.engine.config import EngineConfig
from penstock.engine.loading import selfcheck
from penstock.engine.loading.loader import load_model
from penstock.errors import UnsupportedModelError
from tests.conftest import TinyModel
from tests.tiny import COMMON, byte_tokenizer, enlarge_weights

MOE = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
INDEXED = {"index_topk": 8, "index_n_heads": 2, "index_head_dim": 16}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
SELECTING: dict[str, dict[str, Any]] = {
    "deepseek_v4": {
        **COMMON,
        **MOE,
        **INDEXED,
        "head_dim": 16,
        "q_lora_rank": 16,
        "o_lora_rank": 16,
        "o_groups": 2,
        "sliding_window": 24,
        "bos_token_id": 0,
    },
    "deepseek_v32": {**COMMON, **MOE, **INDEXED, **LATENT, "n_group": 1, "topk_group": 1},
    "glm_moe_dsa": {**COMMON, **MOE, **INDEXED, **LATENT, "n_group": 1, "topk_group": 1},
}


@pytest.mark.parametrize("kind", SELECTING)
def test_architectures_that_choose_among_keys_are_refused(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, **SELECTING[kind])
    model = AutoModelForCausalLM.from_config(config)
    enlarge_weights(model)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"'{kind}' is not supported"):
        load_model(EngineConfig(model=str(tmp_path), threads=1))


def test_the_prompt_reaches_beyond_the_numbers_of_the_config(tiny_model: TinyModel) -> None:
    found = {
        kind: selfcheck.prompt_tokens(model, model.config, 512)
        for kind in ("llama", "mistral", "gpt_oss")
        for model in [AutoModelForCausalLM.from_pretrained(tiny_model(kind))]
    }
    assert found == {"llama": 40, "mistral": 40, "gpt_oss": 40}
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model("mistral"))
    for number, expected in ((100, 109), (600, 512), (None, 40)):
        model.config.sliding_window = number
        # Never beyond the context, nor where that would take minutes.
        assert selfcheck.prompt_tokens(model, model.config, 512) == (
            expected if number != 600 else 40
        )


@contextmanager
def attention_that_forgets(after: int) -> Generator[None]:
    """An architecture whose own attention sees no more than so many keys, in a mask of its own."""
    from transformers.models.llama import modeling_llama

    right = modeling_llama.eager_attention_forward

    def forgetful(module: Any, query: Any, key: Any, value: Any, mask: Any, **rest: Any) -> Any:
        rows, keys = query.shape[2], key.shape[2]
        far = torch.ones(rows, keys, dtype=torch.bool).tril(-after)
        return right(module, query, key, value, mask.masked_fill(far, -1e9), **rest)

    modeling_llama.eager_attention_forward = forgetful
    try:
        yield
    finally:
        modeling_llama.eager_attention_forward = right


def test_a_difference_that_begins_late_is_found(tiny_model: TinyModel, tmp_path: Path) -> None:
    from tests.twists import config, twisted

    folder = twisted(tiny_model("llama"), tmp_path, config(block_size=120))
    with attention_that_forgets(after=120):
        with pytest.raises(UnsupportedModelError, match=r"its logits differ.* of 129\)"):
            load_model(EngineConfig(model=str(folder), threads=1))
        load_model(EngineConfig(model=str(tiny_model("llama")), threads=1))  # nothing tells
