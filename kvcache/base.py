"""The interface of KV cache policies: which keys and values of a sequence are kept."""

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
"""A number of tokens (an integer), or a share of the prompt (a float, up to 1.0)."""

Score = Literal["sum", "mean", "decay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What an evicting policy keeps of a sequence, in tokens, once its prompt has been read.

    Each head keeps heavy + recent keys. Among those that are neither the newest `recent` nor the
    first `sink`, the keys of lowest score are evicted. `interval`: tokens between two evictions;
    each head has that many further slots for keys written in between.

    `score`: how the attention that keys have received ranks them; None ranks by age. `half_life`:
    with "decay", tokens after which attention counts half. `score_window`: only the attention of
    that many last tokens of the prompt counts, and that of the answer; None: all of it.
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
        """Keys that each head has after an eviction."""
        return self.heavy + self.recent

    @property
    def slots(self) -> int:
        """Slots for keys of each head."""
        return self.keep + self.interval

    def evicts(self, prompt_tokens: int, max_tokens: int) -> bool:
        """Whether a sequence can grow so long that the attention of some token misses a key."""
        return max_tokens >= 2 and prompt_tokens + max_tokens - 2 > self.keep


P = TypeVar("P", bound=BaseModel)


class CachePolicy(ABC, Generic[P]):
    """A cache policy as requests see it; a request has exactly one, so all have the same `slot`.

    `scores`: whether it ranks keys by the attention that they receive.
    """

    name: str
    slot: Literal["policy"] = "policy"
    scores: bool = False
    parameters: type[BaseModel]
    summary: str

    @abstractmethod
    def retention(self, parameters: P, prompt_tokens: int) -> Retention | None:
        """What is kept of a sequence with a prompt of `prompt_tokens`; None: everything."""


def tokens_of(amount: int | float, prompt_tokens: int) -> int:
    """An `Amount` in tokens; a share is rounded up, so that it is never 0."""
    if isinstance(amount, int):
        return amount
    return -int(-amount * prompt_tokens // 1)
