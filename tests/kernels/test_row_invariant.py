"""Rows have the same bits alone and among others, and are what float64 says."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")

from penstock.kernels.row_invariant import mode
from penstock.kernels.row_invariant.mode import NoRuleError, RowInvariant
from penstock.kernels.row_invariant.triton import matmul, row_cumsum, row_sum

ROWS, SIZE = 70, 200
TYPES = [torch.float32, torch.float16]  # of bfloat16 the interpreter computes no products
GPU_TYPES = [torch.float32, torch.float16, torch.bfloat16]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(
        device, dtype
    )


def _expected(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    found = x.double() @ w.double()
    return found if bias is None else found + bias.double()


def check_product(dtype: torch.dtype, device: str) -> None:
    x, w = (drawn(*s, dtype=dtype, device=device) for s in ((ROWS, SIZE), (90, SIZE)))
    bias = drawn(90, dtype=dtype, device=device)
    for added in (None, bias):
        whole = matmul(x, w.t(), added)
        expected = _expected(x, w.t(), added)
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(whole.double(), expected, rtol=tolerance, atol=tolerance)
        for begin, end in ((0, 1), (69, 70), (3, 20), (0, 65)):
            assert torch.equal(matmul(x[begin:end], w.t(), added), whole[begin:end])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_products(dtype: torch.dtype) -> None:
    check_product(dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_TYPES, ids=str)
def test_products_on_a_gpu(dtype: torch.dtype) -> None:
    check_product(dtype, "cuda")


def test_batches_of_products() -> None:
    x, w, bias = drawn(3, 5, 40), drawn(3, 40, 33), drawn(3, 1, 33)
    found = matmul(x, w.transpose(1, 2).contiguous().transpose(1, 2), bias)
    torch.testing.assert_close(found.double(), _expected(x, w, bias), rtol=1e-4, atol=1e-4)
    assert matmul(x[:, :0], w).shape == (3, 0, 33)


def check_sums(dtype: torch.dtype, device: str) -> None:
    x = drawn(9, 2500, dtype=dtype, device=device)
    torch.testing.assert_close(row_sum(x).double(), x.double().sum(1), rtol=1e-3, atol=1e-3)
    along = row_cumsum(x)
    torch.testing.assert_close(along.double(), x.double().cumsum(1), rtol=1e-3, atol=1e-3)
    assert torch.equal(row_sum(x[4:5]), row_sum(x)[4:5])
    assert torch.equal(row_cumsum(x[4:5]), along[4:5])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_sums(dtype: torch.dtype) -> None:
    check_sums(dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_TYPES, ids=str)
def test_sums_on_a_gpu(dtype: torch.dtype) -> None:
    check_sums(dtype, "cuda")


WEIGHT, BIAS = drawn(24, 24), drawn(24)
OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "linear": lambda x: F.linear(x, WEIGHT, BIAS),
    "matmul": lambda x: x @ WEIGHT,
    "batched": lambda x: x.view(-1, 2, 12) @ drawn(12, 7),
    "each with its own": lambda x: x.view(-1, 4, 6) @ x.view(-1, 6, 4),
    "addmm": lambda x: torch.addmm(BIAS, x, WEIGHT, alpha=2.0, beta=0.5),
    "einsum": lambda x: torch.einsum("rk,nk->rn", x, WEIGHT),
    "mean": lambda x: x.pow(2).mean(-1, keepdim=True),
    "sum": lambda x: x.sum(-1),
    "sum of the middle": lambda x: x.view(-1, 4, 6).sum(1),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "logsumexp": lambda x: torch.where(x > 2, float("-inf"), x).logsumexp(-1, keepdim=True),
    "cumsum": lambda x: x.exp().cumsum(-1),
    "layer_norm": lambda x: F.layer_norm(x, [24], WEIGHT[0], BIAS),
    "rms_norm": lambda x: F.rms_norm(x, [24], BIAS, 1e-6),
    "norm": lambda x: cast("Tensor", x.norm(dim=-1)),
    "inner": lambda x: torch.inner(x, WEIGHT),
    "tensordot": lambda x: cast("Any", torch).tensordot(x, WEIGHT, dims=1),
    "whole numbers": lambda x: (x > 0).sum(-1),
    "largest": lambda x: cast("Any", torch.linalg).vector_norm(
        x, ord=float("inf"), dim=-1, keepdim=True
    ),
}
WITHOUT_SUMS = {"whole numbers", "largest"}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_torchs_operations_in_the_mode(
    name: str, inference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = list[str]()
    for kernel in (matmul, row_sum, row_cumsum):
        monkeypatch.setattr(mode, kernel.__name__, _noting(kernel, launched))
        for func, rule in mode._RULES.items():  # pyright: ignore[reportPrivateUsage]
            if rule is kernel:
                rules: Any = mode._RULES  # pyright: ignore[reportPrivateUsage]
                monkeypatch.setitem(rules, func, _noting(kernel, launched))
    operation, x = OPERATIONS[name], drawn(12, 24)
    with torch.inference_mode(inference), torch.no_grad():
        with RowInvariant():
            whole, part = operation(x), operation(x[5:7])
        assert bool(launched) == (name not in WITHOUT_SUMS)
        launched.clear()
        expected = operation(x)
        assert not launched
    assert torch.equal(whole[5:7], part)
    assert whole.shape == expected.shape
    assert whole.dtype == expected.dtype
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)


def _noting(kernel: Callable[..., Tensor], launched: list[str]) -> Callable[..., Tensor]:
    def noted(*args: Any, **how: Any) -> Tensor:
        launched.append(kernel.__name__)
        return kernel(*args, **how)

    return noted


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_rows_that_are_not_there(inference: bool) -> None:
    x = drawn(0, 24)
    with torch.inference_mode(inference), torch.no_grad(), RowInvariant():
        for found in (x.mean(-1, keepdim=True), F.layer_norm(x, [24]), x.softmax(-1)):
            assert found.shape[0] == 0
        assert x.cumsum(-1).shape == (0, 24)
        assert F.linear(x, WEIGHT).shape == (0, 24)


def test_half_precision_gives_the_type_that_torch_gives() -> None:
    x = drawn(3, 24, dtype=torch.float16)
    with torch.no_grad(), RowInvariant():
        assert x.softmax(-1).dtype == torch.float16
        assert x.softmax(-1, dtype=torch.float32).dtype == torch.float32
        assert torch.ops.aten._softmax(x, -1, True).dtype == torch.float32


def test_experts() -> None:
    x, w = drawn(10, 16, dtype=torch.bfloat16), drawn(3, 16, 16, dtype=torch.bfloat16)
    ends = torch.tensor([4, 4, 10], dtype=torch.int32)
    with RowInvariant(), torch.no_grad():
        # float32, in which the interpreter multiplies
        found = torch.ops.aten._grouped_mm(x.float(), w.float(), ends)
    expected = torch.cat([x[:4].float() @ w[0].float(), x[4:].float() @ w[2].float()])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "var": lambda x: x.var(-1),
    "in place": lambda x: x.cumsum_(-1),
    "into a tensor": lambda x: torch.mm(x, x.t(), out=x.new_empty(4, 4)),
    "added to": lambda x: x.new_zeros(4, 4).addmm_(x, x.t()),
    "vector": lambda x: x @ x[0],
    "norm of order 1": lambda x: cast("Any", torch.linalg).vector_norm(x, ord=1, dim=-1),
    "convolution": lambda x: F.conv1d(x[None], x.new_ones(4, 4, 1)),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_what_has_no_rule_is_refused(name: str, inference: bool) -> None:
    with torch.inference_mode(inference), torch.no_grad():
        x = drawn(4, 8)
        with RowInvariant(), pytest.raises(NoRuleError):
            REFUSED[name](x)
