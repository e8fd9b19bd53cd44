"""Words for the model rather than for the server: what of them a chat template can be told."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

_THINKING = ("enable_thinking", "thinking")
"""Under either name templates ask whether the model may think before it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """The fields of the kind "hint" of one request, as sent."""

    reasoning_effort: Any = None
    reasoning: Mapping[str, Any] | None = None
    think: Any = None
    verbosity: Any = None
    thinking: Any = None

    def variables(self, reads: Collection[str]) -> dict[str, Any]:
        """Template variables, of those that the template `reads`; explicit fields go first."""
        found: dict[str, Any] = {}
        for name in ("think", "thinking", "reasoning", "reasoning_effort", "verbosity"):
            found |= self._of(name)
        return {name: value for name, value in found.items() if name in reads}

    def unread(self, reads: Collection[str]) -> tuple[str, ...]:
        """Names of the fields of which the template hears nothing."""
        sent = [name for name, value in asdict(self).items() if value is not None]
        return tuple(name for name in sent if not self._of(name).keys() & set(reads))

    def _of(self, field: str) -> dict[str, Any]:
        value = getattr(self, field)
        if field == "reasoning":
            value = None if value is None else value.get("effort")
        if value is None:
            return {}
        if field == "thinking":
            return dict.fromkeys(_THINKING, value == "enabled")
        if field == "verbosity":
            return {"verbosity": value}
        if isinstance(value, bool):
            return dict.fromkeys(_THINKING, value)
        return {"reasoning_effort": value} | dict.fromkeys(_THINKING, value != "none")
