"""Packed and 8-bit linear layers against plain products."""

from itertools import count

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from penstock.kernels.linear.int8 import Int8Linear, fits, int_matmul, quantize_rows
from penstock.kernels.linear.packed import (
    KERNELS,
    PASSES,
    ROWS,
    Choice,
    PackedLinear,
    Times,
    choose,
    measure,
)

SHAPES = {"small": (48, 32), "odd": (37, 29), "wide": (512, 96)}
CHOICES: dict[str, Choice] = {
    "plain": ("plain",),
    "packed": ("packed",),
    "sliced": ("sliced",),
    "all": ("plain", "sliced", "packed"),
}


def weights(shape: tuple[int, int], *, bias: bool) -> tuple[Tensor, Tensor | None]:
    return torch.randn(shape), torch.randn(shape[0]) if bias else None


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 17, 100])
def test_packed_equals_plain(choice: Choice, shape: tuple[int, int], rows: int, bias: bool) -> None:
    weight, offset = weights(shape, bias=bias)
    x = torch.randn(2, rows, shape[1])[:1]
    with torch.inference_mode():
        found = PackedLinear(weight, offset, choice)(x)
    torch.testing.assert_close(found, linear(x, weight, offset), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "kernel"), [(1, "plain"), (2, "packed"), (3, "plain"), (4, "plain"), (5, "packed")]
)
def test_the_number_of_rows_picks_the_kernel(rows: int, kernel: str) -> None:
    layer = PackedLinear(torch.randn(8, 8), None, ("plain", "packed", "plain", "packed"))
    if kernel == "packed":
        layer.weight = None
    else:
        layer.packed = None
    for x in (torch.randn(rows, 8), torch.randn(1, rows, 8)):
        layer(x)  # fails where the layout that is gone is asked for


def test_only_the_chosen_layouts_are_kept() -> None:
    weight = torch.randn(8, 8)
    assert PackedLinear(weight, None, ("packed",)).weight is None
    both = PackedLinear(weight, None, ("plain", "sliced", "packed"))
    for kept in (both.weight, both.slices):  # two views of one memory
        assert kept is not None
        assert kept.data_ptr() == weight.data_ptr()


def test_the_fastest_kernel_is_chosen_for_each_number_of_rows() -> None:
    times_s: Times = {
        "plain": [1.0, 1.0, *[5.0] * 4],
        "sliced": [0.5, 1.5, *[6.0] * 4],
        "packed": [2.0] * 6,
    }
    assert choose(times_s, one_layout=False) == ("sliced", "plain", *["packed"] * 4)
    assert choose(times_s, one_layout=True) == ("packed",) * 6
    slow_packed: Times = {"plain": [1.0] * 6, "sliced": [0.9, *[2.0] * 5], "packed": [1.5] * 6}
    assert choose(slow_packed, one_layout=True) == ("sliced", *["plain"] * 5)


def test_every_kernel_is_timed_for_each_shape_and_number_of_rows() -> None:
    now = 0.0
    readings = count()

    def clock() -> float:
        """The n-th call that is timed, from 0, takes n seconds."""
        nonlocal now
        reading = next(readings)
        now += reading // 2 if reading % 2 else 0
        return now

    weights = [torch.randn(shape) for shape in ((16, 8), (8, 16), (16, 8))]
    found = measure(weights, clock=clock)
    assert list(found) == [(16, 8), (8, 16)]
    calls = len(weights) * PASSES  # of one kernel for one number of rows; the first are the best
    for shape, times_s in found.items():
        assert shape in ((16, 8), (8, 16))  # layers 0 and 2, and layer 1: the median is 1
        for number, kernel in enumerate(KERNELS):
            first = [calls * (len(KERNELS) * i + number) for i in range(len(ROWS))]
            assert times_s[kernel] == [1.0 + call for call in first]


def test_quantised_rows_come_back_within_half_a_step() -> None:
    rows = torch.randn(50, 64) * torch.logspace(-6, 6, 50)[:, None]
    values, scale = quantize_rows(rows)
    assert values.dtype == torch.int8
    assert int(values.abs().max()) == 127
    error = (values.float() * scale - rows).abs()
    assert bool((error <= 0.5001 * scale).all())


def test_a_row_of_zeros_stays_zero() -> None:
    values, scale = quantize_rows(torch.zeros(1, 16))
    assert not values.any()
    assert bool(torch.isfinite(scale).all())


@pytest.mark.parametrize("rows", [1, 2, 5, 17, 33])
def test_integer_products_are_exact(rows: int) -> None:
    x = torch.randint(-127, 128, (rows, 64), dtype=torch.int8)
    w = torch.randint(-127, 128, (48, 64), dtype=torch.int8).t()
    assert torch.equal(int_matmul(x, w), x.int() @ w.int())


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_int8_is_what_its_formula_says(dtype: torch.dtype, bias: bool) -> None:
    weight, offset = weights((48, 64), bias=bias)
    x = torch.randn(3, 7, 64, dtype=dtype)
    found = Int8Linear(weight, offset)(x)
    w_int, w_scale = quantize_rows(weight)
    x_int, x_scale = quantize_rows(x.reshape(-1, 64).float())
    products = x_int.double() @ w_int.double().t()
    expected = products * x_scale.double() * w_scale[:, 0].double()
    if offset is not None:
        expected = expected + offset
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(
        found.double(), expected.view(3, 7, 48), atol=tolerance, rtol=tolerance
    )


def test_int8_is_near_the_exact_product() -> None:
    weight, _ = weights((256, 512), bias=False)
    x = torch.randn(20, 512)
    exact = linear(x, weight)
    error = (Int8Linear(weight, None)(x) - exact).norm() / exact.norm()
    assert float(error) < 0.015


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    layer = Int8Linear(torch.randn(64, 96), torch.randn(64))
    x = torch.randn(40, 96) * torch.logspace(-3, 3, 40)[:, None]
    together = layer(x)
    for rows in (1, 3, 16):
        assert torch.equal(layer(x[:rows]), together[:rows])


def test_shapes_that_the_kernels_refuse_are_known() -> None:
    assert fits(torch.empty(32, 48))
    assert not fits(torch.empty(32, 40))
    assert not fits(torch.empty(33, 48))
