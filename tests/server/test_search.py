"""Searches over HTTP: answers, trees, node events, refusals, evaluators, cancellation."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import MODEL
from tests.server.process import ServeProcess

SAMPLE: dict[str, Any] = {
    "generate": "sample",
    "generate_samples": 3,
    "breadth": 2,
    "depth": 3,
    "evaluate_samples": 2,
    "thought_tokens": 8,
}
BODY: dict[str, Any] = {
    "model": MODEL,
    "prompt": "abcabc",
    "max_tokens": 8,
    "seed": 3,
    "ignore_eos": True,
    "allowed_token_ids": [65, 66, 67, 68],
}


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={**BODY, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(kind, data) of all events but [DONE]."""
    found: list[tuple[str, dict[str, Any]]] = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if lines.get("data", "[DONE]") != "[DONE]":
            found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


def test_a_tree_is_in_the_answer_as_far_as_asked_for(http: httpx.Client) -> None:
    trees = {
        level: ask(http, decoding={"tot": {**SAMPLE, "trace": level}})
        for level in ("none", "summary", "full")
    }
    assert len({tree["choices"][0]["text"] for tree in trees.values()}) == 1
    assert "penstock" not in trees["none"]
    (summary,) = trees["summary"]["penstock"]["search"]
    (full,) = trees["full"]["penstock"]["search"]
    assert summary["thoughts"] == full["thoughts"] == len(full["nodes"]) == 3 + 6 + 6
    assert [node["depth"] for node in summary["nodes"]] == [1, 2, 3]
    assert {node["status"] for node in summary["nodes"]} == {"answer"}
    assert sum(full["statuses"].values()) == 15
    assert full["exhausted_budget"] is None
    by_id = {node["id"]: node for node in full["nodes"]}
    assert all(node["parent"] is None or node["parent"] in by_id for node in full["nodes"])
    own = trees["full"]["usage"]["penstock"]
    assert own["thoughts"] == 15


def test_nodes_stream_as_events_of_their_own(http: httpx.Client) -> None:
    body = {**BODY, "decoding": {"tot": SAMPLE}, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        found = events(answer.read().decode())
    nodes = [data for kind, data in found if kind == "penstock.node"]
    chunks = [data for kind, data in found if kind == ""]
    last: dict[int, dict[str, Any]] = {}
    for data in nodes:
        node = data["penstock"]["node"]
        assert set(node) == {"id", "parent", "depth", "text", "value", "status"}
        last[node["id"]] = node
    whole = ask(http, decoding={"tot": {**SAMPLE, "trace": "full"}})
    assert [last[number] for number in sorted(last)] == whole["penstock"]["search"][0]["nodes"]
    text = "".join(choice["text"] for data in chunks for choice in data["choices"])
    assert text == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("decoding", [{"tot": SAMPLE}, {"best_of": {}}, {"beam": {}}], ids=str)
def test_naive_readers_of_the_sdk_survive(
    client: openai.OpenAI, http: httpx.Client, decoding: dict[str, Any]
) -> None:
    """Whoever joins `choices[0]` of every chunk gets the text, and nothing but it."""
    extra = {"decoding": decoding, "ignore_eos": True, "allowed_token_ids": [65, 66, 67]}
    messages: Any = [{"role": "system", "content": "Be."}, {"role": "user", "content": "go"}]
    chat: Any = {"model": MODEL, "messages": messages, "max_tokens": 8, "seed": 5}
    whole = client.chat.completions.create(**chat, extra_body=extra)
    stream = client.chat.completions.create(
        **chat, extra_body=extra, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in stream:
        if chunk.usage is not None:
            usage = chunk.usage
        else:
            text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content != ""
    assert whole.usage is not None
    assert usage is not None
    # Prefixes are cached the second time.
    assert usage.total_tokens == whole.usage.total_tokens
    fields = {key: value for key, value in BODY.items() if key in ("model", "prompt", "seed")}
    pieces = client.completions.create(**fields, max_tokens=8, stream=True, extra_body=extra)
    joined = "".join(piece.choices[0].text for piece in pieces)
    assert joined == ask(http, **{**fields, **extra})["choices"][0]["text"] != ""


def test_the_same_seed_is_the_same_tree_in_any_company(http: httpx.Client) -> None:
    decoding = {"tot": {**SAMPLE, "trace": "full"}}
    alone = ask(http, decoding=decoding)["penstock"]
    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: found.append(ask(http, decoding=decoding)))
        for _ in range(4)
    ]
    others = [
        threading.Thread(target=ask, args=(http,), kwargs={"prompt": "x" * 40 * i, "n": 3})
        for i in range(1, 5)
    ]
    for thread in [*threads, *others]:
        thread.start()
    for thread in [*threads, *others]:
        thread.join()
    assert [one["penstock"] for one in found] == [alone] * 4
    assert ask(http, decoding=decoding, seed=4)["penstock"] != alone


