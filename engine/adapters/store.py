"""The adapters that an engine has, by key: a name that is never given twice."""

import threading
from collections.abc import Callable
from pathlib import Path

from ...errors import ConfigurationError
from ...kernels.linear.low_rank import PackedAdapter
from .attached import AttachedAdapter

Prepared = PackedAdapter | AttachedAdapter
"""An adapter as the served model's layers take it."""


class AdapterStore:
    """May be used from any thread. `read`: the adapter in a folder, for the served model."""

    def __init__(self, read: Callable[[Path], Prepared]) -> None:
        self._read = read
        self._known: dict[str, Prepared] = {}
        self._loading = threading.Lock()

    def load(self, key: str, folder: Path) -> None:
        """Read an adapter from its folder; steps go on meanwhile.

        Raises:
            ConfigurationError: it cannot be read, or is not for this model.
        """
        with self._loading:
            self._known[key] = self._read(folder)

    def drop(self, key: str) -> None:
        """Forget an adapter; sequences that use it keep it until they end."""
        self._known.pop(key, None)

    def get(self, key: str) -> Prepared:
        """The adapter of this key.

        Raises:
            LookupError: there is none.
        """
        return self._known[key]


def refuse_all(folder: Path) -> Prepared:
    """For engines that take no adapters.

    Raises:
        ConfigurationError: always.
    """
    raise ConfigurationError(f"{folder}: this engine takes no adapters; start it with some")


def start_key(name: str) -> str:
    """The key of an adapter that is loaded at start."""
    return f"{name}#0"
