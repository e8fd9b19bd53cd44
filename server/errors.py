"""The one place where errors become HTTP.

PenstockError (penstock/errors.py)      status  type
├── RequestError                        400     invalid_request_error
│   ├── NotFoundError                   404     invalid_request_error
│   └── HttpError (here)                its own, for what only HTTP knows: 401, 404, 405, 413
├── GenerationError                     500     server_error, with its code
├── OverloadedError                     429     rate_limit_error, with Retry-After
└── UnavailableError                    503     server_error, with Retry-After
    ├── EngineDeadError                 503     server_error
    └── EvaluatorError                  503     server_error
anything else                           500     server_error, and the message tells nothing
"""

from collections.abc import Mapping

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from penstock.errors import (
    EngineDeadError,
    EvaluatorError,
    GenerationError,
    NotFoundError,
    OverloadedError,
    RequestError,
    UnavailableError,
)

JSON_MEDIA_TYPE = "application/json"
HEAD_TOO_LARGE = "the request's headers are too large; send fewer or shorter ones"


class HttpError(RequestError):
    """A refusal that only HTTP knows, with the headers that belong to it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.headers = dict(headers or {})


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    match error:
        case HttpError():
            return error.status
        case NotFoundError():
            return 404
        case RequestError():
            return 400
        case OverloadedError():
            return 429
        case UnavailableError():
            return 503
        case HTTPException():
            return error.status_code
        case _:
            return 500


def error_body(error: Exception) -> bytes:
    """The contract's JSON of an error; also the data of an SSE error event."""
    status = status_of(error)
    param: str | None = None
    code: str | None = None
    match error:
        case RequestError():
            message, param, code = error.message, error.param, error.code
        case GenerationError():
            message, code = error.message, error.code
        case OverloadedError():
            message, code = str(error), "rate_limit_exceeded"
        case EngineDeadError():
            message, code = str(error), "engine_dead"
        case EvaluatorError():
            message, code = str(error), "evaluator_failed"
        case UnavailableError():
            message, code = str(error), "unavailable"
        case HTTPException():
            message, code = _HTTP_MESSAGES.get(status, (str(error.detail), None))
        case _:
            message, code = "internal error; the server's log has the details", "internal_error"
    return render_error(status, message, param=param, code=code)


def render_error(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> bytes:
    """The contract's JSON from its parts."""
    body = {"message": message, "type": _type_of(status), "param": param, "code": code}
    # A caller's own words may come back in the message, and those may be no valid Unicode.
    clean = {
        name: value.encode("utf-8", "replace").decode() if value is not None else None
        for name, value in body.items()
    }
    return orjson.dumps({"error": clean})


def error_headers(error: Exception) -> dict[str, str]:
    """Headers that belong to the error's status."""
    match error:
        case HttpError():
            return error.headers
        case OverloadedError():
            return {"Retry-After": str(max(1, error.retry_after_s))}
        case EngineDeadError():
            return {}
        case UnavailableError():
            return {"Retry-After": "1"}
        case HTTPException():
            return dict(error.headers or {})
        case _:
            return {}


def error_response(error: Exception) -> Response:
    """The HTTP answer to an error."""
    return Response(
        error_body(error),
        status_code=status_of(error),
        media_type=JSON_MEDIA_TYPE,
        headers=error_headers(error),
    )


_HTTP_MESSAGES: dict[int, tuple[str, str | None]] = {
    404: ("there is no such route; see /openapi.json for what there is", "route_not_found"),
    405: (
        "this route does not take that method; the Allow header names those it takes",
        "method_not_allowed",
    ),
}


def _type_of(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
