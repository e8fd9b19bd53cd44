"""Linear layers whose weights are packed for the compiled kernels: floats, 8 bits or blocks.

A row's result has the same bits alone and in company: each sum has one order (native.h).
"""

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from ..native.library import BytesStruct, Library, LinearStruct, PanelsStruct, address
from .blocks import BLOCK_TYPES, FLOAT_TYPES
from .int8 import quantize_rows

_BYTES_MULTIPLE: Final = 4
_MOST_BYTES: Final = (2**31 - 1) // (255 * 127)
"""Inputs whose products of 8 bits, with 128 added to those of a row, have a sum in 32 bits."""
_ROW_BLOCK: Final = 32
"""Inputs of a row in 8 bits that share a scale, where weights are in blocks."""
_ROW_SUM: Final = 16

_FLOATS: Final = 0
_BFLOATS: Final = 1
_HALVES: Final = 2
_BYTES: Final = 3
_BLOCKS: Final = 16
_CODES: Final = 64
_KINDS: Final = {torch.bfloat16: _BFLOATS, torch.float16: _HALVES}
_DTYPES: Final = {_FLOATS: torch.float32, _BFLOATS: torch.bfloat16, _HALVES: torch.float16}
"""native.h numbers them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panels:
    """Outputs whose weights are kept alike (`Panels` of native.h)."""

    weights: Tensor
    outputs: int
    kind: int
    zero: int = 0
    scales: Tensor | None = None
    offsets: Tensor | None = None


class Packed:
    """Weights `[N, K]` laid out for the compiled kernels, a part after the other. `struct`: for C.

    All parts but the last have whole panels: `panel(library)` outputs each, or a multiple of that.
    `order`: int32 `[K]`, which input each column of the weights is, where all of them are blocks of
    integers; None: columns stand in order.
    """

    def __init__(
        self,
        library: Library,
        parts: Sequence[Panels],
        bias: Tensor | None,
        *,
        inputs: int,
        order: Tensor | None = None,
    ) -> None:
        self.outputs, self.inputs = sum(part.outputs for part in parts), inputs
        panels = [-(-part.outputs // panel(library)) for part in parts]
        structs = [
            PanelsStruct(
                kind=part.kind,
                weights=address(part.weights),
                scales=address(part.scales),
                offsets=address(part.offsets),
                zero=part.zero,
                end=sum(panels[: i + 1]),
            )
            for i, part in enumerate(parts)
        ]
        array = (PanelsStruct * len(structs))(*structs)
        self._kept = (*parts, bias, array, order)
        kinds = {part.kind for part in parts}
        self.in_bytes = _BYTES in kinds
        self.in_blocks = any(_BLOCKS <= kind < _CODES for kind in kinds)
        self.struct = LinearStruct(
            parts=array,
            bias=address(bias),
            outputs=self.outputs,
            inputs=inputs,
            rows_as=2 if self.in_blocks else int(self.in_bytes),
            order=address(order),
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights."""
        parts = [part for part in self._kept if isinstance(part, Panels)]
        return sum(part.weights.numel() * part.weights.element_size() for part in parts)


def panel(library: Library) -> int:
    """Outputs of a panel: the unit in which weights are packed."""
    return 2 * library.lanes


def pack(library: Library, weight: Tensor, bias: Tensor | None) -> Packed:
    """Copy float32 weights `[N, K]`, in 16 bits where each of them has such a value exactly.

    Raises:
        TypeError: they are of another type.
    """
    if weight.dtype != torch.float32:
        raise TypeError(f"compiled linear layers take float32, not {weight.dtype}")
    outputs, inputs = weight.shape
    weight = weight.detach().contiguous()
    kind = library.call.narrowest(address(weight), weight.numel())
    packed = torch.empty(library.call.packed_size(outputs, inputs), dtype=_DTYPES[kind])
    library.call.pack(
        address(weight), outputs, inputs, kind, address(packed), torch.get_num_threads()
    )
    part = Panels(weights=packed, outputs=outputs, kind=kind)
    return Packed(library, [part], _own(bias), inputs=inputs)


def pack_int8(library: Library, weight: Tensor, bias: Tensor | None) -> Packed:
    """Copy weights `[N, K]` in 8 bits, with a scale for each output channel."""
    outputs, inputs = weight.shape
    values, scales_N1 = quantize_rows(weight.detach().float())
    size = library.call.packed_size(outputs, inputs)
    filled = size // inputs
    packed = torch.empty(size, dtype=torch.int8)
    offsets = torch.empty(filled, dtype=torch.int32)
    library.call.pack_bytes(
        address(values), outputs, inputs, address(packed), address(offsets), torch.get_num_threads()
    )
    scales = torch.zeros(filled)
    scales[:outputs] = scales_N1[:, 0]
    part = Panels(weights=packed, outputs=outputs, kind=_BYTES, scales=scales, offsets=offsets)
    return Packed(library, [part], _own(bias), inputs=inputs)


