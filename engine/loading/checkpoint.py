"""A model's files as the stages of loading take them: a folder, or what a GGUF file becomes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

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
    def tensors(self, dtype: torch.dtype, *, packed: bool) -> Mapping[str, Tensor] | None:
        """The tensors by the model's names; None: transformers reads them, or a weight format.

        `packed`: as `BlockTensor`s where they are stored in blocks; else all are of `dtype`.
        """

    @abstractmethod
    def read(self, name: str, tensor: StoredTensor) -> Tensor:
        """The numbers of one of `stored`, as they are or in float32."""


class FolderCheckpoint(Checkpoint):
    """A folder of transformers' format."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = self.folder = folder
        self.name = name

    def stored(self) -> Mapping[str, StoredTensor]:
        """See `Checkpoint`."""
        return stored_tensors(self.folder)

    def tensors(self, dtype: torch.dtype, *, packed: bool) -> Mapping[str, Tensor] | None:
        """See `Checkpoint`."""
        return None

    def read(self, name: str, tensor: StoredTensor) -> Tensor:
        """See `Checkpoint`."""
        with safe_open(tensor.file, framework="pt") as file:
            return file.get_tensor(name)
