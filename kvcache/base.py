"""The seam of cache policies: what a request may ask the KV cache to keep."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator

from penstock.validation import show, whole

MAX_TOKENS = 2**24


def _checked(value: Any) -> object:
    if value != 1:  # 1.0 is a share, 1 is a token
        value = whole(value)
    is_tokens = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS
    if is_tokens or (isinstance(value, float) and 0 < value <= 1):
        return value
    raise ValueError(
        f"is {show(value)}; it must be an integer from 0 to {MAX_TOKENS}, which is tokens, or a "
        "share of the prompt above 0.0 and up to 1.0"
    )


Amount = Annotated[int | float, BeforeValidator(_checked)]
"""So many tokens (an integer), or that share of the prompt (a number with a point, up to 1.0)."""

Score = Literal["sum", "mean", "decay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept of a sequence, in tokens, once its prompt has been read.

    heavy + recent keys of each head stay; of those that are neither among the newest `recent` nor
    the first `sink`, the ones of lowest score go. `interval`: tokens between two evictions; so many
    further slots hold what was written since.

    `score`: how attention received so far ranks keys; None ranks by age. `half_life`: tokens after
    which attention counts half, with "decay". `score_window`: how many last tokens of the prompt
    have a say; None is all of them.
    """

    heavy: int
    recent: int
    sink: int = 0
    interval: int = 1
    score: Score | None = "sum"
    half_life: int = 256
    score_window: int | None = None

    @property
    def keep(self) -> int:
        """Keys of a head that survive an eviction."""
        return self.heavy + self.recent

    @property
    def slots(self) -> int:
        """Places for keys of a head."""
        return self.keep + self.interval

    def evicts(self, prompt_tokens: int, max_tokens: int) -> bool:
        """Whether a sequence can grow so long that the attention of some token misses a key."""
        return max_tokens >= 2 and prompt_tokens + max_tokens - 2 > self.keep


P = TypeVar("P", bound=BaseModel)


class CachePolicy(ABC, Generic[P]):
    """A cache policy as requests see it; a request has exactly one (`slot` is the same for all).

    `scores`: whether it counts what attention keys receive.
    """

    name: str
    slot: Literal["policy"] = "policy"
    scores: bool = False
    parameters: type[BaseModel]
    summary: str

    @abstractmethod
    def retention(self, parameters: P, prompt_tokens: int) -> Retention | None:
        """What is kept of a sequence with a prompt of that length; None: everything."""


def tokens_of(amount: int | float, prompt_tokens: int) -> int:
    """An `Amount` in tokens; a fraction is rounded up, so that it is never nothing."""
    if isinstance(amount, int):
        return amount
    return -int(-amount * prompt_tokens // 1)
