"""The tensors of a model folder, taken by the names of the layers that they belong to."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....errors import ConfigurationError
from ....validation import show

_LARGEST: Final = 2.0**100
"""The largest scale: with it no number of a code leaves float32."""
FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
_LONGEST: Final = 200


class StoredTensors:
    """The tensors of a folder by name, which the loader has found sound (their headers).

    A context: the files are open in it. Tensors that were not taken are `rest`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}

    def __enter__(self) -> Self:
        for path in self._shards():
            file = self._open.enter_context(safe_open(path, framework="pt"))
            self._files |= dict.fromkeys(file.keys(), file)
            self._paths |= dict.fromkeys(file.keys(), path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._open.close()

    def _shards(self) -> list[Path]:
        """The files that the loader has checked."""
        whole, index = (self.folder / f"model.safetensors{end}" for end in ("", ".index.json"))
        if whole.exists() or not index.exists():
            return [whole]
        places = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        return [self.folder / name for name in sorted(set(places.values()))]

    def modules(self, part: str) -> list[str]:
        """Modules that have a tensor called `part`."""
        return [name[: -len(part) - 1] for name in self._files if name.endswith(f".{part}")]

    def ending(self, suffix: str) -> list[str]:
        """Names of tensors that end so."""
        return [name for name in self._files if name.endswith(suffix)]

    def has(self, name: str) -> bool:
        """Whether there is such a tensor, not taken yet."""
        return name in self._files

    def take(self, name: str) -> Tensor | None:
        """A tensor, once; None: there is none.

        Raises:
            ConfigurationError: it cannot be read.
        """
        if name not in self._files:
            return None
        try:
            found = self._files[name].get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise self.wrong(name, f"cannot be read: {show(str(error))}") from error
        del self._files[name]
        return found

    def drop(self, names: Sequence[str]) -> None:
        """Take tensors that are not used: scales of activations and of caches."""
        for name in names:
            self._files.pop(name, None)

    def need(
        self,
        name: str,
        *,
        of: str,
        dtypes: Sequence[torch.dtype],
        shape: Sequence[int] | None = None,
    ) -> Tensor:
        """A tensor that the tensor called `of` cannot be without.

        Raises:
            ConfigurationError: it is missing, or of another dtype or shape.
        """
        if not self.has(name):
            raise ConfigurationError(f"{self._paths[of]}: {told(of)} has no {told(name)} beside it")
        found = self.take(name)
        assert found is not None
        self.check(name, found, dtypes=dtypes, shape=shape)
        return found

    def check(
        self,
        name: str,
        tensor: Tensor,
        *,
        dtypes: Sequence[torch.dtype],
        shape: Sequence[int] | None = None,
    ) -> None:
        """Check a tensor's dtype and, if it is given, its shape."""
        if tensor.dtype not in dtypes:
            told = " or ".join(str(each).removeprefix("torch.") for each in dtypes)
            held = str(tensor.dtype).removeprefix("torch.")
            raise self.wrong(name, f"holds {held}, and {told} is expected")
        if shape is not None and list(tensor.shape) != list(shape):
            raise self.wrong(
                name, f"has the shape {list(tensor.shape)}, and {list(shape)} is expected"
            )

    def scales(
        self, name: str, *, of: str, shape: Sequence[int] | None = None, more: Sequence[Any] = ()
    ) -> Tensor:
        """Scales in floating-point numbers, or of a dtype in `more`.

        Raises:
            ConfigurationError: see `need`; or one is not finite, or too large.
        """
        found = self.need(name, of=of, dtypes=(*FLOATS, *more), shape=shape)
        self.check_scales(name, found.float())
        return found

    def check_scales(self, name: str, scales: Tensor) -> None:
        """Refuse scales that are not finite or too large."""
        if not bool((scales.abs() <= _LARGEST).all()):
            raise self.wrong(
                name, "holds NaN, infinity or a scale above 2^100: the weights are damaged"
            )

    def rest(self) -> dict[str, Tensor]:
        """Tensors that were not taken: floating-point numbers of layers that are not quantised.

        Raises:
            ConfigurationError: one is a quantised weight, whose scales are missing then.
        """
        found: dict[str, Tensor] = {}
        for name in list(self._files):
            tensor = self.take(name)
            assert tensor is not None
            held = str(tensor.dtype).removeprefix("torch.")
            if held.startswith("float8") or (
                name.endswith(".weight") and not tensor.is_floating_point()
            ):
                raise self.wrong(name, f"holds {held}, and has no scales beside it")
            found[name] = tensor
        return found

    def wrong(self, name: str, what: str) -> ConfigurationError:
        """The error about a tensor."""
        return ConfigurationError(f"{self._paths[name]}: {told(name)} {what}")


def told(name: str) -> str:
    """A tensor's name in a message: files hold any."""
    return (name if name.isprintable() else repr(name))[:_LONGEST]
