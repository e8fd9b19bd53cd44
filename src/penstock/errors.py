"""Every error that Penstock raises on purpose.

PenstockError
├── ConfigurationError          bad settings: start-up stops
│   └── UnsupportedModelError   the architecture bypasses the attention interface
├── RequestError                the caller's mistake                     -> 400
│   ├── ContextLengthError      prompt (or prompt + answer) too long     -> 400
│   └── NotFoundError           unknown model                            -> 404
├── GenerationError             one request failed while it ran          -> 500
├── OverloadedError             a queue bound is reached                 -> 429
└── UnavailableError            shutting down, or still loading          -> 503
    ├── EngineDeadError         the engine failed; nothing can be served -> 503
    └── EvaluatorError          a search's evaluator failed              -> 503

A message gives the value, the limit and the remedy. It may reach any client: no path, no stack.
"""

import asyncio

EXITS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""Exceptions that end a task or the process and are not failures. Every other BaseException is a
failure: a panic in compiled Rust is not an Exception."""


class PenstockError(Exception):
    """Base of the tree above."""


class ConfigurationError(PenstockError):
    """A setting is wrong; the server does not start."""


class UnsupportedModelError(ConfigurationError):
    """The model's architecture cannot run through Penstock's attention."""


class RequestError(PenstockError):
    """The request is wrong: `param` names the field (dotted path), `code` the kind of mistake."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class ContextLengthError(RequestError):
    """More tokens than the model's context or the KV cache can hold.

    The message begins with OpenAI's sentence, by which clients recognise the error: litellm falls
    back to a model of a longer context, agents drop old messages.
    """

    def __init__(self, message: str, *, limit_tokens: int, param: str | None = None) -> None:
        super().__init__(
            f"This model's maximum context length is {limit_tokens} tokens. {message}",
            param=param,
            code="context_length_exceeded",
        )


class NotFoundError(RequestError):
    """The request names a model that this server does not serve."""


class GenerationError(PenstockError):
    """One request failed while it ran; `code` says how (`numerical_error`, ...)."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class OverloadedError(PenstockError):
    """The queue of waiting requests is full; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(PenstockError):
    """The engine takes no requests now."""


class EngineDeadError(UnavailableError):
    """The engine thread has failed; the process must be restarted."""


class EvaluatorError(UnavailableError):
    """An evaluator that a search depends on cannot be reached, or its response is invalid."""
