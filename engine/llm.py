"""Offline inference in Python: batches on the same engine and options as the server."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from ..decoding.sampling_params import SamplingParams
from ..errors import GenerationError
from ..registry import Spec
from .build import build_engine
from .config import EngineConfig
from .outputs.output_state import OutputState
from .requests.chat.template import RenderedChat
from .requests.input import Input
from .requests.prompt_encoder import Prompt
from .search.evaluators import registered
from .search.sync_search import SyncSearch
from .state.request import (
    PART,
    ChoiceDelta,
    Conversation,
    FinishReason,
    Request,
    TokenLogprobs,
    Trace,
    Usage,
)
from .state.stats import EngineStats

Message = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Completion:
    """One choice of an answer."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def add(self, delta: ChoiceDelta) -> None:
        """Append a delta."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """The answer to one prompt: `choices` by index. `trace`: the tree of a search, if any.

    `error`: why this request failed; its choices hold what was generated before.
    """

    prompt_token_ids: tuple[int, ...]
    choices: list[Completion]
    usage: Usage
    prompt_logprobs: tuple[TokenLogprobs, ...] | None
    trace: Trace | None = None
    error: GenerationError | None = None

    @property
    def text(self) -> str:
        """Text of the first choice; raises `error` if there is one."""
        if self.error is not None:
            raise self.error
        return self.choices[0].text


class LLM:
    """A model for offline use; keyword arguments are the fields of `EngineConfig`.

    >>> llm = LLM()                                    # the embedded model
    >>> llm.generate("Once upon a time", SamplingParams(max_tokens=40, temperature=0))
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        built = build_engine(EngineConfig(model=model, **settings), time.perf_counter)
        self.info = built.info
        self.tokenizer = built.input_processor.tokenizer
        self._input_processor = built.input_processor
        self._engine = built.engine
        self._evaluators = registered()
        self._requests = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        suffix: str | None = None,
        decoding: Spec = None,
        kv_cache: Spec = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer prompts (texts or lists of token ids) together; results in the order given.

        `params`: one for all, or one for each prompt. `suffix`: the text that follows every
        answer, for models that fill in the middle.

        A request that fails while it runs has its `error` in the result; the others still finish.

        Raises:
            RequestError: a prompt or parameter is refused, before anything has run.
        """
        batch = _as_batch(prompts)
        each = _spread(params, len(batch))
        requests = [
            self._input_processor.prepare(
                Input(
                    request_id=self._next_id(),
                    prompt=prompt,
                    suffix=suffix,
                    params=one,
                    decoding=decoding,
                    kv_cache=kv_cache,
                    logprobs=logprobs,
                    prompt_logprobs=prompt_logprobs,
                )
            )
            for prompt, one in zip(batch, each, strict=True)
        ]
        return self._run(requests, progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        decoding: Spec = None,
        kv_cache: Spec = None,
        logprobs: int | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template."""
        several = [messages] if messages and isinstance(messages[0], Mapping) else messages
        each = _spread(params, len(several))
        requests = [
            self._input_processor.prepare(
                Input(
                    request_id=self._next_id(),
                    prompt=self.tokenizer.render_chat(conversation),  # type: ignore[arg-type]
                    params=one,
                    prompt_param="messages",
                    decoding=decoding,
                    kv_cache=kv_cache,
                    logprobs=logprobs,
                    conversation=Conversation(messages=conversation),  # type: ignore[arg-type]
                )
            )
            for conversation, one in zip(several, each, strict=True)
        ]
        return self._run(requests, progress)

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine."""
        return self._engine.stats()

    @property
    def kv_cache_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values, all layers together."""
        return self._engine.bytes_per_token

    def _next_id(self) -> str:
        self._requests += 1
        return f"llm-{self._requests}"

    def _run(self, requests: list[Request], progress: bool) -> list[RequestOutput]:
        answers = {r.id: [Completion(index=i) for i in range(r.n)] for r in requests}
        output_states = {r.id: OutputState(r, self.tokenizer) for r in requests if r.search is None}
        searches = {
            r.id: SyncSearch(r, self._input_processor, self._engine, self._evaluators)
            for r in requests
            if r.search is not None
        }
        errors: dict[str, GenerationError] = {}
        for request in requests:
            if request.search is None:
                self._engine.add(request)
        try:
            with tqdm(total=len(requests), disable=not progress, unit="request") as bar:
                for search in searches.values():
                    search.advance()
                while self._engine.has_work:
                    for output in self._engine.step():
                        search = searches.get(output.request_id.partition(PART)[0])
                        if search is not None:
                            search.feed(output)
                            bar.update(search.ended)
                            continue
                        output_state = output_states[output.request_id]
                        if output.failure is not None:
                            if output.request_id not in errors and output_state.fails(output):
                                errors[output.request_id] = output.failure.error()
                                self._engine.abort(output.request_id)
                                bar.update()
                            continue
                        delta, ended_by_text = output_state.feed(output)
                        if delta is None:
                            continue
                        if ended_by_text:
                            self._engine.abort(output.request_id, output.index)
                        answers[output.request_id][delta.index].add(delta)
                        bar.update(output_state.finished)
                    for search in searches.values():
                        search.check_time()
            for request_id, search in searches.items():
                for delta in search.answers() if search.error is None else ():
                    answers[request_id][delta.index].add(delta)
        finally:
            for request in requests:
                self._engine.abort(request.id)
            for search in searches.values():
                search.close()
        return [
            RequestOutput(
                prompt_token_ids=r.prompt_ids,
                choices=answers[r.id],
                usage=searches[r.id].usage if r.id in searches else output_states[r.id].usage,
                prompt_logprobs=None if r.id in searches else output_states[r.id].prompt_logprobs,
                trace=searches[r.id].trace if r.id in searches else None,
                error=searches[r.id].error if r.id in searches else errors.get(r.id),
            )
            for r in requests
        ]


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | RenderedChat):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _spread(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise ValueError(f"{len(params)} SamplingParams for {count} prompts")
    return list(params)
