"""Weights as a GGUF file stores them: rows of blocks, kept packed until they are laid out.

A `BlockTensor` looks like a float32 tensor `[N, K]` and computes like one. Rows can be picked,
split and concatenated as they are packed; anything else is done with the numbers themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ...kernels.linear.blocks import BLOCK_TYPES, dequantise
from ...kernels.linear.native import Packed, pack, pack_blocks, panel
from ...kernels.native.library import Library

_ROOM_BYTES: Final = 4 << 20
"""Numbers that a product computes at a time: they stay in a core's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of one type of blocks: uint8 `[n, bytes of a row]`; `kind`: a name of `BLOCK_TYPES`.

    `order`: int32 `[K]`, the input that each number of a row belongs to; None: they stand in order.
    """

    raw: Tensor
    kind: str
    order: Tensor | None = None

    def rows(self, index: Tensor) -> "Rows":
        """The rows numbered `index`, int64 `[n]`."""
        return Rows(self.raw[index], self.kind, self.order)

    def numbers(self, room: Tensor | None = None) -> Tensor:
        """Float32 `[n, K]`; in `room`, if it is given."""
        found = dequantise(self.raw, self.kind, room)
        if self.order is not None:
            found[:, self.order] = found.clone()
        return found


class BlockTensor(Tensor):
    """Float32 `[N, K]` kept in blocks; `parts`: its rows, neighbours of one kind together."""

    parts: tuple[Rows, ...]

    @staticmethod
    def __new__(cls: type["BlockTensor"], parts: Sequence[Rows]) -> "BlockTensor":  # noqa: D102
        rows = sum(part.raw.shape[0] for part in parts)
        shape = (rows, _inputs(parts[0]) if parts else 0)
        make: Any = Tensor._make_wrapper_subclass  # pyright: ignore  # torch has no public name
        return make(cls, shape, dtype=torch.float32)

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = _joined(parts)

    @classmethod
    def of(cls, raw: Tensor, kind: str, order: Tensor | None = None) -> "BlockTensor":
        """`raw`: uint8 `[N, bytes of a row]`; it is not copied. `order`: see `Rows`.

        Raises:
            ValueError: no such type of blocks is served, or a row is not whole blocks.
        """
        if kind not in BLOCK_TYPES:
            raise ValueError(f"blocks of the type {kind} are not served")
        if raw.dtype != torch.uint8 or raw.ndim != 2 or raw.shape[1] % BLOCK_TYPES[kind].bytes:
            raise ValueError(f"not rows of whole blocks of the type {kind}")
        return cls([Rows(raw, kind, order)])

    @property
    def stored_bytes(self) -> int:
        """Bytes of the blocks."""
        return sum(part.raw.numel() for part in self.parts)

    def dequantise(self) -> Tensor:
        """The numbers, float32 `[N, K]`."""
        found = [part.numbers() for part in self.parts]
        return found[0] if len(found) == 1 else torch.cat(found or [torch.empty(self.shape)])

    def rows(self, index: Tensor) -> "BlockTensor":
        """The rows numbered `index`, int64 `[n]`."""
        if len(self.parts) == 1:
            return BlockTensor([self.parts[0].rows(index)])
        sizes = torch.tensor([part.raw.shape[0] for part in self.parts])
        ends = sizes.cumsum(0)
        index = torch.where(index < 0, index + self.shape[0], index)
        owner = torch.bucketize(index, ends, right=True)
        owners, counts = torch.unique_consecutive(owner, return_counts=True)
        picked: list[Rows] = []
        for which, at in zip(owners.tolist(), index.split(counts.tolist()), strict=True):
            picked.append(self.parts[which].rows(at - (ends[which] - sizes[which])))
        return BlockTensor(picked)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Products go through the numbers of some rows at a time; `split` gives several tensors,
        which torch's inference mode does not take from below."""
        if func is linear and len(args) > 1 and type(args[1]) is BlockTensor and not kwargs:
            return multiply(*args)
        if func in (Tensor.split, torch.split):
            found = _split(*args, **kwargs or {})
            if found is not None:
                return found
        if func is Tensor.__getitem__ and (row := _one_row(*args)) is not None:
            return row
        disabled: Any = torch._C.DisableTorchFunctionSubclass  # pyright: ignore  # as torch's docs do
        with disabled():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Rows are moved as they are packed; whatever else is done with it, is with its numbers."""
        own = _ROW_OPERATIONS.get(func.overloadpacket.__name__)
        found = None if own is None or kwargs else own(*args)
        if found is not None:
            return found
        return func(*_dense(args), **_dense(kwargs or {}))


def stored_bytes(weight: Tensor) -> int:
    """Bytes that a weight takes as it is."""
    if isinstance(weight, BlockTensor):
        return weight.stored_bytes
    return weight.numel() * weight.element_size()


def _one_row(weight: "BlockTensor", index: Any) -> Tensor | None:
    """The numbers `[K]` of one row, written as `[row]` or `[row, :]`; None: something else is."""
    row = index[0] if isinstance(index, tuple) and index[1:] == (slice(None),) else index
    if type(row) is not int:
        return None
    return weight.rows(torch.tensor([row])).dequantise()[0]


def spread(model: nn.Module) -> None:
    """Dequantise weights in blocks that belong to no linear layer or embedding; they are small."""
    for module in model.modules():
        if isinstance(module, nn.Embedding | BlockLinear):
            continue
        for name, weight in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            if isinstance(weight, BlockTensor):
                numbers = nn.Parameter(weight.dequantise(), requires_grad=False)
                setattr(module, name, numbers)


def multiply(x: Tensor, weight: BlockTensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b `[..., N]` in x's type, with the weight's numbers, exactly.

    Slow: the numbers are computed anew, in room for some rows that is used again and again.
    """
    inputs = weight.shape[1]
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    most = max(1, _ROOM_BYTES // (4 * inputs))
    room = torch.empty(min(most, weight.shape[0]), inputs)
    first = 0
    for part in weight.parts:
        for raw in part.raw.split(most):
            last = first + raw.shape[0]
            some = Rows(raw, part.kind, part.order)
            out[..., first:last] = linear(x, some.numbers(room[: raw.shape[0]]).to(x.dtype))
            first = last
    return out if bias is None else out.add_(bias)


class BlockLinear(nn.Module):
    """y = x W^T + b where no compiled code multiplies blocks: they are dequantised at each call."""

    def __init__(self, weight: BlockTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight, self.bias = weight, None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N]` in x's type."""
        return multiply(x, self.weight, self.bias)


def pack_numbers(library: Library, weight: Tensor, bias: Tensor | None) -> Packed:
    """Lay out a weight `[N, K]`, in blocks or float32, without changing one of its numbers."""
    if not isinstance(weight, BlockTensor):
        return pack(library, weight, bias)
    parts = weight.parts
    order = parts[0].order if parts else None
    meet = any(part.raw.shape[0] % panel(library) for part in parts[:-1])  # within a panel
    if meet or not all(_in_one_order(part.order, order) for part in parts):
        return pack(library, weight.dequantise(), bias)
    bias = None if bias is None else bias.detach().float().contiguous()
    laid_out = [pack_blocks(library, part.raw, part.kind) for part in parts]
    return Packed(library, laid_out, bias, inputs=weight.shape[1], order=order)


def _inputs(part: Rows) -> int:
    kind = BLOCK_TYPES[part.kind]
    return part.raw.shape[1] // kind.bytes * kind.inputs


def _joined(parts: Sequence[Rows]) -> tuple[Rows, ...]:
    """Neighbours of one kind and order become one part."""
    found: list[list[Rows]] = []
    for part in parts:
        if not part.raw.shape[0]:
            continue
        last = found[-1][0] if found else None
        if last and last.kind == part.kind and _in_one_order(last.order, part.order):
            found[-1].append(part)
        else:
            found.append([part])
    return tuple(
        group[0]
        if len(group) == 1
        else Rows(torch.cat([rows.raw for rows in group]), group[0].kind, group[0].order)
        for group in found
    )


def _in_one_order(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one, other)


def _dense(value: Any) -> Any:
    if isinstance(value, BlockTensor):
        return value.dequantise()
    if isinstance(value, dict):
        return {name: _dense(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return type(value)(map(_dense, value)) if isinstance(value, list | tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _same(tensor: BlockTensor) -> BlockTensor:
    return BlockTensor(tensor.parts)


def _concatenated(tensors: list[Tensor], dim: int = 0) -> BlockTensor | None:
    blocks = [each for each in tensors if isinstance(each, BlockTensor)]
    if dim not in (0, -2) or len(blocks) < len(tensors):
        return None
    return BlockTensor([part for each in blocks for part in each.parts])


def _indexed(tensor: Tensor, indices: list[Tensor | None]) -> BlockTensor | None:
    if not isinstance(tensor, BlockTensor) or len(indices) != 1:
        return None
    index = indices[0]
    if index is None or index.ndim != 1 or index.dtype != torch.int64:
        return None
    return tensor.rows(index)


def _sliced(
    tensor: BlockTensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> BlockTensor | None:
    if dim not in (0, -2):
        return None
    return tensor.rows(torch.arange(tensor.shape[0])[start:end:step])


def _split(
    tensor: BlockTensor, split_size: int | list[int], dim: int = 0
) -> tuple[BlockTensor, ...] | None:
    if dim not in (0, -2):
        return None
    return tuple(tensor.rows(rows) for rows in torch.arange(tensor.shape[0]).split(split_size))


def _embedded(table: Tensor, ids: Tensor, *_: Any) -> Tensor | None:
    if not isinstance(table, BlockTensor):
        return None
    return table.rows(ids.flatten()).dequantise().view(*ids.shape, table.shape[1])


_ROW_OPERATIONS: Final = {
    "detach": _same,
    "alias": _same,
    "cat": _concatenated,
    "index": _indexed,
    "slice": _sliced,
    "embedding": _embedded,
}
