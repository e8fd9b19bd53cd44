"""Labels as lists that a kernel walks: queries and keys in order of label, and who meets whom.

Nothing here waits for the device but `choose`: sizes follow from shapes, counts stay there.

Shape suffixes: K KV heads, E queries of one KV head, L keys, B blocks of queries, C tiles of keys.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..paged_attention.tiles import Tiles
from .labels import Labels

DENSE_ABOVE: Final = 0.5
"""Density from which visiting every tile in order, without lists, is expected to be faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """All tensors are int32. Of one label, queries and keys are in their original order.

    `queries_KE`: row x G + head of the group. `columns_KL`: positions. Dropped ones are behind.
    `query_labels_KE`, `column_labels_KL`: in the same orders.
    `tiles_KBC`: for each block of `tiles.block_m` queries the tiles of `tiles.block_n` columns in
    which one of them sees one, ascending; the first `counts_KB` of them count.
    `recent`: as `Labels` has it.
    """

    queries_KE: Tensor
    query_labels_KE: Tensor
    columns_KL: Tensor
    column_labels_KL: Tensor
    tiles_KBC: Tensor
    counts_KB: Tensor
    group: int
    root: int
    own: bool
    recent: int
    tiles: Tiles

    @classmethod
    def of(cls, labels: Labels, tiles: Tiles) -> "Lists":
        """Lists for blocks and tiles of these sizes."""
        query_labels, queries = labels.of_queries().sort(dim=1, stable=True)
        column_labels, columns = labels.keys_KL.contiguous().sort(dim=1, stable=True)
        kv_heads, keys = columns.shape
        low, high = _ranges(labels, query_labels, queries, column_labels, columns)
        first = low // tiles.block_n
        last = torch.where(high > low, -(-high // tiles.block_n), first)

        blocks, count = _parts(queries.shape[1], tiles.block_m), _parts(keys, tiles.block_n)
        block_KE = torch.arange(queries.shape[1], device=queries.device) // tiles.block_m
        block_KE = block_KE + torch.arange(kv_heads, device=queries.device)[:, None] * blocks
        # One more where a range begins, one less behind it: a sum above zero is inside of some.
        steps = torch.zeros(
            kv_heads * blocks * (count + 1), dtype=torch.int32, device=queries.device
        )
        one = steps.new_ones(()).expand(queries.numel())
        steps.scatter_add_(0, (block_KE * (count + 1) + first).flatten(), one)
        steps.scatter_add_(0, (block_KE * (count + 1) + last).flatten(), -one)
        inside = steps.view(kv_heads, blocks, count + 1).cumsum(2, dtype=torch.int32)[..., :-1] > 0
        return cls(
            queries_KE=queries.int(),
            query_labels_KE=query_labels,
            columns_KL=columns.int(),
            column_labels_KL=column_labels,
            tiles_KBC=(~inside).to(torch.uint8).sort(dim=2, stable=True).indices.int(),
            counts_KB=inside.sum(2, dtype=torch.int32),
            group=labels.group,
            root=labels.root,
            own=labels.own,
            recent=labels.recent,
            tiles=tiles,
        )

    def density(self) -> Tensor:
        """Tiles to visit as a part of those that dense causal attention visits; float32 `[]`."""
        kv_heads, blocks, _ = self.tiles_KBC.shape
        block = torch.arange(1, blocks + 1, device=self.queries_KE.device)
        entry = (block * self.tiles.block_m).clamp(max=self.queries_KE.shape[1]) - 1
        keys = self.root + entry // self.group + 1
        dense = kv_heads * (-(-keys // self.tiles.block_n)).sum()
        return self.counts_KB.sum() / dense.clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityChoice:
    """`dense`: attention over all keys is to be taken instead, which this approximates."""

    density: float
    dense: bool


def choose(lists: Lists) -> DensityChoice:
    """Whether lists of this density are worth their walk. Waits for the device."""
    density = lists.density().item()
    return DensityChoice(density=density, dense=density > DENSE_ABOVE)


def pairs(labels: Labels) -> Tensor:
    """How many pairs of a query and a key labels let through: int64 `[]`. Never waits."""
    query_labels, queries = labels.of_queries().sort(dim=1, stable=True)
    column_labels, columns = labels.keys_KL.contiguous().sort(dim=1, stable=True)
    low, high = _ranges(labels, query_labels, queries, column_labels, columns)
    return (high - low).sum()


def _ranges(
    labels: Labels, query_labels: Tensor, queries: Tensor, column_labels: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """What each query sees of the columns, both in order of label: from, and up to."""
    # Columns ascend by (label, position): what a query sees of them is one range.
    keys = columns.shape[1]
    columns_at = column_labels.long() * keys + columns
    label_at = query_labels.long() * keys
    nearest = max(labels.recent, int(labels.own))
    after = labels.root + queries // labels.group + 1 - nearest
    low = torch.searchsorted(columns_at, label_at)
    high = torch.searchsorted(columns_at, label_at + after.clamp(min=0))
    return low, high


def _parts(number: int, size: int) -> int:
    return -(-number // size)
