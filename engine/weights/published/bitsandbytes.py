"""Checkpoints of bitsandbytes: `quant_method` "bitsandbytes", in 4 bits (NF4, FP4) or in 8.

  4 bits
    weight                  N x K / 2 bytes, the first of two codes in the upper bits
    weight.absmax           a scale for `blocksize` numbers, one after the other: float32, or
                            (nested) codes of 8 bits
    weight.quant_map        what a code stands for [16]
    weight.nested_absmax, weight.nested_quant_map        of the codes of absmax
    weight.quant_state.bitsandbytes__nf4, ...__fp4       JSON: blocksize, shape, nested_blocksize,
                                                         nested_offset
  8 bits
    weight, SCB             int8 [N, K]; float32 [N], the largest number of each output

w = scale x number(code), where a nested scale is number(code) x scale + offset; and of 8 bits
w = code x (SCB / 127) (bitsandbytes/functional.py, QuantState; backends/default/ops.py;
autograd/_functions.py). Nothing is rounded to 16 bits, as it is there.
"""

import json
import math
from typing import Any, Final

import torch
from torch import Tensor

from ..quantization_config import QuantizationFields
from .format import PublishedFormat
from .layers import TABLES, Integers, code_weight, integer_weights
from .stored import StoredTensors

_STATE: Final = "weight.quant_state.bitsandbytes__"
_TYPES: Final = ("nf4", "fp4")
_PARTS: Final = (torch.uint8, torch.int8, torch.bfloat16, torch.float16, torch.float32)
"""What the bytes of codes may be stored as (`bnb_4bit_quant_storage`)."""


class BitsAndBytes(PublishedFormat):
    """See the module."""

    name = "bitsandbytes"
    methods = ("bitsandbytes",)

    def read(self, config: QuantizationFields, stored: StoredTensors) -> dict[str, Tensor]:
        """See `PublishedFormat`."""
        found = {
            f"{module}.weight": _of_4_bits(module, kind, stored)
            for kind in _TYPES
            for module in stored.modules(f"{_STATE}{kind}")
        }
        integers = {f"{each}.weight": _of_8_bits(each, stored) for each in stored.modules("SCB")}
        return found | integer_weights(integers) | stored.rest()


def _of_8_bits(module: str, stored: StoredTensors) -> Integers:
    name, scale_name = f"{module}.weight", f"{module}.SCB"
    if not stored.has(name):
        raise stored.wrong(scale_name, "has no weight beside it")
    weight = stored.need(name, of=scale_name, dtypes=(torch.int8,))
    if weight.ndim != 2 or not weight.numel():
        raise stored.wrong(name, "is no matrix")
    order = stored.take(f"{module}.weight_format")
    if order is not None and bool((order != 0).any()):
        raise stored.wrong(f"{module}.weight_format", f"is {order.tolist()}; served: 0 (by row)")
    scales = stored.scales(scale_name, of=name, shape=(weight.shape[0],)).float()
    return Integers(
        codes=lambda: weight.view(torch.uint8) ^ 128,
        inputs=weight.shape[1],
        bits=8,
        scales=(scales * (1.0 / 127.0))[:, None],
        zeros=128,
    )


def _of_4_bits(module: str, kind: str, stored: StoredTensors) -> Tensor:
    name = f"{module}.weight"
    state = _State(module, kind, stored)
    outputs, inputs = state.shape
    weight = stored.need(name, of=state.name, dtypes=_PARTS)
    pairs = weight.contiguous().view(torch.uint8).flatten()
    if pairs.numel() != -(-outputs * inputs // 2):
        raise stored.wrong(
            name, f"has {pairs.numel()} bytes, and {outputs * inputs // 2} are expected: its state "
            f"says {outputs} x {inputs}",
        )  # fmt: skip
    codes = torch.stack((pairs >> 4, pairs & 15), dim=1).flatten()[: outputs * inputs]
    codes = codes.view(outputs, inputs)
    table = stored.need(f"{name}.quant_map", of=name, dtypes=(torch.float32,), shape=(16,))
    if not torch.equal(table, TABLES[kind.upper()]):
        raise stored.wrong(f"{name}.quant_map", f"is not that of {kind}")
    scales = _scales(module, state, stored)
    run = math.gcd(state.block, inputs)  # numbers of a row that share a scale
    first = torch.arange(0, outputs * inputs, run) // state.block
    return code_weight(codes, scales[first].view(outputs, -1), kind.upper())


def _scales(module: str, state: "_State", stored: StoredTensors) -> Tensor:
    """Float32 `[blocks]`."""
    name, weight = f"{module}.weight.absmax", f"{module}.weight"
    count = -(-state.shape[0] * state.shape[1] // state.block)
    if not state.nested_block:
        return stored.scales(name, of=weight, shape=(count,)).float()
    codes = stored.need(name, of=weight, dtypes=(torch.uint8,), shape=(count,))
    table = stored.scales(f"{weight}.nested_quant_map", of=weight, shape=(256,))
    outer = stored.scales(
        f"{weight}.nested_absmax", of=weight, shape=(-(-count // state.nested_block),)
    )
    found = table.float()[codes.long()] * outer.float()[torch.arange(count) // state.nested_block]
    found += state.offset
    stored.check_scales(name, found)
    return found


class _State:
    """The JSON of a weight. `nested_block` 0: scales are floats."""

    def __init__(self, module: str, kind: str, stored: StoredTensors) -> None:
        self.name = f"{module}.{_STATE}{kind}"
        raw = stored.need(self.name, of=self.name, dtypes=(torch.uint8,))
        try:
            fields: Any = json.loads(bytes(raw.flatten().tolist()).decode())
        except (ValueError, RecursionError) as error:
            raise stored.wrong(self.name, f"is no JSON: {type(error).__name__}") from error
        if not isinstance(fields, dict):
            raise stored.wrong(self.name, "is no JSON object")
        self._stored, self._fields = stored, fields
        shape: Any = fields.get("shape")
        if not isinstance(shape, list) or len(shape) != 2:
            raise stored.wrong(self.name, "has no shape of two sizes")
        self.shape = self._size(shape[0], "shape"), self._size(shape[1], "shape")
        self.block = self._size(fields.get("blocksize"), "blocksize")
        self.nested_block, self.offset = 0, 0.0
        if stored.has(f"{module}.weight.nested_absmax"):
            self.nested_block = self._size(fields.get("nested_blocksize"), "nested_blocksize")
            self.offset = self._offset()

    def _size(self, value: Any, field: str) -> int:
        if type(value) is not int or not 0 < value < 2**31:
            raise self._stored.wrong(self.name, f"has no positive {field}")
        return value

    def _offset(self) -> float:
        value: Any = self._fields.get("nested_offset")
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._stored.wrong(self.name, "has no finite nested_offset")
        return float(value)


BITSANDBYTES = BitsAndBytes()
