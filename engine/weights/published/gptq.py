"""GPTQ checkpoints: `quant_method` "gptq", as AutoGPTQ and GPTQModel write them.

    qweight  int32 [K x bits / 32, N]   codes, packed along the inputs
    qzeros   int32 [G, N x bits / 32]   zeros, packed along the outputs
    scales   [G, N]
    g_idx    int32 [K]                  the group of each input; not always there

w = scale x (code - zero). In the first format a zero is stored less 1, cut to its bits: 15 stands
for 0 of 4 bits; "gptq_v2" stores it as it is (gptqmodel/utils/model_dequant.py,
nn_modules/qlinear/__init__.py). Bits are read off the shapes: `dynamic` may change them by layer.
"""

from functools import partial
from typing import Final

import torch
from torch import Tensor

from ..quantization_config import QuantizationFields
from .format import PublishedFormat
from .layers import Integers, integer_weights, uniform
from .stored import StoredTensors
from .unpack import unpack, words

_BITS: Final = (2, 3, 4, 8)
_WORDS: Final = (torch.int32,)


class Gptq(PublishedFormat):
    """Layers whose inputs are in another order than their groups (`desc_act`) become floats."""

    name = "gptq"
    methods = ("gptq",)

    def read(self, config: QuantizationFields, stored: StoredTensors) -> dict[str, Tensor]:
        """See `PublishedFormat`."""
        bits = config.one_of("bits", _BITS)
        first = config.text("checkpoint_format", ("gptq", "gptq_v2"), "gptq") == "gptq"
        config.text("pack_dtype", ("int32",), "int32")
        size = config.group_size()
        varied = bool(config.get("dynamic"))
        layers = {
            f"{module}.weight": _layer(
                module,
                stored,
                bits=None if varied else bits,
                size=None if varied else size,
                first=first,
            )
            for module in stored.modules("qweight")
        }
        return integer_weights(layers) | stored.rest()


def _layer(
    module: str, stored: StoredTensors, *, bits: int | None, size: int | None, first: bool
) -> Integers:
    """`bits`, `size` of groups: those of all layers; None: each has its own."""
    name = f"{module}.qweight"
    codes = stored.need(name, of=name, dtypes=_WORDS)
    zeros = stored.need(f"{module}.qzeros", of=name, dtypes=_WORDS)
    if codes.ndim != 2 or not codes.numel() or zeros.ndim != 2 or not zeros.numel():
        raise stored.wrong(name, "and its zeros are no matrices")
    outputs, groups = codes.shape[1], zeros.shape[0]
    found = 32 * zeros.shape[1] // outputs
    if bits is not None and found != bits:
        raise stored.wrong(
            name, f"and its zeros have {found} bits by their shapes, and bits is {bits}"
        )
    if found not in _BITS or words(outputs, found) != zeros.shape[1]:
        raise stored.wrong(
            name, f"and its zeros have the shapes {list(codes.shape)} and {list(zeros.shape)}, "
            f"which are none of {', '.join(map(str, _BITS))} bits",
        )  # fmt: skip
    inputs = codes.shape[0] * 32 // found
    scales_name = f"{module}.scales"
    scales = stored.scales(scales_name, of=name, shape=(groups, outputs))
    unpacked = unpack(zeros, found, outputs)
    if first:
        unpacked = unpacked + 1 & (1 << found) - 1
    group_of = _groups(module, stored, inputs, groups, size)
    return Integers(
        codes=partial(unpack, codes.t(), found, inputs),
        inputs=inputs,
        bits=found,
        scales=scales.t().contiguous(),
        zeros=uniform(unpacked.t().contiguous(), found),
        group_of=group_of,
    )


def _groups(
    module: str, stored: StoredTensors, inputs: int, groups: int, size: int | None
) -> Tensor | None:
    """The group of each input; None: groups are runs, one after the other.

    `size`: of a group; None: as many as there are say.
    """
    name = f"{module}.g_idx"
    expected = torch.arange(inputs) // (size or -(-inputs // groups))
    given = stored.take(name)
    if given is None:
        if int(expected[-1]) != groups - 1:
            raise stored.wrong(
                f"{module}.scales", f"has {groups} groups, which is none of {inputs} inputs"
                + (f" with group_size {size}" if size else ""),
            )  # fmt: skip
        given = expected
    stored.check(name, given, dtypes=(torch.int32, torch.int64), shape=(inputs,))
    if bool((given < 0).any()) or bool((given >= groups).any()):
        raise stored.wrong(name, f"names groups beyond the {groups} that there are")
    in_runs = inputs % groups == 0 and torch.equal(
        given.long(), torch.arange(inputs) // (inputs // groups)
    )
    return None if in_runs else given.long()


GPTQ = Gptq()
