"""A model's files as the stages of loading take them: a folder, or what a GGUF file becomes."""

import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from ...kernels.linear.blocks import FLOAT_TYPES
from ..weights.base import WeightFormat
from ..weights.blocks import BlockTensor
from .folder import CONFIG, read_object
from .safetensors_files import StoredTensor, stored_tensors


class Checkpoint(ABC):
    """`path`: what it is called in messages. `folder`: holds config, tokenizer and so on.

    `name`: the model's name in requests, where no other is set. `reads_quantised`: `stored` and
    `tensors` are of the model, although config.json says that its weights are quantised.
    `left_out`: matches names of tensors that `tensors` need not read.
    """

    path: Path
    folder: Path
    name: str
    reads_quantised: bool = False
    left_out: re.Pattern[str] = re.compile(r"(?!)")

    @abstractmethod
    def stored(self) -> Mapping[str, StoredTensor]:
        """What tensors there are, by name.

        Raises:
            ConfigurationError: files are missing, damaged or contradict each other.
        """

    @abstractmethod
    def tensors(
        self, dtype: torch.dtype, *, packed: Collection[str]
    ) -> Mapping[str, Tensor] | None:
        """The tensors by the model's names; None: transformers reads them.

        `packed`: the types of blocks of which matrices are to be `BlockTensor`s, floats of 16 bits
        among them; all others are of `dtype`.
        """

    @abstractmethod
    def read(self, name: str, tensor: StoredTensor) -> Tensor:
        """The numbers of one of `stored`, as they are or in float32."""


_KINDS: Final = {dtype: kind for kind, dtype in FLOAT_TYPES.items()}


def _kind(tensor: Tensor) -> str:
    """The type of blocks that a matrix is; empty: none."""
    return _KINDS.get(tensor.dtype, "") if tensor.ndim == 2 and tensor.is_contiguous() else ""


def _kept(tensor: Tensor, dtype: torch.dtype, packed: Collection[str]) -> Tensor:
    """A tensor as it is kept while the model is loaded; see `Checkpoint.tensors`."""
    if isinstance(tensor, BlockTensor):
        stays = all(part.kind in packed for part in tensor.parts)
        return tensor if stays else tensor.dequantise().to(dtype)
    if _kind(tensor) in packed:
        return BlockTensor.of(tensor.view(torch.uint8), _kind(tensor))
    return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype)


class FolderCheckpoint(Checkpoint):
    """A folder of transformers' format."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = self.folder = folder
        self.name = name

    def stored(self) -> Mapping[str, StoredTensor]:
        """See `Checkpoint`."""
        return stored_tensors(self.folder)

    def tensors(
        self, dtype: torch.dtype, *, packed: Collection[str]
    ) -> Mapping[str, Tensor] | None:
        """See `Checkpoint`. Matrices in 16 bits stay in the file until they are laid out."""
        if not packed or read_object(self.folder / CONFIG).get("quantization_config"):
            return None
        stored = self.stored()
        found = {
            name: self.read(name, tensor)
            for name, tensor in stored.items()
            if not self.left_out.search(name)
        }
        if not any(_kind(tensor) in packed for tensor in found.values()):
            return None
        return {name: _kept(tensor, dtype, packed) for name, tensor in found.items()}

    def read(self, name: str, tensor: StoredTensor) -> Tensor:
        """See `Checkpoint`."""
        with safe_open(tensor.file, framework="pt") as file:
            return file.get_tensor(name)


class FormatCheckpoint(FolderCheckpoint):
    """A folder whose tensors a weight format may read. `fields`: those of its config.json."""

    def __init__(
        self, folder: Path, name: str, reader: WeightFormat, fields: Mapping[str, Any]
    ) -> None:
        super().__init__(folder, name)
        self._reader, self._fields = reader, fields
        self._ready: Mapping[str, Tensor] | None = None
        self._raw: dict[str, StoredTensor] = {}

    def stored(self) -> Mapping[str, StoredTensor]:
        """See `Checkpoint`; the names are those of the model where the format reads the tensors."""
        raw = self._raw = dict(super().stored())
        self._ready = made = self._reader.tensors(self.folder, self._fields)
        if made is None:
            return raw
        self.reads_quantised = True
        names = sorted(raw)
        return {
            name: raw[name]
            if _is_as_stored(tensor, raw.get(name))
            else StoredTensor(
                file=raw[_source(name, names)].file, dtype="F32", shape=tuple(tensor.shape)
            )
            for name, tensor in made.items()
        }

    def tensors(
        self, dtype: torch.dtype, *, packed: Collection[str]
    ) -> Mapping[str, Tensor] | None:
        """See `Checkpoint`."""
        made, self._ready = self._ready, None  # what is handed out may be freed piece by piece
        if made is None:
            made = self._reader.tensors(self.folder, self._fields)
        if made is None:
            return super().tensors(dtype, packed=packed)
        return {
            name: _kept(tensor, dtype, packed)
            for name, tensor in made.items()
            if not self.left_out.search(name)
        }

    def read(self, name: str, tensor: StoredTensor) -> Tensor:
        """See `Checkpoint`."""
        if self._raw.get(name) == tensor:
            return super().read(name, tensor)
        made = self._reader.tensors(self.folder, self._fields)
        assert made is not None, "it made this tensor"
        return _kept(made[name], torch.float32, ())


def _is_as_stored(tensor: Tensor, stored: StoredTensor | None) -> bool:
    return (
        stored is not None
        and type(tensor) is Tensor
        and stored.shape == tuple(tensor.shape)
        and tensor.element_size() == stored.bits // 8
    )


def _source(name: str, stored: Sequence[str]) -> str:
    """A stored tensor, of names in order, that a parameter was made of: one of the same layer."""
    at = bisect_left(stored, name.removesuffix("weight"))
    return stored[min(at, len(stored) - 1)]
