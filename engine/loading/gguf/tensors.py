"""The parameters of a model, from the tensors of a GGUF file; nothing is read before it is used.

Matrices of a served type stay packed: a `BlockTensor` is a view of the mapped file, or a copy of
rows in another order. Anything else becomes float32.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ....kernels.linear.blocks import dequantise
from ...weights.blocks import BlockTensor
from .header import Header, TensorEntry
from .names import Change, Source
from .parts import GgufModel

_FLOATS: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters(Mapping[str, Tensor]):
    """Parameter name -> tensor. `heads`, `kv_heads`: of queries, and of keys.

    `packed`: types of blocks that matrices keep; every other tensor is made of `dtype`.
    """

    model: GgufModel
    sources: Mapping[str, Source]
    heads: int
    kv_heads: int
    packed: Collection[str]
    dtype: torch.dtype

    def __getitem__(self, name: str) -> Tensor:
        source = self.sources[name]
        first, *others = source.tensors
        if others:
            return self._stacked(source)
        header, entry = self.model.tensors[first]
        if entry.kind in self.packed and len(entry.shape) == 2:
            rows = _bytes(header, entry).view(entry.shape[0], -1)
            return self._changed(BlockTensor.of(rows, entry.kind), source.change)
        return self._changed(_values(header, entry), source.change).to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def _changed(self, tensor: Any, change: Change) -> Tensor:
        if change is Change.SHIFT:
            return tensor - 1
        if change in (Change.QUERIES, Change.KEYS):
            heads = self.heads if change is Change.QUERIES else self.kv_heads
            if tensor.shape[0] % (2 * heads):
                return tensor  # its shape is wrong, and the model's parameter says how
            return tensor[halves(tensor.shape[0], heads)]
        return tensor

    def _stacked(self, source: Source) -> Tensor:
        """[experts, n x rows, inputs] of n tensors [experts, rows, inputs], expert by expert."""
        found = [self.model.tensors[name] for name in source.tensors]
        experts, rows, inputs = (int(size) for size in found[0][1].shape)
        made = torch.empty(experts, len(found) * rows, inputs, dtype=self.dtype)
        for i, (header, entry) in enumerate(found):
            blocks = _bytes(header, entry).view(experts, -1)
            for expert in range(experts):
                values = _numbers(blocks[expert], entry.kind, (rows, inputs))
                made[expert, i * rows : (i + 1) * rows] = values
        return made


def halves(rows: int, heads: int) -> Tensor:
    """Int64 `[rows]`: of each head the first of all pairs, then the second of all pairs."""
    pairs = rows // heads // 2
    return torch.arange(rows).view(heads, pairs, 2).transpose(1, 2).reshape(rows)


def _bytes(header: Header, entry: TensorEntry) -> Tensor:
    return torch.frombuffer(header.memory, dtype=torch.uint8, count=entry.bytes, offset=entry.start)


def _values(header: Header, entry: TensorEntry) -> Tensor:
    return _numbers(_bytes(header, entry), entry.kind, entry.shape)


def _numbers(raw: Tensor, kind: str, shape: tuple[int, ...]) -> Tensor:
    """Float32 `shape`, of its bytes."""
    if kind in _FLOATS:
        return raw.view(_FLOATS[kind]).float().view(shape)
    return dequantise(raw.view(-1, raw.numel() // (_rows(shape))), kind).view(shape)


def _rows(shape: tuple[int, ...]) -> int:
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows
