"""A step's geometry as tensors: what GPU kernels read instead of Python lists.

Sequences are of two classes, by their own rows alone: windows (decoding rows and drafts), whose
keys are split among programs, and chunks of prompts. Each class has one launch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ..batch import PagedBatch, path_mask

WINDOW_ROWS: Final = 65
"""Rows of a sequence up to which its keys are split: the newest token and 64 guesses."""
SPLIT_TOKENS: Final = 256
"""Keys of one split. Splits begin at multiples of it whatever the number of keys, so that a row's
sums are the same in a draft of any length."""
_ALIGNED: Final = 4
"""Each tensor begins at a multiple of 16 bytes, so that kernels are not compiled once more."""


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
    """Sequences of one class. All tensors are int32 on the device.

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

    @classmethod
    def of(cls, batch: PagedBatch, indices: Sequence[int], *, split: bool) -> "Ragged":
        """The sequences `indices` of a batch, copied to the device at once."""
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
        assert cells.sum() < 2**31
        partials = counts * np.maximum(1, -(-lengths // SPLIT_TOKENS))
        arrays = [
            firsts,
            np.append(0, counts.cumsum()),
            lengths,
            tables,
            _before(partials),
            _before(lengths),
            _before(cells),
        ]
        trees = {k: batch.trees[i] for k, i in enumerate(indices) if i in batch.trees}
        if trees:
            arrays += _trees(trees, counts.tolist())
        on_device = _copied(arrays, batch.slots.device)
        return cls(
            indices=list(indices),
            rows=int(counts.sum()),
            firsts=on_device[0],
            starts=on_device[1],
            lengths=on_device[2],
            tables=on_device[3],
            parts=on_device[4],
            part_count=int(partials.sum()),
            keys=on_device[5],
            key_count=int(lengths.sum()),
            cells=on_device[6],
            cell_count=int(cells.sum()),
            splits=splits,
            page_size=batch.page_size,
            trees=Trees(starts=on_device[7], words=on_device[8], depths=on_device[9])
            if trees
            else None,
        )


def ragged(batch: PagedBatch) -> list[Ragged]:
    """The classes of a batch that have sequences, made once for all layers."""
    if batch.derived is None:
        rows = [batch.query_starts[i + 1] - batch.query_starts[i] for i in range(len(batch.tables))]
        windows = [i for i, count in enumerate(rows) if 0 < count <= WINDOW_ROWS]
        chunks = [i for i, count in enumerate(rows) if count > WINDOW_ROWS]
        batch.derived = [
            Ragged.of(batch, indices, split=indices is windows)
            for indices in (windows, chunks)
            if indices
        ]
    return batch.derived


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


def _copied(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """The same as int32 tensors, in one piece of memory and one copy that nobody waits for."""
    sizes = [-(-array.size // _ALIGNED) * _ALIGNED for array in arrays]
    host = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    numbers = host.numpy()
    begins = np.append(0, np.cumsum(sizes)).tolist()
    for array, begin in zip(arrays, begins, strict=False):
        numbers[begin : begin + array.size] = array.ravel()
    whole = host.to(device, non_blocking=True)
    return [
        whole[begin : begin + array.size].view(array.shape)
        for array, begin in zip(arrays, begins, strict=False)
    ]
