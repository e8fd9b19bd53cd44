"""What cannot go on fails alone: numbers that are not finite, and methods that raise.

The kind: one request's trouble that becomes everybody's, or nobody's: a token made of NaN, an
engine that dies of a stranger's draft, keys that poison whoever shares the prefix. One row of the
embedding is out of float16's range, so that each prompt with that token overflows.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from tests.server.process import ServeProcess
from tests.tiny import byte_tokenizer, save_tiny

POISON = byte_tokenizer().encode("~")[0]
GREEDY: dict[str, Any] = {"model": "poisoned", "temperature": 0, "ignore_eos": True}
METHODS: list[dict[str, Any]] = [
    {},
    {"jacobi": {"window": 4, "adaptive": False}},
    {"cfg": {"scale": 1.5, "negative_prompt": "no"}},
    {"beam": {"width": 2}},
    {"best_of": {"n": 2}},
    {"best_of": {"n": 2, "rank": "vote"}},
    {"tot": {"generate": "sample", "generate_samples": 2, "breadth": 2, "depth": 2}},
]


@pytest.fixture(scope="module", params=["thread", "process"])
def poisoned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeProcess]:
    folder = save_tiny("llama", tmp_path_factory.mktemp("poisoned") / "llama")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "embed_tokens" in name)
    tensors[name][POISON] = 1e5
    save_file(tensors, weights, metadata={"format": "pt"})
    arguments = [str(folder), "--served-model-name", "poisoned", "--threads", "1"]
    arguments += ["--dtype", "float16", "--kv-cache-memory", "4000000", "--chunk-tokens", "32"]
    arguments += ["--engine-in", request.param]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ServeProcess(arguments, log) as running:
        yield running


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={**GREEDY, **fields})


def is_numerical_error(answer: httpx.Response) -> bool:
    error = answer.json()["error"]
    return (answer.status_code, error["type"], error["code"]) == (
        500,
        "server_error",
        "numerical_error",
    )


@pytest.mark.parametrize("decoding", METHODS, ids=str)
def test_a_prompt_that_overflows_is_an_error(
    poisoned: ServeProcess, decoding: dict[str, Any]
) -> None:
    with poisoned.client() as client:
        for prompt in ("ab~", "~" + "abc" * 30, "abc" * 20 + "~" + "abc" * 20):
            answer = ask(client, prompt=prompt, max_tokens=8, decoding=decoding)
            assert is_numerical_error(answer), answer.text
    poisoned.wait_idle()


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3},
        {"logprobs": 3},
        {"prompt_logprobs": 2},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"max_tokens": 1},
        {"temperature": 1, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 1, "repetition_penalty": 1.3, "bad_words": ["a"]},
        {"kv_cache": {"h2o": {}}},
        {"kv_cache": {"window": {}}},
        {"decoding": {"cfg": {"scale": 2.0, "negative_prompt": "no ~"}}, "prompt": "ab"},
    ],
    ids=str,
)
def test_so_it_is_in_every_form(poisoned: ServeProcess, fields: dict[str, Any]) -> None:
    with poisoned.client() as client:
        answer = ask(client, **{"prompt": "ab~c", "max_tokens": 8, **fields})
        assert is_numerical_error(answer), answer.text
    poisoned.wait_idle()


def test_neighbours_keep_their_tokens_and_no_prefix_is_poisoned(poisoned: ServeProcess) -> None:
    """Alone, among requests that fail in the same steps, and behind the same beginning."""
    prompts = [letter * 40 + "the end" for letter in "abcdef"]
    with poisoned.client() as client, ThreadPoolExecutor(12) as pool:
        alone = [ask(client, prompt=p, max_tokens=24).json()["choices"] for p in prompts]

        def one(number: int) -> httpx.Response:
            if number % 2:
                return ask(client, prompt=prompts[number // 2][:40] + "~" + "x" * 40, max_tokens=24)
            return ask(client, prompt=prompts[number // 2], max_tokens=24)

        for _ in range(3):
            answers = list(pool.map(one, range(12)))
            assert [answer.json()["choices"] for answer in answers[::2]] == alone
            assert all(is_numerical_error(answer) for answer in answers[1::2])
    poisoned.wait_idle()


def test_a_stream_that_has_begun_ends_with_the_error(poisoned: ServeProcess) -> None:
    """The answer draws the token itself: its own keys are what is not finite."""
    bias = {"logit_bias": {str(POISON): 100}, "min_tokens": 0}
    with (
        poisoned.client() as client,
        client.stream(
            "POST",
            "/v1/completions",
            json={**GREEDY, **bias, "prompt": "ab", "max_tokens": 8, "stream": True},
        ) as answer,
    ):
        assert answer.status_code == 200
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert json.loads(events[-1])["error"]["code"] == "numerical_error"
    assert json.loads(events[0])["choices"][0]["text"] == "~"
    poisoned.wait_idle()


def test_it_is_counted_as_an_error(poisoned: ServeProcess) -> None:
    def errors(client: httpx.Client) -> float:
        families = text_string_to_metric_families(client.get("/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "penstock_request_success_total"
            and sample.labels["finished_reason"] == "error"
        )

    with poisoned.client() as client:
        before = errors(client)
        assert is_numerical_error(ask(client, prompt="~", max_tokens=2))
        assert errors(client) == before + 1
        assert client.get("/health").status_code == 200


def test_offline_a_batch_has_the_other_answers(tmp_path: Path) -> None:
    from penstock.decoding.sampling_params import SamplingParams
    from penstock.engine.llm import LLM
    from penstock.errors import GenerationError

    folder = save_tiny("llama", tmp_path)
    weights = folder / "model.safetensors"
    tensors: dict[str, torch.Tensor] = load_file(weights)
    name = next(name for name in tensors if "embed_tokens" in name)
    tensors[name][POISON] = 1e5
    save_file(tensors, weights, metadata={"format": "pt"})
    llm = LLM(str(folder), kv_cache_memory=0.01, dtype="float16")
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    for decoding in (None, {"beam": {}}, {"best_of": {"n": 2}}):
        alone = llm.generate("abc", params, decoding=decoding)[0].text
        good, bad = llm.generate(["abc", "a~c"], params, decoding=decoding)
        assert good.text == alone
        assert isinstance(bad.error, GenerationError)
        assert bad.error.code == "numerical_error"
        with pytest.raises(GenerationError):
            _ = bad.text
    assert llm.stats().pages_in_use == 0
