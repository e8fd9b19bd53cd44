"""Overlap: the next decoding step is launched before the host knows the tokens of this one.

    host      launch n+1 | wait for n's tokens, commit n, hand them over | launch n+2 | wait for ...
    device    ... n | n+1 ............................................... | n+2 ...

Token ids go from step to step on the device; the rows' positions and pages are known before. If a
sequence turns out to have ended, its row was computed in vain: the row wrote the keys of the token
that ended the sequence, and its result is dropped. The next owner of its pages writes to them
later, on the same stream. Sequences whose next step depends on their tokens do not overlap.
"""

from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...decoding.drafting.draft import Continued, DraftedRow
from ...kernels.transfer import Arriving, to_device
from ...kvcache.pages import PagePool
from ..model.cuda_graphs import DecodeGraphs
from ..model.runner import ModelRunner
from ..scheduling.scheduler import Scheduler
from ..state.dropped_thought import DroppedThought
from ..state.sequence import Sequence
from ..state.step import Chunk, Decoded, Step
from .decoder import Decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlightStep:
    """A step that has been launched: the sequences of its rows, and their next tokens.

    `ids`: the tokens, int64 `[R]` on the device. `arriving`: their copy to the host.
    """

    sequences: List[Sequence]
    ids: Tensor
    arriving: Arriving

    @staticmethod
    def of(sequences: List[Sequence], ids: Tensor) -> "InFlightStep":
        """Launch the copy to the host at once, so that later launches do not delay it."""
        return InFlightStep(sequences=sequences, ids=ids, arriving=Arriving(ids))

    def step(self, running: List[Sequence]) -> Step:
        """A `Step` of the rows whose sequences are still running."""
        alive = {id(sequence) for sequence in running}
        return Step(
            chunks=[
                Chunk(sequence=each, context=each, count=1, decodes=True)
                for each in self.sequences
                if id(each) in alive
            ]
        )

    def tokens(self) -> dict[int, int]:
        """The next token by `id` of the sequence; waits for the copy."""
        found: list[int] = self.arriving.wait()
        return {id(each): token for each, token in zip(self.sequences, found, strict=True)}


def can_overlap(sequence: Sequence) -> bool:
    """Whether its steps can be planned without its tokens, and sampled without waiting."""
    request, sampling = sequence.request, sequence.sampling
    return not (
        request.max_tokens == 0
        or request.prompt_logprobs is not None
        or request.methods.drafter is not None
        or request.methods.target is not None
        or request.logprobs is not None
        or request.part_of is not None
        or request.retain
        or sequence.adapter is not None  # the next step is launched in a graph, which has none
        or sequence.other_contexts
        or sequence.pending_choices
        or sequence.eviction_state is not None
        or (sequence.thought is not None and not _has_dropped(sequence.thought, sequence))
        or sampling.top_p < 1  # asks the device whether its best tokens suffice
        or sequence.limited
    )


def _has_dropped(thought: DroppedThought, sequence: Sequence) -> bool:
    """Whether there is nothing to drop any more, and no window has a gap."""
    return thought.settled and not thought.is_seen_from(sequence.computed)


class OverlapLoop:
    """The loop of steps that overlap, beside the ordinary one: at most one step is in flight."""

    def __init__(
        self, scheduler: Scheduler, pool: PagePool, runner: ModelRunner, decoder: Decoder
    ) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._runner = runner
        self._decoder = decoder
        self._in_flight: InFlightStep | None = None

    @property
    def busy(self) -> bool:
        """Whether a step is in flight."""
        return self._in_flight is not None

    def drop(self) -> None:
        """Forget the step in flight, whose sequences have ended."""
        self._in_flight = None

    def begin(self, step: Step, logits: Tensor) -> list[Decoded] | None:
        """Enter the loop with a step that has just run; None: it cannot overlap.

        Returns the tokens of `step`, with the next step launched if possible.
        """
        sequences = [chunk.sequence for chunk in step.chunks]
        graphs = self._runner.graphs
        if graphs is None or not step.in_lines or not all(map(can_overlap, sequences)):
            return None
        launched = InFlightStep.of(sequences, self._decoder.choose(logits, sequences))
        return self._collect(launched, step, graphs)

    def next(self) -> tuple[Step, list[Decoded]] | None:
        """The step in flight and its tokens; None: there is none, or all its sequences ended."""
        launched, self._in_flight = self._in_flight, None
        if launched is None:
            return None
        assert self._runner.graphs is not None
        step = launched.step(self._scheduler.running)
        return (step, self._collect(launched, step, self._runner.graphs)) if step.chunks else None

    def _collect(self, launched: InFlightStep, step: Step, graphs: DecodeGraphs) -> list[Decoded]:
        """A launched step's tokens; before they are known, the next step is launched.

        None is launched while a waiting request could join the next step.
        """
        if not self._scheduler.admits:
            self._in_flight = launch_after(
                launched, self._scheduler.running, self._pool, graphs, self._decoder
            )
        tokens = launched.tokens()
        return [
            Decoded(
                sequence=chunk.sequence,
                tokens=[tokens[id(chunk.sequence)]],
                accepted=[],
                predictions=[tokens[id(chunk.sequence)]],
            )
            for chunk in step.chunks
        ]


def launch_after(
    in_flight: InFlightStep,
    running: List[Sequence],
    pool: PagePool,
    graphs: DecodeGraphs,
    decoder: Decoder,
) -> InFlightStep | None:
    """Launch the step after `in_flight` before its tokens are read; None if it has to wait for
    them.

    `running`: what the scheduler would choose from; all of it has to be in `in_flight`.
    """
    known = {id(sequence): row for row, sequence in enumerate(in_flight.sequences)}
    if any(id(sequence) not in known or not can_overlap(sequence) for sequence in running):
        return None
    # The other sequences end with the token that is on its way.
    going_on = [s for s in running if s.generated + 1 < s.request.max_tokens]
    if not graphs.fits(len(going_on)):
        return None
    places = [len(sequence.tokens) for sequence in going_on]
    missing = sum(s.table.pages_missing(at + 1) for s, at in zip(going_on, places, strict=True))
    if missing > pool.available:
        return None
    slots: list[int] = []
    for sequence, at in zip(going_on, places, strict=True):
        table = sequence.table
        copy = table.extend(at + 1)
        assert copy is None, "the last page is its own since the row before was reserved"
        slots.append(table.slot(at))
    ids = in_flight.ids
    if len(going_on) < len(in_flight.sequences):
        rows_on = [known[id(sequence)] for sequence in going_on]
        ids = ids[to_device(rows_on, np.int64, ids.device)]
    tables = [sequence.table.pages for sequence in going_on]
    # A row without a next token fails once it is read; until then it runs with token 0.
    ids = ids.clamp(min=0)
    keys = [s.table.num_keys(at + 1) for s, at in zip(going_on, places, strict=True)]
    positions = [s.position(at) for s, at in zip(going_on, places, strict=True)]
    logits = graphs.run(ids, positions, slots, keys, tables)
    if logits is None:
        for sequence, at in zip(going_on, places, strict=True):
            sequence.table.truncate(at)
        return None
    rows = [
        DraftedRow(
            sampling=s.sampling,
            tokens=Continued(s.tokens, (0,)),
            prompt_length=s.prompt_length,
            answer_start=s.answer_start,
        )
        for s in going_on
    ]
    return InFlightStep.of(going_on, decoder.choose(logits, rows))
