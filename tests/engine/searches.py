"""Controllers for tests, and requests that use them, on the synchronous engine."""

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from penstock import SamplingParams
from penstock.decoding.base import DecodingMethod
from penstock.decoding.search.base import Controller, SearchContext, SearchLimits
from penstock.decoding.search.budget import Budget
from penstock.decoding.search.operations import Operation, Outcome
from penstock.engine.build import Built
from penstock.engine.requests.input import Input
from penstock.engine.search.sync_search import SyncSearch
from penstock.engine.state.request import ChoiceDelta, Request, StepOutput
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
    """A search on the engine, step by step."""

    def __init__(self, built: Built, request: Request) -> None:
        self._engine = built.engine
        self.search = SyncSearch(request, built.input_processor, built.engine, {})
        self.outputs: list[StepOutput] = []

    def start(self) -> None:
        self.search.advance()

    def step(self) -> None:
        for output in self._engine.step():
            self.outputs.append(output)
            self.search.feed(output)

    def finish(self) -> list[ChoiceDelta]:
        """Run to the end; nothing is held then."""
        try:
            self.start()
            while self._engine.has_work:
                self.step()
            return self.search.answers()
        finally:
            self.search.close()
            assert self._engine.pool.in_use == 0
