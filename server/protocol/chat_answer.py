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
    from .chat_body import ChatBody
    from .plan import Answered, Plan


def chat_answer(
    plan: Plan[ChatBody], results: Sequence[Sequence[ChoiceResult]], answered: Sequence[Answered]
) -> bytes:
    """The whole answer as JSON."""
    body = plan.body
    echo = "".join(echo.text for echo in plan.echo)
    choices: list[dict[str, Any]] = []
    for index, result in enumerate(results[0]):
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": echo + result.text, "refusal": None},
            "logprobs": chat_logprobs(result.logprobs, plan.spelling) if body.logprobs else None,
            "finish_reason": result.finish_reason,
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
        "usage": usage_object(usages(answered)),
    }
    if body.return_token_ids:
        answer["prompt_token_ids"] = plan.requests[0].prompt_ids
    if body.prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(
            answered[0].prompt_logprobs or (), body.prompt_logprobs, plan.spelling
        )
    return orjson.dumps(with_trees(answer, plan.requests, answered))


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

    def opening(self) -> bytes:
        """The role chunk of every choice, and one with what stands before the answer."""
        ids = b"]"
        if self._plan.body.return_token_ids:
            ids += b',"prompt_token_ids":' + orjson.dumps(self._plan.requests[0].prompt_ids)
        middle = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
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
        if self._full and delta.token_ids:
            written = self._full_chunk(delta)
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
        end = orjson.dumps({"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason})
        finish = b',"delta":{},"logprobs":null,' + end[1:] + b"]"
        return written + self._head + index + finish + self._tail

    def _full_chunk(self, delta: ChoiceDelta) -> bytes:
        body = self._plan.body
        choice: dict[str, Any] = {
            "delta": {"content": delta.text},
            "logprobs": (
                chat_logprobs(delta.logprobs, self._plan.spelling) if body.logprobs else None
            ),
            "finish_reason": None,
        }
        if body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        rest = orjson.dumps(choice)[1:]
        return self._head + b"%d" % delta.index + b"," + rest + b"]" + self._tail
