"""The interface of KV cache policies: which keys and values of a sequence are kept."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator
from torch import Tensor

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


def _not_zero(amount: int | float) -> int | float:
    if amount == 0:
        raise ValueError("is 0; the newest token at least must stay")
    return amount


PositiveAmount = Annotated[Amount, AfterValidator(_not_zero)]
"""An `Amount` of at least one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many keys an evicting policy keeps of a sequence, once its prompt has been read.

    Each head keeps heavy + recent keys. Among those that are neither the newest `recent` nor the
    first `sink`, the keys of lowest score are evicted. `interval`: tokens between two evictions;
    each head has that many further slots for keys written in between.
    """

    heavy: int
    recent: int
    sink: int = 0
    interval: int = 1

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


Ages = TypeVar("Ages", float, Tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What attention reports to a policy: how much each key received, summed over tokens.

    A token's attention to a key is the sum over the query heads of the key's KV head.

    `half_life`: tokens after which attention counts half; 0: only the newest token's counts; None:
    all counts in full. `prompt_window`: of the prompt, only the attention of that many last tokens
    counts; cached prefixes can then be used for the rest. None: the attention of all its tokens.
    """

    half_life: int | None = None
    prompt_window: int | None = None

    def share(self, ages: Ages) -> Ages:
        """How much of attention counts `ages` tokens later, where there is a half-life."""
        assert self.half_life is not None
        share: Any = (ages == 0) * 1.0 if self.half_life == 0 else 0.5 ** (ages / self.half_life)
        return share


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldKeys:
    """The keys that a context holds when some must go, of all layers and KV heads; read only.

    `length`: tokens so far, evicted ones included. `positions`: integers `[layers, Hkv, held]`, of
    the keys' tokens, in any order. `attention`: float32 `[layers, Hkv, held]`, what `observe` asked
    for; zeros if it asked for nothing. `first_observed`: position of the first token whose
    attention counts. `keys`: reads the keys of one layer, float32 `[Hkv, held, D]`, as attention
    sees them: rotated, and dequantised if the cache has 8 bits.
    """

    length: int
    positions: Tensor
    attention: Tensor
    first_observed: int
    keys: Callable[[int], Tensor]

    @property
    def observers(self) -> Tensor:
        """How many tokens whose attention counts could see each key, as `positions`."""
        return self.length - self.positions.clamp(min=self.first_observed)


P = TypeVar("P", bound=BaseModel)


class CachePolicy(ABC, Generic[P]):
    """A cache policy as requests see it; a request has exactly one, so all have the same `slot`.

    `retention` says how many keys stay, `observe` what attention has to report, and `score` which
    keys go.
    """

    name: str
    slot: Literal["policy"] = "policy"
    parameters: type[BaseModel]
    summary: str

    @abstractmethod
    def retention(self, parameters: P, prompt_tokens: int) -> Retention | None:
        """How much is kept of a sequence with a prompt of `prompt_tokens`; None: everything."""

    def observe(self, parameters: P) -> Observation | None:
        """What attention has to report; None: nothing.

        Without an observation prompts are read in the ordinary batch and may come from the prefix
        cache.
        """
        return None

    def score(self, held: HeldKeys, parameters: P) -> Tensor:
        """Rank the held keys: float32 `[layers, Hkv, held]`, or a shape that broadcasts to it.

        The keys of lowest score are evicted; of equal scores the oldest. Which keys stay whatever
        their score is up to `Retention`. Keys beyond a layer's own sliding window go first. By
        default a key's score is its observed attention; without an observation the oldest goes.

        If it raises, the request ends with an error.
        """
        return held.attention

    def fused(self, parameters: P) -> bool:
        """Whether `score` is the default, so that `kernels/evict` may choose in its place."""
        return False

    @property
    def observes(self) -> bool:
        """Whether it may observe attention, depending on its parameters."""
        return type(self).observe is not CachePolicy.observe


def tokens_of(amount: int | float, prompt_tokens: int) -> int:
    """An `Amount` in tokens; a share is rounded up, so that it is never 0."""
    if isinstance(amount, int):
        return amount
    return -int(-amount * prompt_tokens // 1)
