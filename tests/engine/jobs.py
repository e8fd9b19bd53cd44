"""Requests with a method each, run together on the synchronous engine."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from penstock import SamplingParams
from penstock.decoding.constraint.thinking import Thinking
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.outputs.output_state import OutputState
from penstock.engine.requests.input import Input
from penstock.engine.state.request import Request, TokenLogprobs, Usage
from penstock.registry import Spec


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request. `decoding`, `kv_cache`: as in a request's body. `adapter`: its key."""

    prompt: list[int]
    params: SamplingParams
    decoding: Spec = None
    logprobs: int | None = None
    kv_cache: Spec = None
    thinking: Thinking | None = None
    adapter: str = ""

    def with_decoding(self, decoding: Spec) -> "Job":
        return replace(self, decoding=decoding)


@dataclass(kw_only=True)
class Answer:
    """What a job brought: tokens, logprobs and text of each choice."""

    usage: Usage
    tokens: list[list[int]]
    texts: list[str]
    reasons: list[object]
    logprobs: list[list[TokenLogprobs]] = field(default_factory=list)


def build(folder: Path | None, **settings: Any) -> Built:
    """An engine on a small pool; None is the embedded model."""
    fields: dict[str, Any] = {"kv_cache_memory": 0.01, **settings}
    model = None if folder is None else str(folder)
    return build_engine(EngineConfig(model=model, **fields), time.perf_counter)


def prepare(built: Built, name: str, job: Job) -> Request:
    """The request of a job."""
    return built.input_processor.prepare(
        Input(
            request_id=name,
            prompt=job.prompt,
            params=job.params,
            decoding=job.decoding,
            kv_cache=job.kv_cache,
            logprobs=job.logprobs,
            thinking=job.thinking,
            adapter=job.adapter,
        )
    )


def run(
    built: Built,
    jobs: list[Job],
    *,
    change: Callable[[Request], Request] = lambda request: request,
    after_step: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Run jobs together until all have ended."""
    requests = [change(prepare(built, str(i), job)) for i, job in enumerate(jobs)]
    output_states = [OutputState(request, built.input_processor.tokenizer) for request in requests]
    answers = [
        Answer(
            usage=output_state.usage,
            tokens=[[] for _ in range(request.n)],
            texts=[""] * request.n,
            reasons=[None] * request.n,
            logprobs=[[] for _ in range(request.n)],
        )
        for request, output_state in zip(requests, output_states, strict=True)
    ]
    for request in requests:
        built.engine.add(request)
    while built.engine.has_work:
        for output in built.engine.step():
            number = int(output.request_id)
            assert output.failure is None, output.failure
            delta, ended_by_text = output_states[number].feed(output)
            if delta is None:
                continue
            answer = answers[number]
            answer.tokens[delta.index] += delta.token_ids
            answer.texts[delta.index] += delta.text
            answer.logprobs[delta.index] += delta.logprobs
            answer.reasons[delta.index] = (delta.finish_reason, delta.stop_reason)
            if ended_by_text:
                built.engine.abort(output.request_id, output.index)
        after_step()
    return answers
