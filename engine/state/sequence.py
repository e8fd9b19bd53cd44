"""A sequence: one choice of one request while it lives in the engine."""

from collections.abc import Hashable
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import Any

from ...decoding.constraint.constraint import Constraint
from ...decoding.drafting.draft import Draft
from ...decoding.rule_state import RuleState
from ...decoding.sampling import Sampling
from ...decoding.target import Target
from ...kvcache.eviction_state import EvictionState
from ...kvcache.recurrent_state import RecurrentState
from ...kvcache.slot_table import SlotTable
from ...kvcache.store import Stored
from ...kvcache.table import KVTable, PageTable
from ...registry import Choice
from ..adapters.store import Prepared
from .counters import NO_COUNTERS, MethodCounters
from .dropped_thought import DroppedThought
from .pictures import PlacedPictures
from .request import Failure, Request, TokenLogprobs
from .sparse_prefill import SparsePrefillState


@dataclass(slots=True, kw_only=True, eq=False)
class Context:
    """One context of a sequence: a prompt and the answer, and where their keys and values are.

    `computed`: tokens whose keys and values are in the pages, or were before they were evicted
    (logical length). `eviction_state`: under an evicting cache policy. `swapped`: keys and values
    of each layer, if the context was preempted after eviction had begun. `sparse_prefill`: if rows
    of its prompt see only part of the keys. `thought`: if the keys of a thought go when it has
    ended. `recurrent`: in models with states beside keys and values. `pictures`: those in its
    prompt."""

    tokens: list[int]
    prompt_length: int
    table: KVTable
    computed: int = 0
    eviction_state: EvictionState | None = None
    swapped: list[Stored] | None = None
    sparse_prefill: SparsePrefillState | None = None
    thought: DroppedThought | None = None
    recurrent: RecurrentState | None = None
    pictures: PlacedPictures | None = None

    @property
    def names(self) -> List[Hashable]:
        """What the prefix cache knows its tokens by."""
        return self.tokens if self.pictures is None else self.pictures.names(self.tokens)

    def position(self, at: int) -> int:
        """The position that the model is told of token `at`."""
        return at if self.pictures is None else self.pictures.position(at)

    @property
    def shareable(self) -> int:
        """How many of the first tokens have keys that others of the same salt would compute too.

        After a sparse prefill only the prompt's: keys of the answer are exact, and those of a
        longer prompt with the same tokens are not. Before a thought that is dropped only those
        before the thought: others see it from behind.
        """
        own = len(self.tokens) if self.sparse_prefill is None else self.sparse_prefill.until
        thought = None if self.thought is None else self.thought.first
        return own if thought is None else min(own, thought)

    @property
    def remaining(self) -> int:
        """Tokens that have no keys and values yet."""
        return len(self.tokens) - self.computed

    @property
    def computable(self) -> int:
        """How many of the `remaining` tokens one step may compute: what is behind a thought waits
        until the thought is dropped."""
        limit = None if self.thought is None else self.thought.limit
        return self.remaining if limit is None else min(self.remaining, limit - self.computed)

    def fork(self) -> "Context":
        """A second context over the same pages."""
        return Context(
            tokens=list(self.tokens),
            prompt_length=self.prompt_length,
            table=self.fork_table(),
            computed=self.computed,
            eviction_state=None if self.eviction_state is None else self.eviction_state.fork(),
            sparse_prefill=self.sparse_prefill,
            thought=None if self.thought is None else self.thought.fork(),
            recurrent=None if self.recurrent is None else self.recurrent.fork(),
            pictures=self.pictures,
        )

    def free(self) -> None:
        """Free its pages and states."""
        self.table.free()
        if self.recurrent is not None:
            self.recurrent.free()

    def fork_table(self) -> PageTable:
        """A second table over the same pages, with its share of the reserve if there is one."""
        return self.page_table.fork(self.slot_pages if self.page_table.reserved else 0)

    @property
    def in_slots(self) -> bool:
        """Whether keys have been evicted, so that each head holds keys of different tokens."""
        return self.eviction_state is not None and self.eviction_state.in_slots

    @property
    def page_table(self) -> PageTable:
        """Its table while it is not `in_slots`."""
        assert isinstance(self.table, PageTable)
        return self.table

    @property
    def slot_table(self) -> SlotTable:
        """Its table once it is `in_slots`."""
        assert isinstance(self.table, SlotTable)
        return self.table

    @property
    def slot_pages(self) -> int:
        """Pages that it needs once keys are evicted; 0: none are ever evicted."""
        if self.eviction_state is None:
            return 0
        return -(-self.eviction_state.retention.slots // self.table.page_size)


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence(Context):
    """Mutable state of one choice, and its own context; the scheduler and the engine own it.

    Invariant between steps while it runs: `computed` < len(tokens). When the two differ by one, the
    sequence decodes; when by more, it still reads (its prompt, or everything after preemption).

    `other_contexts`: the target's further contexts, which end in the same answer and decode in the
    same steps. `target`: what makes one distribution of all contexts' logits; None: the model's
    own. `pending_choices`: indices of the request's other choices, which fork off once the prompt
    has been read. `draft`: the draft tokens that the next step verifies. `reported_evictions`: in
    outputs so far. `awaits`: while it waits, a sequence that computes the tokens both begin with,
    and their number. `served`: the scheduler's step count when it last had rows. `rule_state`: what
    its rules remember of its tokens. `constraint`: where its answer is in the request's grammar.
    `adapter`: of all its contexts; None: the model as it is."""

    request: Request
    index: int
    sampling: Sampling
    arrival: int
    other_contexts: tuple[Context, ...] = ()
    target: Choice[Target[Any]] | None = None
    pending_choices: tuple[int, ...] = ()
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    first_scheduled_s: float | None = None
    has_output: bool = False
    draft: Draft | None = None
    reported_evictions: MethodCounters = NO_COUNTERS
    awaits: "tuple[Sequence, int] | None" = None
    served: int = 0
    rule_state: RuleState | None = None
    constraint: Constraint | None = None
    adapter: Prepared | None = None

    @property
    def limited(self) -> bool:
        """Whether some tokens may be forbidden, or their logits changed."""
        return self.sampling.rules is not None or self.constraint is not None

    @property
    def constraint_failure(self) -> Failure | None:
        """Why its grammar cannot go on; None: it can, or there is none."""
        why = None if self.constraint is None else self.constraint.failure
        if why is None:
            return None
        return Failure(
            code="constraint_error",
            message=f"the grammar of the answer became too complex at this place: {why}; "
            "simplify the schema, the regular expression or the grammar",
        )

    @property
    def key(self) -> tuple[int, int, int]:
        """Order by priority, then arrival, then choice; the last one is preempted first."""
        return (self.request.priority, self.arrival, self.index)

    @property
    def contexts(self) -> tuple[Context, ...]:
        """All contexts, its own first."""
        return (self, *self.other_contexts)

    @property
    def num_sequences(self) -> int:
        """How many sequences it counts for: all contexts, also of choices that have yet to fork."""
        choices = 1 if self.request.max_tokens == 0 else 1 + len(self.pending_choices)
        return choices * (1 + len(self.other_contexts))

    @property
    def decodes(self) -> bool:
        """Whether it needs exactly one row of each context."""
        if len(self.tokens) - self.computed != 1:
            return False
        return not self.other_contexts or all(
            context.remaining == 1 for context in self.other_contexts
        )

    @property
    def answer_start(self) -> int:
        """Position of the answer's first token, which may be in the prompt (`Request.answered`)."""
        return self.prompt_length - self.request.answered

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_length
