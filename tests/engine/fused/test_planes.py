"""A model whose layers keep their blocks computes what the dequantised one does.

In the interpreter; `make gpu` runs the products on a GPU (tests/kernels).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

pytest.importorskip("triton")

from penstock.engine.model.fused.planes import count_weights, take_planes
from penstock.engine.model.memory import weights_bytes
from penstock.engine.weights.blocks import BlockTensor
from penstock.engine.weights.planes import PlaneLinear
from penstock.kernels.linear.blocks import quantise
from tests.tiny import save_tiny

IDS = torch.tensor([[5, 7, 9, 11, 40, 3]])


def blocks_of(model: Any, order: Tensor | None = None) -> dict[str, Tensor]:
    """Blocks for every matrix; the model's numbers become those of the blocks."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2:
            continue
        block = BlockTensor.of(quantise(parameter), "Q4_1", order)
        parameter.data = block.dequantise()
        found[name] = block
    return found


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("planes")
    return {kind: save_tiny(kind, root / kind) for kind in ("llama", "qwen2", "gpt2")}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_logits(folders: Mapping[str, Path], kind: str, dtype: torch.dtype) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32)
    blocks = blocks_of(model)
    count, size = count_weights(model), weights_bytes(model)
    model = model.to(dtype)
    expected = logits(model)
    assert take_planes(model, blocks) == 3 * 7 + 1
    model = model.to("cpu")
    assert count_weights(model) == count
    assert weights_bytes(model) < size / 2
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(logits(model), expected, rtol=tolerance, atol=tolerance)


def test_inputs_in_another_order(folders: Mapping[str, Path]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32)
    torch.manual_seed(3)
    layer = model.model.layers[0].self_attn.q_proj
    order = torch.randperm(layer.in_features).int()
    block = BlockTensor.of(quantise(layer.weight), "Q4_1", order)
    layer.weight.data = block.dequantise()
    expected = logits(model)
    assert take_planes(model, {"model.layers.0.self_attn.q_proj.weight": block}) == 1
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_planes_keep_their_types(folders: Mapping[str, Path]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folders["qwen2"], dtype=torch.float32)
    take_planes(model, blocks_of(model))
    before = weights_bytes(model)
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, PlaneLinear)
    assert layer.bias is not None
    model.half()
    assert layer.bias.dtype == torch.float16
    assert before - weights_bytes(model) == sum(
        2 * each.numel() for each in (*model.parameters(), *model.buffers())
    )


def test_other_layers_stay(folders: Mapping[str, Path]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folders["gpt2"], dtype=torch.float32)
    expected = logits(model)
    assert take_planes(model, {"transformer.h.0.attn.c_attn.weight": torch.zeros(2, 2)}) == 0
    assert torch.equal(logits(model), expected)
