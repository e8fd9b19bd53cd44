"""Integers of a few bits, packed one after the other into words of 32, the lowest bits first."""

import torch
from torch import Tensor


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """uint8 `[R, count]` of int32 `[R, words]`; integer i takes the bits from i x `bits` on."""
    if bits == 8:
        return words.contiguous().view(torch.uint8)[:, :count].contiguous()
    if bits == 4:
        pairs = words.contiguous().view(torch.uint8)
        return torch.stack((pairs & 15, pairs >> 4), dim=2).flatten(1)[:, :count].contiguous()
    first = torch.arange(count) * bits
    wide = words.long() & 0xFFFFFFFF
    wide = wide | torch.nn.functional.pad(wide[:, 1:], (0, 1)) << 32
    return (wide[:, first // 32] >> first % 32 & (1 << bits) - 1).to(torch.uint8)


def words(count: int, bits: int) -> int:
    """Words of 32 bits that so many integers take."""
    return -(-count * bits // 32)
