"""Which tokens of an answer come with which tokens of its prompt, over many requests.

A word list learned from requests: where "tiger" is asked about, "povo" is likelier than elsewhere.
Counting how often two words co-occur, beyond chance, is the first step of aligning translations
(Gale and Church 1991, "Identifying word correspondences in parallel texts").
"""

from collections.abc import Sequence
from typing import Final

_MOST_PROMPT_TOKENS: Final = 128
_MOST_ANSWER_TOKENS: Final = 128
_MOST_COMPANIONS: Final = 48
_MAX_WORDS: Final = 8192
_COMMON: Final = 0.25
"""Tokens in more than this share of the prompts tell nothing about the answer."""
_COMMON_FROM: Final = 8
_LEAST_SHARE: Final = 0.6
_LEAST_LIFT: Final = 3.0
_MOST_SURE: Final = 4


class Lexicon:
    """Counts the requests with one token in the prompt and another in the answer.

    `most`: prompt tokens that are kept; the oldest are forgotten first.
    """

    def __init__(self, most: int = _MAX_WORDS) -> None:
        self._most = most
        self._requests = 0
        self._prompts: dict[int, int] = {}
        self._answers: dict[int, int] = {}
        self._companions: dict[int, dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self._companions)

    def learn(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Count the tokens of one request."""
        self._requests += 1
        said = dict.fromkeys(answer[:_MOST_ANSWER_TOKENS])
        for token in said:
            self._answers[token] = self._answers.get(token, 0) + 1
        for asked in dict.fromkeys(prompt[-_MOST_PROMPT_TOKENS:]):
            seen = self._prompts[asked] = self._prompts.get(asked, 0) + 1
            if self._is_common(seen):
                self._companions.pop(asked, None)
                continue
            met = self._companions.setdefault(asked, {})
            for token in said:
                met[token] = met.get(token, 0) + 1
            if len(met) > 2 * _MOST_COMPANIONS:
                most = sorted(met, key=met.__getitem__, reverse=True)[:_MOST_COMPANIONS]
                self._companions[asked] = {token: met[token] for token in most}
        while len(self._companions) > self._most:
            oldest = next(iter(self._companions))
            del self._companions[oldest], self._prompts[oldest]

    def expected(self, prompt: Sequence[int]) -> dict[int, int]:
        """Tokens that an answer to `prompt` is more likely to contain, and how certain that is.

        From 1 (one earlier request had the prompt token) to 4 (eight or more).
        """
        found: dict[int, int] = {}
        for asked in set(prompt[-_MOST_PROMPT_TOKENS:]):
            met = self._companions.get(asked)
            if met is None:
                continue
            seen = self._prompts[asked]
            sure = min(seen.bit_length(), _MOST_SURE)
            least = _LEAST_SHARE * seen
            for token, together in met.items():
                if (
                    together >= least
                    and sure > found.get(token, 0)
                    and together * self._requests >= _LEAST_LIFT * seen * self._answers[token]
                ):
                    found[token] = sure
        return found

    def _is_common(self, seen: int) -> bool:
        return self._requests >= _COMMON_FROM and seen > _COMMON * self._requests
