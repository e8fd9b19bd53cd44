"""Keys of the counter-based Gumbel noise of a row: functions of its seed and position.

The noise of a token is a pure function of the row's keys and the token's id
(`kernels/gumbel_argmax`). So the token drawn is a pure function of the prefix: the rest of the
batch, chunked prefill, caching, preemption and speculative decoding cannot change it.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def row_keys(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Two 32-bit keys per row: int32 `[R, 2]` from uint64 seeds `[R]` and positions `[R]`."""
    with np.errstate(over="ignore"):
        mixed = _splitmix(_splitmix(seeds) + positions.astype(np.uint64) * _GOLDEN)
    return mixed.view(np.int32).reshape(-1, 2)


def derive_seed(seed: int, index: int) -> int:
    """Seed of choice `index` of a request; choice 0 keeps the request's own seed."""
    if index == 0:
        return seed
    with np.errstate(over="ignore"):
        base = np.uint64(seed & 0xFFFFFFFFFFFFFFFF) + np.uint64(index) * _GOLDEN
        return int(_splitmix(base))


def _splitmix(x: np.ndarray | np.uint64) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that mixes all bits."""
    z = np.asarray(x, dtype=np.uint64) + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_A
    z = (z ^ (z >> np.uint64(27))) * _MIX_B
    return z ^ (z >> np.uint64(31))
