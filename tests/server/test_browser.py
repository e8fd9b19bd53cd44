"""What web pages may do, and that what they may do works.

The kind: a browser sends requests that its user never asked for, and asks for more before those
that he did. A page is known by `Origin`, by `Sec-Fetch-Site`, or by the name in `Host`; what can
be sent without any of these is no browser's. Each route is behind the same door, and so is each
answer: errors and streams are read by the same client libraries.
"""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from penstock.errors import EngineDeadError
from penstock.server.settings.serve import ServeSettings
from penstock.server.site import Hosts
from tests.server.scripted import Script, ScriptedServer, scripted, text_deltas

PAGE = "https://chat.example"
STAINLESS = (
    "authorization,content-type,user-agent,x-stainless-os,x-stainless-lang,x-stainless-timeout,"
    "x-stainless-retry-count,x-title,http-referer"
)
ROUTES = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/scripted"),
    ("GET", "/v1/decoding"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/nope"),
]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [5]},
}
EVERY_ROUTE = pytest.mark.parametrize(("method", "path"), ROUTES)


@pytest.fixture(scope="module")
def plain() -> Iterator[ScriptedServer]:
    with scripted(Script(deltas=text_deltas("x"))) as server:
        yield server


@pytest.fixture(scope="module")
def open_to_page() -> Iterator[ScriptedServer]:
    """It lets one origin in, and wants a key."""
    with scripted(
        Script(deltas=text_deltas("x")),
        cors_origin=[PAGE + "/"],
        api_key=["k"],
        max_body_bytes=1024,
    ) as server:
        yield server


