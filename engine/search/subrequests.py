"""The subrequests of a search: one or more for each operation of its controller."""

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Any, cast

from ...decoding.gumbel import derive_seed
from ...decoding.sampling_params import PLAIN_TEXT
from ...decoding.search.budget import filled
from ...decoding.search.operations import Forward, Forwarded, Generate, Generated, Score, State
from ..outputs.choice_result import ChoiceResult
from ..requests.input_processor import InputProcessor
from ..requests.picture_prompt import IN_TEMPLATE
from ..requests.tokenizer import Tokenizer
from ..state.request import ChoiceDelta, Request, SearchTask, TokenLogprobs


class RequestContext:
    """A request as its controller sees it (`SearchContext`)."""

    def __init__(self, request: Request, input_processor: InputProcessor) -> None:
        task, controller = request.search, request.methods.controller
        assert task is not None
        assert controller is not None
        self.problem = task.problem
        self.prompt = State(request.prompt_ids, prompt=len(request.prompt_ids))
        self.n = request.n
        self.seed = request.sampling.seed
        self.max_tokens = task.max_tokens
        self.answer_tokens = request.max_tokens
        self.stop = request.stop_strings
        self.stop_ids = request.stop_token_ids
        self.min_tokens = request.sampling.min_tokens
        self.budget = filled(
            controller.method.budget(controller.parameters), input_processor.search_limits.budget
        )
        self._task = task
        self._param = f"decoding.{controller.method.name}"
        self._encoder = input_processor.encoder
        self._tokenizer = input_processor.tokenizer
        self._put = input_processor.pictures.put
        self._pictures = request.pictures

    def ask(self, text: str) -> State:
        """See `SearchContext`."""
        tokenizer = self._tokenizer
        messages = _with_last(self._task, text)
        if messages is None and tokenizer.chat_template is None:
            ids = self._encoder.encode(text, param=self._param)
            return State(ids, prompt=len(ids))
        conversation = self._task.conversation
        rendered = tokenizer.render_chat(
            messages or [{"role": "user", "content": text}],
            template_kwargs=None if conversation is None else conversation.template_kwargs,
        )
        rendered = self._put(rendered, self._pictures)
        ids = self._encoder.encode(rendered, param=self._param)
        return State(ids, prompt=len(ids))

    def encode(self, text: str) -> tuple[int, ...]:
        """See `SearchContext`."""
        return self._encoder.encode(text, param=self._param, add_special_tokens=False)

    def decode(self, ids: List[int]) -> str:
        """See `SearchContext`."""
        return self._tokenizer.decode(ids)


def _with_last(task: SearchTask, text: str) -> list[Mapping[str, Any]] | None:
    """The chat with `text`, and its pictures, as its last user message; None: it is no chat."""
    if task.conversation is None:
        return None
    messages = list(task.conversation.messages)
    last = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=None)
    if last is None:
        return [*messages, {"role": "user", "content": text}]
    content = messages[last].get("content")
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    shown = [part for part in parts if part == IN_TEMPLATE]
    said = [*shown, {"type": "text", "text": text}] if shown else text
    return [*messages[:last], {"role": "user", "content": said}]


