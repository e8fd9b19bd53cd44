"""The masks of a step's constrained rows, applied to their logits at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...kernels.transfer import to_device

if TYPE_CHECKING:
    from torch import Tensor

    from .constraint import Bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """`bits[i]` is the mask of row `rows[i]`; rows ascend, and are without repetition."""

    rows: list[int]
    bits: Bits

    def apply(self, logits: Tensor) -> None:
        """Forbid tokens in float32 `logits [R, V]`, in place; ids past the masks are forbidden."""
        forbidden = self._forbidden(logits)
        if len(self.rows) == logits.shape[0]:
            logits.masked_fill_(forbidden, float("-inf"))
            return
        at = to_device(self.rows, np.int64, logits.device)
        logits[at] = logits[at].masked_fill_(forbidden, float("-inf"))

    def _forbidden(self, logits: Tensor) -> Tensor:
        """Bool `[M, V]` on the logits' device, where the masks are unpacked."""
        size = logits.shape[1]
        words = np.zeros((len(self.rows), -(-size // 32)), dtype=np.int32)
        used = min(words.shape[1], self.bits.shape[1])
        words[:, :used] = self.bits[:, :used]
        if logits.device.type == "cpu":
            bits: np.ndarray[Any, Any] = np.unpackbits(
                np.invert(words).view(np.uint8), axis=1, count=size, bitorder="little"
            )
            return torch.from_numpy(bits.view(np.bool_))
        return forbidden_on_device(to_device(words, np.int32, logits.device), size)


def forbidden_on_device(words: Tensor, size: int) -> Tensor:
    """Bool `[M, size]` from masks int32 `[M, W]`, by operations of the device."""
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> shifts) & 1).flatten(1)[:, :size] == 0
