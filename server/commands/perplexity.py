"""Perplexity of a text under a model."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...engine.llm import LLM


def windows_of(llm: LLM, text: str, *, window: int, most: int) -> list[list[int]]:
    """The text's tokens in windows of `window`, the rest dropped; at most `most` of them.

    A text that is shorter is one window.
    """
    ids = llm.tokenizer.encode(text)
    size = min(window, llm.info.max_length_tokens - 1)
    starts = range(0, max(1, len(ids) - size + 1), size)
    return [list(ids[start : start + size]) for start in islice(starts, most)]


def perplexity(llm: LLM, windows: list[list[int]], *, adapter: str | None = None) -> float:
    """exp(mean negative log-probability) of every token but each window's first."""
    from ...decoding.sampling_params import SamplingParams

    params = SamplingParams(max_tokens=0, temperature=0, prompt_logprobs=0)
    total, count = 0.0, 0
    for answer in llm.generate(windows, params, adapter=adapter, use_tqdm=False):
        assert answer.prompt_logprobs is not None
        for token, found in zip(answer.prompt_token_ids, answer.prompt_logprobs, strict=True):
            if found is not None:
                total -= found[token].logprob
                count += 1
    return math.exp(total / count)