class SubrequestBuilder:
    """Builds the subrequests of one request with a controller."""

    def __init__(self, request: Request, input_processor: InputProcessor) -> None:
        self.tokenizer: Tokenizer = input_processor.tokenizer
        self.context = RequestContext(request, input_processor)
        self.budget = self.context.budget
        self._request = request
        self._grammars = {} if request.search is None else request.search.grammars
        self._input_processor = input_processor
        self._known_contexts: tuple[tuple[int, ...], tuple[tuple[int, ...], ...]] = ((), ())
        self._sequences = self.context.budget.sequences or 1
        methods = replace(request.methods, controller=None)
        self._guided = replace(
            request, search=None, methods=methods, part_of=request.id, text=PLAIN_TEXT
        )
        self._judging = replace(
            self._guided,
            methods=replace(methods, target=None),
            contexts=(),
            combines=False,
            stop_strings=(),
            # Rules and grammar apply to the answer; a judgement is not part of it.
            sampling=replace(request.sampling, rules=None),
            grammar=None,
            thinking=None,
            dropped_thinking=None,
        )

    def parts(
        self, operation: Generate | Forward | Score, next_id: Callable[[], str], left: int
    ) -> list[Request]:
        """The subrequests for the operation; none where the context has no room for it.

        `left`: tokens of the budget that are left.
        """
        state = operation.state
        if isinstance(operation, Score):
            longest = max(map(len, operation.continuations), default=0)
            if self._input_processor.room(self._judging, state.ids) < longest:
                return []
            return [
                self._part(self._judging, state.append(ids), next_id, max_tokens=0, scored=len(ids))
                for ids in operation.continuations
            ]
        guided = isinstance(operation, Forward) or operation.guided
        base = self._guided if guided else self._judging
        if isinstance(operation, Forward):
            base = replace(base, stop_strings=(), stop_token_ids=frozenset(), ruled=True)
            wanted, n, logprobs, retain = 1, 1, operation.top, True
        else:
            base = replace(base, stop_strings=(*base.stop_strings, *operation.stop))
            if operation.form is not None and operation.form in self._grammars:
                base = replace(base, grammar=self._grammars[operation.form], thinking=None)
            wanted, n, retain = operation.max_tokens, operation.count, operation.keep
            logprobs = 0 if operation.logprobs else None
        base = replace(base, n=1, contexts=self._contexts(base, state))
        room = self._input_processor.room(base, state.ids)
        if room < 1:
            return []
        base = replace(base, logprobs=logprobs, retain=retain)
        together = replace(base, n=n)
        most = min(wanted, room)
        fits = (
            len(state.ids) + n * most <= left
            and self._input_processor.room(together, state.ids) >= most
        )
        if n == 1 or (fits and n * (1 + len(base.contexts)) <= self._sequences):
            return [self._part(together, state, next_id, max_tokens=most)]
        # More choices than may run at once: one subrequest each, with the same seeds as together.
        seeds = [base.sampling.seed, *(derive_seed(base.sampling.seed, i) for i in range(1, n))]
        return [
            self._part(
                replace(base, sampling=replace(base.sampling, seed=seed)),
                state,
                next_id,
                max_tokens=most,
            )
            for seed in seeds
        ]

    def _contexts(self, base: Request, state: State) -> tuple[tuple[int, ...], ...]:
        """The target's further contexts of the prompt, each followed by the answer so far."""
        if not base.combines:
            return ()
        length = len(state.ids) if state.prompt is None else min(state.prompt, len(state.ids))
        prompt, answer = state.ids[:length], state.ids[length:]
        if self._known_contexts[0] != prompt:
            found = self._input_processor.contexts(base.methods, prompt) or ()
            self._known_contexts = prompt, found
        return tuple(ids + answer for ids in self._known_contexts[1])

    def _part(
        self,
        base: Request,
        state: State,
        next_id: Callable[[], str],
        *,
        max_tokens: int,
        scored: int | None = None,
    ) -> Request:
        return replace(
            base,
            id=next_id(),
            prompt_ids=state.ids,
            source=state.source,
            answered=0 if state.prompt is None else max(0, len(state.ids) - state.prompt),
            max_tokens=max_tokens,
            prompt_logprobs=None if scored is None else 0,
            scored_from=1 if scored is None else len(state.ids) - scored,
        )


class SubrequestResult:
    """The result of one subrequest."""

    def __init__(self, part: Request) -> None:
        self.part = part
        self.choices = [ChoiceResult() for _ in range(part.n)]
        self.prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    def add(self, delta: ChoiceDelta) -> None:
        """Append a delta."""
        self.choices[delta.index].add(delta)


def collect(operation: Generate | Forward | Score, parts: List[SubrequestResult]) -> Any:
    """The operation's result, from the results of its subrequests; none: there was no room."""
    if isinstance(operation, Score):
        if not parts:
            return (-math.inf,) * len(operation.continuations)
        return tuple(sum(at.logprob for at in result.prompt_logprobs) for result in parts)
    if isinstance(operation, Forward):
        if not parts:
            return Forwarded(state=operation.state, next=(), room=False)
        (result,) = parts
        (choice,) = result.choices
        kept = replace(operation.state, source=result.part.retained_name(0))
        found = choice.logprobs[0].top if choice.logprobs else ()
        left = tuple((token, logprob) for token, logprob in found if logprob > -math.inf)
        return Forwarded(state=kept, next=left, room=True)
    if not parts:
        nothing = Generated(state=operation.state, text="", token_ids=(), finish_reason="length")
        return (nothing,) * operation.count
    return tuple(
        _generated(operation, result.part, index, choice)
        for result in parts
        for index, choice in enumerate(result.choices)
    )


def _generated(operation: Generate, part: Request, index: int, choice: ChoiceResult) -> Generated:
    ids = tuple(choice.token_ids)
    by_token = choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str)
    written = ids[:-1] if by_token and ids and ids[-1] in part.stop_token_ids else ids
    source = part.retained_name(index) if part.retain else operation.state.source
    return Generated(
        state=replace(operation.state.append(written), source=source),
        text=choice.text,
        token_ids=ids,
        finish_reason=choice.finish_reason or "length",
        stop_reason=choice.stop_reason,
        logprobs=tuple(at.logprob for at in choice.logprobs),
    )
