"""Log-probabilities in the two dialects of OpenAI, and vLLM's form for prompts."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.request import TokenLogprobs
    from .spelling import Spelling

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity; OpenAI sends this


def finite(logprob: float) -> float:
    """The value as JSON can carry it."""
    return max(logprob, LEAST_LOGPROB)


def chat_logprobs(entries: Sequence[TokenLogprobs], spelling: Spelling) -> dict[str, Any]:
    """`logprobs` of a chat choice: one object a token, alternatives inside."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": spelling.text_of(token_id),
            "logprob": finite(logprob),
            "bytes": list(spelling.bytes_of(token_id)),
        }

    return {
        "content": [
            {
                **one(entry.token_id, entry.logprob),
                "top_logprobs": [one(token, logprob) for token, logprob in entry.top],
            }
            for entry in entries
        ],
        "refusal": None,
    }


class CompletionLogprobs:
    """`logprobs` of one completion choice: parallel lists, with each token's place in the text.

    A place is counted in characters of the choice's text; a token that begins inside a
    character has the place of that character, and special tokens take no room.
    """

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def without(self, token_id: int) -> dict[str, Any]:
        """The entry of a first prompt token, which nothing predicts."""
        lists = _no_logprobs()
        self._append(lists, token_id)
        lists["token_logprobs"].append(None)
        lists["top_logprobs"].append(None)
        return lists

    def of(self, entries: Sequence[TokenLogprobs], alternatives: int) -> dict[str, Any]:
        """The lists of the next tokens, with that many alternatives of each."""
        lists = _no_logprobs()
        for entry in entries:
            self._append(lists, entry.token_id)
            lists["token_logprobs"].append(finite(entry.logprob))
            # The chosen token is always named, hence one more than was asked for.
            top = dict(entry.top[:alternatives]) | {entry.token_id: entry.logprob}
            lists["top_logprobs"].append(
                {self._spelling.key_of(token): finite(value) for token, value in top.items()}
            )
        return lists

    def _append(self, lists: dict[str, Any], token_id: int) -> None:
        lists["tokens"].append(self._spelling.key_of(token_id))
        lists["text_offset"].append(self._offset)
        if not self._spelling.is_special(token_id):
            self._offset += len(self._decoder.decode(self._spelling.bytes_of(token_id)))


def join_logprobs(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One set of parallel lists from several."""
    whole = _no_logprobs()
    for part in parts:
        for name, values in whole.items():
            values.extend(part[name])
    return whole


def prompt_logprobs(
    entries: Sequence[TokenLogprobs], alternatives: int, spelling: Spelling
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each prompt token, token id -> logprob, rank and text."""

    def one(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        return {
            "logprob": finite(logprob),
            "rank": rank,
            "decoded_token": spelling.text_of(token_id),
        }

    places: list[dict[str, Any] | None] = [None]
    for entry in entries:
        place = {
            str(token): one(token, logprob, rank)
            for rank, (token, logprob) in enumerate(entry.top[:alternatives], start=1)
        }
        place[str(entry.token_id)] = one(entry.token_id, entry.logprob, entry.rank)
        places.append(place)
    return places


def _no_logprobs() -> dict[str, Any]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
