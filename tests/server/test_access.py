"""Keys, origins, loading, and the bounds of a connection."""

import logging
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from penstock.errors import ConfigurationError
from penstock.server.app import create_app
from penstock.server.backend import Backend
from penstock.server.middleware.api_key import ApiKeys
from penstock.server.policies import Policy
from penstock.server.settings.serve import ServeSettings
from tests.server.process import ServeProcess
from tests.server.scripted import (
    Script,
    ScriptedEngine,
    ScriptedServer,
    scripted,
    text_deltas,
    until,
)

ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/scripted"),
    ("GET", "/v1/decoding"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/nope"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/health/"),
    ("GET", "//health"),
]
WRONG = ["", "Bearer", "Bearer wrong", "Basic first", "first", "Bearer first2"]


def test_every_route_but_health_needs_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the team\n\n third \n")
    with (
        scripted(api_key=["first", "second"], api_key_file=file) as server,
        server.client() as client,
    ):
        assert client.get("/health").status_code == 200
        for method, path in ROUTES:
            for header in WRONG:
                headers = {"Authorization": header} if header else {}
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.headers["x-request-id"]
                error = answer.json()["error"]
                assert error["type"] == "authentication_error"
                assert error["code"] == "invalid_api_key"
            for key in ("first", "second", "third"):
                answer = client.request(method, path, headers={"Authorization": f"bearer {key}"})
                assert answer.status_code != 401, path


def test_without_keys_nobody_needs_one() -> None:
    with scripted() as server, server.client() as client:
        assert client.get("/v1/models").status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first key matches, and still the others are looked at, digest against digest."""
    import hmac

    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def noted(one: bytes, two: bytes) -> bool:
        compared.append((len(one), len(two)))
        return real(one, two)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    keys = ApiKeys(dict.fromkeys(["a", "b" * 1000, "c"], Policy()))
    assert keys.accept(b"a")
    assert not keys.accept(b"x" * 5000)
    assert compared == [(32, 32)] * 6


def test_prefixes_are_shared_within_a_key_only(tiny_llama: Path, tmp_path: Path) -> None:
    """How fast a stranger's prompt is read must not tell that somebody else has sent it."""
    arguments = [str(tiny_llama), "--threads", "1", "--api-key", "one", "--api-key", "two"]
    arguments += ["--kv-cache-memory", "8000000"]
    body = {"prompt": "secret " * 10, "max_tokens": 1}
    with ServeProcess(arguments, tmp_path / "log", key="one") as running:

        def cached(key: str, **salted: str) -> int:
            with httpx.Client(verify=False) as client:  # plain HTTP; reading certificates is slow
                answer = client.post(
                    f"{running.url}/v1/completions",
                    json={**body, **salted},
                    headers={"Authorization": f"Bearer {key}"},
                    timeout=60,
                )
            return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert [cached("one"), cached("one"), cached("two"), cached("two")] == [0, 64, 0, 64]
        assert [cached("one", cache_salt="s"), cached("one", cache_salt="s")] == [0, 64]


def test_keys_never_show(caplog: pytest.LogCaptureFixture) -> None:
    settings = ServeSettings(api_key=[SecretStr("hush-hush")])
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()
    assert "api_key" not in settings.engine_config.model_dump()
    with caplog.at_level(logging.DEBUG), scripted(api_key=["hush-hush"]) as server:
        with server.client(headers={"Authorization": "Bearer hush-hush"}) as client:
            assert client.get("/v1/models").status_code == 200
            assert "hush" not in client.get("/metrics").text
        with server.client(headers={"Authorization": "Bearer hush-wrong"}) as client:
            assert client.get("/v1/models").status_code == 401
    assert "hush" not in caplog.text


