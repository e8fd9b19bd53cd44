"""What every answer must keep, whatever its text says."""

from typing import Any

import orjson

from penstock.bench.sse import DONE

FINISH_REASONS = ("stop", "length")


class ContractError(Exception):
    """An answer that OpenAI's clients could not rely on."""


def check_completion(answer: Any, *, max_tokens: int) -> None:
    """Check the body of a completion that was not streamed.

    Raises:
        ContractError: with the field that is wrong.
    """
    (choice,) = _list(answer, "choices", length=1)
    if not isinstance(choice.get("text"), str):
        raise ContractError("choices[0].text is missing")
    finish_reason = _finish_reason(choice)
    _check_usage(answer.get("usage"), finish_reason=finish_reason, max_tokens=max_tokens)


class ChatStream:
    """Follows the events of one streamed chat: role, texts, finish reason, usage, [DONE].

    `feed` returns whether the event carried text; `close` is called when the body has ended.
    Both raise ContractError.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._role = False
        self._texts = 0
        self._finish_reason: str | None = None
        self._usage: Any = None
        self._done = False

    def feed(self, payload: bytes) -> bool:
        """Check the next event."""
        if self._done:
            raise ContractError("an event after [DONE]")
        if payload == DONE:
            self._done = True
            return False
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise ContractError("an event is not JSON") from None
        if "error" in event:
            raise ContractError(f"error event: {event['error']}")
        if self._usage is not None:
            raise ContractError("an event between usage and [DONE]")
        choices = _list(event, "choices")
        if not choices:
            self._usage = event.get("usage")
            if self._usage is None:
                raise ContractError("an event with neither choices nor usage")
            return False
        return self._choice(choices[0])

    def close(self) -> None:
        """Check that the stream came to its proper end."""
        if self._finish_reason is None:
            raise ContractError("no finish_reason")
        if not self._done:
            raise ContractError("no [DONE]")
        _check_usage(self._usage, finish_reason=self._finish_reason, max_tokens=self._max_tokens)
        if self._texts > self._usage["completion_tokens"]:
            raise ContractError(
                f"{self._texts} chunks of text, but {self._usage['completion_tokens']} tokens"
            )

    def _choice(self, choice: dict[str, Any]) -> bool:
        if self._finish_reason is not None:
            raise ContractError("a choice after its finish_reason")
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            raise ContractError("choices[0].delta is missing")
        if not self._role:
            if delta.get("role") != "assistant":
                raise ContractError("the first chunk has no role")
            self._role = True
        if choice.get("finish_reason") is not None:
            self._finish_reason = _finish_reason(choice)
        has_text = bool(delta.get("content"))
        self._texts += has_text
        return has_text


def _list(event: Any, name: str, *, length: int | None = None) -> list[dict[str, Any]]:
    value = event.get(name) if isinstance(event, dict) else None
    if not isinstance(value, list) or length not in (None, len(value)):
        raise ContractError(f"{name} is missing, or has the wrong length")
    return value


def _finish_reason(choice: dict[str, Any]) -> str:
    reason = choice.get("finish_reason")
    if reason not in FINISH_REASONS:
        raise ContractError(f"finish_reason is {reason!r}")
    return reason


def _check_usage(usage: Any, *, finish_reason: str, max_tokens: int) -> None:
    if not isinstance(usage, dict):
        raise ContractError("usage is missing")
    prompt, completion, total = (
        usage.get(f"{name}_tokens") for name in ("prompt", "completion", "total")
    )
    if not (isinstance(prompt, int) and isinstance(completion, int) and isinstance(total, int)):
        raise ContractError(f"usage is incomplete: {usage}")
    if prompt < 1 or total != prompt + completion:
        raise ContractError(f"usage does not add up: {usage}")
    if completion > max_tokens or (finish_reason == "length" and completion != max_tokens):
        raise ContractError(
            f"finish_reason {finish_reason}, {completion} tokens of at most {max_tokens}"
        )
