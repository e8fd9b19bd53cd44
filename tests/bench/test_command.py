"""The whole command against a scripted server."""

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from penstock.bench.benchmark import measure
from penstock.bench.command import BenchSettings, run_bench
from penstock.errors import ConfigurationError
from tests.bench.scripted import (
    END,
    STREAM_HEAD,
    ScriptedServer,
    Step,
    event,
    plain,
    token,
    words_then_usage,
)


def settings(server: ScriptedServer, **fields: Any) -> BenchSettings:
    return BenchSettings.model_validate({"base_url": server.url, "api_key": None} | fields)


def test_two_concurrencies(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = settings(
        server,
        concurrency=[1, 4],
        num_prompts=8,
        input_tokens=20,
        output_tokens=5,
        api_key="sk-secret",
        slo_e2el_ms=60_000,
        output_json=tmp_path / "out.json",
        output_csv=tmp_path / "out.csv",
    )
    assert run_bench(given) == 0

    # Two probes, a warm-up, two runs; the probes found the three tokens that are not words.
    assert len(server.bodies) == 2 + 1 + 16
    assert [body["max_tokens"] for body in server.bodies[:3]] == [1, 1, 5]
    assert {len(body["prompt"].split()) for body in server.bodies[2:]} == {17}
    assert len({body["prompt"] for body in server.bodies}) == 19
    assert all(body["model"] == "first" for body in server.bodies)
    assert all("authorization: Bearer sk-secret" in head for head in server.heads if head[0] == "P")

    document = json.loads((tmp_path / "out.json").read_text())
    assert "sk-secret" not in (tmp_path / "out.json").read_text()
    assert [run["concurrency"] for run in document["runs"]] == [1, 4]
    for run in document["runs"]:
        assert (run["requests"], run["failed"], run["output_tokens"]) == (8, 0, 40)
        assert run["prompt_tokens"] == 8 * 20
        assert run["tokens_from"] == "usage"
        assert run["goodput_per_s"] == run["requests_per_s"]
        assert run["ttft_mean_ms"] <= run["e2el_mean_ms"]
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["concurrency"] for line in lines] == ["1", "4"]
    assert float(lines[0]["output_tokens_per_s"]) == pytest.approx(
        document["runs"][0]["output_tokens_per_s"], rel=1e-5
    )

    shown = capsys.readouterr().out
    assert "4 clients" in shown
    assert "TTFT p99, ms" in shown
    assert "\x1b" not in shown, "plain text where there is no terminal"
    assert "chunks" not in shown


def test_failures_are_counted_and_shown(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(body: dict[str, Any]) -> list[Step]:
        if len(server.bodies) % 4 == 0:
            return [plain(429, {"error": {"message": "[bold]full"}})]
        return words_then_usage(body)

    server.script = script
    assert run_bench(settings(server, num_prompts=8, output_tokens=2)) == 1
    assert "1 client: 2 failed: HTTP 429: [bold]full" in capsys.readouterr().out


def test_server_without_usage(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer_with(STREAM_HEAD, token(), token(), token("", "length"), END)
    given = settings(server, num_prompts=3, input_tokens=12)
    assert run_bench(given) == 0
    assert {len(body["prompt"].split()) for body in server.bodies[3:]} == {12}
    assert "counted as chunks" in capsys.readouterr().out


def test_concurrency_is_kept_and_not_exceeded(server: ScriptedServer) -> None:
    def script(body: dict[str, Any]) -> list[Step]:
        return [STREAM_HEAD, 0.05, token("a", "stop"), event(b"[DONE]"), END]

    server.script = script
    asyncio.run(measure(settings(server, concurrency=[3], num_prompts=9)))
    assert server.most_in_flight == 3


def test_arrivals_do_not_wait_for_answers(server: ScriptedServer) -> None:
    server.answer_with(STREAM_HEAD, 0.2, token("a", "stop"), END)
    given = settings(server, request_rate=10_000, num_prompts=12, warmup_requests=0)
    (run,) = asyncio.run(measure(given))
    assert server.most_in_flight == 12
    assert (run.concurrency, run.request_rate, run.summary.failed) == (None, 10_000, 0)


def test_arrivals_under_a_limit(server: ScriptedServer) -> None:
    server.answer_with(STREAM_HEAD, 0.02, token("a", "stop"), END)
    asyncio.run(measure(settings(server, request_rate=10_000, concurrency=[2], num_prompts=8)))
    assert server.most_in_flight == 2


def test_chat_body_and_extra_fields(server: ScriptedServer) -> None:
    server.answer_with(STREAM_HEAD, token("a", "stop"), END)
    given = settings(
        server,
        endpoint="chat",
        model="mine",
        ignore_eos=True,
        num_prompts=1,
        extra_body={"decoding": "jacobi", "seed": None, "temperature": 0.5},
    )
    asyncio.run(measure(given))
    body = server.bodies[-1]
    assert body["messages"][0]["role"] == "user"
    assert "prompt" not in body
    assert "seed" not in body
    assert body["model"] == "mine"
    assert body["decoding"] == "jacobi"
    assert body["temperature"] == 0.5
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert all("/chat/completions" in head for head in server.heads)


def test_dataset_is_repeated(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n")
    given = settings(server, dataset=path, num_prompts=3, warmup_requests=0, output_tokens=1)
    asyncio.run(measure(given))
    assert [body["prompt"] for body in server.bodies] == ["one", "two", "one"]


def test_messages_need_the_chat_endpoint(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": []}\n')
    with pytest.raises(ConfigurationError, match="endpoint chat"):
        asyncio.run(measure(settings(server, dataset=path)))


@pytest.mark.parametrize(
    ("models", "message"),
    [({"data": []}, "lists no model"), ({"oops": 1}, "lists no model"), (b"<html>", "not JSON")],
    ids=["empty", "shape", "html"],
)
def test_no_model_to_choose(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], models: Any, message: str
) -> None:
    server.models = models
    assert run_bench(settings(server)) == 2
    assert message in capsys.readouterr().err


def test_first_request_fails(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer_with(plain(401, {"error": {"message": "key, please"}}))
    assert run_bench(settings(server)) == 2
    assert "HTTP 401: key, please" in capsys.readouterr().err


def test_results_that_cannot_be_written(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = settings(server, num_prompts=1, output_csv=tmp_path / "absent" / "out.csv")
    assert run_bench(given) == 2
    captured = capsys.readouterr()
    assert "cannot write" in captured.err
    assert "TTFT" in captured.out


def test_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "general")
    assert BenchSettings.model_validate({}).api_key is not None
    monkeypatch.setenv("PENSTOCK_API_KEY", "own")
    key = BenchSettings.model_validate({}).api_key
    assert key is not None
    assert key.get_secret_value() == "own"
    assert "own" not in repr(key)


@pytest.mark.parametrize("given", ["1,4,16", ["1,4", "16"], [1, 4, 16]], ids=str)
def test_concurrency_by_commas(given: Any) -> None:
    assert BenchSettings.model_validate({"concurrency": given}).concurrency == [1, 4, 16]


@pytest.mark.parametrize(
    "fields",
    [
        {"concurrency": [0]},
        {"concurrency": "1,"},
        {"concurrency": []},
        {"num_prompts": 0},
        {"request_rate": 0},
        {"timeout_s": -1},
        {"endpoint": "embeddings"},
        {"base_url": "localhost"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_bounds(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BenchSettings.model_validate(fields)
