"""External evaluators: HTTP services that judge candidates, at addresses that operators configure.

A request names one; its address, keys and patience are the operator's. The service gets

    POST {"problem": "...", "candidates": ["...", ...]}

and answers `{"scores": [number, ...]}`, one for each candidate, higher is better.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr, StringConstraints
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt
from tenacity import wait_random_exponential as backoff

from penstock.errors import EvaluatorError

if TYPE_CHECKING:
    from ..engine.search.evaluators import Evaluator

logger = logging.getLogger(__name__)

MAX_EVALUATORS = 64
_MOST_BYTES = 4 << 20
_LONGEST_WAIT_S = 5.0


class ExternalEvaluator(BaseModel):
    """`url`: where candidates are posted. `api_key`: sent as a bearer token.

    `timeout_s`: of one attempt. `retries`: further attempts after a failure of the connection, a
    timeout, 429 or 5xx. `on_failure`: what happens then: `fail` ends the search with an error,
    `neutral` gives all candidates the same score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: HttpUrl
    api_key: SecretStr | None = None
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    on_failure: Literal["fail", "neutral"] = "fail"


EvaluatorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class _Scores(BaseModel):
    scores: list[float]


class _TryAgainError(Exception):
    """What may go better next time."""


def external(evaluators: Mapping[str, ExternalEvaluator]) -> dict[str, Evaluator]:
    """Functions that ask them."""
    return {name: _asking(name, settings) for name, settings in evaluators.items()}


def _asking(name: str, settings: ExternalEvaluator) -> Evaluator:
    async def evaluate(problem: str, candidates: Sequence[str]) -> Sequence[float]:
        body = {"problem": problem, "candidates": list(candidates)}
        try:
            scores = await _scores(settings, body)
            if len(scores) != len(candidates) or not all(map(math.isfinite, scores)):
                raise ValueError("not one finite number for each candidate")
            return scores
        except (_TryAgainError, TimeoutError, httpx.HTTPError, ValueError) as error:
            # Not the error itself: it may name the address, which is nobody's business.
            logger.warning("the evaluator %r failed: %s", name, type(error).__name__)
            if settings.on_failure == "neutral":
                return [0.0] * len(candidates)
            raise EvaluatorError(
                f"the evaluator {name!r} did not answer as it should; try again later"
            ) from error

    return evaluate


async def _scores(settings: ExternalEvaluator, body: Mapping[str, object]) -> list[float]:
    headers: dict[str, str] = {}
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
    attempts = AsyncRetrying(
        stop=stop_after_attempt(1 + settings.retries),
        retry=retry_if_exception_type((_TryAgainError, TimeoutError, httpx.TransportError)),
        wait=backoff(multiplier=0.1, max=_LONGEST_WAIT_S),
        reraise=True,
    )
    async with httpx.AsyncClient(
        timeout=None, headers=headers, follow_redirects=False, trust_env=False
    ) as client:
        async for attempt in attempts:
            with attempt:
                async with asyncio.timeout(settings.timeout_s):  # also for those who drip
                    return await _ask(client, str(settings.url), body)
    raise AssertionError("every attempt returns or raises")


async def _ask(client: httpx.AsyncClient, url: str, body: Mapping[str, object]) -> list[float]:
    async with client.stream("POST", url, json=body) as response:
        if response.status_code == 429 or response.status_code >= 500:
            raise _TryAgainError(response.status_code)
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}")
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > _MOST_BYTES:
                raise ValueError("the answer is too long")
    return _Scores.model_validate_json(bytes(data)).scores
