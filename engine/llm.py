"""Offline inference in Python: batches on the same engine and options as the server."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from tqdm.auto import tqdm

from ..decoding.sampling_params import SamplingParams
from ..errors import NotFoundError, PenstockError
from ..registry import Spec
from ..validation import show
from .adapters.store import start_key
from .build import build_engine
from .config import EngineConfig
from .core.loop import take
from .outputs.generation import Generation, PlainGeneration
from .outputs.output_processor import OutputProcessor
from .outputs.request_output import OutputCollector, RequestOutput
from .requests.chat.template import RenderedChat
from .requests.input import Input
from .requests.picture_prompt import without_pictures
from .requests.prompt_encoder import Prompt
from .search.evaluators import registered
from .search.sync_search import SyncSearch
from .state.request import Conversation, Request
from .state.stats import EngineStats

Message = Mapping[str, Any]
LLMPrompt = Prompt | Mapping[str, Any]
UseTqdm = bool | Callable[..., Any]


class LLM:
    """A model for offline use; keyword arguments are the fields of `EngineConfig`.

    >>> llm = LLM()                                    # the embedded model
    >>> llm.generate("Once upon a time", SamplingParams(max_tokens=40, temperature=0))
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        config = EngineConfig(model=model, **settings)
        built = build_engine(config, time.perf_counter)
        self._adapters = frozenset(config.adapter_folders)
        self.info = built.info
        self.tokenizer = built.input_processor.tokenizer
        self._input_processor = built.input_processor
        self._engine = built.engine
        self._evaluators = registered()
        self._requests = 0

    def generate(
        self,
        prompts: LLMPrompt | Sequence[LLMPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: UseTqdm = True,
        suffix: str | None = None,
        decoding: Spec = None,
        kv_cache: Spec = None,
        adapter: str | None = None,
    ) -> list[RequestOutput]:
        """Answer prompts together; results in the order given.

        `prompts`: texts, lists of token ids, or mappings as vLLM takes them: {"prompt": text} or
        {"prompt_token_ids": ids}. `sampling_params`: one for all, or one for each prompt.
        `use_tqdm`: show a progress bar on standard error, or what makes one. `suffix`: the text
        that follows every answer, for models that fill in the middle. `adapter`: name of one of
        those in `LLM(..., adapters=["NAME=FOLDER"])`.

        A request that fails while it runs has its `error` in the result; the others still finish.

        Raises:
            RequestError: a prompt or parameter is refused, before anything has run.
        """
        given = [_prompt(one) for one in _as_batch(prompts)]
        requests = [
            self._input_processor.prepare(
                Input(
                    request_id=self._next_id(),
                    prompt=prompt,
                    suffix=suffix,
                    params=params,
                    decoding=decoding,
                    kv_cache=kv_cache,
                    adapter=self._adapter_key(adapter),
                    logprobs=params.logprobs,
                    prompt_logprobs=params.prompt_logprobs,
                )
            )
            for prompt, params in zip(given, _spread(sampling_params, len(given)), strict=True)
        ]
        return self._run(requests, given, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: UseTqdm = True,
        decoding: Spec = None,
        kv_cache: Spec = None,
        adapter: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template.

        Pictures are parts of messages as OpenAI has them (docs/pictures.md).
        `tools`: functions that the template tells the model of, as OpenAI has them; calls are part
        of the answer's text. The other arguments, the results and the errors are those of
        `generate`.
        """
        several = [messages] if messages and isinstance(messages[0], Mapping) else messages
        put = self._input_processor.pictures
        turns = [without_pictures(one) for one in several]  # type: ignore[arg-type]
        pictures = [put.read(sources) for _, sources in turns]
        given: list[Prompt] = [
            put.put(self.tokenizer.render_chat(one, tools=tools), shown)
            for (one, _), shown in zip(turns, pictures, strict=True)
        ]
        each = _spread(sampling_params, len(given))
        requests = [
            self._input_processor.prepare(
                Input(
                    request_id=self._next_id(),
                    prompt=prompt,
                    params=params,
                    prompt_param="messages",
                    decoding=decoding,
                    kv_cache=kv_cache,
                    adapter=self._adapter_key(adapter),
                    logprobs=params.logprobs,
                    prompt_logprobs=params.prompt_logprobs,
                    conversation=Conversation(messages=conversation),
                    pictures=shown,
                )
            )
            for (conversation, _), shown, prompt, params in zip(
                turns, pictures, given, each, strict=True
            )
        ]
        return self._run(requests, given, use_tqdm)

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine."""
        return self._engine.stats()

    @property
    def kv_cache_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values, all layers together."""
        return self._engine.bytes_per_token

    def _adapter_key(self, name: str | None) -> str:
        if name is None:
            return ""
        if name not in self._adapters:
            raise NotFoundError(f"there is no adapter {show(name)}", param="adapter")
        return start_key(name)

    def _next_id(self) -> str:
        self._requests += 1
        return f"llm-{self._requests}"

    def _run(
        self, requests: list[Request], prompts: list[Prompt], use_tqdm: UseTqdm
    ) -> list[RequestOutput]:
        with _progress_bar(use_tqdm, len(requests)) as bar:

            def ended(generation: Generation, error: PenstockError | None) -> None:
                bar.update()

            outputs = OutputProcessor(ended, _unexpected)
            searches: list[SyncSearch] = []
            collectors: list[OutputCollector] = []
            try:
                for request, prompt in zip(requests, prompts, strict=True):
                    generation = self._generation(request, outputs, searches)
                    collectors.append(OutputCollector(generation, _text(prompt), self.tokenizer))
                    outputs.begin(generation, collectors[-1])
                while self._engine.has_work:
                    outputs.feed(self._engine.step(), time.perf_counter())
                    for search in searches:
                        search.check_time()
            finally:
                outputs.end_all()
        return [collector.output() for collector in collectors]

    def _generation(
        self, request: Request, outputs: OutputProcessor, searches: list[SyncSearch]
    ) -> Generation:
        send = partial(take, self._engine)
        if request.search is None:
            return PlainGeneration(request, tokenizer=self.tokenizer, send=send, ended=outputs.end)
        searches.append(
            SyncSearch(
                request,
                input_processor=self._input_processor,
                evaluators=self._evaluators,
                send=send,
                ended=outputs.end,
            )
        )
        return searches[-1]


def _as_batch(prompts: LLMPrompt | Sequence[LLMPrompt]) -> list[LLMPrompt]:
    if isinstance(prompts, str | RenderedChat | Mapping):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _prompt(given: LLMPrompt) -> Prompt:
    if not isinstance(given, Mapping):
        return given
    if "prompt_token_ids" in given:
        return list(given["prompt_token_ids"])
    return given["prompt"]


def _text(prompt: Prompt) -> str | None:
    if isinstance(prompt, RenderedChat):
        return prompt.text
    return prompt if isinstance(prompt, str) else None


def _spread(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise ValueError(f"{len(params)} SamplingParams for {count} prompts")
    return list(params)


def _progress_bar(use_tqdm: UseTqdm, requests: int) -> Any:
    make = use_tqdm if callable(use_tqdm) else partial(tqdm, disable=not use_tqdm)
    return make(total=requests, desc="Processed prompts", unit="request")


def _unexpected(generation: Generation, exception: BaseException) -> NoReturn:
    """A broken plug-in must be seen: the exception reaches the caller of `LLM`."""
    raise exception
