"""The search driver: turns a controller's operations into requests, and outputs into results.

    controller  -- operations -->  Search  -- subrequests (parts) -->  Engine
                <-- results ---            <-- outputs --------------

It knows neither threads nor event loops. Its caller sends the messages of `launch`, feeds outputs
back, answers `evaluations`, and calls `advance` when `ready`. It enforces the search's budgets.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any

from ...decoding.sampling_params import PLAIN_TEXT
from ...decoding.search.base import Controller
from ...decoding.search.operations import (
    BudgetExhausted,
    Emit,
    Evaluate,
    Forward,
    Free,
    Generate,
    Node,
    Operation,
    Outcome,
    Score,
)
from ...errors import GenerationError, PenstockError, RequestError
from ..outputs.output_state import OutputState, answer_text
from ..state.messages import Abort, Message, Release
from ..state.request import PART, ChoiceDelta, Request, StepOutput, Trace, Usage
from .subrequests import SubrequestBuilder, SubrequestResult, collect

Working = Generator[Operation | list[Operation], Any, Outcome]
_Part = Generate | Forward | Score


@dataclass(slots=True, kw_only=True, eq=False)
class _Running:
    """The subrequests of one operation: those that wait for room and those that run."""

    operation: _Part
    waiting: deque[Request]
    open: dict[str, OutputState] = field(default_factory=dict)
    results: dict[str, SubrequestResult] = field(default_factory=dict)

    def finished(self) -> Any:
        """Results of the generations that have finished so far; None for other operations."""
        if not isinstance(self.operation, Generate):
            return None
        waiting = {part.id for part in self.waiting}
        ended = [n for n in self.results if n not in self.open and n not in waiting]
        return collect(self.operation, [self.results[n] for n in ended]) if ended else ()


class Search:
    """One request's controller, from its first operation to its outcome.

    `outcome`: None until it has ended. `exhausted`: the budget that ended it, if one did.
    """

    def __init__(self, request: Request, builder: SubrequestBuilder) -> None:
        controller, task = request.methods.controller, request.search
        assert controller is not None
        assert task is not None
        assert isinstance(controller.method, Controller)
        self.request = request
        self.usage = Usage(prompt_tokens=0)
        self.outcome: Outcome | None = None
        self.exhausted: str | None = None
        self.nodes: dict[int, Node] = {}
        self.evaluations: dict[int, Evaluate] = {}
        self._fresh_nodes: list[Node] = []
        self._builder = builder
        self._budget = builder.budget
        self._working: Working = controller.method.run(controller.parameters, builder.context)
        self._results: list[Any] = []
        self._running: dict[int, _Running] = {}
        self._single = False
        self._started = False
        self._lock = Lock()
        self._closed = False
        self._by_part: dict[str, int] = {}
        self._numbers = count()
        self._live = 0
        self._reserved = 0
        self._kept: set[str] = set()
        self._counted: dict[str, int] = {}
        self._to_release: list[str] = []
        self._failure: GenerationError | None = None

    @property
    def ready(self) -> bool:
        """Whether `advance` is due: nothing that the controller waits for is left."""
        return not self._running and not self.evaluations and self.outcome is None

    def advance(self) -> None:
        """Give the controller its results and take its next operations; may take long.

        Raises:
            RequestError: the controller cannot work with the request's prompt.
            GenerationError: a subrequest failed. It is raised at the controller's yield, and the
                controller did not handle it.
            Exception: any exception of a broken controller.
        """
        with self._lock:
            try:
                self._advance()
            except StopIteration as end:
                self.outcome = end.value
            except BudgetExhausted:  # the controller has no answer
                self.outcome = Outcome(answers=())
            except RequestError as error:
                # Controllers know only a prompt; the caller of a chat has sent messages.
                chat = self.request.search is not None and self.request.search.conversation
                if error.param == "prompt" and chat:
                    error.param = "messages"
                raise
        if self._closed:
            self._close_working()

    def launch(self) -> list[Message]:
        """The messages that can be sent now, in order."""
        messages: list[Message] = []
        if self._to_release:
            messages.append(Release(names=tuple(self._to_release)))
            self._to_release.clear()
        if self.exhausted is not None:  # the time ran out while the controller ran
            self._exhaust(self.exhausted)
            return messages
        for running in self._running.values():
            while running.waiting and self._fits(running.waiting[0]):
                part = running.waiting.popleft()
                self._live += part.sequences
                self._reserved += self._most_tokens(part)
                running.open[part.id] = OutputState(part, self._builder.tokenizer)
                if part.retain:
                    self._kept.update(map(part.retained_name, range(part.n)))
                messages.append(part)
            if running.waiting:
                break
        if self._running and not self._live:
            self._exhaust("tokens")
        return messages

    def feed(self, output: StepOutput) -> list[Message]:
        """Take in an output of a subrequest; returns the messages to send."""
        number = self._by_part.get(output.request_id)
        running = None if number is None else self._running.get(number)
        output_state = None if running is None else running.open.get(output.request_id)
        if running is None or output_state is None or number is None:
            return []
        if output.failure is not None:
            if not output_state.fails(output):
                return []
            self._failure = output.failure.error()
            return self._abort_parts()
        result = running.results[output.request_id]
        delta, ended_by_text = output_state.feed(output)
        if delta is not None:
            result.add(delta)
        messages: list[Message] = []
        if ended_by_text:
            messages.append(Abort(request_id=output.request_id, index=output.index))
        if output_state.finished:
            part = output_state.request
            result.prompt_logprobs = output_state.prompt_logprobs or ()
            del running.open[part.id], self._by_part[part.id]
            self._live -= part.sequences
            self._reserved -= self._most_tokens(part)
            self._count(output_state)
            if part.retain:
                for index, choice in enumerate(result.choices):
                    length = len(part.prompt_ids) + len(choice.token_ids)
                    self._counted[part.retained_name(index)] = length
            if not running.open and not running.waiting:
                del self._running[number]
                parts = list(running.results.values())
                self._results[number] = collect(running.operation, parts)
            messages += self.launch()
        return messages

    def evaluated(self, number: int, scores: tuple[float, ...]) -> None:
        """Take in the scores of one of `evaluations`."""
        if self.evaluations.pop(number, None) is not None:
            self._results[number] = scores

    def expire(self) -> list[Message]:
        """The time budget is used up; returns the messages to send."""
        if self.outcome is not None or self.exhausted is not None:
            return []
        self._results = [
            self._running[number].finished() if number in self._running else result
            for number, result in enumerate(self._results)
        ]
        messages = self._abort_parts()
        self._exhaust("seconds")
        return messages

    def close(self) -> list[Message]:
        """End the search at any point, free everything; returns the messages to send."""
        messages = self._abort_parts()
        self._closed = True
        if self._lock.acquire(blocking=False):  # else `advance` runs in a thread, and closes it
            self._working.close()
            self._lock.release()
        names = (*self._to_release, *self._kept)
        if names:
            messages.append(Release(names=names))
            self._to_release.clear()
            self._kept.clear()
        return messages

    def take_nodes(self) -> list[Node]:
        """Take the nodes emitted since the last call."""
        fresh, self._fresh_nodes = self._fresh_nodes, []
        return fresh

    @property
    def trace(self) -> Trace:
        """The tree so far."""
        return Trace(nodes=tuple(self.nodes.values()), exhausted=self.exhausted)

    def answers(self, outcome: Outcome) -> list[ChoiceDelta]:
        """One whole delta per choice; if there are too few answers, the last choices are empty."""
        eos = self._builder.tokenizer.eos_ids
        deltas: list[ChoiceDelta] = []
        for index in range(self.request.n):
            if index < len(outcome.answers):
                answer = outcome.answers[index]
                ids, text, tokenizer = answer.token_ids, answer.text, self._builder.tokenizer
                if ids is None:
                    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
                elif self.request.text != PLAIN_TEXT:  # controllers know only plain text
                    text = answer_text(self.request, tokenizer, ids, answer.finish_reason)
                deltas.append(
                    ChoiceDelta(
                        index=index,
                        text=text,
                        token_ids=ids,
                        finish_reason=answer.finish_reason,
                        stop_reason=None if answer.stop_reason in eos else answer.stop_reason,
                    )
                )
            else:
                deltas.append(ChoiceDelta(index=index, text="", finish_reason="length"))
        return deltas

    def _close_working(self) -> None:
        with self._lock:
            self._working.close()

    def _advance(self) -> None:
        """Raises StopIteration with the outcome at the end."""
        if self.exhausted is not None:
            self._failure = None
            results = self._results[0] if self._single and self._results else self._results
            operations = self._working.throw(BudgetExhausted(self.exhausted, results))
            while True:  # what it still emits or frees
                operations = self._working.send(self._say(operations))
        failure, self._failure = self._failure, None
        operations = self._send() if failure is None else self._working.throw(failure)
        while not self._begin(operations):
            operations = self._send()

    def _send(self) -> Operation | list[Operation]:
        if not self._started:
            self._started = True
            return next(self._working)
        return self._working.send(self._results[0] if self._single else self._results)

    def _begin(self, operations: Operation | list[Operation]) -> bool:
        """Start operations; False: all their results are known already."""
        self._single = not isinstance(operations, list)
        listed = operations if isinstance(operations, list) else [operations]
        self._results = [None] * len(listed)
        for number, operation in enumerate(listed):
            if isinstance(operation, Evaluate):
                self.evaluations[number] = operation
            elif isinstance(operation, Emit | Free):
                self._say(operation)
            else:
                self._begin_parts(number, operation)
        return bool(self._running or self.evaluations)

    def _begin_parts(self, number: int, operation: _Part) -> None:
        parts = self._builder.parts(operation, self._next_id, self._left())
        if not parts:  # no room for a single token
            self._results[number] = collect(operation, [])
            return
        self._running[number] = _Running(
            operation=operation,
            waiting=deque(parts),
            results={part.id: SubrequestResult(part) for part in parts},
        )
        self._by_part.update((part.id, number) for part in parts)

    def _say(self, operations: Operation | list[Operation]) -> Any:
        """Carry out operations that do not need the engine: `Emit` and `Free`."""
        if isinstance(operations, list):
            return [self._say(operation) for operation in operations]
        if isinstance(operations, Emit):
            for node in operations.nodes:
                self.nodes[node.id] = node
            self._fresh_nodes += operations.nodes
            self.usage.thoughts = len(self.nodes)
        elif isinstance(operations, Free):
            names = {state.source for state in operations.states if state.source is not None}
            self._to_release += sorted(names & self._kept)
            self._kept -= names
        else:
            name = type(operations).__name__
            raise PenstockError(f"a controller asked for {name} after its budget was used up")
        return None

    def _next_id(self) -> str:
        return f"{self.request.id}{PART}{next(self._numbers)}"

    def _fits(self, part: Request) -> bool:
        """Whether a subrequest fits the budgets beside those that run."""
        sequences = self._budget.sequences
        assert sequences is not None
        fits = self._most_tokens(part) <= self._left() - self._reserved
        return fits and self._live + part.sequences <= sequences

    def _left(self) -> int:
        """Tokens of the budget that are not used yet; reserved ones count as left."""
        assert self._budget.tokens is not None
        return self._budget.tokens - self.usage.prompt_tokens - self.usage.completion_tokens

    def _new_tokens(self, part: Request) -> int:
        """Prompt tokens that the generation it continues has not counted."""
        counted = 0 if part.source is None else self._counted.get(part.source, 0)
        return max(0, len(part.prompt_ids) - counted)

    def _most_tokens(self, part: Request) -> int:
        """The most that a subrequest may use: its new prompt tokens and all its choices."""
        return self._new_tokens(part) + part.n * part.max_tokens

    def _count(self, output_state: OutputState) -> None:
        """Add a subrequest's usage; what it continues counts neither as prompt nor as cached."""
        used = output_state.usage
        again = used.prompt_tokens - self._new_tokens(output_state.request)
        used.prompt_tokens -= again
        used.cached_tokens = max(0, used.cached_tokens - again)
        self.usage.add(used)

    def _exhaust(self, budget: str) -> None:
        """End all operations because `budget` is used up; finished generations are kept."""
        self.exhausted = budget
        for number, running in self._running.items():
            self._results[number] = running.finished()
        self.evaluations.clear()
        self._running.clear()
        self._by_part.clear()

    def _abort_parts(self) -> list[Message]:
        """Abort all running subrequests; their usage counts."""
        messages: list[Message] = []
        for running in list(self._running.values()):
            for name, output_state in running.open.items():
                messages.append(Abort(request_id=name))
                self._count(output_state)
        self._running.clear()
        self._by_part.clear()
        self._live = self._reserved = 0
        return messages
