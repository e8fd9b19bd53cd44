"""`paged_attention` compiled for CPUs (native.h), with the reference's signature."""

from array import array
from collections.abc import Callable
from ctypes import byref
from typing import Any, Final

import torch
from torch import Tensor

from ..batch import PagedBatch
from ..native.library import AttentionStruct, BatchStruct, CacheStruct, Library, address

_STORED: Final = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 3}
"""Types of caches, and their numbers in native.h."""


class Geometry:
    """A batch as the compiled kernels read it. `struct`: for C; lives as long as this does."""

    def __init__(self, batch: PagedBatch) -> None:
        # Page numbers in an array of their own for each sequence: nothing is padded.
        starts, lengths = array("i", batch.query_starts), array("i", batch.kv_lengths)
        tables = [array("i", pages) for pages in batch.tables]
        pages = array("Q", map(_begin, tables))
        paths, depths = array("Q", bytes(8 * len(pages))), array("Q", bytes(8 * len(pages)))
        trees: list[array[int]] = []
        for index, parents in batch.trees.items():
            seen, depth = _paths(parents)
            trees += (seen, depth)
            paths[index], depths[index] = _begin(seen), _begin(depth)
        self._kept = (starts, lengths, tables, pages, paths, depths, trees)
        self.struct = BatchStruct(
            sequences=len(batch.kv_lengths),
            page_size=batch.page_size,
            starts=_begin(starts),
            lengths=_begin(lengths),
            pages=_begin(pages),
            paths=_begin(paths),
            depths=_begin(depths),
        )

    @classmethod
    def of(cls, batch: PagedBatch) -> "Geometry":
        """A batch's geometry, made once."""
        if batch.derived is None:
            batch.derived = [cls(batch)]
        return batch.derived[0]


def _paths(parents: list[int]) -> "tuple[array[int], array[int]]":
    """Which rows are on each row's path, `[rows, rows]` of bytes, and its depth; the root is 0."""
    rows = 1 + len(parents)
    seen, depths = [bytearray(rows)], array("i", (0,))
    seen[0][0] = 1
    for row, parent in enumerate(parents, start=1):
        path = bytearray(seen[parent + 1])
        path[row] = 1
        seen.append(path)
        depths.append(depths[parent + 1] + 1)
    return array("B", b"".join(seen)), depths


def _begin(values: "array[int]") -> int:
    return values.buffer_info()[0]


def cache_struct(cache: Tensor, scales: Tensor | None) -> CacheStruct:
    """A cache `[pages, Hkv, page, D]` whose (page, head) tiles are contiguous."""
    by_page, by_head, by_token, by_element = cache.stride()
    size = cache.shape[3]
    assert (by_token, by_element) == (size, 1), "a tile of a page and a head is one run"
    return CacheStruct(
        elements=address(cache),
        scales=address(scales),
        by_head=by_head,
        by_page=by_page,
        size=size,
        stored=_STORED[cache.dtype],
    )


def attention_struct(
    keys: CacheStruct,
    values: CacheStruct,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> AttentionStruct:
    """What one layer does. Whoever keeps it keeps the sinks, float32."""
    return AttentionStruct(
        keys=keys,
        values=values,
        heads=heads,
        kv_heads=kv_heads,
        scale=scale,
        softcap=softcap or 0.0,
        window=window or 0,
        sinks=address(sinks_H),
    )


def prepared(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> tuple[Tensor, Tensor, AttentionStruct, Tensor | None]:
    """Queries as C reads them, room for the result, and the rest; the last one is to be kept."""
    if q_THD.dtype != torch.float32:
        raise TypeError(f"compiled attention takes queries in float32, not {q_THD.dtype}")
    count, heads, size = q_THD.shape
    if q_THD.stride()[1:] != (size, 1):
        q_THD = q_THD.contiguous()
    if sinks_H is not None:
        sinks_H = sinks_H.float().contiguous()
    how = attention_struct(
        cache_struct(k_cache, k_scales),
        cache_struct(v_cache, v_scales),
        heads=heads,
        kv_heads=k_cache.shape[1],
        scale=scale,
        window=window,
        softcap=softcap,
        sinks_H=sinks_H,
    )
    return q_THD, torch.empty(count, heads, v_cache.shape[3]), how, sinks_H


def launcher(library: Library) -> Callable[..., Tensor]:
    """`paged_attention` of this build, with as many threads as torch has now."""
    run: Any = library.call.paged_attention
    threads = torch.get_num_threads()

    def paged_attention(
        q_THD: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, **options: Any
    ) -> Tensor:
        """See the reference; q is float32."""
        q_THD, out, how, _kept = prepared(q_THD, k_cache, v_cache, **options)
        run(
            byref(Geometry.of(batch).struct),
            byref(how),
            q_THD.data_ptr(),
            q_THD.stride(0),
            out.data_ptr(),
            out.stride(0),
            threads,
        )
        return out

    return paged_attention
