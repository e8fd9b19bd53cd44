"""Adapters over HTTP: their names, loading and unloading while the server runs, what is refused."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock import LLM, SamplingParams
from tests.engine.lora import Adapted, make_two
from tests.server.conftest import MODEL
from tests.server.process import ServeProcess

PROMPT = "Once upon"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
LIMIT = 4
PRESETS = {"fast": {"decoding": "ngram"}}


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return make_two("llama", tiny_llama, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def texts(made: Adapted) -> dict[str | None, str]:
    """What the merged models say, by the adapter's name."""
    found: dict[str | None, str] = {}
    params = SamplingParams(max_tokens=12, temperature=0)
    for name in (None, "a", "b"):
        llm = LLM(str(made.model(name)), kv_cache_memory=0.01, threads=1)
        found[name] = llm.generate(PROMPT, params, use_tqdm=False)[0].text
    assert len(set(found.values())) == 3
    return found


@pytest.fixture(scope="module")
def allowed(made: Adapted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a and b, links to them from inside and outside, and what is no adapter."""
    root = tmp_path_factory.mktemp("root")
    folder = root / "allowed"
    folder.mkdir()
    for name, place in made.folders.items():
        (folder / name).mkdir()
        for file in place.iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
    (folder / "inside").symlink_to(folder / "a")
    (folder / "link").symlink_to(made.folders["b"])
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "file").write_text("x")
    (folder / "damaged\nhere").mkdir()
    (folder / "damaged").mkdir()
    (folder / "damaged" / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    (root / "allowed-not").mkdir()
    return folder


@pytest.fixture(scope="module", params=["thread", "process"])
def serving(
    request: pytest.FixtureRequest,
    made: Adapted,
    allowed: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServeProcess]:
    arguments = [str(made.base), "--served-model-name", MODEL, "--threads", "1"]
    arguments += ["--kv-cache-memory", "8000000", "--presets", json.dumps(PRESETS)]
    arguments += ["--adapters", f"first={made.folders['a']}", "--adapter-folder", str(allowed)]
    arguments += ["--max-adapters", str(LIMIT), "--engine-in", request.param]
    with ServeProcess(arguments, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture
def http(serving: ServeProcess) -> Iterator[httpx.Client]:
    with serving.client() as client:
        yield client


def ask(http: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **fields}
    return http.post("/v1/completions", json=body)


def text(http: httpx.Client, model: str, **fields: Any) -> str:
    answer = ask(http, model, **fields).json()
    assert answer["model"] == model
    return answer["choices"][0]["text"]


def load(http: httpx.Client, name: str, path: str, **fields: Any) -> httpx.Response:
    return http.post(LOAD, json={"lora_name": name, "lora_path": path, **fields})


def unload(http: httpx.Client, name: str) -> httpx.Response:
    return http.post(UNLOAD, json={"lora_name": name})


def said(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


def names(http: httpx.Client) -> list[str]:
    return [card["id"] for card in http.get("/v1/models").json()["data"]]


def test_names(http: httpx.Client, texts: dict[str | None, str]) -> None:
    assert names(http) == [MODEL, f"{MODEL}:fast", "first", "first:fast"]
    cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    assert "parent" not in cards[MODEL]
    assert cards["first"]["parent"] == cards["first:fast"]["parent"] == MODEL
    assert cards["first:fast"]["decoding"] == "ngram"
    assert http.get("/v1/models/first").json() == cards["first"]
    for model in (MODEL, f"{MODEL}:fast", ""):
        assert ask(http, model).json()["choices"][0]["text"] == texts[None]
    for model in ("first", "first:fast", f"{MODEL}:first", f"{MODEL}:first:fast"):
        assert ask(http, model).json()["choices"][0]["text"] == texts["a"], model
    for model in (
        "fast",
        "first:slow",
        ":first",
        f"{MODEL}:",
        f"{MODEL}:{MODEL}",
        "first:",
        "First",
    ):
        assert "does not exist; this server has: tiny, tiny:fast, first" in said(
            ask(http, model), 404
        )


def test_loading_and_unloading(http: httpx.Client, texts: dict[str | None, str]) -> None:
    assert load(http, "second", "b").status_code == 200
    assert text(http, "second") == texts["b"]
    assert text(http, "second:fast", stream=False) == texts["b"]
    assert names(http)[-2:] == ["second", "second:fast"]
    assert "there is an adapter second already" in said(load(http, "second", "a"), 400)
    assert load(http, "second", "a", load_inplace=True).status_code == 200
    assert text(http, "second") == texts["a"]
    assert unload(http, "second").status_code == 200
    assert "second" not in names(http)
    assert "`second` does not exist" in said(ask(http, "second"), 404)
    assert "there is no adapter 'second'" in said(unload(http, "second"), 404)


def test_streaming_and_chat(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    plain, adapted = (
        http.post("/v1/chat/completions", json={**body, "model": model}).json()
        for model in (MODEL, "first")
    )
    streamed = ""
    with http.stream(
        "POST", "/v1/chat/completions", json={**body, "model": "first", "stream": True}
    ) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert event["model"] == "first"
                streamed += "".join(each["delta"].get("content") or "" for each in event["choices"])
    assert streamed == adapted["choices"][0]["message"]["content"]
    assert streamed != plain["choices"][0]["message"]["content"]


def test_an_adapter_that_is_unloaded_ends_its_streams(http: httpx.Client, made: Adapted) -> None:
    """A stream goes on with it; others who name it are told that it is not there."""
    params = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
    llm = LLM(str(made.merged["b"]), kv_cache_memory=0.01, threads=1)
    wanted = llm.generate(PROMPT, params, use_tqdm=False)[0].text
    assert load(http, "leaving", "b").status_code == 200
    body = {"model": "leaving", "prompt": PROMPT, "max_tokens": 400, "temperature": 0}
    found = ""
    with http.stream(
        "POST", "/v1/completions", json={**body, "ignore_eos": True, "stream": True}
    ) as lines:
        events = (line.removeprefix("data: ") for line in lines.iter_lines() if "data: {" in line)
        for number, event in enumerate(events):
            found += json.loads(event)["choices"][0]["text"]
            if number == 0:
                assert unload(http, "leaving").status_code == 200
                assert ask(http, "leaving").status_code == 404
    assert found == wanted


@pytest.mark.parametrize(
    "path",
    ["../allowed-not", "../../", "/etc", "link", "nowhere", "file", "loop", "a\0", "a/../..",
     "a/adapter_config.json", "x" * 5000, "~"],
)  # fmt: skip
def test_only_folders_below_the_allowed_one(path: str, http: httpx.Client) -> None:
    message = said(load(http, "x", path), 400)
    assert "it must be a folder below the one that the server's operator allows" in message
    assert "x" not in names(http)


def test_ways_to_name_a_folder(http: httpx.Client, allowed: Path) -> None:
    for path in (str(allowed / "a"), "./a", "b/../a", "inside", "a/"):
        assert load(http, "way", path).status_code == 200
        assert unload(http, "way").status_code == 200


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("damaged", "adapter_config.json: peft_type is 'LOHA', and only LORA is served"),
        ("damaged\nhere", "no such file"),
        ("", "no such file"),
    ],
)
def test_a_damaged_folder_tells_nothing_of_the_server(
    path: str, words: str, http: httpx.Client, serving: ServeProcess, allowed: Path
) -> None:
    message = said(load(http, "x", path), 400)
    assert words in message
    assert "/" not in message
    assert allowed.name not in message
    assert str(allowed) in serving.log, "the operator reads where"
    assert "x" not in names(http)


@pytest.mark.parametrize(
    "name", [MODEL, "fast", "", "a b", "a:b", "../a", "-a", "é", "a" * 65, "a\n"]
)
def test_names_that_are_none(name: str, http: httpx.Client) -> None:
    message = said(load(http, name, "a"), 400)
    assert "lora_name" in message


@pytest.mark.parametrize(
    "body", [{}, {"lora_name": "x"}, {"lora_path": "a"}, {"lora_name": 1, "lora_path": "a"}, [], 5]
)
def test_bodies_that_are_none(body: Any, http: httpx.Client) -> None:
    for path in (LOAD, UNLOAD):
        answer = http.post(path, json=body)
        assert answer.status_code in ((400, 404) if path == UNLOAD else (400,)), answer.text
    assert http.get("/health").status_code == 200


def test_the_limit(http: httpx.Client) -> None:
    loaded = ["n1", "n2", "n3"]
    assert [load(http, name, "a").status_code for name in loaded] == [200] * 3
    message = said(load(http, "n4", "a"), 400)
    assert f"{LIMIT} adapters are loaded, or loading, and the limit is {LIMIT}" in message
    assert load(http, "n3", "b", load_inplace=True).status_code == 200
    assert [unload(http, name).status_code for name in loaded] == [200] * 3


def test_two_at_once_load_one_name(http: httpx.Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(load, http, "both", "b") for _ in range(4)]
        answers = [each.result() for each in asked]
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    assert unload(http, "both").status_code == 200


def test_without_the_operators_consent(server: ServeProcess) -> None:
    with server.client() as http:
        for answer in (load(http, "x", "a"), unload(http, "x")):
            assert "--adapter-folder" in said(answer, 403)


@pytest.mark.parametrize(
    ("engine_in", "flags", "words"),
    [
        ("thread", "--adapters x={nowhere}", "{nowhere}/adapter_config.json: no such file"),
        ("process", "--adapters x={nowhere}", "{nowhere}/adapter_config.json: no such file"),
        ("thread", "--adapters tiny={a}", "--adapters: lora_name is 'tiny', which is the name of"),
        ("thread", "--adapters x={a} --max-adapter-rank 3", "has the rank 4, above the limit of 3"),
    ],
)
def test_a_start_that_fails(
    engine_in: str, flags: str, words: str, made: Adapted, tmp_path: Path
) -> None:
    places = {"nowhere": tmp_path / "nowhere", **made.folders}
    given = flags.format(**places).split()
    arguments = [str(made.base), "--served-model-name", MODEL, "--engine-in", engine_in, *given]
    with ServeProcess(arguments, tmp_path / "log", wait_ready=False) as process:
        assert process.wait() == 2
    lines = [line for line in process.log.splitlines() if words.format(**places) in line]
    assert len(lines) == 1, process.log
    assert "Traceback" not in process.log


def test_nothing_is_left(serving: ServeProcess) -> None:
    serving.wait_idle()
    assert "Traceback" not in serving.log