def pack_blocks(library: Library, raw: Tensor, kind: str) -> Panels:
    """Lay out rows of blocks, uint8 `[N, bytes of a row]` (blocks.py), losslessly."""
    of, threads = BLOCK_TYPES[kind], torch.get_num_threads()
    raw = raw.contiguous()
    outputs, inputs = raw.shape[0], raw.shape[1] // of.bytes * of.inputs
    if kind in FLOAT_TYPES:
        words = torch.empty(library.call.packed_size(outputs, inputs), dtype=FLOAT_TYPES[kind])
        number = _KINDS[FLOAT_TYPES[kind]]
        library.call.pack_words(address(raw), outputs, inputs, number, address(words), threads)
        return Panels(weights=words, outputs=outputs, kind=number)
    layout = library.call.block_layout(of.number)
    packed = torch.empty(library.call.block_bytes(layout, outputs, inputs), dtype=torch.uint8)
    library.call.pack_blocks(of.number, address(raw), outputs, inputs, address(packed), threads)
    zero = library.call.block_zero(of.number)
    return Panels(weights=packed, outputs=outputs, kind=_BLOCKS + layout, zero=zero)


def fits_int8(library: Library, weight: Tensor) -> bool:
    """Whether the compiled kernels multiply weights `[N, K]` of this shape in 8 bits."""
    inputs = weight.shape[1]
    return library.multiplies_bytes and inputs % _BYTES_MULTIPLE == 0 and inputs <= _MOST_BYTES


class RowRoom:
    """Room for rows `[T, K]` in 8 bits. `struct`: for C."""

    def __init__(self, rows: int, inputs: int) -> None:
        scales = rows * max(1, inputs // _ROW_BLOCK)
        self._kept = (
            torch.empty(rows * inputs, dtype=torch.uint8),
            torch.empty(scales),
            torch.empty(rows * (inputs // _ROW_SUM), dtype=torch.int32),
        )
        values, scales, sums = map(address, self._kept)
        self.struct = BytesStruct(values=values, scales=scales, sums=sums)


class NativeLinear(nn.Module):
    """y = x W^T + b for x `[..., K]` float32, with as many threads as torch has when it is made."""

    def __init__(self, library: Library, packed: Packed) -> None:
        super().__init__()
        self._multiply = library.call.linear
        self._threads = torch.get_num_threads()
        self.packed = packed
        self.in_features, self.out_features = packed.inputs, packed.outputs
        self._no_weight = torch.empty(0)

    @property
    def weight(self) -> Tensor:
        """Empty: the numbers are packed. Modules ask for its dtype, that of x."""
        return self._no_weight

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N]`."""
        packed = self.packed
        if x.dtype != torch.float32:
            raise TypeError(f"compiled linear layers take float32, not {x.dtype}")
        rows = x.contiguous()
        count = rows.numel() // packed.inputs
        out = torch.empty(*x.shape[:-1], packed.outputs)
        room = None
        if packed.in_bytes or packed.in_blocks:
            room = RowRoom(count, packed.inputs)
        self._multiply(
            byref(packed.struct),
            rows.data_ptr(),
            count,
            out.data_ptr(),
            byref(room.struct) if room else None,
            self._threads,
        )
        return out


class NativeEmbedding(nn.Module):
    """Rows of packed weights by number, widened to float32: a table that is also a linear layer."""

    def __init__(self, library: Library, packed: Packed) -> None:
        super().__init__()
        if packed.in_bytes:
            raise ValueError("weights in 8 bits a channel are not the table's numbers")
        self._unpack = library.call.unpack_rows
        self._threads = torch.get_num_threads()
        self.packed = packed
        self.num_embeddings, self.embedding_dim = packed.outputs, packed.inputs

    def forward(self, ids: Tensor) -> Tensor:
        """Float32 `[..., K]` of int64 `[...]`."""
        if ids.dtype != torch.int64:
            raise TypeError(f"rows are numbered by int64, not {ids.dtype}")
        ids = ids.contiguous()
        out = torch.empty(*ids.shape, self.embedding_dim)
        wrong = self._unpack(
            byref(self.packed.struct),
            ids.data_ptr(),
            ids.numel(),
            out.data_ptr(),
            self._threads,
        )
        if wrong:
            raise IndexError(f"the table has the rows 0 to {self.num_embeddings - 1}")
        return out


def _own(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()
