"""CUDA graphs of decoding steps: one graph for each number of rows and range of context lengths.

A step of a small batch is hundreds of launches, which take the host longer than the device. A CUDA
graph records them once and launches them with one call, on the same memory. So a step is padded to
one of a few sizes, and its inputs are copied to where the graph reads them:

    rows      [ a b c . ]         3 sequences in a graph of 4
    ids       [ 7 9 2 0 ]         slots [ 35 12 80 -1 ]     lengths [ 20 13 1 0 ]

A padding row has no keys and writes none; its result is discarded. Draft tokens in one line become
rows with the same pages, each one key longer than the last: a layer writes all keys before it reads
any. `Executor` hides capture and replay; on a CPU, `Rerun` calls the captured function again on the
same memory."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
from .rows import Rows

logger = logging.getLogger(__name__)

LARGEST: Final = 256
"""Rows of the largest graph; above it, launches take less time than the work they launch."""
MOST_AGAIN: Final = 1 << 15
"""Keys that the draft tokens of a step may read again: without a graph, a pass reads them once
for all draft tokens of a context. At 32 KB a key that is a gigabyte, 0.3 ms at 3.3 TB/s. Not
measured."""
_GROWTH: Final = 4
"""Factor between the context lengths, in splits, of one graph and the next."""


def sizes_up_to(rows: int) -> list[int]:
    """Rows of the graphs: 1, 2, 4, 8, multiples of 16, and the largest size needed."""
    sizes = [1, 2, 4, 8, *range(16, min(rows, LARGEST) + 1, 16)]
    found = [size for size in sizes if size <= rows]
    return found if found[-1] >= min(rows, LARGEST) else [*found, min(rows, LARGEST)]


class Executor(Protocol):
    """Records the launches of a function, to replay them."""

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that replays `call` on what its memory then holds, into the same tensor.

        `call` may be called several times; its tensors must live as long as the result is used.
        Raises RuntimeError if `call` cannot be recorded.
        """
        ...


class CudaExecutor:
    """CUDA graphs, which share one memory pool for intermediate results."""

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Executor`."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):  # lazy initialisation happens in this first call
                call()
        finally:  # after a failure, too: running kernels read memory that is about to be freed
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
    """An executor without CUDA: calls the function again, on the same memory."""

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Executor`."""
        call()
        return call


@dataclass(slots=True, kw_only=True)
class _Captured:
    """One graph and its memory: ids, positions, slots, lengths and tables of the rows.

    `call`: the captured function. It keeps alive the other tensors that the graph reads, which a
    CUDA graph knows only by address.
    """

    staging: Staging
    call: Callable[[], Tensor]
    replay: Callable[[], Tensor]


class DecodeGraphs:
    """Graphs of steps whose rows each see a whole context up to their own place, in pages.

    `sizes`: rows of the graphs, ascending. A graph is captured when it is first needed, which takes
    longer than two steps without it. If capture fails, it is not tried again. All graphs write
    their logits into one buffer with as many rows as the largest graph.
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
        """(rows, pages of the longest context) of the graphs captured so far."""
        return sorted(key for key, graph in self._captured.items() if graph is not None)

    @property
    def largest(self) -> int:
        """Rows of the largest graph."""
        return self._sizes[-1]

    def fits(self, rows: int, again: int = 0) -> bool:
        """Whether a graph may run `rows` rows, of which draft tokens read `again` keys again."""
        return 0 < rows <= self.largest and again <= MOST_AGAIN

    def prepare(self) -> None:
        """Capture the smallest graph. Raises RuntimeError if the model cannot be captured."""
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
        """Logits `[rows, V]`, which the next run overwrites. Arguments have one entry per row.

        `ids` may be on the device already, int64. None: the graph for them could not be captured,
        so the step must run without one.
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

    def run_rows(self, rows: Rows) -> Tensor | None:
        """Run a step in a graph, as contexts of one row each; None: no graph can."""
        counts = [stop - start for start, stop in pairwise(rows.starts)]
        again = sum(n * (count - 1) for n, count in zip(rows.lengths, counts, strict=True))
        if not self.fits(len(rows.ids), again):
            return None
        lengths = [
            n - count + 1 + row
            for n, count in zip(rows.lengths, counts, strict=True)
            for row in range(count)
        ]
        tables = [t for t, count in zip(rows.tables, counts, strict=True) for _ in range(count)]
        return self.run(rows.ids, rows.positions, rows.slots, lengths, tables)

    def _pages_for(self, pages: int) -> int:
        """Pages in the tables of the graph that serves contexts of `pages` pages."""
        splits = 1
        while splits * SPLIT_TOKENS < pages * self._store.page_size:
            splits *= _GROWTH
        return -(-splits * SPLIT_TOKENS // self._store.page_size)

    def _graph(self, size: int, pages: int) -> _Captured | None:
        key = size, pages
        if key not in self._captured:
            try:
                self._captured[key] = self._capture(size, pages)
            except RuntimeError as error:  # mostly out of memory: a step without a graph needs less
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
        """Capture a graph. All rows are padding then, so nothing is written to the cache."""
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
                    keys=firsts,  # for scores, which such steps do not have
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
        """A copy in the shared buffer: a graph's own memory is reused by the next graph."""
        if self._logits is None:
            self._logits = logits.new_empty(self.largest, logits.shape[1])
        return self._logits[: len(logits)].copy_(logits)


def decode_graphs(
    model: nn.Module, store: KVStore, kernels: Kernels, device: torch.device, *, rows: int
) -> DecodeGraphs | None:
    """Graphs for up to `rows` rows; None unless on CUDA with the Triton kernels."""
    if device.type != "cuda" or kernels.backend != "triton":
        return None
    executor, sizes = CudaExecutor(), sizes_up_to(rows)
    return usable(DecodeGraphs(model, store, kernels, device, executor, sizes))


def usable(graphs: DecodeGraphs) -> DecodeGraphs | None:
    """The graphs; None if none can be captured.

    A model that waits for the device within its forward pass cannot, as some with experts do.
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
