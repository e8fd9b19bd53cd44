"""The model runner: a step's rows in, logits of the requested rows out."""

import torch
from torch import Tensor, nn

from ..kernels.batch import PagedBatch
from ..kvcache.store import KVStore
from .attention import PagedStep
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
        page_size = self._store.page_size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        lengths: list[int] = []
        trees: dict[int, list[int]] = {}
        for chunk in step.chunks:
            branch, draft = chunk.branch, chunk.draft
            first = branch.computed
            last = first + chunk.count
            pages = branch.table.pages
            if chunk.count == 1:
                ids.append(branch.tokens[first])
                positions.append(first)
                slots.append(pages[first // page_size] * page_size + first % page_size)
            else:
                if draft is None:
                    ids += branch.tokens[first:last]
                    positions += range(first, last)
                else:
                    newest = len(branch.tokens) - 1
                    ids += (branch.tokens[newest], *draft.tokens)
                    positions += (newest, *(newest + depth for depth in draft.depths))
                    if draft.parents is not None:
                        trees[len(lengths)] = draft.parents
                slots += [
                    pages[at // page_size] * page_size + at % page_size for at in range(first, last)
                ]
            starts.append(starts[-1] + chunk.count)
            lengths.append(last)
        batch = PagedBatch(
            page_size=page_size,
            query_starts=starts,
            kv_lengths=lengths,
            tables=[chunk.branch.table.pages for chunk in step.chunks],
            trees=trees,
            slots=self._tensor(slots),
        )
        return self._forward(ids, positions, batch, wanted_rows(step))

    @torch.inference_mode()
    def _forward(
        self, ids: list[int], positions: list[int], batch: PagedBatch, rows: list[int]
    ) -> Tensor:
        wanted = self._tensor(rows)
        logits: Tensor = self._model(
            input_ids=self._tensor(ids)[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            logits_to_keep=wanted,
            penstock_step=PagedStep(store=self._store, batch=batch),
        ).logits[0]
        return logits

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


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
