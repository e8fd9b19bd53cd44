"""Settings that bound a request before it reaches the engine."""

from pydantic import Field

from penstock.settings import Settings

from .values import Seconds


class LimitSettings(Settings):
    """Limits.

    `max_body_bytes`: longest request body; a longer one gets a 413.
    `max_header_bytes`: longest head of a request; a longer one gets a 431.
    `max_connection_requests`: requests of one connection before it is closed.
    `body_timeout_s`: time that a caller has to send the body of a request.
    `head_timeout_s`: time that a caller has to send the head of a request.
    `intake_threads`: threads that render chat templates and tokenise.
    `max_pending_intake`: requests that may wait for these threads; further ones get a 429.
    """

    max_body_bytes: int = Field(default=4 * 2**20, ge=1024, le=2**30)
    max_header_bytes: int = Field(default=32 * 2**10, ge=1024, le=2**20)
    max_connection_requests: int = Field(default=10_000, ge=1, le=2**31 - 1)
    body_timeout_s: Seconds = 60.0
    head_timeout_s: Seconds = 30.0
    intake_threads: int = Field(default=2, ge=1, le=64)
    max_pending_intake: int = Field(default=512, ge=1, le=2**20)