def test_a_chain_is_a_chain_of_plain_completions(http: httpx.Client) -> None:
    chain = {**SAMPLE, "generate_samples": 1, "breadth": 1, "evaluate_samples": 1, "depth": 4}
    fields = {"return_token_ids": True, "stop": ["\n"]}
    answer = ask(http, decoding={"tot": chain}, **fields)
    ids: list[int] = answer["choices"][0]["prompt_token_ids"]
    expected: list[int] = []
    for _ in range(4):
        part = ask(http, prompt=[*ids, *expected], **fields)["choices"][0]
        expected += part["token_ids"]
    assert answer["choices"][0]["token_ids"] == expected


def test_openais_best_of_is_ours(http: httpx.Client) -> None:
    ours = ask(http, n=2, decoding={"best_of": {"n": 5}})
    theirs = ask(http, n=2, best_of=5)
    assert theirs["choices"] == ours["choices"]
    drafted = ask(http, n=2, best_of=5, decoding="jacobi")
    assert drafted["choices"] == ours["choices"]
    assert "penstock" not in theirs


def test_every_branch_is_counted(http: httpx.Client) -> None:
    body = {"prompt": "z" * 50, "max_tokens": 6, "decoding": {"best_of": {"n": 3}}}
    usage = ask(http, **body)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (50, 18)
    again = ask(http, **body)["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] == 48


def test_budgets_end_a_search_with_the_best_so_far(http: httpx.Client) -> None:
    for tokens in range(10, 260, 25):
        tot = {**SAMPLE, "budget": {"tokens": tokens}}
        answer = ask(http, decoding={"tot": tot})
        assert answer["usage"]["total_tokens"] <= tokens
        (tree,) = answer["penstock"]["search"]
        if tree["exhausted_budget"]:
            assert answer["choices"][0]["finish_reason"] == "length"
    answer = ask(http, decoding={"tot": {**SAMPLE, "budget": {"thoughts": 5}}})
    assert answer["usage"]["penstock"]["thoughts"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"decoding": {"tot": {"breadth": 0}}}, "decoding.tot.breadth", "is 0; it must be at least 1"),
    (
        {"decoding": {"tot": {"breadth": 1025}}},
        "decoding.tot.breadth",
        "is 1025; it must be at most 1024",
    ),
    ({"decoding": {"tot": {"depth": 33}}}, "decoding.tot.depth", "is 33; it must be at most 32"),
    ({"decoding": {"tot": {"task": "chess"}}}, "decoding.tot.task", "is 'chess'; it must be"),
    (
        {"decoding": {"tot": {"budget": {"tokens": 0}}}},
        "decoding.tot.budget.tokens",
        "is 0; it must be at least 1",
    ),
    (
        {"decoding": {"tot": {"budget": {"tokens": 10**8}}}},
        "decoding.tot.budget.tokens",
        "at most 1e+06",
    ),
    (
        {"decoding": {"tot": {"prompts": {"value": "{problem.__class__}"}}}},
        "decoding.tot.prompts.value",
        "",
    ),
    ({"decoding": {"tot": {}}, "n": 6}, "decoding.tot.breadth", "n = 6"),
    ({"decoding": {"tot": {"task": "game24"}}, "prompt": "none"}, "prompt", "0 of 0 numbers"),
    ({"decoding": {"beam": {"width": 65}}}, "decoding.beam.width", "is 65; it must be at most 64"),
    (
        {"decoding": {"beam": {"length_penalty": 11}}},
        "decoding.beam.length_penalty",
        "is 11; it must be at most 10",
    ),
    ({"decoding": {"best_of": {"n": 257}}}, "decoding.best_of.n", "is 257; it must be at most 256"),
    ({"decoding": {"best_of": {"n": 0}}}, "decoding.best_of.n", "is 0; it must be at least 1"),
    ({"decoding": ["best_of", "tot"]}, "decoding.tot", "both fill the controller slot"),
    ({"decoding": "tot", "logprobs": 1}, "logprobs", "not available with decoding.tot"),
    ({"decoding": "beam", "kv_cache": "h2o"}, "kv_cache.h2o", "token by token"),
    ({"best_of": 2, "n": 3}, "best_of", "raise best_of"),
    ({"best_of": 2, "decoding": "best_of"}, "best_of", "both given"),
]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSALS, ids=lambda v: str(v)[:40])
def test_refusals_name_the_field_the_value_and_the_limit(
    fields: dict[str, Any], param: str, message: str, http: httpx.Client
) -> None:
    for stream in (False, True):
        answer = http.post("/v1/completions", json={**BODY, **fields, "stream": stream})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == param
        assert message in error["message"]


