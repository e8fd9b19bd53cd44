"""What two files of a model say differently, seen by a client.

The kind: two sources of one truth. generation_config names one end of an answer and the tokenizer
another; `max_position_embeddings` is the length of training, and the rotary embedding is made for
four times that. Every source and every rotary embedding: tests/engine/loading.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.engine.reference import greedy
from tests.server.process import ServeProcess
from tests.tiny import save_tiny
from tests.twists import config, generation

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
}
TURN_END = 256
"""`<eos>` of the byte tokenizer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_tiny("llama", tmp_path_factory.mktemp("sources") / "llama", rope_parameters=YARN)
    generation(eos_token_id=[301])(made)
    config(eos_token_id=...)(made)
    return made


@pytest.fixture(scope="module")
def extended(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    arguments = [str(folder), "--max-model-len", "2048", "--threads", "1"]
    arguments += ["--kv-cache-memory", "20000000"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ServeProcess(arguments, log) as running, running.client() as client:
        yield client
        running.wait_idle()


@pytest.mark.parametrize("end", [301, TURN_END], ids=["generation config", "tokenizer"])
def test_an_answer_ends_where_any_file_says(end: int, extended: httpx.Client) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_tokens": 5,
        "allowed_token_ids": [end],
    }
    answer = extended.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 1


def test_a_text_of_four_times_the_length_of_training(folder: Path, extended: httpx.Client) -> None:
    prompt = [(31 * i + 7) % 256 for i in range(1900)]
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 8, "ignore_eos": True, "logprobs": 0}
    body["return_tokens_as_token_ids"] = True
    answer = extended.post("/v1/completions", json=body).json()
    tokens = answer["choices"][0]["logprobs"]["tokens"]
    assert tokens == [f"token_id:{i}" for i in greedy(folder, [prompt], 8)[0]]
    models = extended.get("/v1/models").json()
    assert models["data"][0]["max_model_len"] == 2048
