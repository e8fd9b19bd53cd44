"""The policies of the study of the KV cache: those of requests, and two that only a study can have.

`random` and `oracle` are `h2o` with scores from outside.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

import torch
from torch import Tensor

from penstock.kvcache.attention_record import AttentionRecord
from penstock.kvcache.base import HeldKeys, Retention
from penstock.kvcache.eviction_state import EvictionState
from penstock.kvcache.h2o import H2O, H2O_POLICY, H2OParameters
from penstock.registry import Choice, Spec

Ranking = Callable[[int], Tensor]
"""What keys are worth when so many tokens have been read: float32 `[layers, K, positions]`."""

Ranked = Literal["received", "random", "future"]

SINK: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPolicy:
    """`spec`: what a request asks for so that each head keeps so many keys.

    `ranked`: by the attention received, at random, or by the attention that is yet to come.
    """

    spec: Callable[[int], Spec]
    ranked: Ranked = "received"


def _h2o(keys: int, **fields: object) -> Spec:
    """Half heavy, half recent. An eviction a token: a budget is then what it says."""
    heavy = keys - keys // 2
    parameters = {"heavy": heavy, "recent": keys // 2, "sink": min(SINK, heavy), "interval": 1}
    return {"h2o": parameters | fields}


def _heavy(keys: int) -> Spec:
    """No more recent ones than the newest, which has to stay."""
    return {"h2o": {"heavy": keys - 1, "recent": 1, "sink": 0, "interval": 1}}


def _keynorm(keys: int) -> Spec:
    return {"keynorm": {"low": keys - keys // 2, "recent": keys // 2, "interval": 1}}


def _window(keys: int, sink: int) -> Spec:
    return {"window": {"recent": keys - sink, "sink": sink, "interval": 1}}


POLICIES: Final[Mapping[str, StudyPolicy]] = {
    "full": StudyPolicy(spec=lambda keys: "full"),
    "oracle": StudyPolicy(spec=_heavy, ranked="future"),
    "h2o": StudyPolicy(spec=_h2o),
    "h2o mean": StudyPolicy(spec=lambda keys: _h2o(keys, score="mean")),
    "h2o decay": StudyPolicy(spec=lambda keys: _h2o(keys, score="decay")),
    "h2o last 32": StudyPolicy(spec=lambda keys: _h2o(keys, score_window=32)),
    "heavy only": StudyPolicy(spec=_heavy),
    "keynorm": StudyPolicy(spec=_keynorm),
    "tova": StudyPolicy(spec=lambda keys: {"tova": {"keep": keys, "interval": 1}}),
    "sink + window": StudyPolicy(spec=lambda keys: _window(keys, min(SINK, keys - 1))),
    "window": StudyPolicy(spec=lambda keys: _window(keys, 0)),
    "random": StudyPolicy(spec=_heavy, ranked="random"),
}


class Foretold(H2O):
    """Evicts as `h2o` would, but by what `ranking` says that keys are worth."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking

    def score(self, held: HeldKeys, parameters: H2OParameters) -> Tensor:
        """See `CachePolicy`."""
        return self._ranking(held.length).gather(-1, held.positions.long())

    def fused(self, parameters: H2OParameters) -> bool:
        """See `CachePolicy`."""
        return False


class Recorder(EvictionState):
    """Evicts nothing of a text of `tokens`, and notes what its tokens attend to.

    `rows`: for each token behind the prompt that is read, `[layers, K, keys]`.
    """

    def __init__(
        self, *, tokens: int, prompt_tokens: int, layers: int, kv_heads: int, device: torch.device
    ) -> None:
        super().__init__(
            Choice(method=H2O_POLICY, parameters=H2OParameters()),
            Retention(heavy=tokens, recent=1),
            kv_heads=kv_heads,
            windows=[None] * layers,
            device=device,
        )
        self._prompt_tokens = prompt_tokens
        self.rows: list[Tensor] = []

    def add_prompt(self, attention_record: AttentionRecord, count: int) -> None:
        """See `EvictionState`. What follows the prompt comes token by token."""
        if self.length >= self._prompt_tokens:
            weights = attention_record.stacked
            assert weights is not None
            self.rows.append(weights)
        super().add_prompt(attention_record, count)

    def future(self) -> Ranking:
        """The attention that each key gets from the tokens that have not been read.

        Knows what the text will be, not what evicting does to it: in a full cache's pass.
        """
        longest = self.rows[-1]
        left = longest.new_zeros(len(self.rows) + 1, *longest.shape)
        for number in range(len(self.rows) - 1, -1, -1):
            row = self.rows[number]
            left[number] = left[number + 1]
            left[number, ..., : row.shape[-1]] += row
        first = self._prompt_tokens
        return lambda length: left[length - first]


def at_random(
    seed: str, *, layers: int, kv_heads: int, tokens: int, device: torch.device
) -> Ranking:
    """Worth nothing but what the dice say, in each head; the same seed, the same dice."""
    dice = torch.Generator().manual_seed(Random(seed).getrandbits(63))
    worth = torch.rand(layers, kv_heads, tokens, generator=dice).to(device)
    return lambda length: worth
