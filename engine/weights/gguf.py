"""Weights in the blocks of a GGUF file, multiplied as they are: `gguf`.

Rows come in 8 bits with a scale for every 32 inputs, as in llama.cpp; weights in floats of 16 bits
are widened, and rows stay as they are (kernels/linear/blocks.h).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .block_format import BlockFormat


class Gguf(BlockFormat):
    """The format of GGUF files, which the loader reads (engine/loading/gguf)."""

    name = "gguf"

    def recognises(self, path: Path, fields: Mapping[str, Any]) -> bool:
        """See `WeightFormat`."""
        return path.suffix == ".gguf"


GGUF = Gguf()
