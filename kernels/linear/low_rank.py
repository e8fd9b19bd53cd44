"""What adapters add to linear layers, laid out for the compiled kernels (low_rank.h)."""

from collections.abc import Sequence
from ctypes import addressof, pointer
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ..native.library import (
    AdapterSpanStruct,
    AdaptersStruct,
    AddedStruct,
    Library,
    LowRankStruct,
    address,
)
from .native import panel

_SPAN_ROWS: Final = 64
"""Rows of a task: long prompts are split among threads."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """What an adapter adds to some outputs of a layer: y[at] += (x A^T) B^T.

    down: A, float32 `[r, K]`. up: B with the adapter's scale, `[n, r]`. at: int64 `[n]`.
    """

    down: Tensor
    up: Tensor
    at: Tensor


def joined(shares: Sequence[Share], outputs: int) -> tuple[Tensor, Tensor]:
    """A `[r, K]` and B `[outputs, r]` of several shares of one layer, one behind the other."""
    down = torch.cat([share.down for share in shares])
    up = torch.zeros(outputs, down.shape[0])
    rank = 0
    for share in shares:
        last = rank + share.down.shape[0]
        up[share.at, rank:last] = share.up
        rank = last
    return down, up


class LowRank:
    """An adapter's shares of one layer, `[N, K]`. `struct`: for C, as long as this lives."""

    def __init__(self, library: Library, shares: Sequence[Share], outputs: int) -> None:
        wide = panel(library)
        panels = -(-outputs // wide)
        ranks = sum(share.down.shape[0] for share in shares)
        self.ranks = filled = ranks + -ranks % wide
        if not ranks:
            self.struct, self._kept = LowRankStruct(), ()
            return
        down, up = joined(shares, panels * wide)
        inputs = down.shape[1]
        down = torch.cat([down, torch.zeros(filled - ranks, inputs)])
        firsts, lasts = np.full(panels, ranks), np.zeros(panels, dtype=np.int64)
        rank = 0
        for share in shares:
            last = rank + share.down.shape[0]
            reached = np.unique(share.at.numpy() // wide)
            firsts[reached] = np.minimum(firsts[reached], rank)
            lasts[reached] = np.maximum(lasts[reached], last)
            rank = last
        firsts = np.minimum(firsts, lasts).astype(np.int64)
        counts = lasts - firsts
        begins = np.concatenate(([0], counts.cumsum())).astype(np.int64)
        down = down.view(-1, wide, inputs).transpose(1, 2).contiguous()
        up = _by_panel(up.view(panels, wide, ranks), firsts, lasts)
        self._kept = (down, up, firsts, begins)
        self.struct = LowRankStruct(
            down=address(down),
            up=address(up),
            firsts=firsts.ctypes.data,
            begins=begins.ctypes.data,
            ranks=filled,
        )


def _by_panel(up: Tensor, firsts: Any, lasts: Any) -> Tensor:
    """`[panels, WIDE, ranks]` as the ranks that reach each panel, `[count, WIDE]` each."""
    changes = np.flatnonzero((np.diff(firsts) != 0) | (np.diff(lasts) != 0)) + 1
    edges = [0, *changes.tolist(), len(firsts)]
    return torch.cat(
        [
            up[begin:end, :, firsts[begin] : lasts[begin]].transpose(1, 2).flatten()
            for begin, end in pairwise(edges)
        ]
    )


class PackedAdapter:
    """One adapter's shares of all layers, by their number. `struct`: an array for C."""

    def __init__(self, layers: Sequence[LowRank]) -> None:
        self._kept = layers
        self.struct = (LowRankStruct * len(layers))(*(layer.struct for layer in layers))
        self.width = max((layer.ranks for layer in layers), default=0)


class AdapterRows:
    """The adapters of a step's rows, None where a row has none. `added`: to a layer, for C."""

    def __init__(self, adapters: Sequence[PackedAdapter | None]) -> None:
        rows = len(adapters)
        at = np.array([_at(adapter) for adapter in adapters], dtype=np.uintp)
        edges = [0, *(np.flatnonzero(np.diff(at)) + 1).tolist(), rows]
        spans = [
            AdapterSpanStruct(begin=row, end=min(row + _SPAN_ROWS, end), layers=adapter.struct)
            for begin, end in pairwise(edges)
            if begin < end and (adapter := adapters[begin]) is not None
            for row in range(begin, end, _SPAN_ROWS)
        ]
        width = max((adapter.width for adapter in adapters if adapter is not None), default=0)
        room = torch.empty(rows * width)
        array = (AdapterSpanStruct * len(spans))(*spans)
        self._kept = (adapters, at, room, array)
        self.struct = AdaptersStruct(
            spans=array, count=len(spans), of_row=at.ctypes.data, room=address(room), width=width
        )

    def added(self, layer: int) -> AddedStruct:
        """To the layer of this number."""
        return AddedStruct(adapters=pointer(self.struct), layer=layer)


def _at(adapter: PackedAdapter | None) -> int:
    return 0 if adapter is None else addressof(adapter.struct)
