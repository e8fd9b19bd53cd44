"""What every attention of a step begins with: the rows' own keys and values go into the cache."""

from torch import Tensor

from ...kernels.backend import Kernels
from ...kvcache.store import KVStore, Scales


def written(
    kernels: Kernels, store: KVStore, layer: int, k_RKD: Tensor, v_RKD: Tensor, slots: Tensor
) -> tuple[tuple[Tensor, Tensor], Scales]:
    """Write a layer's keys and values `[R, K, D]`; returns its caches and their scales.

    `slots`: int64 `[R]`, or `[R, K]` where heads differ. Scales: none unless the cache has 8 bits.
    """
    caches, scales = (store.keys[layer], store.values[layer]), store.scales[layer]
    kernels.kv_write(k_RKD, v_RKD, *caches, slots, **scales)
    return caches, scales
