"""The fields of config.json's `quantization_config`, checked as they are asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...errors import ConfigurationError
from ...validation import show

FIELD: Final = "quantization_config"
LARGEST: Final = 2**31 - 1
"""A size that a field may say."""


class QuantizationFields:
    """Fields by name; `place` is what they are called in messages."""

    def __init__(self, file: Path, fields: Mapping[str, Any], place: str = FIELD) -> None:
        self._file = file
        self._fields = fields
        self._place = place

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field; `default` where it is missing or null."""
        value = self._fields.get(name)
        return default if value is None else value

    def one_of(self, name: str, served: Sequence[Any], default: Any = None) -> Any:
        """The value of a field.

        Raises:
            ConfigurationError: it is none of those that are served.
        """
        value = self.get(name, default)
        if not any(type(value) is type(each) and value == each for each in served):
            raise self.wrong(name, f"is {show(value)}; served: {', '.join(map(str, served))}")
        return value

    def text(self, name: str, served: Sequence[str], default: str | None = None) -> str:
        """As `one_of`, of a word in any case."""
        value = self.get(name, default)
        if not isinstance(value, str) or value.lower() not in served:
            raise self.wrong(name, f"is {show(value)}; served: {', '.join(served)}")
        return value.lower()

    def group_size(self) -> int | None:
        """Inputs that share a scale; None: all of them.

        Raises:
            ConfigurationError: it is neither a positive integer nor -1.
        """
        value = self.get("group_size", -1)
        if type(value) is not int or (value != -1 and not 1 <= value <= LARGEST):
            raise self.wrong("group_size", f"is {show(value)}, and -1 or a size is expected")
        return None if value == -1 else value

    def inside(self, name: str) -> "QuantizationFields":
        """The object that is a field's value; empty where it is missing or null.

        Raises:
            ConfigurationError: it is no object.
        """
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            raise self.wrong(name, f"is {show(value)}, and an object is expected")
        return QuantizationFields(self._file, value, f"{self._place}.{name}")

    def names(self) -> list[str]:
        """The names of all fields."""
        return list(self._fields)

    def wrong(self, name: str, what: str) -> ConfigurationError:
        """The error about a field."""
        return ConfigurationError(f"{self._file}: {self._place}.{name} {what}")


def method_of(fields: Mapping[str, Any]) -> str | None:
    """The `quant_method` of config.json's fields; None: its weights are not quantised."""
    found = fields.get(FIELD)
    if not isinstance(found, Mapping) or not found:
        return None
    if found.get("quant_method") is None and (
        found.get("load_in_4bit") or found.get("load_in_8bit")
    ):
        return "bitsandbytes"  # as it was written before there were others
    return str(found.get("quant_method"))
