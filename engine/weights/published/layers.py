"""Quantised layers as blocks of `BlockTensor`s, or as floats where no block fits; exact either way.

Integers become blocks of 32 inputs. All layers of a checkpoint take blocks of one kind, as far as
they can: layers that are merged later (queries, keys and values; gates and ups) stay packed then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels.linear.own_blocks import (
    INTEGER_INPUTS,
    OWN_TYPES,
    TABLES,
    code_blocks,
    integer_blocks,
)
from ..blocks import BlockTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """w = scale x (code - zero), of a layer with N outputs and K inputs in G groups of inputs.

    `codes`: makes uint8 `[N, K]`; of `bits` at most. `scales`: floating point `[N, G]`. `zeros`:
    uint8 of the same shape, or one for all. `group_of`: int64 `[K]`, the group of each input; None:
    groups are runs of K / G inputs.
    """

    codes: Callable[[], Tensor]
    inputs: int
    bits: int
    scales: Tensor
    zeros: Tensor | int
    group_of: Tensor | None = None

    @property
    def fits(self) -> bool:
        """Whether blocks hold it: whole blocks of inputs share a scale, maybe in another order."""
        groups = self.scales.shape[1]
        run = self.inputs // groups
        if run % INTEGER_INPUTS or run * groups != self.inputs:
            return False
        return self.group_of is None or bool(
            (self.group_of.bincount(minlength=groups) == run).all()
        )

    def floats(self) -> Tensor:
        """Float32 `[N, K]`."""
        group_of = self.group_of
        if group_of is None:
            group_of = torch.arange(self.inputs) // (self.inputs // self.scales.shape[1])
        zeros: Tensor | int = self.zeros
        if isinstance(zeros, Tensor):
            zeros = zeros.int()[:, group_of]
        return self.scales.float()[:, group_of] * (self.codes().int() - zeros).float()

    def blocks(self, *, wide: bool, constant: bool) -> BlockTensor:
        """`wide`: scales in float32. `constant`: zeros are those of GGUF's Q4_0 and Q8_0."""
        codes, order = self.codes(), None
        if self.group_of is not None:  # inputs of one group become neighbours
            order = self.group_of.argsort(stable=True)
            codes, order = codes[:, order], order.int()
        run = self.inputs // self.scales.shape[1] // INTEGER_INPUTS
        scales = self.scales.repeat_interleave(run, dim=1)
        small = self.bits <= 4
        if constant and isinstance(self.zeros, int):
            return BlockTensor.of(*_as_ggml(codes, scales, self.zeros, small=small), order)
        if isinstance(self.zeros, Tensor):
            zeros = self.zeros.repeat_interleave(run, dim=1)
        else:
            zeros = torch.full(scales.shape, self.zeros, dtype=torch.uint8)
        raw = integer_blocks(codes, scales, zeros, 4 if small else 8, wide=wide)
        return BlockTensor.of(raw, f"U{4 if small else 8}_F{32 if wide else 16}", order)


def uniform(zeros: Tensor, bits: int) -> Tensor | int:
    """Zeros, or the middle of all codes of so many bits where each of them is that."""
    middle = 1 << (bits - 1)
    return middle if bool((zeros == middle).all()) else zeros


def integer_weights(layers: Mapping[str, Integers]) -> dict[str, Tensor]:
    """The weights of layers, by the same names."""
    packed = [layer for layer in layers.values() if layer.fits]
    wide = not all(_are_halves(layer.scales) for layer in packed)
    constant = not wide and all(isinstance(layer.zeros, int) for layer in packed)
    return {
        name: layer.blocks(wide=wide, constant=constant) if layer.fits else layer.floats()
        for name, layer in layers.items()
    }


def code_weight(codes: Tensor, scales: Tensor, table: str) -> Tensor:
    """A weight of codes, uint8 `[N, K]`, with float32 scales `[N, G]` of runs of K / G inputs.

    `table`: E4M3, or a name of `TABLES`.
    """
    run = codes.shape[1] // scales.shape[1]
    kind = next((kind for kind in _kinds(table) if run % OWN_TYPES[kind].inputs == 0), None)
    if kind is not None:
        scales = scales.repeat_interleave(run // OWN_TYPES[kind].inputs, dim=1)
        return BlockTensor.of(code_blocks(codes, scales, kind), kind)
    return code_numbers(codes, table) * scales.repeat_interleave(run, dim=1)


def code_numbers(codes: Tensor, table: str) -> Tensor:
    """What codes stand for, float32, without their scales."""
    if table == "E4M3":
        return codes.view(torch.float8_e4m3fn).float()
    return TABLES[table][codes.long()]


def _kinds(table: str) -> list[str]:
    """The types of blocks of a table, the largest first."""
    found = [kind for kind in OWN_TYPES if kind.startswith(f"{table}_")]
    return sorted(found, key=lambda kind: -OWN_TYPES[kind].inputs)


def _are_halves(scales: Tensor) -> bool:
    return bool((scales.half().float() == scales.float()).all())


def _as_ggml(codes: Tensor, scales: Tensor, zero: int, *, small: bool) -> tuple[Tensor, str]:
    """Blocks of Q4_0 (codes less 8) or Q8_0 (integers with sign), scales in half precision."""
    parts = (codes + (8 if small else 128) - zero).unflatten(1, (-1, INTEGER_INPUTS))
    if small:
        low, high = parts.chunk(2, dim=2)
        parts = low | high << 4
    else:
        parts = parts ^ 128
    kept = scales.half().contiguous()[:, :, None].view(torch.uint8)
    return torch.cat([kept, parts], dim=2).flatten(1), "Q4_0" if small else "Q8_0"
