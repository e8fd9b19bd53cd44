"""Linear layers in 8 bits, in torch, against plain products."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from penstock.kernels.linear.int8 import Int8Linear, fits, int_matmul, quantize_rows


def weights(shape: tuple[int, int], *, bias: bool) -> tuple[Tensor, Tensor | None]:
    return torch.randn(shape), torch.randn(shape[0]) if bias else None


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


def test_sums_stay_within_32_bits() -> None:
    """The largest products that are taken, all of one sign; longer ones are not."""
    inputs = (2**31 - 1) // 127**2 // 16 * 16
    assert fits(torch.empty(16, inputs, device="meta"))
    assert not fits(torch.empty(16, inputs + 16, device="meta"))
    x, w = (torch.full(shape, 127, dtype=torch.int8) for shape in ((1, inputs), (16, inputs)))
    assert int_matmul(x, w.t()).tolist() == [[127**2 * inputs] * 16]