def test_leaving_ends_a_search_wherever_it_is(http: httpx.Client, server: ServeProcess) -> None:
    deep = {**SAMPLE, "depth": 32, "generate_samples": 6, "thought_tokens": 12}
    body = {**BODY, "decoding": {"tot": deep}, "stream": True}
    for count in range(0, 40, 8):
        with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            for _ in range(count):
                next(lines)
    server.wait_idle()


class _Judge(BaseHTTPRequestHandler):
    """Scores by length; `/slow` drips, `/flaky` fails every first time, others answer nonsense."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen: list[dict[str, Any]] = self.server.seen  # type: ignore[attr-defined]
        seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        if self.path == "/flaky" and len(seen) % 2:
            self.send_error(503)
            return
        scores = [len(candidate) for candidate in body["candidates"]]
        answer: Any = {"scores": scores if self.path in ("/", "/flaky") else ["?"]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        if self.path == "/slow":
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            stopped: threading.Event = self.server.stopped  # type: ignore[attr-defined]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while not stopped.wait(0.05):
                    self.wfile.write(b" ")
            return
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name there
        pass


@pytest.fixture(scope="module")
def judged(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServeProcess, list[dict[str, Any]]]]:
    """A server whose operator has configured evaluators, and what those were asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Judge) as judge:
        judge.seen = []  # type: ignore[attr-defined]
        judge.stopped = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=judge.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{judge.server_port}"
        evaluators: dict[str, Any] = {
            "length": {"url": f"{url}/", "api_key": "secret-of-the-judge"},
            "flaky": {"url": f"{url}/flaky", "retries": 1},
            "slow": {"url": f"{url}/slow", "timeout_s": 0.3, "retries": 0},
            "wrong": {"url": f"{url}/wrong", "on_failure": "neutral"},
            "gone": {"url": "http://127.0.0.1:9/", "retries": 0, "on_failure": "neutral"},
        }
        arguments = [str(tiny_llama), "--served-model-name", MODEL, "--threads", "1"]
        arguments += ["--kv-cache-memory", "8000000", "--evaluators", json.dumps(evaluators)]
        log = tmp_path_factory.mktemp("evaluators") / "server.log"
        with ServeProcess(arguments, log) as running:
            yield running, judge.seen  # type: ignore[attr-defined]
            running.wait_idle()
            assert "secret-of-the-judge" not in running.log
        judge.stopped.set()  # type: ignore[attr-defined]
        judge.shutdown()


def rank(name: str) -> dict[str, Any]:
    return {"best_of": {"n": 4, "rank": "evaluator", "evaluator": name, "trace": "full"}}


def test_external_evaluators_judge(judged: tuple[ServeProcess, list[dict[str, Any]]]) -> None:
    server, seen = judged
    with server.client() as http:
        answer = ask(http, decoding=rank("length"), allowed_token_ids=None)
        (tree,) = answer["penstock"]["search"]
        assert [node["value"] for node in tree["nodes"]] == [
            float(len(node["text"])) for node in tree["nodes"]
        ]
        assert seen[-1]["candidates"] == [node["text"] for node in tree["nodes"]]
        assert seen[-1]["problem"] == BODY["prompt"]
        assert seen[-1]["key"] == "Bearer secret-of-the-judge"
        tot = {**SAMPLE, "evaluate": "external", "evaluator": "length"}
        (tree,) = ask(http, decoding={"tot": tot})["penstock"]["search"]
        assert tree["thoughts"] == 15


def test_failing_evaluators_degrade_as_configured(
    judged: tuple[ServeProcess, list[dict[str, Any]]],
) -> None:
    server, seen = judged
    with server.client() as http:
        first = ask(http)["choices"][0]["text"]
        for name in ("wrong", "gone"):
            answer = ask(http, decoding=rank(name))
            assert answer["choices"][0]["text"] == first
        if len(seen) % 2:
            ask(http, decoding=rank("length"))
        ask(http, decoding=rank("flaky"))
        answer = http.post("/v1/completions", json={**BODY, "decoding": rank("slow")})
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["code"] == "evaluator_failed"
        assert "127.0.0.1" not in error["message"]
        answer = http.post("/v1/completions", json={**BODY, "decoding": rank("nobody")})
        assert answer.status_code == 400
        assert "this server has: flaky, game24, gone, length, slow, wrong" in answer.text
