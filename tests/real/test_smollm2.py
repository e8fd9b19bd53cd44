"""SmolLM2-135M-Instruct as its GGUF file: a trained model, whose text can be read. `make real`."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from penstock import LLM, SamplingParams
from tests.server.process import ServeProcess

FILE = Path(os.environ.get("PENSTOCK_REAL_MODEL", "missing"))
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="needs a real model: make real")

GREEDY = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
PROMPTS = [
    "The history of the city of Paris begins",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4, 5, 6, 7,",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
]
PROSE = Path(__file__).parents[2] / "docs" / "architecture.md"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "days": {"type": "integer"},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def numbers() -> LLM:
    """Blocks become float32 when it is loaded."""
    return LLM(str(FILE), quantization="float", kv_cache_memory=2**28)


@pytest.fixture(scope="module")
def packed() -> LLM:
    return LLM(str(FILE), kv_cache_memory=2**28)


def tokens(llm: LLM, **how: Any) -> list[list[int]]:
    found = llm.generate(PROMPTS, GREEDY, use_tqdm=False, **how)
    return [list(each.outputs[0].token_ids) for each in found]


@torch.inference_mode()
def test_tokens_are_those_of_transformers(numbers: LLM) -> None:
    folder, file = str(FILE.parent), FILE.name
    config = AutoConfig.from_pretrained(folder, gguf_file=file)
    reference: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    stored = load_gguf_checkpoint(str(FILE), return_tensors=True, model_to_load=reference)
    wrong = reference.load_state_dict(stored["tensors"], strict=False)
    assert not wrong.unexpected_keys
    assert set(wrong.missing_keys) <= {"lm_head.weight"}, "it is tied"
    for prompt, ours in zip(PROMPTS, tokens(numbers), strict=True):
        ids = torch.tensor([numbers.tokenizer.encode(prompt)])
        whole = reference.generate(
            ids, max_new_tokens=40, min_new_tokens=40, do_sample=False, repetition_penalty=1.0
        )
        assert whole[0, ids.shape[1] :].tolist() == ours


def perplexity(llm: LLM) -> float:
    ids = llm.tokenizer.encode(PROSE.read_text(encoding="utf-8"))[:1500]
    params = SamplingParams(max_tokens=0, temperature=0, prompt_logprobs=0)
    (answer,) = llm.generate([list(ids)], params, use_tqdm=False)
    assert answer.prompt_logprobs is not None
    told = zip(answer.prompt_token_ids, answer.prompt_logprobs, strict=True)
    found = [each[token].logprob for token, each in told if each is not None]
    return math.exp(-sum(found) / len(found))


def test_rows_in_8_bits_cost_little(numbers: LLM, packed: LLM) -> None:
    exact = perplexity(numbers)
    assert exact < 60, "it has learned to read"
    assert perplexity(packed) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("drafter", ["jacobi", "ngram", "lookahead"])
def test_drafts_change_nothing(drafter: str, numbers: LLM) -> None:
    """In float32: trees add up keys in another order, by which 8 bits may round a row otherwise."""
    assert tokens(numbers, decoding={drafter: {}}) == tokens(numbers)


def test_company_changes_nothing(packed: LLM) -> None:
    alone = [
        list(packed.generate([prompt], GREEDY, use_tqdm=False)[0].outputs[0].token_ids)
        for prompt in PROMPTS
    ]
    assert tokens(packed) == alone


def test_heavy_hitters_keep_the_thread(packed: LLM) -> None:
    """A fact at the end of a long prompt, with a fifth of the keys."""
    filler = "The weather was fine and the road was long. " * 40
    prompt = filler + "The capital of France is Paris. The capital of France is"
    (answer,) = packed.generate(
        [prompt], SamplingParams(max_tokens=4, temperature=0), use_tqdm=False, kv_cache={"h2o": {}}
    )
    assert "Paris" in answer.outputs[0].text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with (
        ServeProcess([str(FILE.resolve()), "--served-model-name", "smollm2"], log) as running,
        httpx.Client(base_url=running.url, timeout=60, trust_env=False) as client,
    ):
        yield client


def chat(client: httpx.Client, question: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_a_chat(server: httpx.Client) -> None:
    answer = chat(server, "Write one sentence about the sea.", max_tokens=60)
    assert "sea" in answer["message"]["content"]
    assert answer["finish_reason"] == "stop"


def test_a_forced_call(server: httpx.Client) -> None:
    question = "What will the weather be in Paris in the next 3 days?"
    forced = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    answer = chat(server, question, max_tokens=80, **forced)
    (call,) = answer["message"]["tool_calls"]
    assert set(json.loads(call["function"]["arguments"])) == {"city", "days"}


def test_a_schema(server: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    answer = chat(server, "Mary is 31 years old. Say that as JSON.", response_format=form)
    assert json.loads(answer["message"]["content"]) == {"name": "Mary", "age": 31}
