"""`kv_write` in plain torch: append this step's keys and values to their slots."""

from torch import Tensor

from ..quantise import as_bits, quantise


def kv_write(
    k_THD: Tensor,
    v_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> None:
    """Copy row t's key and value of every head into slot `slots[t]`.

    k_THD, v_THD: `[T, Hkv, D]`, the key and value head sizes may differ.
    k_cache, v_cache: `[pages, Hkv, page, D]`, changed in place; stored head by head (stride of the
    head axis largest) the flattening below is free.
    slots: int64 `[T]`, distinct, page x page_size + offset; `[T, Hkv]` where heads differ.
    k_scales, v_scales: float32 `[pages, Hkv, page, 1]`, changed too, of caches in 8 bits.
    """
    for rows, cache, scales in ((k_THD, k_cache, k_scales), (v_THD, v_cache, v_scales)):
        if scales is not None:
            rows, of_rows = quantise(rows, cache.dtype)
            _put(of_rows, scales, slots)
            rows, cache = as_bits(rows), as_bits(cache)
        elif rows.dtype != cache.dtype:
            rows = rows.to(cache.dtype)
        _put(rows, cache, slots)


def _put(rows_THD: Tensor, cache: Tensor, slots: Tensor) -> None:
    heads = cache.transpose(0, 1)
    flat = heads.view(heads.shape[0], -1, heads.shape[3])
    rows = rows_THD.transpose(0, 1)
    if slots.ndim == 1:
        flat.index_copy_(1, slots, rows)
    else:
        flat.scatter_(1, slots.T[..., None].expand_as(rows), rows)
