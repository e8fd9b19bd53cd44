"""Blocks of our own types at random, and their numbers one by one: what every reader is held to."""

import struct
from functools import cache

import numpy as np
import torch
from torch import Tensor

from penstock.kernels.linear.own_blocks import OWN_TYPES

TABLES = {
    "NF4": [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ],
    "FP4": [
        sign * np.float32(size) / np.float32(12)
        for sign in (1, -1) for size in (0, 0.0625, 8, 12, 4, 6, 2, 3)
    ],
    "E2M1": [sign * size for sign in (1, -1) for size in (0, 0.5, 1, 1.5, 2, 3, 4, 6)],
}  # fmt: skip


def random_own(kind: str, rows: int, inputs: int) -> Tensor:
    """uint8 `[rows, bytes of a row]`, every bit at random but those of scales; no code is NaN."""
    of = OWN_TYPES[kind]
    raw = torch.randint(0, 256, (rows, inputs // of.inputs, of.bytes), dtype=torch.uint8)
    if kind.startswith("E4M3"):
        raw[(raw & 127) == 127] = 3
    scales = torch.randn(rows, inputs // of.inputs, 1) / 100
    scales = scales.half() if kind.endswith("F16") else scales
    raw[:, :, : scales.element_size()] = scales.view(torch.uint8)
    return raw.flatten(1)


def own_numbers(raw: Tensor, kind: str) -> Tensor:
    found = _numbers(raw.contiguous().numpy().tobytes(), kind)
    return torch.from_numpy(found.copy()).view(raw.shape[0], -1)


@cache  # tests that begin with one seed ask for the same blocks
def _numbers(raw: bytes, kind: str) -> np.ndarray:
    of, (name, _, width) = OWN_TYPES[kind], kind.partition("_")
    size, form = (2, "<e") if width == "F16" else (4, "<f")
    found: list[np.float32] = []
    for at in range(0, len(raw), of.bytes):
        block = raw[at : at + of.bytes]
        scale = np.float32(struct.unpack(form, block[:size])[0])
        codes = block[size:]
        if name in ("U4", "U8"):
            zero, codes = codes[0], codes[1:]
            codes = _apart(codes) if name == "U4" else codes
            found += [scale * np.float32(code - zero) for code in codes]
        elif name == "E4M3":
            found += [scale * _e4m3(code) for code in codes]
        else:
            found += [scale * np.float32(TABLES[name][code]) for code in _apart(codes)]
    return np.array(found, dtype=np.float32)


def _apart(pairs: bytes) -> list[int]:
    return [byte & 15 for byte in pairs] + [byte >> 4 for byte in pairs]


def _e4m3(code: int) -> np.float32:
    """A sign, an exponent of 4 bits with bias 7, a fraction of 3 (OCP 8-bit floats)."""
    sign, exponent, fraction = -1 if code & 128 else 1, code >> 3 & 15, code & 7
    size = fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    return np.float32(sign * size)
