"""Typed access to the metadata of a GGUF file; whatever is wrong is named by its key."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final, cast

from ....errors import ConfigurationError
from ..stages import printable

_UNSET: Final = 1 << 31
"""Numbers of tokens from here on are -1 in disguise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """`architecture`: the prefix of the model's own keys, which are named without it here."""

    file: Path
    values: Mapping[str, Any]
    architecture: str

    def key(self, name: str) -> str:
        """The whole key: names of `general` and `tokenizer` are whole, others the model's own."""
        whole = name.startswith(("general.", "tokenizer."))
        return name if whole else f"{self.architecture}.{name}"

    def find(self, name: str) -> Any:
        """A value as it is; None: there is none."""
        return self.values.get(self.key(name))

    def integer(self, name: str, least: int, most: int) -> int:
        """An integer that has to be there; a list, one for each layer, has to repeat one."""
        found = self.find(name)
        if found is None:
            raise self.wrong(name, "is missing")
        if isinstance(found, list):
            values = cast(list[Any], found)
            if len(set(map(repr, values))) != 1:
                raise self.wrong(name, "differs between layers, which is not served")
            found = values[0]
        if type(found) is not int or not least <= found <= most:
            raise self.wrong(
                name, f"is {told(found)}, and an integer from {least} to {most} is expected"
            )
        return found

    def integer_or(self, name: str, least: int, most: int, default: int) -> int:
        """As `integer`, or `default` if there is none."""
        return default if self.find(name) is None else self.integer(name, least, most)

    def number_or(self, name: str, default: float | None) -> float | None:
        """A finite number, or `default` if there is none."""
        found = self.find(name)
        if found is None:
            return default
        if type(found) not in (int, float) or not isfinite(found):
            raise self.wrong(name, f"is {told(found)}, and a finite number is expected")
        return float(found)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; one without a default has to be there."""
        found = self.number_or(name, default)
        if found is None:
            raise self.wrong(name, "is missing")
        return found

    def text_or(self, name: str, default: str | None) -> str | None:
        """A string, or `default` if there is none."""
        found = self.find(name)
        if found is not None and not isinstance(found, str):
            raise self.wrong(name, f"is {told(found)}, and a string is expected")
        return default if found is None else found

    def flag_or(self, name: str, default: bool) -> bool:
        """A truth value, or `default` if there is none."""
        found = self.find(name)
        if found is not None and type(found) is not bool:
            raise self.wrong(name, f"is {told(found)}, and a truth value is expected")
        return default if found is None else found

    def list_or_none(self, name: str, kind: type | tuple[type, ...], what: str) -> list[Any] | None:
        """A list of values of one type; None: there is none. `what`: how messages call them."""
        found = self.find(name)
        if found is None:
            return None
        values = cast(list[Any], found)
        if not isinstance(found, list) or not all(isinstance(each, kind) for each in values):
            raise self.wrong(name, f"is not a list of {what}")
        return values

    def token_or_none(self, name: str, tokens: int) -> int | None:
        """The number of a token below `tokens`; None: there is none."""
        found = self.find(f"tokenizer.ggml.{name}")
        if found is None or (type(found) is int and (found < 0 or found >= _UNSET)):
            return None
        return self.integer(f"tokenizer.ggml.{name}", 0, tokens - 1)

    def refuse(self, *names: str) -> None:
        """Refuse keys that would change what the model computes, and are not served.

        Raises:
            ConfigurationError: one is there.
        """
        for name in names:
            found = self.find(name)
            if found is not None and found not in (0, 0.0, False):
                raise self.wrong(name, f"is {told(found)}, which is not served")

    def wrong(self, name: str, why: str) -> ConfigurationError:
        """The error for a key."""
        return ConfigurationError(f"{self.file}: {printable(self.key(name))} {why}")


def told(value: object) -> str:
    """A value in a message."""
    return printable(repr(value)[:200])


def read_metadata(file: Path, values: Mapping[str, Any]) -> Metadata:
    """The metadata of a model.

    Raises:
        ConfigurationError: it names no architecture, or the file holds something else.
    """
    found = values.get("general.architecture")
    if not isinstance(found, str) or not found:
        raise ConfigurationError(
            f"{file}: general.architecture is {told(found)}, and a name is expected"
        )
    metadata = Metadata(file=file, values=values, architecture=found)
    kind = metadata.text_or("general.type", "model")
    if kind != "model":
        raise metadata.wrong("general.type", f"is {told(kind)}, and a model is expected")
    return metadata
