"""All layers of a pre-norm decoder in one call, for CPUs (native.h): Llama and its like.

Two ways to run a step, with the same bits: `run` computes all layers where attention is that of the
compiled kernels, of contexts that evict keys too; `before_attention` and `after_attention` are the
halves of one layer, for steps whose attention is somebody else's (caches in 8 bits, for one).
"""

from collections.abc import Mapping, Sequence
from ctypes import byref, pointer
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ..batch import PagedBatch
from ..linear.low_rank import AdapterRows, PackedAdapter
from ..linear.native import Packed, RowRoom
from ..native.library import (
    AddedStruct,
    EvictingStruct,
    HeadStruct,
    LayerStruct,
    Library,
    LinearStruct,
    NormStruct,
    RoomStruct,
    StepStruct,
    address,
)
from ..paged_attention.native import Geometry, attention_struct, cache_struct

Caches = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer, `[pages, Hkv, page, D]`, float32."""
LINEARS: Final = ("qkv", "out", "gate_up", "down")
"""The linear layers of a layer, as native.h numbers them."""
_LEAST_ROWS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSNorm:
    """x / sqrt(|x|^2 + floor) * weight, where both hold a factor: sqrt(n), and n times epsilon."""

    weight: Tensor
    floor: float

    @property
    def struct(self) -> NormStruct:
        """For C."""
        return NormStruct(weight=address(self.weight), floor=self.floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer. Pairs of elements that rotate together are neighbours in queries and keys.

    `gate_up`: rows interleaved, as `interleaved` does. `gates`: without what fills them up.
    `options`: scale, window, softcap and sinks of its attention.
    """

    before: RMSNorm
    after: RMSNorm
    of_queries: RMSNorm | None
    of_keys: RMSNorm | None
    qkv: Packed
    out: Packed
    gate_up: Packed
    down: Packed
    gates: int
    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    rotary_size: int
    options: dict[str, Any]


def interleaved(gate_up: Tensor, lanes: int) -> Tensor:
    """Gates and ups `[2 x I, ...]` in turns of `lanes`: `[2 x I', ...]`.

    The last turns are filled up with copies of the last row, whose products nothing reads.
    """
    size = gate_up.shape[0] // 2
    gates = torch.arange(size + -size % lanes).clamp_(max=size - 1).unflatten(0, (-1, lanes))
    return gate_up[torch.stack((gates, gates + size), dim=1).flatten()]


