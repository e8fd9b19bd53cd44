"""The choices of each request as sequences: how they are made, and which of them live."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...decoding.constraint.constraint import Constraint
from ...decoding.constraint.thinking import ThinkingConstraint
from ...decoding.gumbel import derive_seed
from ...kvcache.pages import PagePool
from ...kvcache.prefix import PrefixCache
from ...kvcache.recurrent_state import RecurrentState
from ...kvcache.state_pool import StatePool
from ...kvcache.table import PageTable
from ..adapters.store import AdapterStore
from ..state.pictures import PlacedPictures
from ..state.request import Request
from ..state.sequence import Context, Sequence
from ..state.sparse_prefill import SparsePrefillState, salt_of
from .eviction import Eviction


class Choices:
    """Makes the sequences of requests, and knows which of them live.

    `place`: where the pictures of a request are in one of its prompts; None: nowhere.
    """

    def __init__(
        self,
        pool: PagePool,
        prefix: PrefixCache,
        page_size: int,
        eviction: Eviction,
        adapters: AdapterStore,
        place: Callable[[tuple[int, ...], Request], PlacedPictures | None],
        states: StatePool | None = None,
    ) -> None:
        self._states = states
        self._pool = pool
        self._prefix = prefix
        self._page_size = page_size
        self._eviction = eviction
        self._adapters = adapters
        self._place = place
        self._living: dict[str, list[Sequence]] = {}
        self._arrivals = 0

    def begin(self, request: Request) -> Sequence:
        """The first choice of a request; the others fork off it when it has read the prompt."""
        self._arrivals += 1
        first = self._sequence(request, 0, self._arrivals, tuple(range(1, request.n)))
        self._living[request.id] = [first]
        return first

    def split(self, sequence: Sequence, indices: tuple[int, ...]) -> list[Sequence]:
        """Sequences of choices that cannot fork for lack of places; each reads the prompt."""
        made = [self._sequence(sequence.request, i, sequence.arrival) for i in indices]
        self._living[sequence.request.id] += made
        return made

    def fork(self, sequence: Sequence) -> list[Sequence]:
        """Fork off the request's other choices, once the prompt has been read."""
        forks: list[Sequence] = []
        for index in sequence.pending_choices:
            sampling = sequence.sampling
            fork = replace(
                sequence,
                index=index,
                sampling=replace(sampling, seed=derive_seed(sampling.seed, index)),
                tokens=list(sequence.tokens),
                table=sequence.fork_table(),
                eviction_state=None
                if sequence.eviction_state is None
                else sequence.eviction_state.fork(),
                other_contexts=tuple(context.fork() for context in sequence.other_contexts),
                thought=None if sequence.thought is None else sequence.thought.fork(),
                recurrent=None if sequence.recurrent is None else sequence.recurrent.fork(),
                pending_choices=(),
                rule_state=None if sequence.rule_state is None else sequence.rule_state.fork(),
                constraint=None if sequence.constraint is None else sequence.constraint.fork(),
                prompt_logprobs=[],
            )
            forks.append(fork)
        sequence.pending_choices = ()
        self._living[sequence.request.id] += forks
        return forks

    def living(self, request_id: str) -> list[Sequence]:
        """The request's sequences that have not ended; unknown ids have none."""
        return list(self._living.get(request_id, ()))

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence; with its last one, the request."""
        living = self._living.get(sequence.request.id)
        if living is not None:
            living.remove(sequence)
            if not living:
                del self._living[sequence.request.id]

    def clear(self) -> None:
        """Forget all."""
        self._living.clear()

    def _sequence(
        self, request: Request, index: int, arrival: int, pending_choices: tuple[int, ...] = ()
    ) -> Sequence:
        """A choice that has to read the prompt; `pending_choices` fork off it afterwards."""
        sampling = request.sampling
        if index:
            sampling = replace(sampling, seed=derive_seed(sampling.seed, index))
        return Sequence(
            **self._context(request, request.prompt_ids),
            request=request,
            index=index,
            sampling=sampling,
            arrival=arrival,
            other_contexts=tuple(
                Context(**self._context(request, ids)) for ids in request.contexts
            ),
            target=request.target,
            pending_choices=pending_choices,
            constraint=_constraint(request),
            adapter=self._adapters.get(request.adapter) if request.adapter else None,
        )

    def _context(self, request: Request, prompt: tuple[int, ...]) -> dict[str, Any]:
        """The fields of a `Context` that has computed nothing yet."""
        sparse_prefill = SparsePrefillState.of(request, prompt)
        salt = salt_of(request, sparse_prefill)
        return {
            "tokens": list(prompt),
            "prompt_length": len(prompt),
            "table": PageTable(self._pool, self._prefix, self._page_size, salt),
            "eviction_state": self._eviction.eviction_state_for(request, prompt),
            "sparse_prefill": sparse_prefill,
            "thought": self._eviction.dropped_thought_for(request, prompt),
            "recurrent": None if self._states is None else RecurrentState(self._states),
            "pictures": self._place(prompt, request) if request.pictures else None,
        }


def _constraint(request: Request) -> Constraint | None:
    """The place in the answer's form behind what the prompt has of the answer."""
    constraint = None if request.grammar is None else request.grammar.start()
    if request.thinking is not None:
        constraint = ThinkingConstraint(request.thinking, constraint)
    if constraint is None:
        return None
    constraint.read(request.prompt_ids[len(request.prompt_ids) - request.answered :])
    return constraint