def ask(server: ScriptedServer, method: str, path: str, **headers: str) -> httpx.Response:
    """A request with the body that the path takes, if any, and these headers, _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with server.client() as client:
        return client.request(method, path, json=BODIES.get(path), headers=named)


@EVERY_ROUTE
def test_preflight_reflects_what_is_asked_for(
    open_to_page: ScriptedServer, method: str, path: str
) -> None:
    """Without a key: browsers send none with it."""
    answer = ask(
        open_to_page,
        "OPTIONS",
        path,
        Origin=PAGE,
        Access_Control_Request_Method=method,
        Access_Control_Request_Headers=STAINLESS,
        Access_Control_Request_Private_Network="true",
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert method in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == STAINLESS
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "Origin" in answer.headers["vary"]


def test_private_network_is_not_offered(open_to_page: ScriptedServer) -> None:
    answer = ask(
        open_to_page,
        "OPTIONS",
        "/v1/models",
        Origin=PAGE,
        Access_Control_Request_Method="GET",
    )
    assert answer.status_code == 200
    assert "access-control-allow-private-network" not in answer.headers
    assert "access-control-allow-headers" not in answer.headers


def test_errors_and_streams_can_be_read_by_the_page(open_to_page: ScriptedServer) -> None:
    """All that a client library reads: status, body, and the headers that are no simple ones."""
    completions, key = "/v1/completions", {"Authorization": "Bearer k"}
    body = {"prompt": "x"}
    cases = [
        (401, "GET", "/v1/models", {}, None),
        (404, "GET", "/nope", key, None),
        (404, "POST", completions, key, {"prompt": "x", "model": "nope"}),
        (405, "GET", completions, key, None),
        (400, "POST", completions, key, {"prompt": 5}),
        (413, "POST", completions, key, {"prompt": "x" * 2000}),
        (415, "POST", completions, {**key, "Content-Type": "text/plain"}, body),
        (431, "GET", "/v1/models", {**key, "A": "x" * 40_000}, None),
        (200, "POST", completions, key, body),
        (200, "POST", completions, key, {**body, "stream": True}),
    ]
    with open_to_page.client(headers={"Origin": PAGE}) as client:
        for status, method, path, headers, content in cases:
            answer = client.request(method, path, headers=headers, json=content)
            assert answer.status_code == status, answer.text
            assert answer.headers["access-control-allow-origin"] == PAGE, status
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            assert {"X-Request-Id", "Retry-After", "X-Penstock-Ignored"} <= set(exposed)


def test_unexpected_errors_can_be_read_by_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(cors_origin=["*"]) as server, server.client(headers={"Origin": PAGE}) as client:
        server.engine.unhealthy = EngineDeadError("it has failed")
        answer = client.get("/v1/models")
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (503, "*")
        server.engine.unhealthy = None

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(type(server.engine.input_processor), "prepare", broken)
        answer = client.post("/v1/completions", json={"prompt": "x"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, "*")


def refused(answer: httpx.Response, status: int, code: str, remedy: str) -> None:
    assert answer.status_code == status, answer.text
    assert "access-control-allow-origin" not in answer.headers
    error = answer.json()["error"]
    assert error["code"] == code
    assert remedy in error["message"]


@EVERY_ROUTE
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "file://"},
        {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_pages_of_other_origins_are_refused(
    plain: ScriptedServer, method: str, path: str, headers: dict[str, str]
) -> None:
    refused(ask(plain, method, path, **headers), 403, "origin_not_allowed", "--cors-origin")


def test_forms_of_other_sites_are_refused(plain: ScriptedServer) -> None:
    """A form navigates, and still it posts."""
    answer = ask(
        plain, "POST", "/v1/completions", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate"
    )
    refused(answer, 403, "origin_not_allowed", "--cors-origin")


def test_preflights_of_other_origins_are_refused(
    plain: ScriptedServer, open_to_page: ScriptedServer
) -> None:
    for server in (plain, open_to_page):
        answer = ask(
            server,
            "OPTIONS",
            "/v1/models",
            Origin="https://evil.example",
            Access_Control_Request_Method="GET",
        )
        refused(answer, 403, "origin_not_allowed", "--cors-origin")


@EVERY_ROUTE
def test_own_pages_links_and_programs_are_welcome(
    plain: ScriptedServer, method: str, path: str
) -> None:
    own = plain.url
    ways: list[dict[str, str]] = [
        {},
        {"Origin": own},
        {"Origin": own.upper()},
        {"Origin": own.replace("http:", "https:")},
        {"Origin": own, "Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"},
    ]
    if method == "GET":
        ways.append({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"})
    for headers in ways:
        expected = 404 if path == "/nope" else 200
        assert ask(plain, method, path, **headers).status_code == expected, headers


@EVERY_ROUTE
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:8000",
        "localhost:80@evil.example",
        "evil.example:80:localhost",
        "192.168.0.1",
        "0.0.0.0:8000",
        "[::2]:8000",
        "localhost:x",
    ],
)
def test_loopback_goes_by_loopback_names(
    plain: ScriptedServer, method: str, path: str, host: str
) -> None:
    """A page whose name was made to point here is of the same origin, as far as it knows."""
    answer = ask(plain, method, path, Host=host, Origin=f"http://{host}")
    refused(answer, 421, "host_not_allowed", "--allowed-hosts")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "localhost.", "127.0.0.1:8000", "[::1]", "[::1]:8000"]
)
def test_loopback_names_at_any_port(plain: ScriptedServer, host: str) -> None:
    """Also of a tunnel's, which ends at a port of its own."""
    assert ask(plain, "GET", "/v1/models", Host=host).status_code == 200
    assert ask(plain, "GET", "/v1/models", Host=host, Origin=f"http://{host}").status_code == 200


def test_hosts_that_are_allowed() -> None:
    with scripted(allowed_hosts=["llm.example"]) as server:
        for host, status in [("llm.example:8000", 200), ("localhost", 200), ("other.example", 421)]:
            assert ask(server, "GET", "/health", Host=host).status_code == status
    with scripted(allowed_hosts=["*"]) as server:
        assert ask(server, "GET", "/health", Host="other.example").status_code == 200


