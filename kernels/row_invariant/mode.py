"""A mode in which torch's sums and products over rows go to `row_invariant`'s kernels.

Inside `RowInvariant()` whatever adds up elements is caught where torch dispatches it, so that a
model's own code stays as it is. Other operations that are known to add up are refused.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .triton import matmul, row_cumsum, row_sum

_FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
_aten: Any = torch.ops.aten


class NoRuleError(NotImplementedError):
    """An operation that adds up, for which there is no rule."""


class RowInvariant(TorchDispatchMode):
    """A row's results then have the same bits whatever rows are computed beside it.

    For float32, float16 and bfloat16; the order of sums of whole numbers does not matter.
    Raises NoRuleError where a model uses something that adds up in another way.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _has_floats(args):
            return func(*args, **kwargs)
        rule = _RULES.get(func)
        if rule is not None:
            return rule(*args, **kwargs)
        with self:  # what is made of other operations is caught as those
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
        if _name(func) in _REFUSED:
            raise NoRuleError(f"{func} adds up in an order that depends on how many rows there are")
        return func(*args, **kwargs)


def _has_floats(args: tuple[Any, ...]) -> bool:
    return any(
        each.dtype in _FLOATS if isinstance(each, Tensor) else _has_floats(tuple(each))
        for each in args
        if isinstance(each, (Tensor, list, tuple))
    )


def _name(func: Any) -> str:
    """Of an operation, whichever of its forms it is: `aten.cumsum_.default` is "cumsum"."""
    return func.overloadpacket.__name__.removesuffix("_")


