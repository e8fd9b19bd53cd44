"""The adapters that requests may name, as the server's side of the engine knows them."""

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...errors import NotFoundError, RequestError
from ...validation import show
from .settings import NAME, AdapterSettings
from .store import start_key


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAdapter:
    """`key`: by which the engine knows it; another one each time that a name is loaded.

    `created`: Unix time of loading, in seconds.
    """

    name: str
    key: str
    created: int


class ServedAdapters:
    """A bounded number. Adapters that were unloaded stay until the last request has ended.

    `known`: those that requests may name, by name; never changed, only replaced, so that any thread
    may read it.
    """

    def __init__(self, config: AdapterSettings, created: int, drop: Callable[[str], None]) -> None:
        self._limit = config.max_adapters
        self._drop = drop
        self._loads = 0
        self._loading: set[str] = set()
        self._leaving: set[str] = set()
        self.known: Mapping[str, ServedAdapter] = {
            name: ServedAdapter(name=name, key=start_key(name), created=created)
            for name in config.adapter_folders
        }

    def current(self, key: str) -> str:
        """The key of the adapter that has the name of this one now.

        Raises:
            NotFoundError: it was unloaded since its request was read.
        """
        name = key.partition("#")[0]
        found = self.known.get(name)
        if found is None:
            raise NotFoundError(
                f"the adapter {name} was unloaded", param="model", code="model_not_found"
            )
        return found.key

    @contextmanager
    def loading(self, name: str, *, replace: bool) -> Generator[str]:
        """Reserve the name while it is loaded under the key that this gives.

        Raises:
            RequestError: it is no name, it is taken, or there are too many.
        """
        if not re.fullmatch(NAME, name):
            raise _refused(
                f"lora_name is {show(name)}; it must be 1 to 64 letters, digits, dots, underscores "
                "and hyphens, the first a letter or digit"
            )
        if name in self._loading or (name in self.known and not replace):
            raise _refused(f"there is an adapter {name} already; unload it, or set load_inplace")
        taken = self.known.keys() | self._loading
        if name not in taken and len(taken) >= self._limit:
            raise _refused(
                f"{len(taken)} adapters are loaded, or loading, and the limit is {self._limit} "
                "(--max-adapters); unload one"
            )
        self._loads += 1
        self._loading.add(name)
        try:
            yield f"{name}#{self._loads}"
        finally:
            self._loading.discard(name)

    def add(self, adapter: ServedAdapter, live: Iterable[str]) -> None:
        """Serve a loaded adapter from now on, in place of one of the same name.

        `live`: keys of the requests that have not ended.
        """
        before = self.known.get(adapter.name)
        self.known = {**self.known, adapter.name: adapter}
        if before is not None:
            self._leave(before.key, live)

    def remove(self, name: str, live: Iterable[str]) -> None:
        """Serve it no more.

        Raises:
            NotFoundError: there is none of this name.
        """
        found = self.known.get(name)
        if found is None:
            raise NotFoundError(
                f"there is no adapter {show(name)}", param="lora_name", code="model_not_found"
            )
        self.known = {other: each for other, each in self.known.items() if other != name}
        self._leave(found.key, live)

    def ended(self, key: str, live: Iterable[str]) -> None:
        """A request with this key has ended."""
        if key in self._leaving and key not in live:
            self._leaving.discard(key)
            self._drop(key)

    def _leave(self, key: str, live: Iterable[str]) -> None:
        self._leaving.add(key)
        self.ended(key, live)


def folder_below(allowed: Path, given: str) -> Path:
    """The folder that a caller names, relative to the one that the operator allows, or absolute.

    Raises:
        RequestError: it is not below that one, or is no folder.
    """
    root = allowed.resolve()
    try:
        found = (root / given).resolve()
        inside = found.is_relative_to(root) and found.is_dir()
    except (OSError, ValueError, RuntimeError):
        inside, found = False, root
    if not inside:
        raise _refused(
            f"lora_path is {show(given)}; it must be a folder below the one that the server's "
            "operator allows (--adapter-folder)",
            param="lora_path",
        )
    return found


def _refused(message: str, *, param: str = "lora_name") -> RequestError:
    return RequestError(message, param=param, code="invalid_parameter")
