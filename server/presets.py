"""Combinations of methods under a name of their own, for clients that cannot send `decoding`.

The preset `fast` of the model `nano` is served, and listed, as the model `nano:fast`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, StringConstraints

from penstock.errors import ConfigurationError, NotFoundError, RequestError

from ..engine.requests.kv_cache import split_kv_cache
from .protocol.fields import MethodSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .backend import Backend

MAX_PRESETS = 64


class Preset(BaseModel):
    """What a request under this name means by fields that it leaves out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoding: MethodSpec | None = None
    kv_cache: MethodSpec | None = None


PresetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Presets = Mapping[str, Preset]

NO_PRESET = Preset()


class Served(NamedTuple):
    """A name that requests may use, and what it adds to them."""

    id: str
    preset: Preset


def served_models(engine: Backend, presets: Presets) -> Iterator[Served]:
    """The model itself, and with every preset."""
    yield Served(engine.model.id, NO_PRESET)
    for name, preset in presets.items():
        yield Served(f"{engine.model.id}:{name}", preset)


def served_model(engine: Backend, name: str | None, presets: Presets) -> Served:
    """What the name stands for; no name, or an empty one, is the model itself.

    Raises:
        NotFoundError: it is not served.
    """
    known: list[str] = []
    for served in served_models(engine, presets):
        if not name or name == served.id:
            return served
        known.append(served.id)
    assert name is not None
    raise NotFoundError(
        f"The model `{name[:128]}` does not exist; this server has: {', '.join(known)}",
        param="model",
        code="model_not_found",
    )


def check_presets(engine: Backend, presets: Presets) -> None:
    """Raise ConfigurationError where a preset names what the registries do not have."""
    for name, preset in presets.items():
        try:
            engine.input_processor.decoding.resolve(preset.decoding)
            engine.input_processor.kv_cache.resolve(split_kv_cache(preset.kv_cache)[0])
        except RequestError as error:
            raise ConfigurationError(f"the preset {name!r} cannot be used: {error}") from error
