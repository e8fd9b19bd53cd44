"""The fuzzer's own eyes: what no server may answer is found, and can be asked again."""

import asyncio
import random
from typing import Any

import pytest

from loadtest.fuzz.judge import fuzz_http, judge
from loadtest.fuzz.mutations import fuzzed
from loadtest.soak.client import Answer
from tests.bench.scripted import ScriptedServer, plain
from tests.loadtest.answers import METRICS

ERROR = b'{"error":{"message":"no","type":"t","param":null,"code":null}}'


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Answer(status=400, body=ERROR, complete=True), None),
        (Answer(status=200, body=b"{}", complete=True), None),
        (Answer(status=200, events=[b"{}", b"[DONE]"], complete=True), None),
        (Answer(status=500, body=ERROR, complete=True), "status 500"),
        (Answer(status=503, body=ERROR, complete=True), "status 503"),
        (Answer(status=400, body=b"Bad Request", complete=True), "no error of the contract"),
        (Answer(status=422, body=ERROR, complete=True), "status 422"),
        (Answer(status=400, body=b'{"error":{"message":"no"}}'), "incomplete error"),
        (Answer(status=200, body=b"{", complete=False), "cut"),
        (Answer(status=200, events=[b'{"error":{}}'], complete=True), "a stream ended with"),
        (Answer(), "status 0"),
    ],
    ids=lambda value: "" if isinstance(value, Answer) else str(value),
)
def test_judged_as_the_contract_says(answer: Answer, fault: str | None) -> None:
    found = judge(answer)
    assert found is None if fault is None else found is not None and fault in found


def test_a_request_is_a_function_of_its_number() -> None:
    requests = {fuzzed(random.Random(f"0/{number}"), "host") for number in range(500)}
    again = {fuzzed(random.Random(f"0/{number}"), "host") for number in range(500)}
    assert requests == again
    assert len(requests) > 300


def test_a_calm_callers_text_is_compared() -> None:
    with ScriptedServer() as server:
        server.metrics = METRICS
        texts = iter(["a story", *["another story"] * 100_000])

        def script(body: dict[str, Any]) -> list[Any]:
            return [plain(200, {"choices": [{"index": 0, "text": next(texts)}]})]

        server.script = script
        url = server.url.removesuffix("/v1")
        verdict = asyncio.run(fuzz_http(url, duration_s=0.5, seed=0, first=20))
        assert any("got another text" in fault for fault in verdict.faults)
