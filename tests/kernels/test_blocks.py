"""Weights in blocks: their numbers against the `gguf` package's, their products against float64."""

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.kernels.linear import blocks
from penstock.kernels.linear.blocks import (
    BLOCK_TYPES,
    FLOAT_TYPES,
    GGML_TYPES,
    QUANTISED,
    dequantise,
    quantise,
)
from penstock.kernels.linear.native import NativeEmbedding, NativeLinear, Packed, pack, pack_blocks
from penstock.kernels.linear.own_blocks import OWN_TYPES
from penstock.kernels.native.library import Library, Unavailable, builds
from tests.kernels.own_blocks import own_numbers, random_own

BUILDS = builds()[0]
each_build = pytest.mark.parametrize("build", BUILDS, ids=[build.name for build in BUILDS])
each_type = pytest.mark.parametrize("kind", BLOCK_TYPES)
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Where a block's scales are: any bit pattern is a legal block, but these should be finite."""
ROUNDED = [kind for kind in BLOCK_TYPES if kind in HALVES or kind.startswith("U")]
"""Types that are multiplied with rows in 8 bits; rows of others stay in float32."""


def random_blocks(kind: str, rows: int, inputs: int) -> Tensor:
    """uint8 `[rows, bytes of a row]`, every bit at random but those of scales."""
    of = BLOCK_TYPES[kind]
    if kind in OWN_TYPES:
        return random_own(kind, rows, inputs)
    if kind in FLOAT_TYPES:
        numbers = torch.randn(rows, inputs).to(FLOAT_TYPES[kind])
        return numbers.view(torch.uint8)
    raw = torch.randint(0, 256, (rows, inputs // of.inputs, of.bytes), dtype=torch.uint8)
    for at in HALVES[kind]:
        scale = (torch.randn(rows, inputs // of.inputs) / 100).half()
        raw[:, :, at : at + 2] = scale[:, :, None].view(torch.uint8)
    return raw.flatten(1)


def reference(raw: Tensor, kind: str) -> Tensor:
    if kind in OWN_TYPES:
        return own_numbers(raw, kind)
    found = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(found))


def packed(build: Library, raw: Tensor, kind: str, bias: Tensor | None = None) -> Packed:
    inputs = raw.shape[1] // BLOCK_TYPES[kind].bytes * BLOCK_TYPES[kind].inputs
    return Packed(build, [pack_blocks(build, raw, kind)], bias, inputs=inputs)


@pytest.mark.parametrize("kind", GGML_TYPES)
def test_sizes_are_those_of_ggml(kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    of = BLOCK_TYPES[kind]
    assert of.number == number
    assert (of.inputs, of.bytes) == gguf.GGML_QUANT_SIZES[number]


@each_type
def test_numbers_equal_the_package_to_the_bit(kind: str) -> None:
    raw = random_blocks(kind, 40, 1024)
    assert torch.equal(dequantise(raw, kind), reference(raw, kind))


@each_type
def test_numbers_without_compiled_code(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "library", lambda: Unavailable("in a test"))
    raw = random_blocks(kind, 5, 512)
    assert torch.equal(dequantise(raw, kind), reference(raw, kind))


@each_build
@each_type
@pytest.mark.parametrize("outputs", [1, 33, 96])
def test_a_layout_holds_the_very_numbers(build: Library, kind: str, outputs: int) -> None:
    raw = random_blocks(kind, outputs, 512)
    table = NativeEmbedding(build, packed(build, raw, kind))
    ids = torch.randperm(outputs)
    assert torch.equal(table(ids), reference(raw, kind)[ids])
    with pytest.raises(IndexError):
        table(torch.tensor([outputs]))


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits with a scale for every 32 inputs, as numbers; and half a step of each."""
    parts = x.double().unflatten(1, (-1, 32))
    step = parts.abs().amax(dim=2, keepdim=True) / 127
    values = (parts / step.clamp(min=1e-300)).round() * step
    return values.flatten(1), step.expand_as(parts).flatten(1) / 2


@each_build
@each_type
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 6, 7, 12, 13, 40])
def test_products_equal_exact_ones(build: Library, kind: str, rows: int) -> None:
    """Of the blocks' numbers and of rows in 8 bits (of floats: of the rows as they are)."""
    raw, bias = random_blocks(kind, 70, 1280), torch.randn(70)
    x = torch.randn(rows, 1280) * torch.logspace(-2, 2, 1280)
    weight = reference(raw, kind).double()
    given, half_step = rounded(x) if kind in ROUNDED else (x.double(), 0 * x)
    out = NativeLinear(build, packed(build, raw, kind, bias))(x)
    exact = given @ weight.T + bias.double()
    # Sums of 40 blocks, each rounded; and values that are nearly a tie are rounded to either side.
    error = 2.0**-24 * 300 * (given.abs() @ weight.abs().T + 1)
    if kind in ROUNDED:
        error += 2e-5 * half_step.double() @ weight.abs().T * 2
        offset = weight.abs().amax()  # scale x u and least may nearly cancel each other
        error += 2.0**-24 * 40 * 300 * given.abs().sum(1, keepdim=True) * offset / 128
    assert ((out - exact).abs() <= error).all()


@each_build
@each_type
def test_a_row_has_the_same_bits_alone(build: Library, kind: str) -> None:
    layer = NativeLinear(
        build, packed(build, random_blocks(kind, 100, 512), kind, torch.randn(100))
    )
    x = torch.randn(60, 512)
    together = layer(x)
    torch.set_num_threads(3)
    layer = NativeLinear(build, layer.packed)
    for count in (1, 2, 7, 12, 25):
        assert torch.equal(layer(x[:count]), together[:count])
        assert torch.equal(layer(x[-count:]), together[-count:])


@each_build
@pytest.mark.parametrize("kind", [kind for kind in OWN_TYPES if kind not in ROUNDED])
@pytest.mark.parametrize("inputs", [128, 256, 640, 1024])
@pytest.mark.parametrize("rows", [1, 3, 5, 12, 30])
def test_codes_give_the_bits_of_float32(build: Library, kind: str, inputs: int, rows: int) -> None:
    raw, x = random_blocks(kind, 70, inputs), torch.randn(rows, inputs)
    expected = NativeLinear(build, pack(build, reference(raw, kind), None))(x)
    assert torch.equal(NativeLinear(build, packed(build, raw, kind))(x), expected)


@each_build
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 12, 30])
def test_floats_of_16_bits_give_the_bits_of_float32(
    build: Library, dtype: torch.dtype, rows: int
) -> None:
    weight = (torch.randn(70, 700) * torch.logspace(-9, 3, 700)).to(dtype).float()
    weight[3, :6] = torch.tensor([0.0, -0.0, 65504.0, -(2.0**-24), 2.0**-14, 1.0]).to(dtype).float()
    x = torch.randn(rows, 700)
    small = pack(build, weight, None)
    assert small.stored_bytes == 2 * build.call.packed_size(70, 700)
    other = weight.clone()
    other[69, 699] = 1 + 2.0**-20  # no number of 16 bits: the layer is kept in float32
    wide = pack(build, other, None)
    assert wide.stored_bytes == 4 * build.call.packed_size(70, 700)
    expected, found = NativeLinear(build, wide)(x), NativeLinear(build, small)(x)
    assert torch.equal(found[:, :69], expected[:, :69])
    assert torch.equal(NativeEmbedding(build, small)(torch.arange(70)), weight)


@each_build
def test_parts_of_several_kinds_are_one_layer(build: Library) -> None:
    kinds, sizes = ("Q4_K", "U4_F32", "E4M3_128", "BF16"), (64, 32, 64, 17)
    raws = [random_blocks(kind, size, 512) for kind, size in zip(kinds, sizes, strict=True)]
    each = [pack_blocks(build, raw, kind) for raw, kind in zip(raws, kinds, strict=True)]
    bias, x = torch.randn(177), torch.randn(9, 512)
    together = NativeLinear(build, Packed(build, each, bias, inputs=512))(x)
    alone = [NativeLinear(build, packed(build, *pair))(x) for pair in zip(raws, kinds, strict=True)]
    assert torch.equal(together, torch.cat(alone, dim=1) + bias)
    numbers = torch.cat([reference(*pair) for pair in zip(raws, kinds, strict=True)])
    table = NativeEmbedding(build, Packed(build, each, None, inputs=512))
    assert torch.equal(table(torch.arange(177)), numbers)


@each_build
@pytest.mark.parametrize("kind", ["Q4_0", "U8_F32"])
@pytest.mark.parametrize("rows", [1, 30])
def test_columns_in_another_order(build: Library, kind: str, rows: int) -> None:
    raw, x, order = random_blocks(kind, 70, 512), torch.randn(rows, 512), torch.randperm(512)
    plain = packed(build, raw, kind)
    parts = [pack_blocks(build, raw, kind)]
    ordered = Packed(build, parts, None, inputs=512, order=order.int())
    assert torch.equal(NativeLinear(build, ordered)(x), NativeLinear(build, plain)(x[:, order]))
    table = NativeEmbedding(build, ordered)(torch.arange(70))
    assert torch.equal(table[:, order], reference(raw, kind))


@each_build
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(build: Library, bad: float) -> None:
    """Else a request whose activations overflow would get an answer."""
    layer = NativeLinear(build, packed(build, random_blocks("Q4_0", 40, 64), "Q4_0"))
    x = torch.randn(3, 64)
    x[1, 40] = bad
    out = layer(x)
    assert not torch.isfinite(out[1]).any()
    assert torch.isfinite(out[[0, 2]]).all()
    x[1] = 0.0
    assert torch.equal(layer(x)[1], torch.zeros(40))


def test_every_type_has_a_layout() -> None:
    for build in BUILDS:
        for kind in BLOCK_TYPES.keys() - FLOAT_TYPES.keys():
            assert build.call.block_layout(BLOCK_TYPES[kind].number) >= 0
        assert build.call.block_layout(99) == -1


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "package"])
def test_quantised_weights_are_near(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No further than half a step of a block's range; compiled code finds better ones than that."""
    weight = torch.randn(64, 512) * torch.logspace(-6, 3, 64)[:, None]
    plain = torch.from_numpy(
        gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[QUANTISED])
    )
    error = (reference(plain, QUANTISED) - weight).square().mean(dim=1)
    if not compiled:
        monkeypatch.setattr(blocks, "library", lambda: Unavailable("in a test"))
    found = (reference(quantise(weight), QUANTISED) - weight).square().mean(dim=1)
    assert bool((found <= (0.9 if compiled else 1.0) * error).all())


@pytest.mark.parametrize("value", [0.0, 3.25, -7.5, 1e-30, 65504.0])
def test_equal_weights_stay_equal(value: float) -> None:
    found = reference(quantise(torch.full((3, 64), value)), QUANTISED)
    assert torch.equal(found, torch.full((3, 64), value).half().float())


def test_weights_beyond_half_precision_end_at_its_largest() -> None:
    weight = torch.tensor([[1e6, -1e6] * 32])
    found = reference(quantise(weight), QUANTISED)
    assert torch.isfinite(found).all()
