"""The description at /openapi.json.

FastAPI describes routes and answers; the bodies, which the routes read themselves, and what every
request and answer has in common are added here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from penstock.errors import ConfigurationError

from .errors import JSON_MEDIA_TYPE
from .middleware.api_key import OPEN_PATHS
from .protocol.adapter_bodies import LoadAdapterBody, UnloadAdapterBody
from .protocol.answers import ChatCompletionChunk, ErrorAnswer
from .protocol.chat_body import ChatBody
from .protocol.completion_body import CompletionBody
from .protocol.token_bodies import DetokenizeBody, TokenizeChatBody, TokenizeTextBody

if TYPE_CHECKING:
    from fastapi import FastAPI
    from pydantic import BaseModel

REFERENCE = "#/components/schemas/{model}"
_BODIES = (
    *(CompletionBody, ChatBody, TokenizeTextBody, TokenizeChatBody, DetokenizeBody),
    *(LoadAdapterBody, UnloadAdapterBody),
)
_EVENTS = (ChatCompletionChunk, ErrorAnswer)

_OF_ANY_REQUEST = {
    400: "The request is not valid HTTP, or not what this route takes.",
    403: "A web page of an origin that may not call (`--cors-origin`).",
    421: "Sent to a name that this server does not go by (`--allowed-hosts`).",
    431: "The head is too large.",
    500: "An internal error.",
}
_UNKNOWN_MODEL = {404: "There is no such model."}
_OF_AN_OPERATOR = {
    403: "The operator does not allow it, or a web page of an origin that may not call asks."
}
_OF_THE_ENGINE = {503: "The model is loading, shutting down, or has failed."}
_OF_A_BODY = {
    **_UNKNOWN_MODEL,
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body does not say that it is JSON.",
    429: "Too much is waiting.",
}
_REQUEST_ID = {
    "description": "The caller's own, where it is harmless in a log, or a new one.",
    "schema": {"type": "string"},
}
_RETRY_AFTER = {
    "description": "Seconds after which trying again may help.",
    "schema": {"type": "integer", "minimum": 1},
}


def documented(
    *bodies: type[BaseModel],
    answer: type[BaseModel] | None = None,
    events: type[BaseModel] | None = None,
    engine: bool = True,
    model_in_path: bool = False,
    operator: bool = False,
) -> dict[str, Any]:
    """Arguments for a route's decorator: what it takes, answers and refuses.

    `events`: the data of a stream's events, where there is one. `engine`: whether it needs one.
    `operator`: whether the server's operator has to allow it.
    """
    errors: dict[int, str] = {}
    errors |= _OF_THE_ENGINE if engine else {}
    errors |= _OF_A_BODY if bodies else {}
    errors |= _UNKNOWN_MODEL if model_in_path else {}
    errors |= _OF_AN_OPERATOR if operator else {}
    responses = {status: _error(text) for status, text in errors.items()}
    if answer is not None:
        responses[200] = {"model": answer}
        if events is not None:
            responses[200]["content"] = {"text/event-stream": {"schema": _reference(events)}}
    arguments: dict[str, Any] = {"responses": responses}
    if bodies:
        schemas = [_reference(body) for body in bodies]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        content = {JSON_MEDIA_TYPE: {"schema": schema}}
        arguments["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return arguments


def describe(app: FastAPI, *, has_keys: bool) -> dict[str, Any]:
    """The description of all routes.

    Raises:
        ConfigurationError: a package's endpoint has a model named as one of the server's.
    """
    description = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    components: dict[str, Any] = description["components"]
    schemas: dict[str, Any] = components["schemas"]
    taken = _definitions(*_BODIES, mode="validation")
    for name in schemas.keys() & {*taken, *(model.__name__ for model in _EVENTS)}:
        raise ConfigurationError(
            f"a package's endpoint has a model named {name}, as the server has; rename it"
        )
    # Parts that answers and events share are there already.
    components["schemas"] = taken | _definitions(*_EVENTS, mode="serialization") | schemas
    # What FastAPI adds for its own check of parameters, which no route of ours has.
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    if has_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in description["paths"].items():
        for operation in operations.values():
            _complete(operation, needs_key=has_keys and path not in OPEN_PATHS)
    return description


def _definitions(
    *models: type[BaseModel], mode: Literal["validation", "serialization"]
) -> dict[str, Any]:
    """The schemas of models that FastAPI does not see, and of their parts."""
    _, found = models_json_schema([(model, mode) for model in models], ref_template=REFERENCE)
    definitions: dict[str, Any] = found["$defs"]
    return definitions


def _complete(operation: dict[str, Any], *, needs_key: bool) -> None:
    """Add what every operation has."""
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)
    for status, text in _OF_ANY_REQUEST.items():
        responses.setdefault(str(status), _error(text))
    if needs_key:
        operation["security"] = [{"key": []}]
        responses["401"] = _error("The key is missing or wrong.")
    operation.setdefault("parameters", []).append(
        {"name": "X-Request-Id", "in": "header", "required": False, **_REQUEST_ID}
    )
    for status, response in responses.items():
        headers: dict[str, Any] = {"X-Request-Id": _REQUEST_ID}
        if status in {"429", "503"}:
            headers["Retry-After"] = _RETRY_AFTER
        if status == "200" and "requestBody" in operation:
            headers["X-Penstock-Ignored"] = {
                "description": "Fields without any effect.",
                "schema": {"type": "string"},
            }
        response["headers"] = headers
    operation["responses"] = dict(sorted(responses.items()))


def _error(text: str) -> dict[str, Any]:
    """An error's response. Not as `model`: it is JSON, also of a route whose answer is not."""
    return {
        "description": text,
        "content": {JSON_MEDIA_TYPE: {"schema": _reference(ErrorAnswer)}},
    }


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}
