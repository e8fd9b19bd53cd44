"""Endpoints that packages add: refusals at start, and answers in the server's own words."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from penstock.errors import ConfigurationError, NotFoundError
from penstock.plugins import Plugin
from penstock.server.services import Services
from tests.server.process import PENSTOCK
from tests.server.scripted import scripted

Adds = Callable[[object], None]


class Question(BaseModel):
    text: str
    times: int = 1


class ChatBody(BaseModel):
    """Named as one of the server's own."""


def endpoints(services: Services) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/repeat")
    async def health(body: Question) -> list[str]:  # pyright: ignore[reportUnusedFunction]
        """Named as a route of the server."""
        if body.text == "unknown":
            raise NotFoundError("there is no such text", param="text")
        if body.text == "teapot":
            raise HTTPException(418, "no coffee here", {"X-Tea": "yes"})
        return [body.text] * body.times

    return router


def at(path: str) -> APIRouter:
    router = APIRouter()
    router.add_api_route(path, lambda: None)
    return router


def nested() -> APIRouter:
    router = APIRouter()
    router.include_router(at("/v1/mine"))
    return router


def of_model(model: type[BaseModel]) -> APIRouter:
    router = APIRouter()
    router.add_api_route("/v1/mine", lambda: None, response_model=model)
    return router


@pytest.fixture
def adds(monkeypatch: pytest.MonkeyPatch) -> Adds:
    """Has a package register an object."""

    def added(value: object) -> None:
        def plugins(group: str) -> list[Plugin]:
            return [Plugin(name="mine", package="my-package", value=value)]

        monkeypatch.setattr("penstock.server.extensions.plugins", plugins)

    return added


def test_they_answer_and_refuse_as_our_own_do(adds: Adds) -> None:
    adds(endpoints)
    with scripted(api_key=["k"]) as server:
        with server.client() as client:
            assert client.post("/v1/repeat", json={"text": "a"}).status_code == 401
        with server.client(headers={"Authorization": "Bearer k"}) as client:
            found = client.post("/v1/repeat", json={"text": "a", "times": 2})
            assert found.json() == ["a", "a"]
            assert found.headers["x-request-id"]
            wrong = client.post("/v1/repeat", json={"text": "a", "times": "b"})
            assert wrong.status_code == 400
            error = wrong.json()["error"]
            assert error["message"] == "times is 'b'; it must be an integer"
            assert error["param"] == "times"
            unknown = client.post("/v1/repeat", json={"text": "unknown"})
            assert unknown.status_code == 404
            assert unknown.json()["error"]["message"] == "there is no such text"
            teapot = client.post("/v1/repeat", json={"text": "teapot"})
            assert (teapot.status_code, teapot.headers["x-tea"]) == (418, "yes")
            assert teapot.json()["error"]["message"] == "no coffee here"
            description = client.get("/openapi.json").json()
    operation = description["paths"]["/v1/repeat"]["post"]
    assert operation["operationId"] == "mine_health"
    assert operation["security"] == [{"key": []}]
    assert "422" not in operation["responses"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (at("/v1/models"), "/v1/models is taken, by /v1/models;"),
        (at("/v1/models/mine"), "/v1/models/mine is taken, by /v1/models/{model:path};"),
        (at("/{anything}"), "/{anything} is taken, by "),
        (at("/openapi.json"), "/openapi.json is taken"),
        (nested(), "only routes of the router itself are served"),
        (lambda services: 5, "an APIRouter is expected, and it is int"),  # pyright: ignore
        (of_model(ChatBody), "a model named ChatBody, as the server has"),
    ],
    ids=["a path", "below a path", "a pattern", "the description", "nested", "a number", "a model"],
)
def test_what_cannot_be_served_ends_the_start(value: object, why: str, adds: Adds) -> None:
    adds(value)
    with pytest.raises(ConfigurationError) as refusal, scripted():
        pass
    assert why in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_command_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[penstock.endpoints]\nmine = mine:router\n")
    lines = "from fastapi import APIRouter\nrouter = APIRouter()\n"
    (tmp_path / "mine.py").write_text(f"{lines}router.add_api_route('/health', lambda: 1)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [PENSTOCK, "serve", "--port", "0"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line == (
        "penstock serve: the package my-package adds the endpoints 'mine', which cannot be served: "
        "/health is taken, by /health; choose another"
    )
