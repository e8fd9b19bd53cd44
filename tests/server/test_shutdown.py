"""The end of a real process: what runs is finished, what is too long is ended, the status is 0."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import ServeProcess
from tests.server.scripted import until

LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 500, "ignore_eos": True}
ENGINE_ROUTES = [
    ("GET", "/health"),
    ("HEAD", "/health"),
    ("GET", "/v1/models"),
    ("GET", "/v1/decoding"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
]
Start = Callable[..., AbstractContextManager[ServeProcess]]


@pytest.fixture
def start(slow_llama: Path, tmp_path: Path) -> Start:
    def make(*flags: str, **options: Any) -> ServeProcess:
        arguments = [str(slow_llama), "--threads", "1", "--kv-cache-memory", "64000000", *flags]
        return ServeProcess(arguments, tmp_path / "log", **options)

    return make


def data_of(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.iter_lines() if line]


@pytest.mark.parametrize("place", ["thread", "process"])
def test_running_requests_are_finished_and_new_ones_refused(start: Start, place: str) -> None:
    """On open connections and on new ones alike: to a load balancer, a probe that is refused is a
    network's fault, and a 503 is an answer."""
    whole: list[httpx.Response] = []

    def ask(server: ServeProcess) -> None:
        with server.client() as client:
            whole.append(client.post("/v1/completions", json=LONG))

    flags = ["--engine-in", place]
    with start(*flags) as server, server.client() as streaming, server.client() as idle:
        assert idle.get("/version").status_code == 200
        other = threading.Thread(target=ask, args=[server])
        other.start()
        until(lambda: server.metrics()["penstock_num_requests_running"] == 1)
        body = {**LONG, "stream": True}
        with streaming.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            server.signal(signal.SIGTERM)
            until(lambda: idle.get("/health").status_code == 503)
            for method, path in ENGINE_ROUTES:
                with server.client() as late:
                    refused = late.request(method, path, json=LONG if method == "POST" else None)
                assert refused.status_code == 503, path
                if method != "HEAD":
                    assert "shutting down" in refused.json()["error"]["message"]
                assert refused.headers["retry-after"] == "1"
                assert refused.headers["connection"] == "close"
            data = data_of(answer)
        other.join()
        assert data[-1] == "[DONE]"
        assert json.loads(data[-2])["choices"][0]["finish_reason"] == "length"
        assert whole[0].status_code == 200
        assert whole[0].json()["usage"]["completion_tokens"] == 500
        assert server.wait() == 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize("hurry", [False, True], ids=["timeout", "second signal"])
def test_what_takes_too_long_is_ended_with_an_error(start: Start, hurry: bool) -> None:
    whole: list[httpx.Response] = []
    timeout_s = "60" if hurry else "0.05"

    def ask(server: ServeProcess) -> None:
        with server.client() as client:
            whole.append(client.post("/v1/completions", json={**LONG, "n": 8}))

    with start("--shutdown-timeout-s", timeout_s) as server, server.client() as streaming:
        other = threading.Thread(target=ask, args=[server])
        other.start()
        until(lambda: server.metrics()["penstock_num_requests_running"] == 8)
        body = {**LONG, "n": 8, "stream": True}
        with streaming.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            server.signal(signal.SIGINT)
            if hurry:
                until(lambda: "received SIGINT" in server.log)
                server.signal(signal.SIGINT)
            data = data_of(answer)
        other.join()
        assert "[DONE]" not in data
        error = json.loads(data[-1])["error"]
        assert "shutting down" in error["message"]
        assert error["type"] == "server_error"
        assert whole[0].status_code == 503
        assert "shutting down" in whole[0].json()["error"]["message"]
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_caller_who_does_not_read_delays_the_end_by_seconds_only(start: Start) -> None:
    with start() as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((host, int(port)))
            # Twenty alternatives a token: more than the system buffers on its own.
            fields = {"prompt": "x", "max_tokens": 200, "ignore_eos": True, "n": 32}
            body = json.dumps({**fields, "logprobs": 20, "stream": True}).encode()
            deaf.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            until(lambda: server.metrics()["penstock_num_requests_running"] == 32)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            assert "callers did not take their answers" in server.log
            assert "Traceback" not in server.log


def test_signal_while_loading(start: Start) -> None:
    with start(wait_ready=False) as server, server.client() as client:
        assert client.get("/health").status_code == 503
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_missing_model_ends_it_with_one_line(tmp_path: Path) -> None:
    missing = ServeProcess([str(tmp_path / "nowhere")], tmp_path / "log", wait_ready=False)
    with missing as server:
        assert server.wait() == 2
        assert "no such model folder" in server.log
        assert "Traceback" not in server.log


def test_idle_server_ends_at_once_and_keeps_its_key_secret(start: Start) -> None:
    secret = "hush-" + os.urandom(8).hex()
    flags = ["--host", "0.0.0.0", "--log-level", "debug"]
    with start(*flags, environment={"PENSTOCK_API_KEY": f"other,{secret}"}, key=secret) as server:
        with httpx.Client(base_url=server.url) as client:
            assert client.get("/v1/models").status_code == 401
            assert client.get("/health").status_code == 200
        assert "without an API key" not in server.log
        with server.client() as client:
            assert client.get("/v1/models").status_code == 200
            assert secret not in client.get("/metrics").text
            began_s = time.monotonic()
            server.signal(signal.SIGTERM)  # with nothing running, and a connection open
            assert server.wait() == 0
            assert time.monotonic() - began_s < 5
        assert secret not in server.log
        assert "hush" not in server.log


def test_open_address_without_a_key_warns(start: Start) -> None:
    with start("--host", "0.0.0.0", wait_ready=False) as server:
        assert "without an API key" in server.log
