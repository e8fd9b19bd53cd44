"""Products of rows in groups, each with a matrix of its own: the experts of a mixture."""

from collections.abc import Sequence
from ctypes import byref

import torch
from torch import Tensor

from ..native.library import Library, LinearStruct, address
from .native import Packed, RowRoom


class GroupedLinear:
    """y = x W_g^T + b_g for rows of group g, float32, with as many threads as torch has when it is
    made. `packed`: the layer of each group; all have the same numbers of outputs and inputs."""

    def __init__(self, library: Library, packed: Sequence[Packed]) -> None:
        self._multiply = library.call.grouped
        self._threads = torch.get_num_threads()
        self._structs = (LinearStruct * len(packed))(*(each.struct for each in packed))
        self._in_rooms = any(each.in_bytes or each.in_blocks for each in packed)
        self.packed = packed
        self.outputs, self.inputs = packed[0].outputs, packed[0].inputs

    def __call__(self, rows_SK: Tensor, starts: Tensor) -> Tensor:
        """`[S, N]`. `starts`: int64 `[groups + 1]`, where each group's rows begin, and S."""
        rows = rows_SK.contiguous()
        out = torch.empty(rows.shape[0], self.outputs)
        room = RowRoom(rows.shape[0], self.inputs) if self._in_rooms else None
        self._multiply(
            self._structs,
            address(starts),
            len(self.packed),
            address(rows),
            address(out),
            byref(room.struct) if room else None,
            self._threads,
        )
        return out
