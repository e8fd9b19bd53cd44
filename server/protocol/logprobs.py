"""Log-probabilities in the two dialects of OpenAI, and vLLM's form for prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.state.request import TokenLogprobs
    from .spelling import Spelling

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity; OpenAI sends this


def finite(logprob: float) -> float:
    """The value as JSON can carry it."""
    return max(logprob, LEAST_LOGPROB)


def chat_logprobs(entries: Sequence[TokenLogprobs], spelling: Spelling) -> dict[str, Any]:
    """`logprobs` of a chat choice: one object a token, with as many alternatives as asked for."""

    def one(token_id: int, logprob: float, keys: dict[int, str]) -> dict[str, Any]:
        return {
            "token": keys[token_id],
            "logprob": finite(logprob),
            "bytes": spelling.bytes_of(token_id),
        }

    content: list[dict[str, Any]] = []
    for entry in entries:
        keys = spelling.keys_of(with_chosen(entry, len(entry.top)))
        top = [one(token, logprob, keys) for token, logprob in entry.top]
        content.append({**one(entry.token_id, entry.logprob, keys), "top_logprobs": top})
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """`logprobs` of one completion choice: parallel lists, with each token's place in the text.

    `begin`: where the choice's own text begins, behind an echoed prompt.
    """

    def __init__(self, spelling: Spelling, begin: int = 0) -> None:
        self._spelling = spelling
        self._begin = begin

    def of(
        self, entries: Sequence[TokenLogprobs], alternatives: int, places: Sequence[int]
    ) -> dict[str, Any]:
        """The lists of the next tokens, with that many alternatives of each.

        The token itself is always among them, hence there may be one more, as with OpenAI.
        """
        lists = _no_logprobs()
        for entry, place in zip(entries, places, strict=True):
            top = with_chosen(entry, alternatives)
            keys = self._spelling.keys_of(top)
            lists["tokens"].append(keys[entry.token_id])
            lists["token_logprobs"].append(finite(entry.logprob))
            lists["top_logprobs"].append({keys[token]: finite(top[token]) for token in top})
            lists["text_offset"].append(self._begin + place)
        return lists


def echoed_logprobs(
    ids: Sequence[int],
    entries: Sequence[TokenLogprobs],
    alternatives: int,
    places: Sequence[int],
    spelling: Spelling,
) -> dict[str, Any]:
    """The lists of an echoed prompt's tokens; a first token is predicted by nothing."""
    if len(entries) == len(ids):
        return CompletionLogprobs(spelling).of(entries, alternatives, places)
    first = {
        "tokens": [spelling.keys_of(ids[:1])[ids[0]]],
        "token_logprobs": [None],
        "top_logprobs": [None],
        "text_offset": [places[0]],
    }
    rest = CompletionLogprobs(spelling).of(entries, alternatives, places[1:])
    return join_logprobs([first, rest])


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
    places: list[dict[str, Any] | None] = [None]
    for entry in entries:
        ranks = {token: rank for rank, (token, _) in enumerate(entry.top, start=1)}
        places.append(
            {
                str(token): {
                    "logprob": finite(logprob),
                    "rank": entry.rank if token == entry.token_id else ranks[token],
                    "decoded_token": spelling.text_of(token),
                }
                for token, logprob in with_chosen(entry, alternatives).items()
            }
        )
    return places


def with_chosen(entry: TokenLogprobs, alternatives: int) -> dict[int, float]:
    """Token id -> logprob: the best alternatives, best first, and the token itself."""
    return dict(entry.top[:alternatives]) | {entry.token_id: entry.logprob}


def _no_logprobs() -> dict[str, Any]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
