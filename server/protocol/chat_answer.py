"""Answers of /v1/chat/completions, whole and as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from .chunk_stream import ChunkStream
from .logprobs import chat_logprobs, prompt_logprobs
from .plan import usages
from .search_answer import with_trees
from .usage import usage_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.outputs.choice_result import ChoiceResult
    from ...engine.state.request import ChoiceDelta
    from ..conventions.reading import ChoiceReading
    from .chat_body import ChatBody
    from .plan import Answered, Plan


def chat_answer(
    plan: Plan[ChatBody], results: Sequence[Sequence[ChoiceResult]], answered: Sequence[Answered]
) -> bytes:
    """The whole answer as JSON."""
    body = plan.body
    echo = "".join(echo.text for echo in plan.echo)
    choices: list[dict[str, Any]] = []
    thought_tokens: int | None = None
    for index, result in enumerate(results[0]):
        fields: dict[str, Any] = {"content": result.text}
        reason: str | None = result.finish_reason
        if plan.reading is not None:
            choice_reading = plan.reading.choice()
            fields = choice_reading.message(result.text, result.token_ids)
            reason = _reason(reason, choice_reading)
            thought_tokens = (thought_tokens or 0) + choice_reading.thought_tokens
        if echo:
            fields["content"] = echo + (fields["content"] or "")
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "refusal": None, **fields},
            "logprobs": chat_logprobs(result.logprobs, plan.spelling) if body.logprobs else None,
            "finish_reason": reason,
            "stop_reason": result.stop_reason,
        }
        if body.return_token_ids:
            choice["token_ids"] = result.token_ids
        choices.append(choice)
    answer: dict[str, Any] = {
        "id": plan.id,
        "object": "chat.completion",
        "created": plan.created,
        "model": plan.model,
        "choices": choices,
        "usage": usage_object(usages(answered), thought_tokens),
    }
    if body.return_token_ids:
        answer["prompt_token_ids"] = plan.requests[0].prompt_ids
    if body.prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(
            answered[0].prompt_logprobs or (), body.prompt_logprobs, plan.spelling
        )
    return orjson.dumps(with_trees(answer, plan.requests, answered))


def _reason(reason: str | None, reading: ChoiceReading) -> str | None:
    """The finish reason: an answer that ends with calls waits for their results."""
    return "tool_calls" if reason == "stop" and reading.calls else reason


class ChatStream(ChunkStream["ChatBody"]):
    """Chunks of a chat."""

    def __init__(self, plan: Plan[ChatBody]) -> None:
        super().__init__(
            plan,
            kind="chat.completion.chunk",
            empty={"delta": {}, "logprobs": None, "finish_reason": None},
            text_end=b'},"logprobs":null,"finish_reason":null}]',
        )
        self._full = plan.body.logprobs or plan.body.return_token_ids
        self._choices = (
            None if plan.reading is None else [plan.reading.choice() for _ in range(plan.body.n)]
        )

    def opening(self) -> bytes:
        """The role chunk of every choice, and one with what stands before the answer."""
        ids = b"]"
        if self._plan.body.return_token_ids:
            ids += b',"prompt_token_ids":' + orjson.dumps(self._plan.requests[0].prompt_ids)
        # Where calls may come, there may be no content.
        content = b'""' if self._choices is None else b"null"
        middle = b',"delta":{"role":"assistant","content":' + content
        middle += b'},"logprobs":null,"finish_reason":null}'
        echo = (
            b',"delta":{"content":'
            + orjson.dumps("".join(echo.text for echo in self._plan.echo))
            + self._text_end
        )
        heads = [self._head + b"%d" % index for index in range(self._plan.body.n)]
        roles = [head + middle + ids + self._tail for head in heads]
        return b"".join(roles + ([head + echo for head in heads] if self._plan.echo else []))

    def events(self, prompt: int, delta: ChoiceDelta, answered: Answered) -> bytes:
        """A chunk of text, and the chunk with the finish reason where the choice ended."""
        if self._running is not None:
            self._count(prompt, delta, answered)
        if delta.nodes:
            return self._nodes.of(prompt, delta.index, delta.nodes)
        index = b"%d" % delta.index
        written = b""
        reading = None if self._choices is None else self._choices[delta.index]
        reason: str | None = delta.finish_reason
        if reading is not None:
            last = reason is not None
            fields = reading.push(delta.text, delta.token_ids, last=last)
            reason = _reason(reason, reading)
            if fields or (self._full and delta.token_ids):
                written = self._full_chunk(delta, fields)
        elif self._full and delta.token_ids:
            written = self._full_chunk(delta, {"content": delta.text})
        elif delta.text:
            written = (
                self._head
                + index
                + b',"delta":{"content":'
                + orjson.dumps(delta.text)
                + self._text_end
            )
        if delta.finish_reason is None:
            return written
        end = orjson.dumps({"finish_reason": reason, "stop_reason": delta.stop_reason})
        finish = b',"delta":{},"logprobs":null,' + end[1:] + b"]"
        return written + self._head + index + finish + self._tail

    @property
    def thought_tokens(self) -> int | None:
        """See `ChunkStream`."""
        if self._choices is None:
            return None
        return sum(choice.thought_tokens for choice in self._choices)

    def _full_chunk(self, delta: ChoiceDelta, fields: dict[str, Any]) -> bytes:
        body = self._plan.body
        choice: dict[str, Any] = {
            "delta": fields,
            "logprobs": (
                chat_logprobs(delta.logprobs, self._plan.spelling) if body.logprobs else None
            ),
            "finish_reason": None,
        }
        if body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        rest = orjson.dumps(choice)[1:]
        return self._head + b"%d" % delta.index + b"," + rest + b"]" + self._tail
