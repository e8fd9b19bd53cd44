"""A step's geometry as tensors: what GPU kernels read instead of Python lists.

Sequences are of two classes, by their own rows alone: windows (decoding rows and drafts), whose
keys are split among programs, and chunks of prompts. Each class has one launch. Where no keys are
to be split, all sequences are of one class: a row is then computed in one way, however many rows
its sequence has in a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import Tensor

from ..batch import PagedBatch, path_mask
from ..transfer import together

WINDOW_ROWS: Final = 65
"""Rows of a sequence up to which its keys are split: the newest token and 64 draft tokens."""
SPLIT_TOKENS: Final = 256
"""Keys of one split. Splits begin at multiples of it whatever the number of keys, so that a row's
sums are the same in a draft of any length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees:
    """Which rows of a draft each row sees.

    `starts`: int32 [S], where a sequence's words are, -1 where its rows are no tree.
    `words`: int32, for each row ceil(rows / 32) words; bit j is set if row j is on its path.
    `depths`: int32 [rows], how far each row is from its root.
    """

    starts: Tensor
    words: Tensor
    depths: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Sequences of one class. Tensors are int32 on the device; `parts`, `keys`, `cells` are int64.

    `indices`: their numbers in the batch. `firsts`: [S], the step's row that is the first of a
    sequence. `starts`: [S + 1], the same counted within the class. `lengths`: [S], keys.
    `tables`: [S, W] page numbers.
    `parts`: [S], where the partial results of a sequence begin: of split i and row r they are at
    parts + i x rows + r; `part_count` of them in all.
    `keys`, `cells`: [S], the same for arrays of its keys, and of its rows x its keys.
    `splits`: the most that `tables` has room for; 0 where keys are not split.
    """

    indices: list[int]
    rows: int
    firsts: Tensor
    starts: Tensor
    lengths: Tensor
    tables: Tensor
    parts: Tensor
    part_count: int
    keys: Tensor
    key_count: int
    cells: Tensor
    cell_count: int
    splits: int
    page_size: int
    trees: Trees | None

    @property
    def sequences(self) -> int:
        """How many there are."""
        return self.firsts.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A class before it is on the device: `arrays` are what has to go there."""

    arrays: list[np.ndarray]
    indices: list[int]
    rows: int
    part_count: int
    key_count: int
    cell_count: int
    splits: int
    page_size: int

    @classmethod
    def of(cls, batch: PagedBatch, indices: Sequence[int], *, split: bool) -> "Plan":
        """The sequences `indices` of a batch."""
        firsts = np.array([batch.query_starts[i] for i in indices])
        counts = np.array([batch.query_starts[i + 1] for i in indices]) - firsts
        lengths = np.array([batch.kv_lengths[i] for i in indices])
        pages = -(-lengths // batch.page_size)
        tables = np.zeros((len(indices), max(1, int(pages.max()))), dtype=np.int32)
        for row, i, count in zip(tables, indices, pages.tolist(), strict=True):
            row[:count] = batch.tables[i][:count]
        room = tables.shape[1] * batch.page_size
        splits = -(-room // SPLIT_TOKENS) if split else 0
        cells = counts * lengths
        partials = counts * np.maximum(1, -(-lengths // SPLIT_TOKENS))
        small = [firsts, np.append(0, counts.cumsum()), lengths, tables]
        large = [_before(partials), _before(lengths), _before(cells)]
        trees = {k: batch.trees[i] for k, i in enumerate(indices) if i in batch.trees}
        of_trees = _trees(trees, counts.tolist()) if trees else []
        return cls(
            arrays=[*map(_int32, small), *large, *map(_int32, of_trees)],
            indices=list(indices),
            rows=int(counts.sum()),
            part_count=int(partials.sum()),
            key_count=int(lengths.sum()),
            cell_count=int(cells.sum()),
            splits=splits,
            page_size=batch.page_size,
        )

    def on(self, tensors: Sequence[Tensor]) -> Ragged:
        """The class, with its arrays as tensors of the device."""
        firsts, starts, lengths, tables, parts, keys, cells, *trees = tensors
        return Ragged(
            indices=self.indices,
            rows=self.rows,
            firsts=firsts,
            starts=starts,
            lengths=lengths,
            tables=tables,
            parts=parts,
            part_count=self.part_count,
            keys=keys,
            key_count=self.key_count,
            cells=cells,
            cell_count=self.cell_count,
            splits=self.splits,
            page_size=self.page_size,
            trees=Trees(starts=trees[0], words=trees[1], depths=trees[2]) if trees else None,
        )


def ragged(batch: PagedBatch, *, split: bool = True) -> list[Ragged]:
    """The classes of a batch that have sequences, made once for all layers, in one copy."""
    if batch.derived is None:
        found = plans(batch, split=split)
        arrays = [array for plan in found for array in plan.arrays]
        batch.derived = placed(found, together(arrays, batch.slots.device))
    return batch.derived


def plans(batch: PagedBatch, *, split: bool = True) -> list[Plan]:
    """The classes of a batch that have sequences; its `slots` need not be there yet.

    split: keys of windows are split; else every sequence counts as a chunk.
    """
    most = WINDOW_ROWS if split else 0
    rows = [batch.query_starts[i + 1] - batch.query_starts[i] for i in range(len(batch.tables))]
    windows = [i for i, count in enumerate(rows) if 0 < count <= most]
    chunks = [i for i, count in enumerate(rows) if count > most]
    return [
        Plan.of(batch, indices, split=indices is windows)
        for indices in (windows, chunks)
        if indices
    ]


def placed(found: Sequence[Plan], tensors: Sequence[Tensor]) -> list[Ragged]:
    """The classes, with all their arrays as tensors, one after the other."""
    classes: list[Ragged] = []
    at = 0
    for plan in found:
        count = len(plan.arrays)
        classes.append(plan.on(tensors[at : at + count]))
        at += count
    return classes


def _int32(array: np.ndarray) -> np.ndarray:
    """Numbers of rows, tokens and pages, which are all below 2^31."""
    assert array.size == 0 or array.max() < 2**31
    return array.astype(np.int32)


def _before(counts: np.ndarray) -> np.ndarray:
    """How many there are before each."""
    return counts.cumsum() - counts


def _trees(parents: dict[int, list[int]], counts: list[int]) -> list[np.ndarray]:
    """Starts, words and depths; rows that are no tree have their own number as depth."""
    starts = np.full(len(counts), -1)
    words: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    begin = 0
    for i, count in enumerate(counts):
        if i not in parents:
            depths.append(np.arange(count))
            continue
        seen = path_mask(parents[i])
        padded = np.zeros((count, -(-count // 32) * 32), dtype=np.bool_)
        padded[:, :count] = seen
        starts[i] = begin
        words.append(np.packbits(padded, axis=1, bitorder="little").view("<i4").ravel())
        begin += words[-1].size
        depths.append(seen.sum(axis=1) - 1)
    return [starts, np.concatenate(words), np.concatenate(depths)]
