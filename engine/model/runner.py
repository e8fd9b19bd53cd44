"""The model runner: a step's rows in, logits of the requested rows out."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels.backend import TORCH, Kernels
from ...kernels.batch import PagedBatch, path_mask
from ...kernels.decoder.native import EvictingRows
from ...kernels.paged_attention.ragged import placed, plans
from ...kernels.transfer import to_device, together
from ...kvcache.attention_record import AttentionRecord
from ...kvcache.eviction_state import EvictionState
from ...kvcache.slot_table import SlotTable
from ...kvcache.store import KVStore
from ..adapters.step import StepAdapters
from ..attention.ahead import AheadRows
from ..attention.evicting import ScoredRows, SlottedDraft, SlottedRows
from ..attention.gapped import GappedRows, key_positions
from ..attention.interface import PagedStep, RowAttention
from ..attention.sparse import SparseRows
from ..recurrent.modules import AttentionStep
from ..recurrent.parts import StepStates
from ..state.step import Chunk, Step
from .cuda_graphs import DecodeGraphs
from .fused.compiled import CompiledDecoder
from .picture_encoder import PictureEncoder
from .picture_rows import blocks_of, pictured_inputs
from .recurrent import RecurrentRunner
from .rows import Rows, wanted_rows


class ModelRunner:
    """Runs any transformers decoder over the paged cache, all rows of a step in one pass.

    `graphs`: CUDA graphs for steps that only decode; None: run without. `evicts_in_layers`: whether
    the model computes all layers of a step in one call also where contexts evict keys. `adapters`:
    where the model reads which rows have one. `recurrent`: states beside keys and values; None: the
    model has none. `pictures`: makes embeddings of pictures; None: the model takes none.
    """

    def __init__(
        self,
        model: nn.Module,
        store: KVStore,
        device: torch.device,
        kernels: Kernels = TORCH,
        graphs: DecodeGraphs | None = None,
        adapters: StepAdapters | None = None,
        recurrent: RecurrentRunner | None = None,
        pictures: PictureEncoder | None = None,
    ) -> None:
        self._model = model
        self.pictures = pictures
        self._adapters = adapters or StepAdapters()
        self._store = store
        self.recurrent = recurrent
        self._device = device
        self.on_gpu = device.type != "cpu"
        self.kernels = kernels
        self.graphs = graphs
        self._nowhere = torch.empty(0, dtype=torch.int64, device=device)
        self.evicts_in_layers = (
            isinstance(model, CompiledDecoder)
            and model.scores
            and kernels.backend == "native"
            and store.dtype == torch.float32
        )
        self._windowed = any(window is not None for window in store.windows)

    def run(self, step: Step) -> Tensor:
        """Compute a step and write its keys and values into the cache.

        Returns logits `[R, V]` of the rows of `wanted_rows`, in that order.
        """
        if step.copies:
            self._store.copy_pages(step.copies)
        in_one_call = self._evicts_in_one_call(step)
        taken = self._take_slots(step) if in_one_call else {}
        rows = Rows(self._store.page_size, in_one_call=in_one_call)
        for chunk in step.chunks:
            rows.add(chunk)
        if self.graphs is not None and step.in_lines and not any(rows.adapters):
            logits = self.graphs.run_rows(rows)
            if logits is not None:
                return logits
        batch = PagedBatch(
            page_size=rows.page_size,
            query_starts=rows.starts,
            kv_lengths=rows.lengths,
            tables=rows.tables,
            slots=self._nowhere,
            trees=rows.trees,
        )
        wanted = wanted_rows(step)
        inputs = self._sent(rows, batch, wanted)
        paged = PagedStep(
            store=self._store,
            batch=batch,
            kernels=self.kernels,
            evicting=self._evicting(step, batch, taken) if in_one_call else None,
        )
        if rows.own_attention:
            paged = PagedStep(
                store=self._store,
                batch=batch,
                kernels=self.kernels,
                rows=self._tensor(rows.ordinary),
                row_attention=self._row_attention(rows.own_attention),
            )
        self._adapters.begin(rows.adapters, wanted)
        try:
            pictured = pictured_inputs(self.pictures, rows.pictured, rows.ids, inputs[1])
            logits = self._forward(*inputs, paged, step.chunks, pictured)
        finally:
            self._adapters.end()
        if self.recurrent is None or self.recurrent.attends:
            self._check([chunk for chunk in step.chunks if chunk.reads])
        return logits

    def _check(self, chunks: list[Chunk]) -> None:
        """Find prompts whose keys or values are not finite, before the prefix cache shares them.

        Checks the last layer: an overflow in an earlier layer carries on to it. Rows that decode
        are checked by their logits instead. `chunks`: those with rows of prompts.
        """
        found = [chunk for chunk in chunks if not chunk.context.in_slots]
        if not found:
            return
        slots = torch.cat([self._slots(chunk) for chunk in found])
        finite = self._store.finite(len(self._store.keys) - 1, slots).tolist()
        first = 0
        for chunk in found:
            chunk.finite = all(finite[first : first + chunk.count])
            first += chunk.count

    def _sent(
        self, rows: Rows, batch: PagedBatch, wanted: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, positions, wanted rows and the batch's arrays, sent to the device in one copy."""
        kernels = self.kernels
        triton = kernels.backend == "triton"
        found = plans(batch, split=kernels.splits_keys) if triton else []
        numbers = (rows.ids, rows.positions, rows.slots, wanted)
        arrays = [np.array(each, dtype=np.int64) for each in numbers]
        arrays += [array for plan in found for array in plan.arrays]
        ids, positions, slots, at, *derived = together(arrays, self._device)
        batch.slots = slots
        if found:
            batch.derived = placed(found, derived)
        return ids, positions, at

    def _evicts_in_one_call(self, step: Step) -> bool:
        """Whether rows are under eviction, and compiled layers can do all of them in one call."""
        own = [chunk for chunk in step.chunks if chunk.own_attention]
        return bool(own) and self.evicts_in_layers and all(map(self._in_compiled_layers, own))

    def _in_compiled_layers(self, chunk: Chunk) -> bool:
        eviction_state = chunk.context.eviction_state
        if eviction_state is None or not chunk.scored:
            return False
        if chunk.sparse or chunk.gapped or chunk.ahead:
            return False
        if not eviction_state.in_slots:
            return True
        return chunk.draft is None and not self._windowed and not eviction_state.has_holes

    def _take_slots(self, step: Step) -> dict[int, Tensor]:
        """By row, of contexts in slots: int64 `[layers, K]`, where the keys of the token go."""
        taken: dict[int, Tensor] = {}
        row = 0
        for chunk in step.chunks:
            eviction_state = chunk.context.eviction_state
            if eviction_state is not None and eviction_state.in_slots:
                slots = self._taken(eviction_state, chunk.context.slot_table)
                taken[row] = slots[..., 0].contiguous()
            row += chunk.count
        return taken

    def _evicting(self, step: Step, batch: PagedBatch, taken: dict[int, Tensor]) -> EvictingRows:
        """What the compiled layers need of contexts under eviction, and records of attention."""
        weights: dict[int, Tensor] = {}
        votes: dict[int, Tensor] = {}
        for sequence, chunk in enumerate(step.chunks):
            eviction_state, context = chunk.context.eviction_state, chunk.context
            if not chunk.scored or eviction_state is None:
                continue
            record = chunk.attention_record = _record(chunk, eviction_state)
            if eviction_state.observation is None:
                continue
            of_rows = (chunk.count,) if record.votes is None else ()
            layers, kv_heads = len(self._store.keys), self._store.keys[0].shape[1]
            received = torch.zeros(layers, kv_heads, *of_rows, batch.kv_lengths[sequence])
            weights[sequence] = received
            record.of_all_layers = received[:, :, 0] if context.in_slots else received
            if record.votes is not None:
                votes[sequence] = record.votes
        return EvictingRows(slots=taken, weights=weights, votes=votes)

    def _row_attention(self, found: list[tuple[int, Chunk]]) -> list[RowAttention]:
        """Attention of chunks with one of their own. `found`: these chunks with their first row."""
        attention: list[RowAttention] = []
        slotted: dict[bool, list[tuple[int, Chunk]]] = {}
        for row, chunk in found:
            if chunk.sparse:
                attention.append(self._sparse(row, chunk))
                continue
            eviction_state = chunk.context.eviction_state
            if eviction_state is None or not chunk.scored:
                others = self._ahead if chunk.ahead else self._gapped
                attention.append(others(row, chunk))
                continue
            if chunk.draft is None and eviction_state.in_slots:
                scored = eviction_state.observation is not None
                slotted.setdefault(scored, []).append((row, chunk))
            else:
                attention.append(self._alone(row, chunk))
        return [*attention, *(self._slotted(rows, scored) for scored, rows in slotted.items())]

    def _sparse(self, row: int, chunk: Chunk) -> RowAttention:
        """Rows of a prompt with sparse prefill: some see only a part of the keys."""
        context = chunk.context
        assert context.sparse_prefill is not None
        return SparseRows(
            rows=slice(row, row + chunk.count),
            sparse_prefill=context.sparse_prefill,
            begin=context.computed,
            pages=context.table.pages,
            slots=self._slots(chunk),
            page_size=self._store.page_size,
            kernels=self.kernels,
        )

    def _gapped(self, row: int, chunk: Chunk) -> RowAttention:
        """Rows whose sliding windows lack the keys of a thought that was dropped."""
        context, draft = chunk.context, chunk.draft
        depths = list(range(chunk.count)) if draft is None else [0, *draft.depths]
        return GappedRows(
            rows=slice(row, row + chunk.count),
            batch=self._batch_of(
                context.table.pages,
                chunk.count,
                context.table.num_keys(context.computed + chunk.count),
                self._slots(chunk),
                None if draft is None else draft.parents,
            ),
            positions=key_positions(context, depths, self._device),
            kernels=self.kernels,
        )

    def _ahead(self, row: int, chunk: Chunk) -> RowAttention:
        """Rows of a prompt among which rows of a picture see each other."""
        context = chunk.context
        keys = context.table.num_keys(context.computed + chunk.count)
        return AheadRows(
            rows=slice(row, row + chunk.count),
            batch=self._batch_of(context.table.pages, chunk.count, keys, self._slots(chunk)),
            blocks=blocks_of(self.pictures, chunk, self._device),
            kernels=self.kernels,
        )

    def _slots(self, chunk: Chunk) -> Tensor:
        """KV cache slots of a chunk's rows: int64 `[count]`."""
        begin = chunk.context.computed
        return self._tensor(chunk.context.table.slots(begin, begin + chunk.count))

    def _slotted(self, found: list[tuple[int, Chunk]], scored: bool) -> SlottedRows:
        """The newest tokens of contexts whose keys are in slots (after eviction)."""
        contexts: list[tuple[EvictionState, AttentionRecord]] = []
        taken: list[Tensor] = []
        tables: list[list[int]] = []
        for _, chunk in found:
            assert chunk.count == 1, "a context in slots is never read again"
            eviction_state, table = chunk.context.eviction_state, chunk.context.slot_table
            assert eviction_state is not None
            taken.append(self._taken(eviction_state, table))
            attention_record = chunk.attention_record = _record(chunk, eviction_state)
            contexts.append((eviction_state, attention_record))
            tables.append(table.pages)
        rows = [row for row, _ in found]
        consecutive = rows[-1] - rows[0] == len(rows) - 1
        return SlottedRows(
            rows=slice(rows[0], rows[-1] + 1) if consecutive else self._tensor(rows),
            contexts=contexts,
            scored=scored,
            held=PagedBatch(
                page_size=self._store.page_size,
                query_starts=list(range(len(found) + 1)),
                kv_lengths=[eviction_state.held for eviction_state, _ in contexts],
                tables=tables,
                slots=self._tensor([]),
            ),
            slots=torch.cat(taken, dim=-1),
            kernels=self.kernels,
        )

    def _taken(self, eviction_state: EvictionState, table: SlotTable) -> Tensor:
        """Slots of the next token's keys, those of the evicted keys: int64 `[layers, K, 1]`."""
        # With torch, ranking is faster: 275 us against 370 for 12 layers of 4 heads, 400 slots.
        if self.kernels.backend == "triton" and eviction_state.one_at_a_time:
            pages = table.page_ids(self._device)
            return eviction_state.begin_row_by(self.kernels.evict, pages, self._store.page_size)
        self._choose(eviction_state, table)
        return table.index(eviction_state.retention.slots, self._device)[eviction_state.begin_row()]

    def _choose(self, eviction_state: EvictionState, table: SlotTable) -> None:
        """Choose the keys to evict next, if all that were chosen have been overwritten."""
        if not eviction_state.has_victims:
            slots = table.index(eviction_state.retention.slots, self._device)
            eviction_state.choose(partial(self._store.read_keys, slots_R=slots))

    def _alone(self, row: int, chunk: Chunk) -> RowAttention:
        """Rows of one context with eviction: rows of a prompt, or draft tokens."""
        context, draft = chunk.context, chunk.draft
        eviction_state = context.eviction_state
        assert eviction_state is not None
        rows = slice(row, row + chunk.count)
        attention_record = chunk.attention_record = _record(chunk, eviction_state)
        depths = attention_record.depths
        parents = None if draft is None else draft.parents
        pages = context.table.pages
        if eviction_state.in_slots:
            self._choose(eviction_state, context.slot_table)
            tree = path_mask(list(range(-1, chunk.count - 2)) if parents is None else parents)
            return SlottedDraft(
                rows=rows,
                eviction_state=eviction_state,
                held=self._batch_of(
                    pages, chunk.count, eviction_state.held, self._tensor([])
                ).spans[0],
                tree=torch.from_numpy(tree).to(self._device),
                attention_record=attention_record,
            )
        slots = self._slots(chunk)
        keys = context.table.num_keys(context.computed + chunk.count)
        return ScoredRows(
            rows=rows,
            eviction_state=eviction_state,
            batch=self._batch_of(pages, chunk.count, keys, slots, parents),
            kernels=self.kernels,
            attention_record=attention_record,
            positions=key_positions(context, depths, self._device) if chunk.gapped else None,
            blocks=blocks_of(self.pictures, chunk, self._device) if chunk.ahead else None,
        )

    def _batch_of(
        self,
        pages: list[int],
        rows: int,
        kv_length: int,
        slots: Tensor,
        parents: list[int] | None = None,
    ) -> PagedBatch:
        """A batch of one context's rows."""
        return PagedBatch(
            page_size=self._store.page_size,
            query_starts=[0, rows],
            kv_lengths=[kv_length],
            tables=[pages],
            slots=slots,
            trees={} if parents is None else {0: parents},
        )

    @torch.inference_mode()
    def _forward(
        self,
        ids: Tensor,
        positions: Tensor,
        wanted: Tensor,
        paged: PagedStep,
        chunks: list[Chunk],
        pictured: dict[str, Any],
    ) -> Tensor:
        attend: AttentionStep = paged
        cache: dict[str, StepStates] = {}
        if self.recurrent is not None:
            attend, cache = self.recurrent.attention(paged, self.recurrent.begin(chunks))
        given: dict[str, Any] = {
            "input_ids": ids[None],
            "position_ids": positions[None],
            "use_cache": False,
            "logits_to_keep": wanted,
            "penstock_step": attend,
        }
        logits: Tensor = self._model(**given | cache | pictured).logits[0]
        if self.recurrent is not None:
            self.recurrent.end(chunks)
        # Some models compute every row's, whatever is asked.
        return logits if logits.shape[0] == wanted.shape[0] else logits[wanted]

    def _tensor(self, values: list[int]) -> Tensor:
        return to_device(values, np.int64, self._device)


def _record(chunk: Chunk, eviction_state: EvictionState) -> AttentionRecord:
    """An empty record of what a chunk's rows attend to."""
    if chunk.draft is not None:
        return AttentionRecord(depths=[0, *chunk.draft.depths], votes=None)
    votes = None
    if not eviction_state.in_slots:
        votes = eviction_state.votes(chunk.context.prompt_length, chunk.count)
    return AttentionRecord(depths=list(range(chunk.count)), votes=votes)
