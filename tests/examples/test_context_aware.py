"""The example plug-in, installed as a stranger would install it, over HTTP."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.examples.installed import install
from tests.server.process import ServeProcess
from tests.tiny import save_tiny

DOCUMENT, QUESTION = "Anna lives in Oslo. ", "Anna lives in"
BODY: dict[str, Any] = {
    "prompt": DOCUMENT + QUESTION,
    "max_tokens": 16,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("plug-in")
    site = install("context_aware", folder)
    model = save_tiny("llama", folder / "llama")
    arguments = [str(model), "--threads", "1", "--kv-cache-memory", "8000000"]
    environment = {"PYTHONPATH": str(site)}
    with (
        ServeProcess(arguments, folder / "log", environment=environment) as server,
        server.client() as client,
    ):
        yield client
        server.wait_idle()


def text(http: httpx.Client, decoding: object) -> str:
    answer = http.post("/v1/completions", json={**BODY, "decoding": decoding})
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["choices"][0]["text"]
    return found


def test_it_is_listed(http: httpx.Client) -> None:
    answer = http.get("/v1/decoding").json()
    (method,) = (m for m in answer["decoding"] if m["name"] == "context_aware")
    assert method["slot"] == "target"
    assert set(method["parameters"]["properties"]) == {"document", "alpha"}
    assert {"decoding": ["context_aware", "jacobi"], "kv_cache": ["full"]} in answer["combinations"]


def test_it_is_guidance_with_the_document_left_out(http: httpx.Client) -> None:
    own = {"context_aware": {"document": DOCUMENT, "alpha": 1.5}}
    guided = {"cfg": {"scale": 2.5, "negative_prompt": QUESTION}}
    assert text(http, own) == text(http, guided) != text(http, None)
    assert text(http, {**own, "jacobi": {"window": 4, "adaptive": False}}) == text(http, own)
    nothing = {"context_aware": {"document": DOCUMENT, "alpha": 0.0}}
    assert text(http, nothing) == text(http, None)


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"document": "Bergen"}, "decoding.context_aware.document"),
        ({"alpha": 1.0}, "decoding.context_aware.document"),
        ({"document": "Anna", "alpha": 11}, "decoding.context_aware.alpha"),
    ],
)
def test_its_refusals_name_the_field(
    parameters: dict[str, Any], param: str, http: httpx.Client
) -> None:
    body = {**BODY, "decoding": {"context_aware": parameters}}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
