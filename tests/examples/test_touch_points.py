"""The table of touch points: one of each kind, installed as packages, over HTTP.

All at once in one server: they come from two packages that know nothing of each other.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import torch
from openapi_spec_validator import OpenAPIV31SpecValidator
from torch import nn
from transformers import AutoModelForCausalLM

from penstock.plugins import Group
from tests.examples.installed import EXAMPLES, install
from tests.server.process import ServeProcess
from tests.tiny import save_tiny

KEY = "k"
PROMPT = "Anna lives in Oslo. Anna lives in"
BODY: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
TABLE = (EXAMPLES.parent / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def http(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("plug-ins")
    for package in ("context_aware", "extensions"):
        site = install(package, folder)
    arguments = [str(model), "--threads", "1", "--kv-cache-memory", "8000000"]
    arguments += ["--quantization", "nf4", "--api-key", KEY]
    environment = {"PYTHONPATH": str(site)}
    with (
        ServeProcess(arguments, folder / "log", environment=environment, key=KEY) as server,
        server.client() as client,
    ):
        yield client
        server.wait_idle()


def answer(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    found = http.post("/v1/completions", json={**BODY, **fields})
    assert found.status_code == 200, found.text
    return found.json()


def text(http: httpx.Client, **fields: Any) -> str:
    return answer(http, **fields)["choices"][0]["text"]


def tokens_of(http: httpx.Client, prompt: str) -> list[int]:
    return http.post("/tokenize", json={"prompt": prompt, "add_special_tokens": False}).json()[
        "tokens"
    ]


def target(http: httpx.Client, model: Path) -> None:
    own = {"context_aware": {"document": "Anna lives in Oslo. ", "alpha": 1.5}}
    guided = {"cfg": {"scale": 2.5, "negative_prompt": "Anna lives in"}}
    assert text(http, decoding=own) == text(http, decoding=guided) != text(http)


def drafter(http: httpx.Client, model: Path) -> None:
    plain = answer(http, return_token_ids=True)
    tokens = plain["choices"][0]["token_ids"]
    tokens[11] = 7 if tokens[11] != 7 else 8  # the answer differs there, and goes on as expected
    drafted = answer(http, decoding={"prediction": {"tokens": tokens, "window": 8}})
    assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]
    usage = drafted["usage"]["penstock"]
    assert usage["accepted"] >= len(tokens) // 2


def controller(http: httpx.Client, model: Path) -> None:
    voting = {"samples": 12, "result": "last_line"}
    found = answer(http, temperature=2, seed=3, max_tokens=1, decoding={"self_consistency": voting})
    nodes = found["penstock"]["search"][0]["nodes"]
    votes = Counter(node["text"].strip() for node in nodes)
    assert len(nodes) == 12
    assert found["choices"][0]["text"].strip() == votes.most_common(1)[0][0]


def kv_policy(http: httpx.Client, model: Path) -> None:
    fields: dict[str, Any] = {"prompt": PROMPT * 8, "max_tokens": 40}
    own = {"snapkv": {"keep": 16, "window": 8}}
    same = {"heavy": 16, "recent": 8, "sink": 0, "score_window": 8, "interval": 16}
    evicted = text(http, kv_cache=own, **fields)
    assert evicted == text(http, kv_cache={"h2o": same}, **fields) != text(http, **fields)


def weight_format(http: httpx.Client, model: Path) -> None:
    """Greedy tokens are those of transformers with the weights that the format rounds to."""
    naive: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for module in naive.modules():
        if isinstance(module, nn.Linear) and module.in_features % 64 == 0:
            module.weight.data = rounded(module.weight.data)
    ids = tokens_of(http, PROMPT)
    with torch.inference_mode():
        out = naive.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    found = answer(http, return_token_ids=True)["choices"][0]["token_ids"]
    assert found == out[0, len(ids) :].tolist()


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """Each number of 64 in a row becomes the nearest of 16 values, times the largest of them."""
    source = (EXAMPLES / "extensions" / "nf4.py").read_text(encoding="utf-8")
    values = torch.tensor([float(each) for each in re.findall(r"-?\d\.\d+(?=,)", source)])
    assert len(values) == 16
    blocks = weight.view(weight.shape[0], -1, 64)
    scale = blocks.abs().amax(dim=2, keepdim=True).half().float()
    nearest = (blocks[..., None] / scale[..., None] - values).abs().argmin(dim=-1)
    return (values[nearest] * scale).view_as(weight)


def endpoint(http: httpx.Client, model: Path) -> None:
    found = http.get("/v1/load")
    assert found.json() == {"running": 0, "waiting": 0, "kv_cache": 0.0}
    refused = http.get("/v1/load", headers={"Authorization": "Bearer other"})
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    description = http.get("/openapi.json").json()
    OpenAPIV31SpecValidator(description).validate()
    operation = description["paths"]["/v1/load"]["get"]
    assert operation["security"] == [{"key": []}]
    assert {"200", "401", "500"} <= operation["responses"].keys()


KINDS: dict[str, tuple[str, Callable[[httpx.Client, Path], None]]] = {
    "a target": ("penstock.decoding", target),
    "a drafter": ("penstock.decoding", drafter),
    "a controller": ("penstock.decoding", controller),
    "a KV policy": ("penstock.kv_cache", kv_policy),
    "a weight format": ("penstock.weight_formats", weight_format),
    "an endpoint": ("penstock.endpoints", endpoint),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_adds(kind: str, http: httpx.Client, model: Path) -> None:
    _, use = KINDS[kind]
    use(http, model)


def rows() -> dict[str, list[str]]:
    """The table's rows by what they add: (what to write, where to register, what else)."""
    section = TABLE.partition("## Touch points")[2]
    found = [line[1:-1].split("|") for line in section.splitlines() if line.startswith("| a")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in found}


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_says_one_file_and_one_registration(kind: str) -> None:
    group, _ = KINDS[kind]
    written, registered, besides = rows()[kind]
    assert written.startswith("one file")
    assert registered == f"entry point `{group}`"
    assert besides.startswith(("free", "as a target"))


def test_the_table_names_every_group_that_is_loaded() -> None:
    named = set(re.findall(r"entry point `(penstock\.\w+)`", TABLE.partition("## Touch points")[2]))
    assert named == set(get_args(Group))
