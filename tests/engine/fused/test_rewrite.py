"""A rewritten model computes what transformers' model computes; what is unknown stays."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from penstock.engine.attention.interface import NAME, register
from penstock.engine.model.fused import compiled
from penstock.engine.model.fused.attention import FusedAttention, FusedRotary, rotary_factors
from penstock.engine.model.fused.compiled import CompiledDecoder
from penstock.engine.model.fused.decoder import FusedDecoder, FusedLayer
from penstock.engine.model.fused.feed_forward import FusedFeedForward
from penstock.engine.model.fused.norms import FusedRMSNorm
from penstock.engine.model.fused.observe import DenseStep
from penstock.engine.model.fused.prepare import make_fused
from penstock.engine.model.fused.rewrite import RewriteError, rewrite
from penstock.engine.weights.float import FLOAT
from penstock.kernels.linear.native import NativeLinear
from penstock.kernels.native.library import Library, library
from tests.conftest import TinyModel
from tests.tiny import ARCHITECTURES, GQA, save_tiny

LAYERS = 3
WHOLE = ("llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "smollm3", "ernie4_5")
"""Nothing of transformers' own is left in their forward pass but embedding and rotary angles."""
ATTENTION = (*WHOLE, "qwen3_moe", "mixtral", "gemma2", "gemma3_text", "phi", "biogpt", "olmo2",
             "cohere", "granite", "starcoder2", "glm4", "exaone4")  # fmt: skip


def load(kind: str, tiny_model: TinyModel) -> Any:
    register()
    return AutoModelForCausalLM.from_pretrained(
        tiny_model(kind), attn_implementation=NAME, dtype=torch.float32
    ).eval()


@torch.inference_mode()
def logits(model: Any, tokens: int, keep: list[int]) -> Tensor:
    ids = torch.randint(0, 256, (1, tokens), generator=torch.Generator().manual_seed(1))
    return model(
        input_ids=ids,
        position_ids=torch.arange(100, 100 + tokens)[None],
        use_cache=False,
        logits_to_keep=torch.tensor(keep),
        penstock_step=DenseStep(),
    ).logits[0]


def kinds(model: nn.Module) -> Counter[type]:
    return Counter(type(module) for module in model.modules())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_stay(kind: str, tiny_model: TinyModel) -> None:
    model = load(kind, tiny_model)
    keep = [0, 3, 30]
    before = logits(model, 31, keep)
    after = logits(rewrite(model), 31, keep)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_is_recognised(kind: str, tiny_model: TinyModel) -> None:
    lean = rewrite(load(kind, tiny_model))
    assert kinds(lean)[FusedAttention] == LAYERS


@pytest.mark.parametrize("kind", WHOLE)
def test_common_decoders_are_rewritten_as_a_whole(kind: str, tiny_model: TinyModel) -> None:
    lean = rewrite(load(kind, tiny_model))
    found = kinds(lean)
    assert isinstance(lean, FusedDecoder)
    assert found[FusedLayer] == found[FusedFeedForward] == LAYERS
    assert found[FusedRMSNorm] >= 2 * LAYERS + 1
    left = {type(m).__name__ for m in lean.modules() if not _is_ours(m)}
    assert not {name for name in left if name.endswith(("Norm", "MLP", "Attention", "Layer"))}


UNUSUAL: dict[str, dict[str, Any]] = {
    # queries are scaled at far positions only
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "llama_4_scaling_beta": 0.5,
            "original_max_position_embeddings": 64,
        }
    },
    # queries, keys and values are cut off, but only large ones
    "olmo": {"clip_qkv": 4.0},
    # its rotary embedding wants to know the kind of layer
    "mellum": {},
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_six_small_tokens_do_not_show(kind: str, tmp_path: Path) -> None:
    register()
    folder = save_tiny(kind, tmp_path, GQA | UNUSUAL[kind])

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=NAME, dtype=torch.float32
        ).eval()

    before = logits(loaded(), 31, [0, 30])
    lean = make_fused(loaded(), FLOAT) or loaded()
    torch.testing.assert_close(logits(lean, 31, [0, 30]), before, atol=1e-4, rtol=1e-4)


