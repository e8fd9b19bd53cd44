"""Endpoints that installed packages add, under the entry point `penstock.endpoints`.

They are served as our own: behind the same middleware (keys among it) and described in
/openapi.json. `Services` has the engine, and reads bodies with bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Route

from penstock.errors import ConfigurationError, RequestError
from penstock.plugins import Plugin, plugins
from penstock.validation import SHOWN_CHARS, sentence

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from pydantic_core import ErrorDetails
    from starlette.routing import BaseRoute

    from .services import Services

    Endpoints = APIRouter | Callable[[Services], APIRouter]
    """What a package registers: routes, or a function that makes them."""


def add_extensions(app: FastAPI, services: Services, ours: Iterable[BaseRoute]) -> bool:
    """Add the routes of installed packages behind `ours`, the application's; whether there are any.

    Raises:
        ConfigurationError: a package cannot be imported, adds something else than routes, or a path
            that is taken.
    """
    taken = [route for route in ours if isinstance(route, Route)]
    found = plugins("penstock.endpoints")
    for plugin in found:
        router = _router(plugin, services)
        added = [route for route in router.routes if isinstance(route, APIRoute)]
        if len(added) < len(router.routes):
            raise _refused(plugin, "only routes of the router itself are served; add them there")
        for route in added:
            there = next((each for each in taken if _collide(route, each)), None)
            if there is not None:
                raise _refused(plugin, f"{route.path} is taken, by {there.path}; choose another")
        taken += added

        def unique_id(route: APIRoute, name: str = plugin.name) -> str:
            return f"{name}_{route.name}"

        app.include_router(router, generate_unique_id_function=unique_id)
    return bool(found)


def wrong_value(error: RequestValidationError) -> RequestError:
    """A parameter or body that FastAPI checked for a package's route and refused, in our words."""
    details = cast("ErrorDetails", error.errors()[0])
    path = ".".join(str(part)[:SHOWN_CHARS] for part in details["loc"][1:])
    return RequestError(
        sentence(path or str(details["loc"][0]), details),
        param=path or None,
        code="invalid_parameter",
    )


def _router(plugin: Plugin, services: Services) -> APIRouter:
    endpoints: Endpoints = plugin.value
    router = endpoints if isinstance(endpoints, APIRouter) else endpoints(services)
    if not isinstance(router, APIRouter):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _refused(plugin, f"an APIRouter is expected, and it is {type(router).__name__}")
    return router


def _collide(one: Route, other: Route) -> bool:
    """Whether one path matches the other, in which names of parameters stand for their values."""
    return bool(one.path_regex.match(other.path) or other.path_regex.match(one.path))


def _refused(plugin: Plugin, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"the package {plugin.package} adds the endpoints {plugin.name!r}, which cannot be served: "
        f"{why}"
    )
