"""How large the tiles of the attention kernel are: from shapes of the model, never from a step's.

A row's result then does not depend on how many rows are beside it. Rules of thumb from published
kernels and from compiling for Hopper without spilled registers; nothing is tuned at run time.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """`block_m`: tokens x query heads of a group. `block_n`: keys. `stages`: of loading ahead."""

    block_m: int
    block_n: int
    warps: int
    stages: int

    @classmethod
    def of(cls, *, split: bool, group: int, size: int, dtype: torch.dtype) -> "Tiles":
        """For windows (`split`) or chunks of prompts. `size`: of the larger head, `group`: heads.

        Windows: four tokens of a group, 16 to 64 rows, since what is read is what costs. Chunks:
        128 rows, fewer where heads are large. Keys: 32 or 64. float32 is not for matrix units: what
        its products hold in registers bounds the tiles.
        """
        bytes_of_key = power_of_2(size, 16) * dtype.itemsize
        wide = dtype == torch.float32
        most = 32 if wide else 128 if bytes_of_key <= 256 and not split else 64
        block_m = min(most, power_of_2(4 * group, 16)) if split else most
        block_m = max(block_m, power_of_2(group, 16))
        if wide:
            block_n, warps = 16, 8 if block_m > 16 else 4
        else:
            block_n = 64 if bytes_of_key <= 256 else 32
            warps = 8 if block_m > 64 or not split else 4
        return cls(
            block_m=block_m,
            block_n=block_n,
            warps=warps,
            stages=3 if bytes_of_key <= 256 else 2,
        )

    @classmethod
    def of_mass(cls, *, group: int, size: int, dtype: torch.dtype) -> "Tiles":
        """For `prompt_mass`: a tile of keys that stays, and blocks of rows that pass by."""
        bytes_of_key = power_of_2(size, 16) * dtype.itemsize
        wide = dtype == torch.float32
        return cls(
            block_m=max(16 if wide else 64, power_of_2(group, 16)),
            block_n=16 if wide else 128 if bytes_of_key <= 256 else 64,
            warps=4,
            stages=3 if bytes_of_key <= 256 else 2,
        )


def power_of_2(number: int, least: int = 1) -> int:
    """The next power of two, at least `least`."""
    return max(least, 1 << (number - 1).bit_length())
