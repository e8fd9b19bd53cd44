"""Weights in blocks: rows move as they are packed, and all else is done with their numbers."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from penstock.engine.loading.checkpoint import FolderCheckpoint
from penstock.engine.weights.blocks import BlockLinear, BlockTensor, Rows, pack_numbers, spread
from penstock.engine.weights.int4 import INT4
from penstock.errors import ConfigurationError
from penstock.kernels.linear.blocks import FLOAT_TYPES
from penstock.kernels.linear.native import NativeLinear
from penstock.kernels.native.library import Library, library
from tests.conftest import TinyModel
from tests.kernels.test_blocks import random_blocks

INPUTS = 512


def packed(*kinds: str, rows: int = 40) -> BlockTensor:
    return BlockTensor([Rows(random_blocks(kind, rows, INPUTS), kind) for kind in kinds])


def kinds(tensor: Tensor) -> list[tuple[str, int]]:
    assert isinstance(tensor, BlockTensor)
    return [(part.kind, part.raw.shape[0]) for part in tensor.parts]


def test_rows_stay_packed_wherever_they_go() -> None:
    weight = packed("Q4_K", "Q6_K", "BF16")
    numbers = weight.dequantise()
    assert (weight.shape, weight.dtype) == ((120, INPUTS), torch.float32)
    for index in (torch.randperm(120), torch.arange(0, 120, 7), torch.tensor([-1, 119, 3, 3])):
        assert torch.equal(weight[index], numbers[index])
    assert kinds(weight[torch.tensor([1, 2, 50, 90, 3])]) == [
        ("Q4_K", 2), ("Q6_K", 1), ("BF16", 1), ("Q4_K", 1),
    ]  # fmt: skip
    assert torch.equal(weight[30:90:3], numbers[30:90:3])
    assert kinds(weight[30:50]) == [("Q4_K", 10), ("Q6_K", 10)]
    first, *others = weight.split([10, 60, 50])
    assert kinds(first) == [("Q4_K", 10)]
    assert torch.equal(torch.cat([first, *others]), numbers)
    assert kinds(torch.cat([first, *others])) == kinds(weight), "neighbours of one kind are one"
    both = torch.cat([packed("Q4_0"), packed("Q4_0")])
    assert kinds(both) == [("Q4_0", 80)]


def test_an_order_of_columns_goes_with_the_rows() -> None:
    orders = [torch.randperm(INPUTS).int() for _ in range(2)]
    raw = random_blocks("Q4_0", 64, INPUTS)
    plain = BlockTensor.of(raw, "Q4_0").dequantise()
    one, other = (BlockTensor.of(raw, "Q4_0", order) for order in orders)
    numbers = one.dequantise()
    assert torch.equal(numbers[:, orders[0]], plain)
    together = torch.cat([one[torch.arange(5, 40)], one])
    assert kinds(together) == [("Q4_0", 99)]
    assert torch.equal(together, torch.cat([numbers[5:40], numbers]))
    apart = torch.cat([one, other])
    assert isinstance(apart, BlockTensor)
    assert kinds(apart) == [("Q4_0", 64), ("Q4_0", 64)]
    x = torch.randn(3, INPUTS)
    torch.testing.assert_close(BlockLinear(apart, None)(x), linear(x, apart.dequantise()))
    found = library()
    assert isinstance(found, Library)
    assert pack_numbers(found, one, None).in_blocks
    mixed = pack_numbers(found, apart, None)
    assert not mixed.in_blocks, "rows have one order"
    torch.testing.assert_close(NativeLinear(found, mixed)(x), linear(x, apart.dequantise()))


def test_all_else_is_done_with_the_numbers() -> None:
    weight = packed("Q8_0", "Q4_1")
    numbers = weight.dequantise()
    assert torch.equal(weight * 2 + 1, numbers * 2 + 1)
    assert torch.equal(weight.t(), numbers.t())
    assert torch.equal(torch.cat([weight, torch.zeros(3, INPUTS)])[:80], numbers)
    assert torch.equal(torch.cat([weight, weight], dim=1)[:, INPUTS:], numbers)
    assert torch.isfinite(weight).all()
    assert type(weight.sum(0)) is Tensor
    with torch.inference_mode():
        assert torch.equal(torch.cat(weight.split(33)), numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [40, 3000])
def test_products(rows: int, dtype: torch.dtype) -> None:
    weight, bias = packed("Q4_K", "Q8_0", rows=rows), torch.randn(2 * rows).to(dtype)
    numbers, x = weight.dequantise().to(dtype), torch.randn(2, 3, INPUTS).to(dtype)
    exact = linear(x, numbers, bias)
    found = BlockLinear(weight, bias)(x)
    assert found.dtype == dtype
    bound = 1e-4 if dtype == torch.float32 else 0.05  # bfloat16 is rounded once more
    torch.testing.assert_close(found, exact, atol=bound, rtol=bound)
    if dtype == torch.float32:
        assert torch.equal(linear(x, weight, bias), found)


def test_an_embedding_reads_the_rows_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    table = packed("Q6_K", "Q4_K")
    numbers, ids = table.dequantise(), torch.tensor([[3, 79, 3], [40, 0, 41]])
    expected = embedding(ids, numbers)
    asked: list[int] = []
    dequantise = BlockTensor.dequantise

    def noted(self: BlockTensor) -> Tensor:
        asked.append(self.shape[0])
        return dequantise(self)

    monkeypatch.setattr(BlockTensor, "dequantise", noted)
    assert torch.equal(embedding(ids, table), expected)
    assert asked == [ids.numel()]


def test_wrong_blocks_are_refused() -> None:
    for raw, kind in (
        (torch.zeros(2, 18, dtype=torch.uint8), "IQ2_XXS"),
        (torch.zeros(2, 19, dtype=torch.uint8), "Q4_0"),
        (torch.zeros(36, dtype=torch.uint8), "Q4_0"),
        (torch.zeros(2, 18), "Q4_0"),
    ):
        with pytest.raises(ValueError, match=kind):
            BlockTensor.of(raw, kind)


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(packed("Q4_0"), requires_grad=False)
        self.table = nn.Embedding(40, INPUTS)
        self.table.weight = nn.Parameter(packed("Q4_0"), requires_grad=False)


def test_weights_of_unknown_modules_become_numbers() -> None:
    """They would be dequantised in every step."""
    model = Router()
    numbers = model.weight.dequantise()  # pyright: ignore
    spread(model)
    assert type(model.weight) is nn.Parameter
    assert torch.equal(model.weight, numbers)
    assert isinstance(model.table.weight, BlockTensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_in_16_bits_stays_in_its_file(
    dtype: torch.dtype, tiny_model: TinyModel, tmp_path: Path
) -> None:
    copytree(tiny_model("llama"), tmp_path, dirs_exist_ok=True)
    checkpoint = FolderCheckpoint(tmp_path, "tiny")
    assert checkpoint.tensors(torch.float32, packed=FLOAT_TYPES) is None, "they are in float32"
    stored = load_file(tmp_path / "model.safetensors")
    narrow = {name: tensor.to(dtype) for name, tensor in stored.items()}
    save_file(narrow, tmp_path / "model.safetensors", {"format": "pt"})
    assert checkpoint.tensors(torch.float32, packed=()) is None
    found = checkpoint.tensors(torch.float32, packed=FLOAT_TYPES)
    assert found is not None
    for name, tensor in narrow.items():
        assert isinstance(found[name], BlockTensor) == (tensor.ndim == 2)
        assert torch.equal(found[name], tensor.float())
        assert found[name].dtype == torch.float32
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert checkpoint.tensors(torch.float32, packed=FLOAT_TYPES) is None, "its numbers need scales"


def test_int4_is_for_cpus() -> None:
    with pytest.raises(ConfigurationError, match="for CPUs"):
        INT4.linear(torch.empty(8, 32, device="meta"), None, None)
