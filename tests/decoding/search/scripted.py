"""A search without an engine: tokens are characters, and a function stands for the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from penstock.decoding.search.budget import Budget
from penstock.decoding.search.operations import (
    BudgetExhausted,
    Emit,
    Evaluate,
    Forward,
    Forwarded,
    Free,
    Generate,
    Generated,
    Node,
    Operation,
    Outcome,
    Score,
    State,
)
from penstock.decoding.search.parameters import TotParameters
from penstock.decoding.search.tot import TOT

DATA = "shared/data"
"""Beside the repository, or beside a folder that its worktrees are in."""
ASKED = "\x02"
"""Before the text of a prompt that was asked for."""

Reply = Callable[[str, int], str]
"""What the model would write, without an end, behind a text, as choice i."""


def data(path: str) -> str:
    """A file of the puzzles and logged searches."""
    for folder in Path(__file__).resolve().parents[4:]:
        found = folder / DATA / path
        if found.is_file():
            return found.read_text(encoding="utf-8")
    pytest.skip(f"there is no ../{DATA}/{path} beside the repository")


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


@dataclass(kw_only=True)
class Context:
    """A request."""

    problem: str = "problem"
    n: int = 1
    seed: int = 0
    max_tokens: int | None = None
    budget: Budget = field(default_factory=Budget)
    answer_tokens: int = 1024
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    eos_ids: frozenset[int] = frozenset({0})
    stop_ids: frozenset[int] = frozenset({0})

    @property
    def prompt(self) -> State:
        return State(ids=ids(self.problem))

    def ask(self, text: str) -> State:
        return State(ids=ids(ASKED + text))

    def encode(self, text: str) -> tuple[int, ...]:
        return ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def text_of(state: State) -> str:
    return "".join(map(chr, state.ids)).removeprefix(ASKED)


def generate(operation: Generate, reply: Reply, source: str) -> tuple[Generated, ...]:
    """Continuations as the engine gives them: up to a stop text, the bound or the end."""
    made: list[Generated] = []
    for choice in range(operation.count):
        text = reply(text_of(operation.state), choice)
        ends = {text.find(stop): stop for stop in operation.stop if stop in text}
        end = min(ends, default=len(text))
        stop = ends.get(end)
        written = text[: end + len(stop or "")]
        cut = len(written) > operation.max_tokens
        written = written[: operation.max_tokens]
        made.append(
            Generated(
                state=State(ids=operation.state.ids + ids(written), source=f"{source}:{choice}"),
                text=written[:end],
                token_ids=ids(written),
                finish_reason="length" if cut else "stop",
                stop_reason=None if cut else stop,
            )
        )
    return tuple(made)


def nothing(text: str, choice: int) -> str:
    raise AssertionError(f"nobody expects {text!r} to be continued")


@dataclass(kw_only=True)
class Driver:
    """Runs a search to its end. `exhaust_at`: at which yield the budget is used up, from 0."""

    reply: Reply = nothing
    score: Callable[[str, str], float] | None = None
    evaluate: Callable[[str], float] | None = None
    exhaust_at: int | None = None
    nodes: list[Node] = field(default_factory=list)
    kept: set[str | None] = field(default_factory=set)
    asked_for: int = 0
    rounds: list[list[Operation]] = field(default_factory=list)

    def run(self, context: Context, **parameters: Any) -> Outcome:
        working = TOT.run(TotParameters.model_validate(parameters), context)
        try:
            operations = next(working)
            while True:
                if len(self.rounds) == self.exhaust_at:
                    self.rounds.append([])
                    operations = working.throw(BudgetExhausted("tokens"))
                    self.last_words(operations)
                listed = operations if isinstance(operations, list) else [operations]
                self.rounds.append(listed)
                results = [self.answer(operation) for operation in listed]
                operations = working.send(results if isinstance(operations, list) else results[0])
                if self.exhaust_at is not None and len(self.rounds) > self.exhaust_at:
                    self.last_words(operations)
        except StopIteration as end:
            return end.value

    def last_words(self, operations: Operation | list[Operation]) -> None:
        listed = operations if isinstance(operations, list) else [operations]
        assert all(isinstance(operation, Emit | Free) for operation in listed)

    def answer(self, operation: Operation) -> Any:
        match operation:
            case Generate():
                # What was freed is never continued, and what is continued was to be kept.
                source = operation.state.source
                assert source is None or source in self.kept
                self.asked_for += 1
                made = generate(operation, self.reply, str(self.asked_for))
                if operation.keep:
                    self.kept |= {one.state.source for one in made}
                return made
            case Score():
                assert self.score is not None
                texts = ["".join(map(chr, tail)) for tail in operation.continuations]
                return tuple(self.score(text_of(operation.state), text) for text in texts)
            case Evaluate():
                assert self.evaluate is not None
                return tuple(map(self.evaluate, operation.candidates))
            case Emit():
                self.nodes += operation.nodes
            case Free():
                sources = {state.source for state in operation.states}
                assert sources <= self.kept
                assert len(sources) == len(operation.states)
                self.kept -= sources
            case Forward():
                return Forwarded(state=operation.state, next=())
        return None

    @property
    def made(self) -> list[Node]:
        """Each node as it was first shown."""
        first: dict[int, Node] = {}
        for node in self.nodes:
            first.setdefault(node.id, node)
        return list(first.values())

    def path(self, node: Node) -> tuple[str, ...]:
        """The texts down to a node."""
        by_id = {one.id: one for one in self.made}
        above = () if node.parent is None else self.path(by_id[node.parent])
        return (*above, node.text)

    def asked(self, kind: type[Operation]) -> list[list[Any]]:
        """The operations of one kind, round by round."""
        rounds = [[one for one in listed if isinstance(one, kind)] for listed in self.rounds]
        return [listed for listed in rounds if listed]
