"""The server under test: its models, and the requests it gets."""

from collections.abc import Sequence
from typing import Any

import httpx
import orjson

from penstock.errors import ConfigurationError

from .answer import error_message
from .connection import ConnectionPool, Origin
from .prompts import Prompt
from .record import RequestRecord
from .settings import BenchSettings

PATHS = {"completions": "/completions", "chat": "/chat/completions"}


class Target:
    """One model on one server; `async with` closes its connections."""

    def __init__(self, settings: BenchSettings, model: str) -> None:
        self.model = model
        self._settings = settings
        self._path = PATHS[settings.endpoint]
        self._pool = ConnectionPool(
            origin=Origin.parse(settings.base_url),
            headers=_headers(settings),
            timeout_s=settings.timeout_s,
        )

    async def __aenter__(self) -> "Target":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()

    async def send(self, body: bytes) -> RequestRecord:
        """Send a request made by the method `body`."""
        return await self._pool.post(self._path, body)

    def body(self, prompt: Prompt, *, output_tokens: int | None = None) -> bytes:
        """The JSON of one streaming request.

        Raises:
            ConfigurationError: messages for the completions endpoint.
        """
        settings = self._settings
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": output_tokens or prompt.output_tokens or settings.output_tokens,
            "temperature": settings.temperature,
            "stream": True,
            "seed": settings.seed,
            "stream_options": {"include_usage": True} if settings.stream_usage else None,
            "ignore_eos": True if settings.ignore_eos else None,
        }
        if settings.endpoint == "chat":
            fields["messages"] = prompt.messages or [{"role": "user", "content": prompt.text}]
        elif prompt.text is None:
            raise ConfigurationError("the dataset has messages: use --endpoint chat")
        else:
            fields["prompt"] = prompt.text
        fields |= settings.extra_body
        return orjson.dumps({name: value for name, value in fields.items() if value is not None})

    def bodies(self, prompts: Sequence[Prompt]) -> list[bytes]:
        """The requests of a run; made before the run, so that the client has less to do in it."""
        return [self.body(prompt) for prompt in prompts]


async def find_model(settings: BenchSettings) -> str:
    """The model of the settings, else the first one that the server lists.

    Raises:
        ConfigurationError: the server cannot be reached, refuses, or lists none.
    """
    if settings.model is not None:
        return settings.model
    url = f"{settings.base_url}/models"
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=settings.timeout_s) as client:
            response = await client.get(url, headers=_headers(settings))
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ConfigurationError(f"cannot list the models at {url}: {reason}") from None
    try:
        listed = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        raise ConfigurationError(
            f"cannot list the models at {url}: HTTP {response.status_code}, not JSON; "
            "name one with --model"
        ) from None
    if response.status_code != 200:
        raise ConfigurationError(
            f"cannot list the models at {url}: HTTP {response.status_code}: {error_message(listed)}"
        )
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ConfigurationError(f"{url} lists no model; name one with --model") from None


def _headers(settings: BenchSettings) -> dict[str, str]:
    if settings.api_key is None:
        return {}
    return {"authorization": f"Bearer {settings.api_key.get_secret_value()}"}