def test_elsewhere_hosts_are_checked_when_told() -> None:
    """Probes address a container by its IP address, which no page's name can stand for."""
    with scripted(host="0.0.0.0") as server:
        assert ask(server, "GET", "/health", Host="any.example").status_code == 200
    with scripted(host="0.0.0.0", allowed_hosts=["llm.example"]) as server:
        for host in ("llm.example", "LLM.example.:80", "localhost:80", "10.1.2.3:80", "[fd00::1]"):
            assert ask(server, "GET", "/health", Host=host).status_code == 200, host
        for host in ("any.example", "10.1.2.3.any.example", "10.1.2"):
            assert ask(server, "GET", "/health", Host=host).status_code == 421, host


def test_addresses_and_names_of_loopback() -> None:
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost", "127.1"):
        hosts = ServeSettings(host=host).hosts
        assert hosts is not None
        assert hosts.accept(f"[{host}]:80" if ":" in host else host)
        assert not hosts.accept("evil.example")
    assert ServeSettings(host="0.0.0.0").hosts is None
    assert Hosts({"[fd00::1]"}, addresses=False).accept("[fd00::1]:80")


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/app", "https://", "**"])
def test_what_is_no_origin_stops_the_start(origin: str) -> None:
    with pytest.raises(ValidationError, match="is no origin"):
        ServeSettings(cors_origin=[origin])


def test_origins_as_browsers_write_them() -> None:
    given = ["https://Chat.Example/", "app://obsidian.md", "null", "http://[::1]:80", "*"]
    assert ServeSettings(cors_origin=given).cors_origin == [
        "https://chat.example",
        "app://obsidian.md",
        "null",
        "http://[::1]:80",
        "*",
    ]


@pytest.mark.parametrize("name", ["https://llm.example", "llm.example:80", "[::1]:80", "a/b"])
def test_what_is_no_host_stops_the_start(name: str) -> None:
    with pytest.raises(ValidationError, match="no scheme and no port"):
        ServeSettings(allowed_hosts=[name])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (None, "send Content-Type: application/json"),
        ("", "send Content-Type: application/json"),
        ("text/plain", "send Content-Type: application/json"),
        ("text/plain;application/json", "send Content-Type: application/json"),
        ("multipart/form-data; boundary=x", "send Content-Type: application/json"),
        ("application/x-www-form-urlencoded", "-H 'Content-Type: application/json'"),
        ("text/vnd.x+json", "send Content-Type: application/json"),
    ],
    ids=str,
)
def test_bodies_that_pages_can_send_unasked_are_refused(
    plain: ScriptedServer, path: str, kind: str | None, remedy: str
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    with plain.client() as client:
        answer = client.post(path, content=b'{"prompt":"x"}', headers=headers)
    refused(answer, 415, "unsupported_media_type", remedy)


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json;v=1"],
)
def test_bodies_that_say_they_are_json(plain: ScriptedServer, kind: str) -> None:
    with plain.client() as client:
        answer = client.post(
            "/v1/completions", content=b'{"prompt":"x"}', headers={"Content-Type": kind}
        )
    assert answer.status_code == 200


@EVERY_ROUTE
def test_head_is_get_without_a_body(plain: ScriptedServer, method: str, path: str) -> None:
    with plain.client() as client:
        answer = client.head(path)
        if method == "POST":
            assert answer.status_code == 405
            assert answer.headers["allow"] == "POST"
        else:
            whole = client.get(path)
            assert answer.status_code == whole.status_code
            assert answer.headers["content-type"] == whole.headers["content-type"]
            if path not in {"/metrics", "/health"}:  # which count the requests before
                assert abs(int(answer.headers["content-length"]) - len(whole.content)) <= 1
        assert answer.content == b""
        assert re.fullmatch("req-[0-9a-f]+", answer.headers["x-request-id"])


def test_options_need_no_key(open_to_page: ScriptedServer) -> None:
    for path, allow in [("/v1/models", "GET, HEAD"), ("/v1/completions", "POST")]:
        answer = ask(open_to_page, "OPTIONS", path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allow
