"""Answers of /v1/completions, whole and as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from .chunk_stream import ChunkStream
from .logprobs import CompletionLogprobs, echoed_logprobs, join_logprobs, prompt_logprobs
from .plan import usages
from .search_answer import with_trees
from .usage import usage_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.outputs.choice_result import ChoiceResult
    from ...engine.state.request import ChoiceDelta
    from .completion_body import CompletionBody
    from .plan import Answered, Plan


def completion_answer(
    plan: Plan[CompletionBody],
    results: Sequence[Sequence[ChoiceResult]],
    answered: Sequence[Answered],
) -> bytes:
    """The whole answer as JSON; choice number = prompt number * n + number within the prompt."""
    body = plan.body
    choices: list[dict[str, Any]] = []
    for prompt, of_prompt in enumerate(results):
        for index, result in enumerate(of_prompt):
            echo = _echo_choice(plan, prompt, answered[prompt])
            logprobs = echo["logprobs"]
            if body.logprobs is not None:
                lists = CompletionLogprobs(plan.spelling, len(echo["text"]))
                own = lists.of(result.logprobs, body.logprobs, result.places)
                logprobs = own if logprobs is None else join_logprobs([logprobs, own])
            choice: dict[str, Any] = {
                "index": prompt * body.n + index,
                "text": echo["text"] + result.text,
                "logprobs": logprobs,
                "finish_reason": result.finish_reason,
                "stop_reason": result.stop_reason,
            }
            if body.return_token_ids:
                choice["prompt_token_ids"] = plan.requests[prompt].prompt_ids
                choice["token_ids"] = result.token_ids
            if body.prompt_logprobs is not None:
                choice["prompt_logprobs"] = prompt_logprobs(
                    answered[prompt].prompt_logprobs or (), body.prompt_logprobs, plan.spelling
                )
            choices.append(choice)
    answer = {
        "id": plan.id,
        "object": "text_completion",
        "created": plan.created,
        "model": plan.model,
        "choices": choices,
        "usage": usage_object(usages(answered)),
    }
    return orjson.dumps(with_trees(answer, plan.requests, answered))


class CompletionStream(ChunkStream["CompletionBody"]):
    """Chunks of a completion."""

    def __init__(self, plan: Plan[CompletionBody]) -> None:
        super().__init__(
            plan,
            kind="text_completion",
            empty={"text": "", "logprobs": None, "finish_reason": None},
            text_end=b',"logprobs":null,"finish_reason":null}]',
        )
        self._full = plan.body.logprobs is not None or plan.body.return_token_ids
        self._begun: set[int] = set()
        self._lists: dict[int, CompletionLogprobs] = {}

    def opening(self) -> bytes:
        """Nothing: an echoed prompt comes with its choice's first chunk."""
        return b""

    def events(self, prompt: int, delta: ChoiceDelta, answered: Answered) -> bytes:
        """A chunk of text; the last one of a choice carries the finish reason."""
        if self._running is not None:
            self._count(prompt, delta, answered)
        index = prompt * self._plan.body.n + delta.index
        if delta.nodes:
            return self._nodes.of(prompt, index, delta.nodes)
        echo = self._begin(prompt, index, answered)
        head = self._head + b"%d" % index
        if delta.finish_reason is not None or (self._full and delta.token_ids):
            return echo + head + b"," + self._full_chunk(index, delta) + b"]" + self._tail
        if not delta.text:
            return echo
        return echo + head + b',"text":' + orjson.dumps(delta.text) + self._text_end

    def _begin(self, prompt: int, index: int, answered: Answered) -> bytes:
        """The echoed prompt, once for each choice, and the prompt's ids where asked for."""
        if index in self._begun:
            return b""
        self._begun.add(index)
        plan = self._plan
        choice = _echo_choice(plan, prompt, answered)
        self._lists[index] = CompletionLogprobs(plan.spelling, len(choice["text"]))
        if not plan.echo and not plan.body.return_token_ids:
            return b""
        if plan.body.return_token_ids:
            choice["prompt_token_ids"] = plan.requests[prompt].prompt_ids
        rest = orjson.dumps(choice)[1:]
        return self._head + b"%d" % index + b"," + rest + b"]" + self._tail

    def _full_chunk(self, index: int, delta: ChoiceDelta) -> bytes:
        body = self._plan.body
        choice: dict[str, Any] = {
            "text": delta.text,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if body.logprobs is not None:
            choice["logprobs"] = self._lists[index].of(delta.logprobs, body.logprobs, delta.places)
        if body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return orjson.dumps(choice)[1:]


def _echo_choice(plan: Plan[CompletionBody], prompt: int, answered: Answered) -> dict[str, Any]:
    """What an echoed prompt puts before the text and the logprobs of each of its choices."""
    choice: dict[str, Any] = {"text": "", "logprobs": None, "finish_reason": None}
    if not plan.echo:
        return choice
    echo, alternatives = plan.echo[prompt], plan.body.logprobs
    choice["text"] = echo.text
    if alternatives is not None:
        request = plan.requests[prompt]
        begin, end = request.before or (0, len(request.prompt_ids))
        # The first token of all has no entry.
        entries = (answered.prompt_logprobs or ())[max(0, begin - 1) : max(0, end - 1)]
        choice["logprobs"] = echoed_logprobs(
            request.prompt_ids[begin:end],
            entries,
            alternatives,
            echo.places,
            plan.spelling,
        )
    return choice
