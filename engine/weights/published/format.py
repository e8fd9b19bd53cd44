"""What the formats of published checkpoints have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..block_format import BlockFormat
from ..quantization_config import FIELD, QuantizationFields, method_of
from .stored import StoredTensors


class PublishedFormat(BlockFormat):
    """A format of folders whose config.json has a `quantization_config`."""

    def tensors(self, path: Path, fields: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
        """See `WeightFormat`."""
        if method_of(fields) not in self.methods:
            return None
        config = QuantizationFields(path / "config.json", fields[FIELD])
        with StoredTensors(path) as stored:
            return self.read(config, stored)

    @abstractmethod
    def read(self, config: QuantizationFields, stored: StoredTensors) -> dict[str, Tensor]:
        """All parameters of the model.

        Raises:
            ConfigurationError: the config asks for what is not served, or a tensor is damaged.
        """