def _plus(numbers: Iterator[int]) -> Callable[..., Tensor]:
    """A hook that adds the next number to what a module returns."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + next(numbers)

    return hook


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith("penstock.")


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama4_text"])
def test_what_is_not_recognised_stays(kind: str, tiny_model: TinyModel) -> None:
    model = load(kind, tiny_model)
    assert rewrite(model) is model
    assert not kinds(model)[FusedAttention]


def test_a_look_alike_is_left_alone(tiny_model: TinyModel) -> None:
    """Same parts, other arithmetic: the trial shows it."""
    model = load("llama", tiny_model)
    layer = model.model.layers[1]
    usual = layer.mlp.forward

    def halved(x: Tensor) -> Tensor:
        return usual(x) * 0.5

    layer.mlp.forward = halved
    model.model.layers[2].input_layernorm.register_forward_hook(_plus(repeat(1)))
    before = logits(model, 20, [19])
    lean = rewrite(model)
    assert kinds(lean)[FusedFeedForward] == LAYERS - 1
    torch.testing.assert_close(logits(lean, 20, [19]), before, atol=1e-4, rtol=1e-4)


def test_a_whole_that_differs_is_refused(tiny_model: TinyModel) -> None:
    model = load("gemma2", tiny_model)
    model.model.embed_tokens.register_forward_hook(_plus(count()))
    with pytest.raises(RewriteError, match="differ"):
        rewrite(model)


@pytest.mark.parametrize("kind", sorted(set(WHOLE) - {"gemma"}))  # its activation is another
def test_whole_decoders_are_compiled(kind: str, tiny_model: TinyModel) -> None:
    before = logits(load(kind, tiny_model), 31, [0, 3, 30])
    compiled = make_fused(load(kind, tiny_model), FLOAT)
    assert isinstance(compiled, CompiledDecoder)
    assert not kinds(compiled)[nn.Linear]
    torch.testing.assert_close(logits(compiled, 31, [0, 3, 30]), before, atol=1e-4, rtol=1e-4)


def test_a_compiled_decoder_answers_for_no_rows(tiny_model: TinyModel) -> None:
    """A step in which nobody wants logits."""
    compiled = make_fused(load("llama", tiny_model), FLOAT)
    assert logits(compiled, 5, []).shape[0] == 0


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "cohere", "qwen3_moe"])
def test_of_other_models_linear_layers_are_compiled(kind: str, tiny_model: TinyModel) -> None:
    before = logits(load(kind, tiny_model), 31, [0, 30])
    model = make_fused(load(kind, tiny_model), FLOAT)
    assert model is not None
    assert kinds(model)[NativeLinear]
    assert not kinds(model)[nn.Linear] + kinds(model)[Conv1D]
    torch.testing.assert_close(logits(model, 31, [0, 30]), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rope_type", ["default", "llama3", "yarn"])
def test_rotation_that_was_computed_once_is_the_same(rope_type: str, tmp_path: Path) -> None:
    """Also at positions beyond those that the table began with."""
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 10_000.0, "factor": 4.0}
    if rope_type == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 2048
    folder = save_tiny("llama", tmp_path, rope_parameters=rope, max_position_embeddings=8192)
    register()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=NAME).eval()
    inner = model.model.rotary_emb
    lean = FusedRotary(inner, inner(torch.zeros(1), torch.tensor([[3, 5]])))
    for positions in ([0, 1, 7], [3], [1500, 2, 8191], [4000]):
        at = torch.tensor([positions])
        expected = rotary_factors(*inner(torch.zeros(1), at))
        assert torch.equal(lean(torch.zeros(1), at)[0], expected)


def test_weights_are_let_go_while_a_decoder_is_compiled(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a layer is packed, those before it must be gone, or memory for two models is needed."""
    model = load("llama", tiny_model)
    build = library()
    assert isinstance(build, Library)
    lean: Any = rewrite(model)
    del model
    layers = [weakref.ref(layer) for layer in lean.layers]
    alive: list[int] = []
    weights = compiled._weights  # pyright: ignore[reportPrivateUsage]

    def counted(*args: Any) -> Any:
        gc.collect()
        alive.append(sum(layer() is not None for layer in layers))
        return weights(*args)

    monkeypatch.setattr(compiled, "_weights", counted)
    assert compiled.compiled_decoder(build, lean, FLOAT) is not None
    assert alive == [3, 2, 1]
