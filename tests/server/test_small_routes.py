"""Models, tokens, health, metrics, version, methods and the description of it all."""

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import MODEL
from tests.tiny import byte_tokenizer


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert model.object == "model"
    assert model.model_dump()["max_model_len"] == 512
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_tokenize_and_back(http: httpx.Client) -> None:
    text = "Grüße, 世界 🙂 \u0000"
    answer = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["tokens"] == byte_tokenizer().encode(text)
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 512
    assert answer["token_strs"][0] == "G"
    back = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}
    assert http.post("/tokenize", json={"prompt": ""}).json()["count"] == 0
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_tokenize_a_chat(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    answer = http.post("/tokenize", json=body).json()
    assert answer["tokens"] == byte_tokenizer().encode("<user>Hi\n<assistant>")
    answer = http.post("/tokenize", json={**body, "add_generation_prompt": False}).json()
    assert answer["tokens"] == byte_tokenizer().encode("<user>Hi\n")


def test_health_and_version(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.head("/health").status_code == 200
    assert http.get("/version").json()["version"].count(".") == 2


def test_methods(http: httpx.Client) -> None:
    answer = http.get("/v1/decoding").json()
    plain = next(method for method in answer["decoding"] if method["name"] == "plain")
    assert plain["slot"] == "target"
    assert plain["parameters"]["type"] == "object"
    assert "full" in {policy["name"] for policy in answer["kv_cache"]}


def test_metrics(http: httpx.Client) -> None:
    def count(status: str) -> float:
        text = http.get("/metrics").text
        return next(
            (
                sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == "penstock_http_requests_total"
                and sample.labels == {"route": "/v1/completions", "status": status}
            ),
            0.0,
        )

    for status, body in [("200", {"prompt": "x", "max_tokens": 1}), ("400", {"prompt": 5})]:
        before = count(status)
        http.post("/v1/completions", json=body)
        assert count(status) == before + 1
    routes = {
        sample.labels["route"]
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
        if sample.name == "penstock_http_requests_total"
    }
    http.get("/made/up")
    described = set(http.get("/openapi.json").json()["paths"])
    known = described | {"other", "/openapi.json", "/", "/v1/responses"}
    # A path parameter has its converter in the route, and not in the description.
    assert {route.replace(":path", "") for route in routes} <= known


def test_description(http: httpx.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    body = schemas["CompletionBody"]
    assert body["properties"]["temperature"]["anyOf"][0]["maximum"] == 2


def test_request_ids(http: httpx.Client) -> None:
    made = http.get("/version").headers["x-request-id"]
    assert made.startswith("req-")
    assert http.get("/version").headers["x-request-id"] != made
    for given in ("abc-123", "a" * 128, "trace/1:2+3=4@x_y.z"):
        answer = http.get("/version", headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"] == given
    for harmful in ("a" * 129, "a b", "a\tb", "<script>", "", "é"):
        answer = http.get("/version", headers={"X-Request-Id": harmful.encode("latin-1")})  # type: ignore[dict-item]
        assert answer.headers["x-request-id"].startswith("req-")
    assert http.get("/nope").headers["x-request-id"].startswith("req-")
    answer = http.post("/v1/completions", json={}, headers={"X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