def _linear(x: Tensor, w_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    found = matmul(x.reshape(-1, x.shape[-1]), w_NK.t(), bias_N)
    return found.view(*x.shape[:-1], w_NK.shape[0])


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    if x.ndim == 1 or y.ndim == 1:
        raise NoRuleError("a product with a vector")
    if y.ndim == 2:
        return matmul(x.reshape(-1, x.shape[-1]), y).view(*x.shape[:-1], y.shape[1])
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    left, right = (each.expand(*batch, *each.shape[-2:]) for each in (x, y))
    found = matmul(left.flatten(0, -3), right.flatten(0, -3))
    return found.view(*batch, x.shape[-2], y.shape[-1])


def _addmm(bias: Tensor, x: Tensor, w: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    if alpha == beta == 1:
        return matmul(x, w, bias)
    return matmul(x, w) * alpha + bias * beta


def _grouped(
    x_MK: Tensor,
    w_EKN: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Rows `[offs[e - 1], offs[e])` times expert e's matrix; reads `offs` on the host."""
    if offs is None or bias is not None or x_MK.ndim != 2 or w_EKN.ndim != 3:
        raise NoRuleError("a grouped product of this form")
    ends: list[int] = offs.tolist()
    found = x_MK.new_zeros(x_MK.shape[0], w_EKN.shape[2], dtype=out_dtype)
    for expert, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        found[begin:end] = matmul(x_MK[begin:end], w_EKN[expert])
    return found


def _sum(
    x: Tensor,
    dims: Sequence[int] | int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    dims = _all_of(x, dims)
    kept = [dim for dim in range(x.ndim) if dim not in dims]
    count, size = (math.prod(x.shape[dim] for dim in of) for of in (kept, dims))
    rows = x.permute(*kept, *dims).reshape(count, size)
    shape = [
        1 if dim in dims else size for dim, size in enumerate(x.shape) if keepdim or dim in kept
    ]
    return row_sum(rows).view(shape).to(dtype or x.dtype)


def _mean(
    x: Tensor,
    dims: Sequence[int] | int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    count = math.prod(x.shape[dim] for dim in _all_of(x, dims))
    found = _sum(x, dims, keepdim, dtype=torch.float32)
    return found.div_(count).to(dtype or x.dtype)


def _all_of(x: Tensor, dims: Sequence[int] | int | None) -> list[int]:
    if dims is None or dims == []:
        return list(range(x.ndim))
    return sorted(dim % x.ndim for dim in ([dims] if isinstance(dims, int) else dims))


def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    moved = x.movedim(dim, -1)
    found = row_cumsum(moved.reshape(moved.shape[:-1].numel(), moved.shape[-1])).view(moved.shape)
    return found.movedim(-1, dim).to(dtype or x.dtype)


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | bool | None = None) -> Tensor:
    wanted = _result_type(x, dtype)
    e = (x.float() - x.float().amax(dim, keepdim=True)).exp_()
    return (e / _sum(e, [dim], True)).to(wanted)


def _result_type(x: Tensor, dtype: torch.dtype | bool | None) -> torch.dtype:
    """A type, or whether half precision gives float32."""
    if isinstance(dtype, torch.dtype):
        return dtype
    return torch.float32 if dtype else x.dtype


def _log_softmax(x: Tensor, dim: int, dtype: torch.dtype | bool | None = None) -> Tensor:
    wanted = _result_type(x, dtype)
    return (x.float() - _logsumexp(x.float(), [dim], True)).to(wanted)


def _logsumexp(x: Tensor, dims: Sequence[int] | int, keepdim: bool = False) -> Tensor:
    most = x.float().amax(_all_of(x, dims), keepdim=True)
    most = most.masked_fill(most.abs() == math.inf, 0.0)
    found = _sum((x.float() - most).exp_(), dims, True).log_().add_(most)
    return (found if keepdim else found.squeeze(_all_of(x, dims))).to(x.dtype)


def _native_layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.ndim - len(shape), x.ndim))
    mean = _mean(x.float(), dims, True)
    centred = x.float() - mean
    scale = (_mean(centred * centred, dims, True) + eps).rsqrt()
    found = centred * scale
    found = found if weight is None else found * weight
    return (found if bias is None else found + bias).to(x.dtype), mean, scale


def _layer_norm(x: Tensor, shape: Sequence[int], *rest: Any) -> Tensor:
    return _native_layer_norm(x, shape, *rest[:3])[0]  # the fourth names a library


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    dims = list(range(x.ndim - len(shape), x.ndim))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    found = x.float() * (_mean(x.float() ** 2, dims, True) + eps).rsqrt()
    return (found if weight is None else found * weight).to(x.dtype)


def _vector_norm(
    x: Tensor,
    order: float = 2,
    dims: Sequence[int] | int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if order == math.inf:  # a maximum: nothing is added up
        found = x.abs().amax(_all_of(x, dims), keepdim=keepdim)
        return found.to(dtype or x.dtype)
    if order != 2:
        raise NoRuleError(f"a norm of order {order}")
    wide = x.float()
    return _sum(wide * wide, dims, keepdim).sqrt_().to(dtype or x.dtype)


_RULES: Final[dict[Any, Callable[..., Any]]] = {
    _aten.linear.default: _linear,
    _aten.matmul.default: _matmul,
    _aten.mm.default: matmul,
    _aten.bmm.default: matmul,
    _aten.addmm.default: _addmm,
    _aten.baddbmm.default: _addmm,
    _aten._grouped_mm.default: _grouped,
    _aten.sum.default: _sum,
    _aten.sum.dim_IntList: _sum,
    _aten.mean.default: _mean,
    _aten.mean.dim: _mean,
    _aten.cumsum.default: _cumsum,
    _aten.softmax.int: _softmax,
    _aten._softmax.default: _softmax,
    _aten.log_softmax.int: _log_softmax,
    _aten._log_softmax.default: _log_softmax,
    _aten.logsumexp.default: _logsumexp,
    _aten.layer_norm.default: _layer_norm,
    _aten.native_layer_norm.default: _native_layer_norm,
    _aten.rms_norm.default: _rms_norm,
    _aten.linalg_vector_norm.default: _vector_norm,
}
_OTHERS: Final = (
    "mv addmv dot vdot addr addbmm _scaled_mm var std var_mean std_mean norm native_group_norm "
    "native_batch_norm _fused_rms_norm convolution _convolution scatter_add index_add "
    "scatter_reduce index_reduce prod nansum nanmean embedding_bag _embedding_bag cumprod "
    "logcumsumexp _cdist_forward trace _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu"
)
_REFUSED: Final = frozenset(_OTHERS.split()) | {_name(func) for func in _RULES}
"""What adds up, or may: forms of what has a rule that no rule is for, and others."""
