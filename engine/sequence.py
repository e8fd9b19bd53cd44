"""A sequence: one choice of one request while it lives in the engine."""

from dataclasses import dataclass, field

from ..decoding.sampling import Sampling
from ..kvcache.table import PageTable
from .request import Request, TokenLogprobs


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Mutable state of one choice; the scheduler and the engine are its only owners.

    Invariant between steps while it runs: `computed` < len(tokens); when the two differ by one
    the sequence decodes, when by more it still reads (its prompt, or everything after preemption).

    `computed`: tokens whose keys and values are in the pages (logical length).
    `unborn`: indices of the request's other choices, which fork off when the prompt is read.
    """

    request: Request
    index: int
    sampling: Sampling
    tokens: list[int]
    prompt_length: int
    table: PageTable
    arrival: int
    computed: int = 0
    unborn: tuple[int, ...] = ()
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    first_scheduled_s: float | None = None
    has_output: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        """Order of service: priority, then arrival, then choice."""
        return (self.request.priority, self.arrival, self.index)

    @property
    def remaining(self) -> int:
        """Tokens that have no keys and values yet."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length