@pytest.mark.parametrize("content", [None, "", "# nothing\n", b"\xff\xfe"], ids=str)
def test_useless_key_file_stops_the_start(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    settings = ServeSettings(api_key_file=file)
    with pytest.raises(ConfigurationError, match="api-key-file"):
        create_app(
            settings,
            lambda: ScriptedEngine(Script()),
            registry=None,  # type: ignore[arg-type]
            clock=lambda: 0.0,
            wall_clock=lambda: 0.0,
        )


def test_it_listens_while_the_model_loads() -> None:
    loaded = threading.Event()
    engine = ScriptedEngine(Script(deltas=text_deltas("x")))

    def load() -> Backend:
        assert loaded.wait(20)
        return engine

    with ScriptedServer(load=load) as server, server.client() as client:
        for path in ("/health", "/v1/models"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "loading" in answer.json()["error"]["message"]
            assert answer.headers["retry-after"] == "1"
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 503
        assert client.get("/version").status_code == 200
        assert client.get("/metrics").status_code == 200
        loaded.set()
        while client.get("/health").status_code != 200:
            pass
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 200


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigurationError("no such model"), 2), (ZeroDivisionError("secret"), 1)],
    ids=["configuration", "bug"],
)
def test_failed_loading_ends_the_server(
    error: Exception, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Backend:
        raise error

    with ScriptedServer(load=load) as server:
        server.wait()
    assert server.app.state.services.lifecycle.exit_code == code
    assert "could not be loaded" in caplog.text


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    while piece := connection.recv(65_536):
        answer += piece
    return answer


def read_one(connection: socket.socket) -> bytes:
    """One whole answer of /version; more would be a mistake."""
    answer = b""
    while not answer.endswith(b'"}'):
        piece = connection.recv(65_536)
        assert piece, answer
        answer += piece
    return answer


def connect(server: ScriptedServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


GET = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_connection_ends_after_its_number_of_requests() -> None:
    with scripted(max_connection_requests=3) as server, connect(server) as connection:
        for _ in range(2):
            connection.sendall(GET)
            answer = read_one(connection)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" not in answer.lower()
        connection.sendall(GET)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer.lower()


def test_pipelined_requests_count_as_well() -> None:
    with scripted(max_connection_requests=3) as server, connect(server) as connection:
        connection.sendall(GET * 5)
        assert read_all(connection).count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("sent", [b"", b"GET /ver"], ids=["nothing", "half a line"])
def test_slow_heads_are_not_waited_for(sent: bytes) -> None:
    with scripted(head_timeout_s=0.1) as server, connect(server) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""


def test_slow_second_head_is_not_waited_for() -> None:
    with scripted(head_timeout_s=0.1) as server, connect(server) as connection:
        connection.sendall(GET)
        assert read_one(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /ver")
        assert read_all(connection) == b""


def test_slow_answer_is_no_slow_head() -> None:
    with (
        scripted(Script(forever=True), head_timeout_s=0.05) as server,
        connect(server) as connection,
    ):
        body = b'{"prompt":"x"}'
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_slow_bodies_are_not_waited_for() -> None:
    with scripted(body_timeout_s=0.1) as server, connect(server) as connection:
        connection.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_header_bound_is_a_setting() -> None:
    with scripted(max_header_bytes=2000) as server:
        for size, status in [(1000, b"200"), (4000, b"431")]:
            with connect(server) as connection:
                head = GET[:-2] + b"A: " + b"x" * size + b"\r\nConnection: close\r\n\r\n"
                connection.sendall(head)
                assert read_all(connection).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_body_bound_is_a_setting(chunked: bool) -> None:
    def content(size: int) -> Any:
        body = b'{"prompt":"' + b"x" * (size - 13) + b'"}'
        return iter([body[:500], body[500:]]) if chunked else body

    headers = {"Content-Type": "application/json"}
    with (
        scripted(Script(deltas=text_deltas("x")), max_body_bytes=1024) as server,
        server.client(headers=headers) as client,
    ):
        assert client.post("/v1/completions", content=content(1024)).status_code == 400
        assert client.post("/v1/completions", content=content(400)).status_code == 200
        answer = client.post("/v1/completions", content=content(1025))
        assert answer.status_code == 413
        assert "1024" in answer.json()["error"]["message"]


def test_all_callers_together_are_bounded() -> None:
    """Bodies that are held back half-way count, and no longer when their callers leave."""
    with scripted(Script(deltas=text_deltas("x")), max_body_bytes=1024) as server:
        held = [connect(server) for _ in range(32)]
        for connection in held:
            connection.sendall(POST + b"Content-Length: 1024\r\n\r\n" + b" " * 1023)
        with server.client() as client:
            body = {"prompt": "x" * 100}
            until(lambda: client.post("/v1/completions", json=body).status_code == 429)
            for connection in held:
                connection.close()
            until(lambda: client.post("/v1/completions", json=body).status_code == 200)


def test_refused_callers_may_still_be_sending() -> None:
    """An answer before the whole body was read does not break the connection."""
    with scripted(api_key=["k"]) as server, connect(server) as connection:
        connection.sendall(POST + b"Content-Length: 20\r\n\r\n" + b" " * 10)
        answer = b""
        while b'"invalid_api_key"}}' not in answer:
            answer += connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 401 ")
        connection.sendall(b" " * 10 + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
