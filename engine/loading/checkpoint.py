"""A model's files as the stages of loading take them: a folder, or what a GGUF file becomes."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor

from ...kernels.linear.blocks import FLOAT_TYPES
from ..weights.blocks import BlockTensor
from .folder import CONFIG, read_object
from .safetensors_files import StoredTensor, stored_tensors


class Checkpoint(ABC):
    """`path`: what it is called in messages. `folder`: holds config, tokenizer and so on.

    `name`: the model's name in requests, where no other is set.
    """

    path: Path
    folder: Path
    name: str

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
        """The tensors by the model's names; None: transformers reads them, or a weight format.

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
        found = {name: self.read(name, tensor) for name, tensor in stored.items()}
        if not any(_kind(tensor) in packed for tensor in found.values()):
            return None
        return {
            name: BlockTensor.of(tensor.view(torch.uint8), _kind(tensor))
            if _kind(tensor) in packed
            else tensor.to(dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in found.items()
        }

    def read(self, name: str, tensor: StoredTensor) -> Tensor:
        """See `Checkpoint`."""
        with safe_open(tensor.file, framework="pt") as file:
            return file.get_tensor(name)
