"""The interface of weight formats: how the weights of linear layers are read, kept and multiplied.

A weight is `[N, K]`: N outputs, K inputs. A format whose checkpoints hold packed weights gives them
to the model as a tensor subclass, which has the shape and dtype of the numbers that it stands for
and computes like them. Before the model's layers become the format's, rows of weights are indexed
(`w[rows]`), split and concatenated; the format may keep them packed then. Columns stay in order.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.linear.native import Packed
from ...kernels.native.library import Library
from .quantization_config import method_of

Pack = Callable[[Tensor, Tensor | None], Packed]
"""Lays out a float32 weight `[N, K]` and a bias `[N]` for the products of the compiled decoder."""


class WeightFormat(ABC):
    """A format of weights; `--quantization` names it as its entry point is named.

    `lossless`: layers of the format compute what the loaded model's own do, up to rounding, so the
    model may also run without them. `keeps_numbers`: packed weights are the loaded ones to the bit,
    so a table of embeddings may share them. `row_invariant`: a row's results have the same bits
    whatever other rows are computed with it. `methods`: values of `quant_method` in config.json's
    `quantization_config` that mark checkpoints of the format.
    """

    name: str
    methods: tuple[str, ...] = ()
    lossless: bool = False
    keeps_numbers: bool = False
    row_invariant: bool = False

    def recognises(self, path: Path, fields: Mapping[str, Any]) -> bool:
        """Whether a checkpoint holds weights of this format. `fields`: those of its config.json."""
        return method_of(fields) in self.methods

    def tensors(self, path: Path, fields: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
        """A checkpoint's tensors, named as in the model; None: transformers reads them.

        Raises:
            ConfigurationError: they cannot be read; names the file, and the tensor or field.
        """
        return None

    @abstractmethod
    def stored_bytes(self, weight: Tensor) -> int:
        """Bytes that a weight takes in this format; may be asked of a tensor without memory."""

    @abstractmethod
    def linear(
        self, weight: Tensor, bias: Tensor | None, library: Library | None
    ) -> nn.Module | None:
        """A layer that computes y = x W^T + b for x `[..., K]`; None: the model's own serves.

        `library`: the compiled kernels, where model and processor can use them.
        """

    def packer(self, library: Library) -> Pack | None:
        """How the compiled decoder takes weights of this format; None: it cannot."""
        return None

    def slow_reason(self, device: torch.device, library: Library | None) -> str | None:
        """Why layers of the format may be slower than float32 here; None: they should not be."""
        return None
