"""Numbers of the host on their way to the device: copies that nobody waits for.

From ordinary memory a copy to a GPU holds the host up until everything before it has run there,
from pinned memory it does not. So what a step needs goes in one piece, by one copy.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

ALIGNED_BYTES: Final = 16
"""Each array begins at a multiple of it, so that kernels are not compiled once more."""


class Staging:
    """Arrays of the host, `host`, and the same on the device, `device`, always in one memory.

    Arrays begin as they are given. Then `wait`, fill those of the host, `send` them, and so on.
    """

    def __init__(self, arrays: Sequence[np.ndarray[Any, Any]], device: torch.device) -> None:
        begins = [0]
        for array in arrays:
            begins.append(begins[-1] + -(-array.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES)
        pinned = device.type == "cuda"
        self._from = torch.zeros(begins[-1], dtype=torch.uint8, pin_memory=pinned)
        memory = self._from.numpy()
        self.host = [
            memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
            for array, begin in zip(arrays, begins, strict=False)
        ]
        for array, there in zip(arrays, self.host, strict=True):
            there[...] = array
        self._to = self._from.to(device, non_blocking=True) if pinned else self._from.clone()
        self.device = [
            self._to[begin : begin + array.nbytes]
            .view(torch.from_numpy(array[..., :0].reshape(-1)).dtype)
            .view(array.shape)
            for array, begin in zip(arrays, begins, strict=False)
        ]
        self._sent = torch.cuda.Event() if pinned else None

    def wait(self) -> None:
        """Until what was sent has left the host's memory: mostly long ago."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self) -> None:
        """What the host's arrays hold now, in one copy."""
        self._to.copy_(self._from, non_blocking=True)
        if self._sent is not None:
            self._sent.record()


class Arriving:
    """Numbers of the device on their way to the host; later launches do not delay them."""

    def __init__(self, tensor: Tensor) -> None:
        self._there, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._there.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> list[Any]:
        """The numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._there.tolist()


def together(arrays: Sequence[np.ndarray[Any, Any]], device: torch.device) -> list[Tensor]:
    """Arrays as tensors of the same types: on a GPU in one piece of memory, by one copy."""
    if device.type == "cuda":
        return Staging(arrays, device).device
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def to_device(values: Sequence[Any] | np.ndarray[Any, Any], dtype: Any, device: Any) -> Tensor:
    """Numbers as a tensor of that numpy type, by a copy that nobody waits for."""
    host = torch.from_numpy(np.asarray(values, dtype=dtype))
    if device.type != "cuda":
        return host
    return host.pin_memory().to(device, non_blocking=True)
