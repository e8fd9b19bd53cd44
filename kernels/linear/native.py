"""Linear layers whose weights are packed for the compiled kernels: float32 or 8 bits, any rows.

A row's result has the same bits alone and in company: each sum has one order (native.h).
"""

from ctypes import byref
from typing import Final

import torch
from torch import Tensor, nn

from ..native.library import BytesStruct, Library, LinearStruct, address
from .int8 import quantize_rows

_BYTES_MULTIPLE: Final = 4
_MOST_BYTES: Final = (2**31 - 1) // (255 * 127)
"""Inputs whose products of 8 bits, with 128 added to those of a row, have a sum in 32 bits."""


class Packed:
    """Weights `[N, K]` as native.h lays them out, with what belongs to them. `struct`: for C."""

    def __init__(
        self,
        weights: Tensor,
        bias: Tensor | None,
        *,
        outputs: int,
        inputs: int,
        scales: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> None:
        self.outputs, self.inputs = outputs, inputs
        self._kept = (weights, bias, scales, offsets)
        self.struct = LinearStruct(
            weights=address(weights),
            bias=address(bias),
            scales=address(scales),
            offsets=address(offsets),
            outputs=outputs,
            inputs=inputs,
        )

    @property
    def in_bytes(self) -> bool:
        """Whether it multiplies 8 bits."""
        return self._kept[2] is not None


def pack(library: Library, weight: Tensor, bias: Tensor | None) -> Packed:
    """Copy float32 weights `[N, K]`.

    Raises:
        TypeError: they are of another type.
    """
    if weight.dtype != torch.float32:
        raise TypeError(f"compiled linear layers take float32, not {weight.dtype}")
    outputs, inputs = weight.shape
    weight = weight.detach().contiguous()
    packed = torch.empty(library.call.packed_size(outputs, inputs))
    library.call.pack(address(weight), outputs, inputs, address(packed), torch.get_num_threads())
    return Packed(packed, _own(bias), outputs=outputs, inputs=inputs)


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
    return Packed(
        packed, _own(bias), outputs=outputs, inputs=inputs, scales=scales, offsets=offsets
    )


def fits_int8(library: Library, weight: Tensor) -> bool:
    """Whether the compiled kernels multiply weights `[N, K]` of this shape in 8 bits."""
    inputs = weight.shape[1]
    return library.multiplies_bytes and inputs % _BYTES_MULTIPLE == 0 and inputs <= _MOST_BYTES


class NativeLinear(nn.Module):
    """y = x W^T + b for x `[..., K]` float32, with as many threads as torch has when it is made."""

    def __init__(self, library: Library, packed: Packed) -> None:
        super().__init__()
        self._multiply = library.call.linear
        self._threads = torch.get_num_threads()
        self.packed = packed
        self.in_features, self.out_features = packed.inputs, packed.outputs

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N]`."""
        packed = self.packed
        if x.dtype != torch.float32:
            raise TypeError(f"compiled linear layers take float32, not {x.dtype}")
        rows = x.contiguous()
        count = rows.numel() // packed.inputs
        out = torch.empty(*x.shape[:-1], packed.outputs)
        room = None
        if packed.in_bytes:
            values = torch.empty(count * packed.inputs, dtype=torch.uint8)
            scales = torch.empty(count)
            room = byref(BytesStruct(values=address(values), scales=address(scales)))
        self._multiply(
            byref(packed.struct),
            rows.data_ptr(),
            count,
            out.data_ptr(),
            room,
            self._threads,
        )
        return out


def _own(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()
