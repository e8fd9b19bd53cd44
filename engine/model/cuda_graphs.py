"""Decoding steps that are launched as a whole: one graph for so many rows and so long contexts.

A step of a small batch is hundreds of launches that take the host longer than the device. A CUDA
graph records them once and launches them with one call, on the same memory. So a step is padded to
one of a few sizes, and its numbers are copied to where the graph reads them:

    rows      [ a b c . ]         3 sequences in a graph of 4
    ids       [ 7 9 2 0 ]         slots [ 35 12 80 -1 ]     lengths [ 20 13 1 0 ]

A padding row has no keys and writes none; its result is thrown away. The draft tokens of a line are
rows of the same pages, each one key longer: a layer writes all keys before it reads any. Capturing
and replaying sit behind `Executor`: on a CPU `Rerun` calls what was captured again, on the same
memory."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels.backend import Kernels
from ...kernels.batch import PagedBatch
from ...kernels.paged_attention.ragged import SPLIT_TOKENS, Ragged
from ...kernels.transfer import Staging, together
from ...kvcache.store import KVStore
from ..attention.interface import PagedStep

logger = logging.getLogger(__name__)

LARGEST: Final = 256
"""Rows of the largest graph; above it launches take less time than what they do."""
MOST_AGAIN: Final = 1 << 15
"""Keys that the draft tokens of a step may read again: a pass without a graph reads them once for
all draft tokens of a context. At 32 KB a key that is a gigabyte, 0.3 ms at 3.3 TB/s. Not
measured."""
_GROWTH: Final = 4
"""Between the context lengths, in splits, of one graph and the next."""


def sizes_up_to(rows: int) -> list[int]:
    """How many rows graphs have: 1, 2, 4, 8, and multiples of 16 from there on."""
    sizes = [1, 2, 4, 8, *range(16, min(rows, LARGEST) + 1, 16)]
    found = [size for size in sizes if size <= rows]
    return found if found[-1] >= min(rows, LARGEST) else [*found, min(rows, LARGEST)]


class Executor(Protocol):
    """Records what a function launches, to launch it again."""

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What computes the same again from what its memory holds by then, into the same tensor.

        `call` may be called several times, and its tensors live as long as what is returned is
        used. Raises RuntimeError where it cannot be recorded.
        """
        ...


