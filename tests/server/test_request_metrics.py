"""What a request took, as Prometheus sees it, beside what its own answer says.

The kind: a figure that is right for one plain request and not for streams, choices, searches, or
requests that end early. The histograms of a request hold what its `usage` holds, once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from penstock.engine.outputs.metrics import token_buckets
from tests.server.scripted import ScriptedServer, real_engine, scripted, until

COMPLETIONS = "/v1/completions"
FIELDS: dict[str, Any] = {"prompt": "hello", "max_tokens": 6, "ignore_eos": True}
LONG: dict[str, Any] = {"prompt": "hello", "max_tokens": 400, "ignore_eos": True, "n": 32}
TIMES = ("prefill", "decode", "inference")


class Measured:
    """A server with a real engine, and what its histograms have gained since they were asked."""

    def __init__(self, server: ScriptedServer, registry: CollectorRegistry) -> None:
        self.client = server.client()
        self._registry = registry
        self._before: dict[str, float] = {}

    def value(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(f"penstock_{name}", labels) or 0.0

    def gained(self, name: str, decoding: str = "plain") -> float:
        now = self.value(name, decoding=decoding)
        before = self._before.get(name + decoding, 0.0)
        self._before[name + decoding] = now
        return now - before

    def tokens(self, decoding: str = "plain") -> list[float]:
        """Requests counted, their prompt tokens, requests counted, their generated tokens."""
        return [
            self.gained(f"request_{kind}_tokens_{part}", decoding)
            for kind in ("prompt", "generation")
            for part in ("count", "sum")
        ]

    def ended(self, reason: str) -> float:
        return self.value("request_success_total", decoding="plain", finished_reason=reason)


@pytest.fixture(scope="module")
def measured(tiny_llama: Path) -> Iterator[Measured]:
    registry = CollectorRegistry()
    engine = real_engine(tiny_llama, registry, max_running=32)
    with scripted(load=lambda: engine) as server:
        found = Measured(server, registry)
        with found.client:
            yield found


def usage(answer: httpx.Response) -> list[int]:
    counts = answer.json()["usage"]
    return [counts["prompt_tokens"], counts["completion_tokens"]]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1, 5, 1, 6]),
        ({"stream": True}, [1, 5, 1, 6]),
        ({"n": 3}, [1, 5, 1, 18]),
        ({"n": 3, "stream": True}, [1, 5, 1, 18]),
        ({"prompt": ["a", "bcd"]}, [2, 4, 2, 12]),
        ({"max_tokens": 1}, [1, 5, 1, 1]),
        ({"prompt": 5}, [0, 0, 0, 0]),
    ],
    ids=["whole", "stream", "choices", "choices in a stream", "batch", "one token", "refused"],
)
def test_tokens_of_a_request(
    measured: Measured, fields: dict[str, Any], expected: list[int]
) -> None:
    measured.tokens()
    measured.client.post(COMPLETIONS, json={**FIELDS, **fields})
    assert measured.tokens() == expected


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("name", "decoding"),
    [("beam", {"beam": {"width": 2}}), ("best_of", {"best_of": {"n": 3}})],
    ids=["beam", "best_of"],
)
def test_tokens_of_a_search_are_those_of_all_its_branches(
    measured: Measured, name: str, decoding: dict[str, Any], stream: bool
) -> None:
    body = {**FIELDS, "seed": 1, "decoding": decoding}
    whole = measured.client.post(COMPLETIONS, json=body)
    prompt, generated = usage(whole)
    assert generated > 6
    measured.tokens(name)
    measured.client.post(COMPLETIONS, json={**body, "stream": stream})
    assert measured.tokens(name) == [1, prompt, 1, generated]


def test_time_of_a_request_is_that_of_its_parts(measured: Measured) -> None:
    """From the first scheduling to the end; what it waited is not in it."""
    for part in TIMES:
        measured.gained(f"request_{part}_time_seconds_sum")
        measured.gained(f"request_{part}_time_seconds_count")
    for fields in ({}, {"n": 2}, {"stream": True}):
        measured.client.post(COMPLETIONS, json={**FIELDS, **fields})
    assert [measured.gained(f"request_{part}_time_seconds_count") for part in TIMES] == [3, 3, 3]
    prefill_s, decode_s, inference_s = (
        measured.gained(f"request_{part}_time_seconds_sum") for part in TIMES
    )
    assert inference_s == pytest.approx(prefill_s + decode_s)


def test_aborted_requests_count_with_what_was_done(measured: Measured) -> None:
    measured.tokens()
    before = measured.ended("abort")
    with measured.client.stream("POST", COMPLETIONS, json={**LONG, "stream": True}) as running:
        next(running.iter_lines())
    until(lambda: measured.ended("abort") == before + 1)
    requests, prompt, _, generated = measured.tokens()
    assert (requests, prompt) == (1, 5)
    assert 0 < generated < 32 * 400


def test_buckets_are_vllms() -> None:
    assert token_buckets(300) == (1, 2, 5, 10, 20, 50, 100, 200)
    assert token_buckets(5) == (1, 2, 5)
    assert token_buckets(131_072)[-2:] == (50_000, 100_000)
