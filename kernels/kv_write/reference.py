"""`kv_write` in plain torch: append this step's keys and values to their slots."""

from torch import Tensor


def kv_write(k_THD: Tensor, v_THD: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Copy row t's key and value of every head into slot `slots[t]`.

    k_THD, v_THD: `[T, Hkv, D]`, the key and value head sizes may differ.
    k_cache, v_cache: `[pages, Hkv, page, D]`, changed in place; stored head by head (stride of the
    head axis largest) the flattening below is free.
    slots: int64 `[T]`, distinct, page x page_size + offset.
    """
    for rows, cache in ((k_THD, k_cache), (v_THD, v_cache)):
        heads = cache.transpose(0, 1)
        flat = heads.view(heads.shape[0], -1, heads.shape[3])
        flat.index_copy_(1, slots, rows.transpose(0, 1))
