"""The model runner: a step's rows in, logits of the requested rows out."""

import torch
from torch import Tensor, nn

from ..kernels.batch import PagedBatch, path_mask
from ..kvcache.keeping import Attended
from ..kvcache.slot_table import SlotTable
from ..kvcache.store import KVStore
from .apart import ScoredRows, SlottedRows
from .attention import Apart, PagedStep
from .scheduler import Chunk, Step


class ModelRunner:
    """Runs any transformers decoder over the paged cache, all rows of a step in one pass."""

    def __init__(self, model: nn.Module, store: KVStore, device: torch.device) -> None:
        self._model = model
        self._store = store
        self._device = device

    def run(self, step: Step) -> Tensor:
        """Compute a step; writes its keys and values into the cache.

        Returns logits `[R, V]` of the rows that `wanted_rows` names, in that order.
        """
        if step.copies:
            self._store.copy_pages(step.copies)
        rows = _Rows(self._store.page_size)
        for chunk in step.chunks:
            rows.add(chunk)
        batch = PagedBatch(
            page_size=rows.page_size,
            query_starts=rows.starts,
            kv_lengths=rows.lengths,
            tables=rows.tables,
            slots=self._tensor(rows.slots),
            trees=rows.trees,
        )
        paged = PagedStep(store=self._store, batch=batch)
        if rows.apart:
            paged = PagedStep(
                store=self._store,
                batch=batch,
                rows=self._tensor(rows.ordinary),
                apart=[self._apart(start, chunk) for start, chunk in rows.apart],
            )
        return self._forward(rows.ids, rows.positions, paged, wanted_rows(step))

    def _apart(self, start: int, chunk: Chunk) -> Apart:
        """The rows of a context under an evicting policy."""
        branch, draft = chunk.branch, chunk.draft
        keeping = branch.keeping
        assert keeping is not None
        stop = start + chunk.count
        depths = list(range(chunk.count)) if draft is None else [0, *draft.depths]
        certain = draft is None and not keeping.in_slots
        votes = keeping.votes(branch.prompt_length, chunk.count) if certain else None
        attended = chunk.attended = Attended(depths=depths, votes=votes)
        page_size = self._store.page_size
        if isinstance(branch.table, SlotTable):
            parents = range(-1, chunk.count - 2) if draft is None else draft.parents
            tree = path_mask(list(range(-1, chunk.count - 2) if parents is None else parents))
            return SlottedRows(
                start=start,
                stop=stop,
                keeping=keeping,
                slots=branch.table.index(keeping.retention.slots, self._device),
                tree=torch.from_numpy(tree).to(self._device),
                attended=attended,
            )
        pages, first = branch.table.pages, branch.computed
        slots = [
            pages[at // page_size] * page_size + at % page_size
            for at in range(first, first + chunk.count)
        ]
        alone = PagedBatch(
            page_size=page_size,
            query_starts=[0, chunk.count],
            kv_lengths=[first + chunk.count],
            tables=[pages],
            slots=self._tensor(slots),
            trees={} if draft is None or draft.parents is None else {0: draft.parents},
        )
        return ScoredRows(
            start=start,
            stop=stop,
            keeping=keeping,
            span=alone.spans[0],
            slots=alone.slots,
            attended=attended,
        )

    @torch.inference_mode()
    def _forward(
        self, ids: list[int], positions: list[int], paged: PagedStep, rows: list[int]
    ) -> Tensor:
        wanted = self._tensor(rows)
        logits: Tensor = self._model(
            input_ids=self._tensor(ids)[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            logits_to_keep=wanted,
            penstock_step=paged,
        ).logits[0]
        return logits

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


class _Rows:
    """The rows of a step, flattened: ids and positions of all, geometry of the ordinary ones."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.ordinary: list[int] = []
        self.slots: list[int] = []
        self.starts = [0]
        self.lengths: list[int] = []
        self.tables: list[list[int]] = []
        self.trees: dict[int, list[int]] = {}
        self.apart: list[tuple[int, Chunk]] = []

    def add(self, chunk: Chunk) -> None:
        """The rows of one context."""
        branch, draft, page_size = chunk.branch, chunk.draft, self.page_size
        row, first = len(self.ids), branch.computed
        last = first + chunk.count
        if chunk.count == 1 and branch.keeping is None:
            self.ids.append(branch.tokens[first])
            self.positions.append(first)
            self.ordinary.append(row)
            pages = branch.table.pages
            self.slots.append(pages[first // page_size] * page_size + first % page_size)
            self.starts.append(self.starts[-1] + 1)
            self.lengths.append(last)
            self.tables.append(pages)
            return
        if draft is None:
            self.ids += branch.tokens[first:last]
            self.positions += range(first, last)
        else:
            newest = len(branch.tokens) - 1
            self.ids += (branch.tokens[newest], *draft.tokens)
            self.positions += (newest, *(newest + depth for depth in draft.depths))
        if branch.keeping is not None:
            self.apart.append((row, chunk))
            return
        self.ordinary += range(row, row + chunk.count)
        if draft is not None and draft.parents is not None:
            self.trees[len(self.lengths)] = draft.parents
        pages = branch.table.pages
        self.slots += [
            pages[at // page_size] * page_size + at % page_size for at in range(first, last)
        ]
        self.starts.append(self.starts[-1] + chunk.count)
        self.lengths.append(last)
        self.tables.append(pages)


def wanted_rows(step: Step) -> list[int]:
    """Rows of a step whose logits are needed, those of a chunk one after the other.

    Of a chunk that decodes the newest token's and the guesses', or all for prompt logprobs.
    """
    rows: list[int] = []
    start = 0
    for chunk in step.chunks:
        stop = start + chunk.count
        rows += range(stop - wanted_of(chunk), stop)
        start = stop
    return rows


def wanted_of(chunk: Chunk) -> int:
    """How many rows' logits are needed of a chunk: its last ones."""
    if chunk.branch is chunk.sequence and chunk.sequence.request.prompt_logprobs is not None:
        return chunk.count
    return 1 + chunk.drafted if chunk.decodes else 0
