"""Pictures over HTTP: the answers are transformers', and what is no picture is a clear 400."""

import base64
import json
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import TinyModel
from tests.engine.test_picture_files import png
from tests.server.process import ServeProcess
from tests.tiny_pictures import chat, chat_inputs, data_uri, file_of, generated, picture

KIND = "qwen3_vl"
NEW_TOKENS = 12
CONTENT = ("Look: ", picture(1), " what?")
CHATS = "/v1/chat/completions"


@pytest.fixture(scope="module", params=["thread", "process"])
def pictured(
    request: pytest.FixtureRequest, pictured_model: TinyModel, tmp_path_factory: Any
) -> Iterator[ServeProcess]:
    arguments = [str(pictured_model(KIND)), "--served-model-name", "seeing", "--threads", "1"]
    arguments += ["--kv-cache-memory", "16000000", "--engine-in", request.param]
    arguments += ["--max-pictures", "3", "--max-picture-pixels", "10000"]
    arguments += ["--max-request-pixels", "20000", "--max-picture-bytes", "30000"]
    with ServeProcess(arguments, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture
def client(pictured: ServeProcess) -> Iterator[httpx.Client]:
    with pictured.client() as client:
        yield client


def body(*urls: str, **fields: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    said = {"type": "text", "text": "What is it?"}
    return {"messages": [{"role": "user", "content": [*parts, said]}], "max_tokens": 1, **fields}


def test_answers_and_usage(pictured: ServeProcess, pictured_model: TinyModel) -> None:
    folder: Path = pictured_model(KIND)
    (right,) = generated(KIND, folder, CONTENT, NEW_TOKENS)
    prompt = chat_inputs(KIND, folder, CONTENT)["input_ids"].shape[1]
    with openai.OpenAI(base_url=f"{pictured.url}/v1", api_key="x", max_retries=0) as sdk:
        for as_string in (False, True):
            messages: Any = chat(*CONTENT)
            part = messages[0]["content"][1]
            url = part["image_url"]["url"]
            part["image_url"] = url if as_string else {"url": url, "detail": "high"}
            answer = sdk.chat.completions.create(
                model="seeing",
                messages=messages,
                max_tokens=NEW_TOKENS,
                temperature=0,
                extra_body={"return_token_ids": True, "ignore_eos": True},
            )
            assert answer.choices[0].model_dump()["token_ids"] == right
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == prompt
        (model,) = sdk.models.list().data
        assert model.model_dump()["input_modalities"] == ["text", "image"]


def test_tokenize_counts_the_rows(client: httpx.Client, pictured_model: TinyModel) -> None:
    messages = chat(*CONTENT)
    answer = client.post("/tokenize", json={"messages": messages}).json()
    ids = chat_inputs(KIND, pictured_model(KIND), CONTENT)["input_ids"][0].tolist()
    assert answer["tokens"] == ids


@pytest.fixture(scope="module")
def listening() -> Iterator[socket.socket]:
    """A socket that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


GOOD = data_uri(file_of(picture(1)))
BOMB = data_uri(png(30_000, 30_000, b"\0" * 2**16))
REFUSED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "bomb": ((BOMB,), "pixels", "0.image_url"),
    "100-megapixels": ((data_uri(png(10_000, 10_000)),), "pixels", "0.image_url"),
    "lying-type": ((data_uri(file_of(picture(1), "JPEG")),), "is image/jpeg", "0.image_url"),
    "ends-early": ((GOOD, data_uri(file_of(picture(1))[:-99])), "damaged", "1.image_url"),
    "remote": (("https://example.com/a.png",), "--allow-media-domains", "0.image_url"),
    "private": (("http://127.0.0.1:PORT/a.png",), "--allow-media-domains", "0.image_url"),
    "metadata": (("http://169.254.169.254/latest",), "--allow-media-domains", "0.image_url"),
    "file": (("file:///etc/passwd",), "no data: URI", "0.image_url"),
    "too-many": ((GOOD,) * 4, "--max-pictures", ""),
    "too-many-pixels": (
        tuple(data_uri(file_of(picture(i, 100, 80))) for i in range(3)),
        "--max-request-pixels",
        "2.image_url",
    ),
    "too-many-bytes": ((data_uri(b"x" * 30_001),), "--max-picture-bytes", "0.image_url"),
    "too-flat": ((data_uri(file_of(picture(1, 1000, 2))),), "processor", "0.image_url"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, client: httpx.Client, listening: socket.socket) -> None:
    urls, words, place = REFUSED[name]
    port = listening.getsockname()[1]
    answer = client.post(CHATS, json=body(*(url.replace("PORT", str(port)) for url in urls)))
    error = answer.json()["error"]
    assert (answer.status_code, words in error["message"]) == (400, True), error
    assert error["param"] == (f"messages.0.content.{place}" if place else "messages")
    with pytest.raises(BlockingIOError):
        listening.accept()
    good = client.post(CHATS, json=body(GOOD))
    assert good.status_code == 200, good.text


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "system", "content": [{"type": "image_url", "image_url": GOOD}]}, "messages.0"),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": GOOD}]},
            "messages.0",
        ),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0.image_url"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages.0.content.0.image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]},
            "messages.0.content.0.image_url.url",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": GOOD, "detail": "most"}}],
            },
            "messages.0.content.0.image_url.detail",
        ),
        ({"role": "user", "content": [{"type": "image"}]}, "messages.0.content.0.type"),
    ],
)
def test_forms_that_are_refused(message: dict[str, Any], param: str, client: httpx.Client) -> None:
    answer = client.post(CHATS, json={"messages": [message], "max_tokens": 1})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_truncation_may_not_cut_a_picture(client: httpx.Client) -> None:
    cut = client.post(CHATS, json=body(GOOD, truncate_prompt_tokens=10, truncation_side="right"))
    assert cut.status_code == 400
    assert "do not truncate" in cut.json()["error"]["message"]
    whole = client.post(CHATS, json=body(GOOD, truncate_prompt_tokens=400))
    assert whole.status_code == 200


def test_streams_and_methods(client: httpx.Client) -> None:
    for fields in (
        {"decoding": {"jacobi": {}}},
        {"decoding": {"cfg": {"scale": 2, "negative_prompt": "none"}}},
        {"kv_cache": {"h2o": {"heavy": 8, "recent": 8}}},
        {"n": 3, "logprobs": True},
        {"n": 2, "decoding": {"beam": {"width": 2}}},
    ):
        sent = body(GOOD, **{"max_tokens": 24, "stream": True, **fields})
        text = client.post(CHATS, json=sent).text
        assert text.rstrip().endswith("data: [DONE]"), text
        assert '"error"' not in text


def test_a_model_of_text_says_that_it_takes_none(http: httpx.Client) -> None:
    answer = http.post(CHATS, json=body(GOOD))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "unsupported_parameter"
    assert error["param"] == "messages.0.content.0.image_url"
    assert "takes no pictures" in error["message"]
    assert http.get("/v1/models").json()["data"][0]["input_modalities"] == ["text"]


def test_bodies_beyond_the_limit_are_still_refused_whole(client: httpx.Client) -> None:
    big = "data:image/png;base64," + base64.b64encode(zlib.compress(b"") * 10**6).decode()
    answer = client.post(
        CHATS, content=json.dumps(body(big)), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