class NativeLayers:
    """Layers and head, with as many threads as torch has when they are put together.

    Not to be called by several at once: they share room.
    """

    def __init__(
        self, library: Library, layers: Sequence[LayerWeights], norm: RMSNorm, head: Packed
    ) -> None:
        self._call = library.call
        self._threads = torch.get_num_threads()
        self._kept = (layers, norm, head)
        self._layers = layers
        self._structs = (LayerStruct * len(layers))(*(_layer_struct(layer) for layer in layers))
        self._head = HeadStruct(norm=norm.struct, linear=head.struct)
        self._vocabulary = head.outputs
        self._capacity = 0
        self._room: dict[str, Tensor] = {}
        self._row_room = RowRoom(0, 0)
        self._caches: list[tuple[int, torch.Size]] = []

    @property
    def packed(self) -> set[Packed]:
        """The weights of all linear layers, the head's among them."""
        layers, _norm, head = self._kept
        return {head, *(getattr(layer, name) for layer in layers for name in LINEARS)}

    @property
    def scores(self) -> bool:
        """Whether `run` takes `EvictingRows`: each KV head has few enough query heads."""
        most = self._call.most_group()
        return all(layer.heads <= most * layer.kv_heads for layer in self._layers)

    @property
    def linears(self) -> int:
        """How many linear layers adapters count: those of `LINEARS` by layer, and the head."""
        return len(self._layers) * len(LINEARS) + 1

    def step(
        self,
        x: Tensor,
        factors: Tensor | None,
        batch: PagedBatch | None,
        adapters: Sequence[PackedAdapter | None] | None = None,
    ) -> "LayerStep":
        """Begin a step. x: float32 `[T, width]`, which becomes the layers' result.

        factors: complex `[T, 1, n / 2]`, what turns pairs of queries and keys; n is the same in
        all layers that rotate. adapters: of each row; None: no row has one.
        """
        rows = x.shape[0]
        self._grow(rows)
        real = None if factors is None else torch.view_as_real(factors).contiguous()
        geometry = None if batch is None else Geometry.of(batch)
        struct = StepStruct(
            rows=rows,
            factors=address(real),
            slots=None if batch is None else address(batch.slots),
            room=self._room_struct(x),
        )
        if geometry is not None:
            struct.batch = geometry.struct
        of_rows = None if adapters is None else AdapterRows(adapters)
        if of_rows is not None:
            struct.adapters = pointer(of_rows.struct)
        return LayerStep(
            x=x, struct=struct, adapters=adapters, kept=(real, geometry, batch, of_rows)
        )

    def run(
        self, step: "LayerStep", caches: Caches, evicting: "EvictingRows | None" = None
    ) -> None:
        """All layers; writes the rows' keys and values where the step's batch says.

        `evicting`: of rows whose keys go elsewhere, or whose attention is asked for.
        """
        self._bind(caches)
        asked = None if evicting is None else _Asked(evicting, step, len(self._layers))
        if asked is not None:
            step.struct.evicting = pointer(asked.struct)
        self._call.layers(self._structs, len(self._layers), byref(step.struct), self._threads)

    def before_attention(self, step: "LayerStep", index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[T, H, D]`, keys and values `[T, Hkv, D]` of a layer."""
        layer = self._layers[index]
        # New memory each time: keys and values of draft tokens are kept until they are verified.
        qkv = torch.empty(step.x.shape[0], layer.qkv.outputs)
        step.struct.room.qkv = address(qkv)
        self._call.before_attention(self._structs[index], index, byref(step.struct), self._threads)
        q_size, k_size = layer.heads * layer.key_size, layer.kv_heads * layer.key_size
        return (
            qkv[:, :q_size].unflatten(1, (layer.heads, -1)),
            qkv[:, q_size : q_size + k_size].unflatten(1, (layer.kv_heads, -1)),
            qkv[:, q_size + k_size :].unflatten(1, (layer.kv_heads, -1)),
        )

    def after_attention(self, step: "LayerStep", index: int, attended: Tensor) -> None:
        """The rest of a layer, from what attention returned, `[T, H, Dv]`."""
        self._room["attended"][: attended.numel()].view(attended.shape).copy_(attended)
        self._call.after_attention(self._structs[index], index, byref(step.struct), self._threads)

    def logits(self, step: "LayerStep", wanted: Tensor) -> Tensor:
        """Float32 `[R, V]` of the rows numbered `wanted`, int64 `[R]`."""
        count = wanted.shape[0]
        logits = torch.empty(count, self._vocabulary)
        normed = torch.empty(count, step.x.shape[1])
        added, of_rows = AddedStruct(), None
        if step.adapters is not None:
            of_rows = AdapterRows([step.adapters[row] for row in wanted.tolist()])
            added = of_rows.added(self.linears - 1)
        self._call.head(
            byref(self._head),
            byref(step.struct),
            wanted.data_ptr(),
            count,
            normed.data_ptr(),
            logits.data_ptr(),
            byref(added),
            self._threads,
        )
        return logits

    def _grow(self, rows: int) -> None:
        if rows <= self._capacity:
            return
        self._capacity = rows = max(rows, 2 * self._capacity, _LEAST_ROWS)
        layers = self._layers
        width = layers[0].qkv.inputs
        attended = max(layer.heads * layer.value_size for layer in layers)
        gates = max(layer.gates for layer in layers)
        self._room = {
            "normed": torch.empty(rows * width),
            "qkv": torch.empty(rows * max(layer.qkv.outputs for layer in layers)),
            "attended": torch.empty(rows * attended),
            "gated": torch.empty(rows * gates),
        }
        self._row_room = RowRoom(rows, max(width, attended, gates))

    def _room_struct(self, x: Tensor) -> RoomStruct:
        at = {name: address(tensor) for name, tensor in self._room.items()}
        return RoomStruct(x=address(x), bytes=self._row_room.struct, **at)

    def _bind(self, caches: Caches) -> None:
        """Point the layers at a store's tensors, unless they do so already."""
        found = [(tensor.data_ptr(), tensor.shape) for pair in caches for tensor in pair]
        if found == self._caches:
            return
        self._caches = found
        for struct, (keys, values) in zip(self._structs, caches, strict=True):
            struct.attention.keys = cache_struct(keys, None)
            struct.attention.values = cache_struct(values, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictingRows:
    """What contexts under eviction need of a step, by number of the row or sequence in its batch.

    `slots`: int64 `[layers, Hkv]`, where the keys of a row go that differ by head. `weights`:
    zeros, float32 `[layers, Hkv, rows, keys]`, to which the attention is added that a sequence's
    keys receive; of a sequence with `votes`, float32 `[rows]`, `[layers, Hkv, keys]`: the weighted
    sum over its rows.
    """

    slots: Mapping[int, Tensor]
    weights: Mapping[int, Tensor]
    votes: Mapping[int, Tensor]


class _Asked:
    """`EvictingRows` as C reads them. `struct`: lives as long as this does."""

    def __init__(self, rows: EvictingRows, step: "LayerStep", layers: int) -> None:
        sequences, count = step.struct.batch.sequences, step.struct.rows
        slots = np.zeros(count, dtype=np.uintp)
        for row, each in rows.slots.items():
            slots[row] = each.data_ptr()
        weights = np.zeros((layers, sequences), dtype=np.uintp)
        for sequence, each in rows.weights.items():
            bytes_of_layer = each.stride(0) * each.element_size()
            weights[:, sequence] = (
                each.data_ptr() + np.arange(layers, dtype=np.uintp) * bytes_of_layer
            )
        votes = np.zeros(sequences, dtype=np.uintp)
        for sequence, each in rows.votes.items():
            votes[sequence] = each.data_ptr()
        self._kept = (rows, slots, weights, votes)
        self.struct = EvictingStruct(
            slots=slots.ctypes.data, weights=weights.ctypes.data, votes=votes.ctypes.data
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStep:
    """A step on its way through the layers. `kept`: what `struct` points at."""

    x: Tensor
    struct: StepStruct
    adapters: Sequence[PackedAdapter | None] | None
    kept: tuple[Any, ...]


def _layer_struct(layer: LayerWeights) -> LayerStruct:
    none = NormStruct()
    unbound = cache_struct(torch.empty(0, layer.kv_heads, 1, layer.key_size), None)
    attention = attention_struct(
        unbound,
        cache_struct(torch.empty(0, layer.kv_heads, 1, layer.value_size), None),
        heads=layer.heads,
        kv_heads=layer.kv_heads,
        **layer.options,
    )
    packed: dict[str, LinearStruct] = {name: getattr(layer, name).struct for name in LINEARS}
    return LayerStruct(
        before=layer.before.struct,
        after=layer.after.struct,
        of_queries=layer.of_queries.struct if layer.of_queries else none,
        of_keys=layer.of_keys.struct if layer.of_keys else none,
        attention=attention,
        width=layer.qkv.inputs,
        rotary_size=layer.rotary_size,
        gates=layer.gates,
        **packed,
    )
