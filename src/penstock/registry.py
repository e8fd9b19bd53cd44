"""The registry of methods: what a request's `decoding` and `kv_cache` objects may name.

Built-in methods and plug-ins register the same way, through entry points. A request can only choose
a registered name and give it parameters, never code, a module path or a URL.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigurationError, RequestError
from .plugins import Group, plugins
from .validation import deepest, from_json, path_of, sentence

STRICT = ConfigDict(strict=True, frozen=True, extra="forbid")
"""For models of parameters: no conversions, no unknown fields."""


class NoParameters(BaseModel):
    """Parameters of a method that has none."""

    model_config = STRICT


class Method(Protocol):
    """What the registry needs of a method; `decoding` and `kvcache` define the rest."""

    @property
    def name(self) -> str:
        """The word that requests use."""
        ...

    @property
    def slot(self) -> str:
        """Two methods of one slot cannot be combined in one request."""
        ...

    @property
    def parameters(self) -> type[BaseModel]:
        """Model of the parameters: every number bounded, unknown fields forbidden."""
        ...


M = TypeVar("M", bound=Method)
M_co = TypeVar("M_co", bound=Method, covariant=True)

Spec = str | list[str] | Mapping[str, Any] | None
"""A name, several names (defaults for each), or names mapped to their parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Generic[M_co]):
    """A method that a request chose, with its validated parameters."""

    method: M_co
    parameters: BaseModel


class Registry(Generic[M]):
    """The methods of one request field (`decoding` or `kv_cache`)."""

    def __init__(self, field: str, methods: Iterable[M]) -> None:
        self.field = field
        self.methods: dict[str, M] = {}
        for method in methods:
            if method.name in self.methods:
                raise ConfigurationError(
                    f"two installed packages register the {field} method {method.name!r}; "
                    "uninstall one of them"
                )
            self.methods[method.name] = method

    @classmethod
    def from_entry_points(cls, field: str, group: Group) -> "Registry[M]":
        """All methods that installed packages register under the entry-point `group`.

        Raises:
            ConfigurationError: a package cannot be imported, or two use the same name.
        """
        return cls(field, [cast(M, plugin.value) for plugin in plugins(group)])

    def resolve(self, spec: Spec) -> tuple[Choice[M], ...]:
        """Check `spec` and return the chosen methods, at most one for each slot.

        Raises:
            RequestError: unknown name or parameter, value out of bounds, or two in one slot.
        """
        chosen: dict[str, Choice[M]] = {}
        for name, raw in self._entries(spec):
            method = self.methods.get(name)
            if method is None:
                known = ", ".join(sorted(self.methods)) or "none"
                raise RequestError(
                    f"{self.field}: there is no method {name[:64]!r}; this server has: {known}",
                    param=f"{self.field}.{name[:64]}",
                    code="unknown_method",
                )
            if method.slot in chosen:
                other = chosen[method.slot].method.name
                raise RequestError(
                    f"{self.field}: {other!r} and {name!r} both fill the {method.slot} slot; "
                    "choose one of them",
                    param=f"{self.field}.{name}",
                    code="slot_conflict",
                )
            chosen[method.slot] = Choice(method=method, parameters=self._parse(method, raw))
        return tuple(chosen.values())

    def _entries(self, spec: Spec) -> list[tuple[str, Any]]:
        if spec is None:
            return []
        if isinstance(spec, str):
            return [(spec, {})]
        if isinstance(spec, Mapping):
            return list(spec.items())
        return [(name, {}) for name in spec]

    def _parse(self, method: M, raw: Any) -> BaseModel:
        given = {} if raw is None else raw
        try:
            return from_json(method.parameters, given)
        except ValidationError as error:
            wrong = deepest(error)
            inside = path_of(wrong, given)
            path = ".".join(part for part in (self.field, method.name, inside) if part)
            raise RequestError(
                sentence(path, wrong), param=path, code="invalid_parameter"
            ) from None
