"""How the rows of one step map to pages: the argument that every kernel of a step shares.

    rows      [ a a a a a | b | c c ]        T rows, ragged: query_starts = [0, 5, 6, 8]
    keys      a: 37 = 32 cached + 5 new      kv_lengths   = [37, 130, 2]
    pages     a: [4, 5, 9]                   tables       = [[4, 5, 9], [...], [...]]

The last `query_starts[i+1] - query_starts[i]` keys of sequence i are the rows themselves: a row's
own key is written before attention runs, and row j of a sequence sees the keys up to its own.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class PagedBatch:
    """Geometry of one step's rows, built once and shared by all layers.

    `query_starts`: S+1 row offsets, ascending from 0 to T.
    `kv_lengths`: keys held per sequence, this step's rows included; a sequence may have no rows.
    `tables`: page numbers per sequence, at least ceil(kv_length / page_size) each.
    `slots`: int64 [T], where each row's key goes: page x page_size + offset.
    `trees`: of sequences whose rows are a tree, by number of the sequence. Row 0 is its root; entry
    i is the parent of row i + 1, counted without the root, -1 for the root. Such a row sees the
    keys before the root and those on its own path.
    `derived`: the same as tensors, where kernels want that (`paged_attention/ragged.py`).
    """

    page_size: int
    query_starts: list[int]
    kv_lengths: list[int]
    tables: list[list[int]]
    slots: Tensor
    trees: dict[int, list[int]] = field(default_factory=dict)
    derived: list[Any] | None = field(default=None, repr=False)
    _spans: list["Span"] | None = field(default=None, repr=False)
    _splits: dict[int, tuple[list["ShortGroup"], list["Span"]]] = field(
        default_factory=dict, repr=False
    )

    @property
    def spans(self) -> list["Span"]:
        """One span per sequence that has rows, with what all layers reuse."""
        if self._spans is None:
            self._spans = [
                Span.of(self, i)
                for i in range(len(self.kv_lengths))
                if self.query_starts[i + 1] > self.query_starts[i]
            ]
        return self._spans

    def split(self, short_tokens: int) -> tuple[list["ShortGroup"], list["Span"]]:
        """Single rows over at most `short_tokens` keys, grouped; and all other spans."""
        found = self._splits.get(short_tokens)
        if found is None:
            groups: dict[int, list[Span]] = {}
            others: list[Span] = []
            for span in self.spans:
                padded = _padded(span.kv_length)
                if span.stop - span.start == 1 and padded <= short_tokens:
                    groups.setdefault(padded, []).append(span)
                else:
                    others.append(span)
            short = [ShortGroup.of(spans, padded) for padded, spans in groups.items()]
            found = self._splits[short_tokens] = (short, others)
        return found


@dataclass(slots=True, kw_only=True)
class Span:
    """One sequence's rows `[start, stop)` and the pages of its keys.

    `first_page`: set where the pages are consecutive, so that the keys are one strided view.
    `page_ids`: int64, set where they are not, and keys have to be gathered.
    """

    start: int
    stop: int
    kv_length: int
    page_size: int
    pages: list[int]
    device: torch.device
    first_page: int | None
    page_ids: Tensor | None
    tree: list[int] | None
    _masks: dict[int | None, Tensor] = field(default_factory=dict, repr=False)
    _packed: dict[tuple[int | None, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, batch: PagedBatch, index: int) -> "Span":
        """The span of sequence `index` of a batch."""
        kv_length = batch.kv_lengths[index]
        count = -(-kv_length // batch.page_size)
        pages = batch.tables[index][:count]
        # Pages of one sequence are distinct, so equal ends and ascending order mean consecutive.
        consecutive = pages[-1] - pages[0] == count - 1 and all(
            b - a == 1 for a, b in pairwise(pages)
        )
        return cls(
            start=batch.query_starts[index],
            stop=batch.query_starts[index + 1],
            kv_length=kv_length,
            page_size=batch.page_size,
            pages=pages,
            device=batch.slots.device,
            first_page=pages[0] if consecutive else None,
            page_ids=None if consecutive else torch.tensor(pages, device=batch.slots.device),
            tree=batch.trees.get(index),
        )

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    def keys(self, cache: Tensor) -> Tensor:
        """Keys (or values) of this sequence: `[Hkv, kv_length, D]`.

        `cache` is `[pages, Hkv, page, D]`. A view where the pages are consecutive and the cache is
        stored head by head, a copy otherwise.
        """
        _, kv_heads, page_size, size = cache.shape
        by_page, by_head, by_token, by_element = cache.stride()
        if self.first_page is not None and (by_page, by_token) == (page_size * size, size):
            return cache.as_strided(
                (kv_heads, self.kv_length, size),
                (by_head, size, by_element),
                cache.storage_offset() + self.first_page * by_page,
            )
        heads = cache.transpose(0, 1)
        if self.first_page is not None:
            run = heads[:, self.first_page : self.first_page + -(-self.kv_length // self.page_size)]
        else:
            assert self.page_ids is not None
            run = heads.index_select(1, self.page_ids)
        return run.reshape(run.shape[0], -1, run.shape[3])[:, : self.kv_length]

    def packed_mask(self, window: int | None, group: int, first: int, dtype: torch.dtype) -> Tensor:
        """Additive `[rows x group, kv_length - first]`, each row `group` times; made once."""
        mask = self._packed.get((window, group))
        if mask is None:
            if window is None:
                # All but the last square is seen by every row.
                whole = np.zeros((self.rows, group, self.kv_length), dtype=np.float32)
                seen = (
                    np.tri(self.rows, dtype=np.bool_) if self.tree is None else path_mask(self.tree)
                )
                whole[:, :, self.kv_length - self.rows :][~seen[:, None].repeat(group, 1)] = -np.inf
                mask = torch.from_numpy(whole.reshape(-1, self.kv_length)).to(self.device, dtype)
            else:
                seen = self.mask(window)[:, first:].repeat_interleave(group, dim=0)
                mask = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))
            self._packed[window, group] = mask
        return mask

    def mask(self, window: int | None) -> Tensor:
        """Boolean `[rows, kv_length]`, true where a row sees a key; made once per step."""
        mask = self._masks.get(window)
        if mask is None:
            rows = self.rows
            key = torch.arange(self.kv_length, device=self.device)
            if self.tree is not None:
                root = self.kv_length - rows
                seen = path_mask(self.tree)
                key[root:] = root + torch.from_numpy(seen.sum(axis=1) - 1).to(self.device)
                mask = key.new_ones(rows, self.kv_length, dtype=torch.bool)
                mask[:, root:] = torch.from_numpy(seen).to(self.device)
            else:
                mask = key <= key[self.kv_length - rows :, None]
            if window is not None:
                mask &= key[self.kv_length - rows :, None] - key < window
            self._masks[window] = mask
        return mask


@dataclass(slots=True, kw_only=True)
class ShortGroup:
    """Single rows over few keys, gathered and attended in one call.

    The padded length is a function of a row's own number of keys, so that its result does not
    depend on the others. Padding repeats the row's own first key, never a stranger's memory.

    `rows`: int64 [B]. `slots`: int64 [B x padded]. `kv_lengths`: int64 [B].
    """

    padded: int
    rows: Tensor
    slots: Tensor
    kv_lengths: Tensor
    _masks: dict[int | None, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, spans: list[Span], padded: int) -> "ShortGroup":
        """The group of these spans."""
        page_size, device = spans[0].page_size, spans[0].device
        count = -(-padded // page_size)
        pages = [span.pages + span.pages[:1] * (count - len(span.pages)) for span in spans]
        first_slots = torch.tensor(pages, device=device)[:, :, None] * page_size
        slots = (first_slots + torch.arange(page_size, device=device)).flatten(1)[:, :padded]
        lengths = torch.tensor([span.kv_length for span in spans], device=device)
        inside = torch.arange(padded, device=device) < lengths[:, None]
        return cls(
            padded=padded,
            rows=torch.tensor([span.start for span in spans], device=device),
            slots=torch.where(inside, slots, slots[:, :1]).flatten(),
            kv_lengths=lengths,
        )

    def keys(self, cache: Tensor) -> Tensor:
        """Keys (or values) of all rows: `[B, Hkv, padded, D]`, a copy."""
        heads = cache.transpose(0, 1)
        flat = heads.view(heads.shape[0], -1, heads.shape[3])
        found = flat.index_select(1, self.slots)
        return found.view(heads.shape[0], -1, self.padded, heads.shape[3]).transpose(0, 1)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive `[B, 1, 1, padded]`: 0 where a row sees a key, else minus infinity."""
        mask = self._masks.get(window)
        if mask is None:
            key = torch.arange(self.padded, device=self.kv_lengths.device)
            last = self.kv_lengths[:, None]
            seen = key < last
            if window is not None:
                seen &= key >= last - window
            mask = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))
            mask = self._masks[window] = mask[:, None, None]
        return mask


def path_mask(parents: list[int]) -> np.ndarray:
    """Boolean `[rows, rows]`: which rows are on each row's path; the root is row 0."""
    seen = np.eye(len(parents) + 1, dtype=np.bool_)
    for row, parent in enumerate(parents, start=1):
        seen[row] |= seen[parent + 1]
    return seen


def _padded(length: int) -> int:
    """The next power of two, at least 64."""
    return max(64, 1 << (length - 1).bit_length())
