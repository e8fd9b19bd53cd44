"""Controllers for tests, and requests that use them, on the synchronous engine."""

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import BaseModel

from penstock import SamplingParams
from penstock.decoding.base import DecodingMethod
from penstock.decoding.search.base import Controller, SearchContext, SearchLimits
from penstock.decoding.search.budget import Budget
from penstock.decoding.search.operations import Operation, Outcome
from penstock.engine.build import Built
from penstock.engine.core.loop import take
from penstock.engine.outputs.generation import Generation
from penstock.engine.requests.input import Input
from penstock.engine.search.sync_search import SyncSearch
from penstock.engine.state.request import ChoiceDelta, Request, StepOutput
from penstock.errors import PenstockError
from penstock.registry import NoParameters, Registry, Spec

Steps = Generator[Operation | list[Operation], Any, Outcome]
Body = Callable[[SearchContext], Steps]


class Bounded(BaseModel):
    budget: Budget = Budget()


class Scripted(Controller[Bounded]):
    """Runs a function of the test's."""

    name = "scripted"
    parameters: type[BaseModel] = Bounded
    summary = "for tests"

    def __init__(self, body: Body) -> None:
        self._body = body

    def check(self, parameters: Bounded, n: int, limits: SearchLimits) -> None:
        pass

    def budget(self, parameters: Bounded) -> Budget:
        return parameters.budget

    def run(self, parameters: Bounded | NoParameters, context: SearchContext) -> Steps:
        return self._body(context)


def with_controller(built: Built, body: Body) -> Built:
    """The same engine, whose requests may name `scripted`."""
    methods: list[DecodingMethod[Any]] = [
        *built.input_processor.decoding.methods.values(),
        Scripted(body),
    ]
    return replace(
        built,
        input_processor=replace(built.input_processor, decoding=Registry("decoding", methods)),
    )


def search_request(
    built: Built,
    prompt: str | list[int],
    decoding: Spec,
    *,
    name: str = "search",
    kv_cache: Spec = None,
    **sampling: Any,
) -> Request:
    defaults: dict[str, Any] = {"seed": 7, "max_tokens": 16}
    return built.input_processor.prepare(
        Input(
            request_id=name,
            prompt=prompt,
            params=SamplingParams(**defaults | sampling),
            decoding=decoding,
            kv_cache=kv_cache,
        )
    )


class Run:
    """A search on the engine, step by step, and what it gave its caller."""

    def __init__(self, built: Built, request: Request) -> None:
        self._engine = built.engine
        self.search = SyncSearch(
            request,
            input_processor=built.input_processor,
            evaluators={},
            send=partial(take, built.engine),
            ended=self._end,
        )
        self.search.outlet = self
        self.outputs: list[StepOutput] = []
        self.answers: list[ChoiceDelta] = []
        self.ended = False
        self.error: PenstockError | None = None

    def start(self) -> None:
        self.search.begin()

    def step(self) -> None:
        for output in self._engine.step():
            self.outputs.append(output)
            self.feed(output)

    def feed(self, output: StepOutput) -> None:
        self.search.feed(output, now_s=0.0)

    def finish(self) -> list[ChoiceDelta]:
        """Run to the end; nothing is held then."""
        try:
            self.start()
            while self._engine.has_work:
                self.step()
            assert self.ended
            return self.answers
        finally:
            self.leave()
            assert self._engine.pool.in_use == 0

    def leave(self) -> None:
        self.search.leave()

    def push(self, delta: ChoiceDelta) -> None:
        self.answers.append(delta)

    def close(self, error: PenstockError | None) -> None:
        self.error = error

    def _end(self, generation: Generation, error: PenstockError | None) -> None:
        assert generation is self.search
        assert not self.ended, "it ends once"
        self.ended = True
        self.close(error)
