"""Combinations of methods under a name of their own, for clients that cannot send `decoding`.

The preset `fast` of the model `nano` is served, and listed, as the model `nano:fast`; that of its
adapter `sql` as `sql:fast`. The adapter itself is `sql`, or `nano:sql`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, StringConstraints

from penstock.errors import ConfigurationError, NotFoundError, RequestError

from ..engine.requests.kv_cache import split_kv_cache
from .protocol.fields import MethodSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .backend import Adapter, Backend

MAX_PRESETS = 64
_SHOWN = 64


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
    adapter: Adapter | None

    @property
    def adapter_key(self) -> str:
        """What requests to the engine have as `adapter`."""
        return "" if self.adapter is None else self.adapter.key


def served_models(engine: Backend, presets: Presets) -> Iterator[Served]:
    """The model itself and its adapters, each as it is and with every preset."""
    for adapter in (None, *engine.adapters.values()):
        name = engine.model.id if adapter is None else adapter.name
        yield Served(name, NO_PRESET, adapter)
        for preset_name, preset in presets.items():
            yield Served(f"{name}:{preset_name}", preset, adapter)


def served_model(engine: Backend, name: str | None, presets: Presets) -> Served:
    """What the name stands for; no name, or an empty one, is the model itself.

    Raises:
        NotFoundError: it is not served.
    """
    own = engine.model.id
    if not name or name == own:
        return Served(own, NO_PRESET, None)
    inside = name.removeprefix(f"{own}:")
    first, colon, last = inside.partition(":")
    adapter = engine.adapters.get(first)
    if adapter is not None and not colon:
        return Served(first, NO_PRESET, adapter)
    preset = presets.get(last if adapter is not None else first)
    if preset is not None and (adapter is not None or (inside != name and not colon)):
        return Served(inside if adapter is not None else name, preset, adapter)
    known = [served.id for served in islice(served_models(engine, presets), _SHOWN + 1)]
    more = ", ..." if len(known) > _SHOWN else ""
    raise NotFoundError(
        f"The model `{name[:128]}` does not exist; this server has: "
        f"{', '.join(known[:_SHOWN])}{more}",
        param="model",
        code="model_not_found",
    )


def check_adapter_name(engine: Backend, name: str, presets: Presets) -> None:
    """Raise RequestError where an adapter's name would stand for something else, too."""
    if name in presets or name == engine.model.id:
        raise RequestError(
            f"lora_name is {name!r}, which is the name of the model or of a preset; take another",
            param="lora_name",
            code="invalid_parameter",
        )


def check_presets(engine: Backend, presets: Presets) -> None:
    """Raise ConfigurationError where a preset names what the registries do not have, or an adapter
    is called as a preset or the model."""
    try:
        for name in engine.adapters:
            check_adapter_name(engine, name, presets)
    except RequestError as error:
        raise ConfigurationError(f"--adapters: {error}") from error
    for name, preset in presets.items():
        try:
            engine.input_processor.decoding.resolve(preset.decoding)
            engine.input_processor.kv_cache.resolve(split_kv_cache(preset.kv_cache)[0])
        except RequestError as error:
            raise ConfigurationError(f"the preset {name!r} cannot be used: {error}") from error