class CudaExecutor:
    """Graphs of CUDA, which share the memory of what they compute in between."""

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Executor`."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):  # whatever happens at the first call happens here
                call()
        finally:  # also what a failure leaves running reads memory that is about to be free
            torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = call()
        self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class Rerun:
    """The same without CUDA: calls again, on the same memory."""

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Executor`."""
        call()
        return call


@dataclass(slots=True, kw_only=True)
class _Captured:
    """One graph and its memory: ids, positions, slots, lengths and tables of the rows.

    `call`: what was captured. It holds the other tensors that the graph reads, which a graph of
    CUDA knows by their addresses alone.
    """

    staging: Staging
    call: Callable[[], Tensor]
    replay: Callable[[], Tensor]


class DecodeGraphs:
    """Steps of rows that each see all of a context up to a place, over ordinary pages.

    `sizes`: rows of the graphs, ascending. Graphs are captured when they are first needed, which
    takes longer than two steps without them. One that cannot be is not tried again. All write their
    logits into one memory, as long as the largest has rows.
    """

    def __init__(
        self,
        model: nn.Module,
        store: KVStore,
        kernels: Kernels,
        device: torch.device,
        executor: Executor,
        sizes: Sequence[int],
    ) -> None:
        assert kernels.backend == "triton", "others read a step's numbers on the host"
        self._model = model
        self._store = store
        self._kernels = kernels
        self._device = device
        self._executor = executor
        self._sizes = list(sizes)
        self._captured: dict[tuple[int, int], _Captured | None] = {}
        self._logits: Tensor | None = None

    @property
    def captured(self) -> list[tuple[int, int]]:
        """Rows, and pages of the longest context, of the graphs so far."""
        return sorted(key for key, graph in self._captured.items() if graph is not None)

    @property
    def largest(self) -> int:
        """Rows of the largest graph."""
        return self._sizes[-1]

    def fits(self, rows: int, again: int = 0) -> bool:
        """Whether there can be a graph for so many, which read so many keys `again`."""
        return 0 < rows <= self.largest and again <= MOST_AGAIN

    def prepare(self) -> None:
        """Capture the smallest. Raises RuntimeError where the model cannot be captured."""
        key = self._sizes[0], self._pages_for(1)
        self._captured[key] = self._capture(*key)

    @torch.inference_mode()
    def run(
        self,
        ids: Sequence[int] | Tensor,
        positions: Sequence[int],
        slots: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
    ) -> Tensor | None:
        """Logits `[rows, V]`, which the next run overwrites. Arguments have one entry a row.

        `ids` may be on the device already, int64. None: the graph for them could not be captured,
        so the step has to run without.
        """
        rows = len(ids)
        size = next(size for size in self._sizes if size >= rows)
        graph = self._graph(size, self._pages_for(max(map(len, tables))))
        if graph is None:
            return None
        graph.staging.wait()
        of_ids, of_positions, of_slots, of_lengths, of_tables = graph.staging.host
        for there, numbers, padding in (
            (of_ids, 0 if isinstance(ids, Tensor) else ids, 0),
            (of_positions, positions, 0),
            (of_slots, slots, -1),
            (of_lengths, lengths, 0),
        ):
            there[:rows] = numbers
            there[rows:] = padding
        for row, table in zip(of_tables, tables, strict=False):
            row[: len(table)] = table
        graph.staging.send()
        if isinstance(ids, Tensor):
            graph.staging.device[0][:rows].copy_(ids)
        return graph.replay()[:rows]

    def _pages_for(self, pages: int) -> int:
        """Pages of the tables of a graph for contexts of so many."""
        splits = 1
        while splits * SPLIT_TOKENS < pages * self._store.page_size:
            splits *= _GROWTH
        return -(-splits * SPLIT_TOKENS // self._store.page_size)

    def _graph(self, size: int, pages: int) -> _Captured | None:
        key = size, pages
        if key not in self._captured:
            try:
                self._captured[key] = self._capture(size, pages)
            except RuntimeError as error:  # of memory, mostly: a step without needs less of it
                self._captured[key] = None
                logger.warning(
                    "no CUDA graph for %d rows with up to %d tokens: it cannot be captured (%s)",
                    size,
                    pages * self._store.page_size,
                    _first_line(error),
                )
        return self._captured[key]

    @torch.inference_mode()
    def _capture(self, size: int, pages: int) -> _Captured:
        """All rows are padding while it is captured: nothing is written."""
        zeros = np.zeros(size, dtype=np.int64)
        numbers = [zeros, zeros, zeros - 1, zeros.astype(np.int32)]
        staging = Staging([*numbers, np.zeros((size, pages), dtype=np.int32)], self._device)
        ids, positions, slots, lengths, tables = staging.device
        splits = 0
        if self._kernels.splits_keys:
            splits = -(-pages * self._store.page_size // SPLIT_TOKENS)
        each, wide = (np.arange(size, dtype=dtype) for dtype in (np.int32, np.int64))
        firsts, starts, parts, wanted = together(
            [each, np.arange(size + 1, dtype=np.int32), wide * splits, wide],
            self._device,
        )
        batch = PagedBatch(
            page_size=self._store.page_size,
            query_starts=[],
            kv_lengths=[],
            tables=[],
            slots=slots,
            derived=[
                Ragged(
                    indices=list(range(size)),
                    rows=size,
                    firsts=firsts,
                    starts=starts,
                    lengths=lengths,
                    tables=tables,
                    parts=parts,
                    part_count=size * splits,
                    keys=firsts,  # of scores, which such steps do not have
                    key_count=0,
                    cells=firsts,
                    cell_count=0,
                    splits=splits,
                    page_size=self._store.page_size,
                    trees=None,
                )
            ],
        )
        step = PagedStep(store=self._store, batch=batch, kernels=self._kernels)

        def call() -> Tensor:
            logits: Tensor = self._model(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=wanted,
                penstock_step=step,
            ).logits[0]
            return self._into(logits)

        return _Captured(staging=staging, call=call, replay=self._executor.capture(call))

    def _into(self, logits: Tensor) -> Tensor:
        """A copy, in the memory of all graphs: their own is free for what the next one computes."""
        if self._logits is None:
            self._logits = logits.new_empty(self.largest, logits.shape[1])
        return self._logits[: len(logits)].copy_(logits)


def decode_graphs(
    model: nn.Module, store: KVStore, kernels: Kernels, device: torch.device, *, rows: int
) -> DecodeGraphs | None:
    """Graphs for up to so many rows, where there can be any: on CUDA, with Triton's kernels."""
    if device.type != "cuda" or kernels.backend != "triton":
        return None
    executor, sizes = CudaExecutor(), sizes_up_to(rows)
    return usable(DecodeGraphs(model, store, kernels, device, executor, sizes))


def usable(graphs: DecodeGraphs) -> DecodeGraphs | None:
    """The graphs, if one can be captured.

    Not that of a model that waits for the device within its pass, as some with experts do.
    """
    try:
        graphs.prepare()
    except RuntimeError as error:
        reason = _first_line(error)
        logger.warning("no CUDA graphs: the model's pass cannot be captured (%s)", reason)
        return None
    logger.info("decoding steps of up to %d rows run in CUDA graphs", graphs.largest)
    return graphs


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]
