"""Each layer around the routes alone: its effect, and that nothing else passes changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.server.connection import ConnectionUse
from penstock.server.metrics import HttpMetrics
from penstock.server.middleware.access_log import AccessLogMiddleware
from penstock.server.middleware.allowed_sites import AllowedSitesMiddleware
from penstock.server.middleware.api_key import ApiKeyMiddleware, ApiKeys
from penstock.server.middleware.connection_close import ConnectionCloseMiddleware
from penstock.server.middleware.error_response import ErrorResponseMiddleware
from penstock.server.middleware.framing import FramingMiddleware
from penstock.server.middleware.head_as_get import HeadAsGetMiddleware
from penstock.server.middleware.head_size import HeadSizeMiddleware
from penstock.server.middleware.request_id import RequestIdMiddleware

Layer = Callable[[ASGIApp], ASGIApp]

LAYERS: dict[str, Layer] = {
    "access_log": lambda app: AccessLogMiddleware(
        app, metrics=HttpMetrics(CollectorRegistry()), clock=lambda: 0.0
    ),
    "allowed_sites": lambda app: AllowedSitesMiddleware(app, hosts=None, origins=[]),
    "api_key": lambda app: ApiKeyMiddleware(app, keys=ApiKeys({})),
    "connection_close": lambda app: ConnectionCloseMiddleware(app, closing=lambda: True),
    "error_response": ErrorResponseMiddleware,
    "framing": FramingMiddleware,
    "head_as_get": HeadAsGetMiddleware,
    "head_size": lambda app: HeadSizeMiddleware(app, max_bytes=1),
    "request_id": RequestIdMiddleware,
}


def http(method: str = "GET", *headers: tuple[str, str], **state: object) -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "state": {"request_id": "one", **state},
    }


async def nothing() -> Message:
    raise AssertionError("no layer reads the body")


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope.get("method", "").encode()})


def served(app: ASGIApp, scope: Scope) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(as_coroutine(app(scope, nothing, send)))
    return sent


async def as_coroutine(work: Awaitable[None]) -> None:
    await work


def headers_of(messages: list[Message]) -> dict[bytes, bytes]:
    return dict(messages[0]["headers"])


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_not_http_passes_every_layer(name: str) -> None:
    seen: list[tuple[Any, ...]] = []

    async def app(*given: Any) -> None:
        seen.append(given)

    scope: Scope = {"type": "lifespan"}
    assert served(LAYERS[name](app), scope) == []
    assert seen[0][:2] == (scope, nothing)
    assert scope == {"type": "lifespan"}


@pytest.mark.parametrize(
    ("closing", "left", "closes"),
    [(False, 1, False), (False, 0, True), (True, 1, True)],
    ids=["in use", "last request", "server ends"],
)
def test_a_connection_is_closed_with_its_last_answer(
    closing: bool, left: int, closes: bool
) -> None:
    app = ConnectionCloseMiddleware(answer, closing=lambda: closing)
    messages = served(app, http(connection_use=ConnectionUse(left)))
    assert headers_of(messages).get(b"connection") == (b"close" if closes else None)


def test_whether_the_server_ends_is_asked_when_the_response_begins() -> None:
    ending: list[bool] = []

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        ending.append(True)
        await answer(scope, receive, send)

    messages = served(ConnectionCloseMiddleware(late, closing=lambda: bool(ending)), http())
    assert headers_of(messages)[b"connection"] == b"close"


@pytest.mark.parametrize("given", ["mine-1", None, "two words", "x" * 129])
def test_a_safe_id_is_kept_and_any_other_replaced(given: str | None) -> None:
    scope = http("GET", *([] if given is None else [("x-request-id", given)]))
    messages = served(RequestIdMiddleware(answer), scope)
    sent = headers_of(messages)[b"x-request-id"].decode()
    assert sent == scope["state"]["request_id"]
    assert sent == given if given == "mine-1" else sent.startswith("req-")


def test_routes_see_get_where_the_connection_and_the_log_have_head(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = HttpMetrics(CollectorRegistry())
    app = AccessLogMiddleware(HeadAsGetMiddleware(answer), metrics=metrics, clock=lambda: 0.0)
    scope = http("HEAD")
    with caplog.at_level("INFO", logger="penstock.access"):
        messages = served(app, scope)
    assert messages[1]["body"] == b"GET"
    assert scope["method"] == "HEAD"
    assert "HEAD / 200" in caplog.text


def test_an_exception_after_the_response_began_is_raised() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await answer(scope, receive, send)
        raise ValueError("hidden")

    app = ErrorResponseMiddleware(fails)
    messages = served(app, http("GET"))
    assert messages[0]["status"] == 500
    assert b"hidden" not in messages[1]["body"]
    with pytest.raises(ValueError, match="hidden"):
        served(app, http("POST"))


def test_the_events_of_a_stream_pass_as_they_are() -> None:
    event: Message = {"type": "http.response.body", "body": b"data", "more_body": True}

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(event)

    app: ASGIApp = stream
    for name in ("error_response", "request_id", "connection_close", "access_log"):
        app = LAYERS[name](app)
    assert served(app, http())[1] is event
