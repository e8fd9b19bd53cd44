"""Beam search: the `width` most probable answers so far, all continued token by token.

Scores are sums of logprobs, after the request's rules, over length ** length_penalty. Rules, which
candidates finish, and when the search may stop are as in transformers' `generate(num_beams=width)`,
so that the answers are the same.
"""

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from penstock.errors import RequestError

from ...registry import STRICT
from .base import Controller, SearchContext, SearchLimits
from .budget import Budget
from .operations import (
    NO_ALLOWED_TOKEN,
    Answer,
    BudgetExhausted,
    FinishReason,
    Forward,
    Free,
    Operation,
    Outcome,
    State,
)

MAX_WIDTH = 64
MAX_LENGTH_PENALTY = 10.0


class BeamParameters(BaseModel):
    """`width`: answers that are continued at once.

    `length_penalty`: sums of logprobs are divided by the length to this power: above 0 favours
    long answers, 0 is the plain sum. `early_stop`: true stops as soon as `width` answers have
    ended; false once the best open one, if it ended now, would not be among them; "never" once it
    could not be among them at any length.
    """

    model_config = STRICT

    width: int = Field(default=4, ge=1, le=MAX_WIDTH)
    length_penalty: float = Field(
        default=1.0, ge=-MAX_LENGTH_PENALTY, le=MAX_LENGTH_PENALTY, allow_inf_nan=False
    )
    early_stop: bool | Literal["never"] = False
    budget: Budget = Budget()


@dataclass(frozen=True, slots=True)
class _Beam:
    """An open answer. `total`: sum of the logprobs of its tokens."""

    state: State
    total: float


@dataclass(frozen=True, slots=True)
class _Ended:
    """An answer that has ended, and its score."""

    score: float
    answer: Answer


class _Search:
    """The beams of one search. Lengths are of answers, the token that ends them included."""

    def __init__(self, parameters: BeamParameters, context: SearchContext) -> None:
        self._parameters = parameters
        self._context = context
        self._most = context.answer_tokens
        self._length = 0
        self._open = [_Beam(context.prompt, 0.0)]
        self._ended: list[_Ended] = []
        # Enough candidates that `width` are left even if all others end in this step.
        self._wanted = max(2, 1 + len(context.stop_ids)) * parameters.width

    def run(self) -> Generator[Operation | list[Operation], Any, None]:
        """Continue the beams until nothing can be gained or the context is full."""
        while self._open and self._length < self._most and self._can_gain():
            states = [beam.state for beam in self._open]
            found = yield [Forward(state=state, top=self._wanted) for state in states]
            if not all(forwarded.room for forwarded in found):
                return
            self._step([forwarded.state for forwarded in found], found)
            old = tuple(state for state in states if state.source is not None)
            if old:
                yield Free(states=old)

    def best(self, count: int) -> tuple[Answer, ...]:
        """The best answers that have ended; if these are too few, open ones as they are, too."""
        answers = [ended.answer for ended in self._ended]
        answers += [
            self._answer(beam.state, None)
            for beam in self._open
            if len(beam.state.ids) > len(self._context.prompt.ids)
        ]
        return tuple(answers[:count])

    def _can_gain(self) -> bool:
        full = len(self._ended) == self._parameters.width
        if not full:
            return True
        if self._parameters.early_stop is True:
            return False
        never = self._parameters.early_stop == "never" and self._parameters.length_penalty > 0
        length = self._most if never else self._length
        return self._score(self._open[0].total, length) > self._ended[-1].score

    def _step(self, states: list[State], found: list[Any]) -> None:
        """Continue the best candidates of all beams by one token."""
        width = self._parameters.width
        candidates = [
            (beam.total + logprob, state, token)
            for beam, state, forwarded in zip(self._open, states, found, strict=True)
            for token, logprob in forwarded.next
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        # Where rules leave no token, the answer ends as it is.
        for beam, forwarded in zip(self._open, found, strict=True):
            if not forwarded.next:
                self._end(self._score(beam.total, max(1, self._length)), self._stuck(beam.state))
        self._length += 1
        self._open = []
        for rank, (total, state, token) in enumerate(candidates[: self._wanted]):
            longer = state.append((token,))
            stopped = self._stopped(longer, token)
            if stopped is None:
                if len(self._open) < width:
                    self._open.append(_Beam(longer, total))
            elif rank < width:
                self._end(self._score(total, self._length), self._answer(longer, stopped))

    def _stopped(self, state: State, token: int) -> FinishReason | None:
        if token in self._context.stop_ids or self._cut(state) is not None:
            return "stop"
        return "length" if self._length == self._most else None

    def _cut(self, state: State) -> tuple[str, str] | None:
        """The text before the earliest stop text, and that stop text; None: there is none."""
        stops = self._context.stop
        if not stops:
            return None
        text, early = self._text(state), self._early(state)
        found = [(text.find(stop, max(0, early - len(stop) + 1)), stop) for stop in stops]
        places = [(at, stop) for at, stop in found if at >= 0]
        if not places:
            return None
        at, stop = min(places)
        return text[:at], stop

    def _early(self, state: State) -> int:
        """Characters of the answer's first `min_tokens` tokens; no stop text counts within them."""
        if not self._context.min_tokens:
            return 0
        start = len(self._context.prompt.ids)
        return len(self._context.decode(state.ids[start : start + self._context.min_tokens]))

    def _stuck(self, state: State) -> Answer:
        ids = state.ids[len(self._context.prompt.ids) :]
        return Answer(text=self._text(state), stop_reason=NO_ALLOWED_TOKEN, token_ids=ids)

    def _end(self, score: float, answer: Answer) -> None:
        self._ended.append(_Ended(score, answer))
        self._ended.sort(key=lambda ended: -ended.score)
        del self._ended[self._parameters.width :]

    def _answer(self, state: State, reason: FinishReason | None) -> Answer:
        ids = state.ids[len(self._context.prompt.ids) :]
        cut = self._cut(state)
        if cut is not None:
            text, stop = cut
            return Answer(text=text, finish_reason="stop", stop_reason=stop, token_ids=ids)
        text_ids = ids[:-1] if reason == "stop" else ids
        return Answer(
            text=self._context.decode(text_ids),
            finish_reason=reason or "length",
            stop_reason=ids[-1] if reason == "stop" else None,
            token_ids=ids,
        )

    def _text(self, state: State) -> str:
        return self._context.decode(state.ids[len(self._context.prompt.ids) :])

    def _score(self, total: float, length: int) -> float:
        return total / length**self._parameters.length_penalty


class Beam(Controller[BeamParameters]):
    """See the module."""

    name = "beam"
    parameters = BeamParameters
    evicts = False
    summary = "Beam search: the most probable answers, not the most probable next token."

    def check(self, parameters: BeamParameters, n: int, limits: SearchLimits) -> None:
        """See `Controller`."""
        if n > parameters.width:
            raise RequestError(
                f"n is {n}, but decoding.beam.width is {parameters.width}: so many answers are "
                "kept; lower n or raise the width",
                param="n",
                code="invalid_parameter",
            )

    def budget(self, parameters: BeamParameters) -> Budget:
        """See `Controller`."""
        return parameters.budget

    def run(
        self, parameters: BeamParameters, context: SearchContext
    ) -> Generator[Operation | list[Operation], Any, Outcome]:
        """See `Controller`."""
        search = _Search(parameters, context)
        with suppress(BudgetExhausted):
            yield from search.run()
        return Outcome(answers=search.best(context.n))


BEAM = Beam()
