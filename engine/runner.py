"""The model runner: a step's rows in, logits of the requested rows out."""

import torch
from torch import Tensor, nn

from ..kernels.batch import PagedBatch
from ..kvcache.store import KVStore
from .attention import PagedStep
from .scheduler import Step


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
        for chunk in step.chunks:
            sequence = chunk.sequence
            first, last = sequence.computed, sequence.computed + chunk.count
            pages = sequence.table.pages
            if chunk.count == 1:
                ids.append(sequence.tokens[first])
                positions.append(first)
                slots.append(pages[first // page_size] * page_size + first % page_size)
            else:
                ids += sequence.tokens[first:last]
                positions += range(first, last)
                slots += [
                    pages[at // page_size] * page_size + at % page_size for at in range(first, last)
                ]
            starts.append(starts[-1] + chunk.count)
            lengths.append(last)
        batch = PagedBatch(
            page_size=page_size,
            query_starts=starts,
            kv_lengths=lengths,
            tables=[chunk.sequence.table.pages for chunk in step.chunks],
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
    """Rows of a step whose logits are needed: the newest token's, or all for prompt logprobs."""
    rows: list[int] = []
    start = 0
    for chunk in step.chunks:
        stop = start + chunk.count
        if chunk.sequence.request.prompt_logprobs is not None:
            rows += range(start, stop)
        elif chunk.is_last:
            rows.append(stop - 1)
        start = stop
    return rows
