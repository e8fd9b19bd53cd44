"""Checkpoints of compressed-tensors: `quant_method` "compressed-tensors".

    pack-quantized         weight_packed int32 [N, K x bits / 32], weight_scale [N, G],
                           weight_zero_point int32 [N x bits / 32, G], weight_g_idx int32 [K]
    int-, naive-quantized  weight int8 [N, K], weight_scale [N, G] or [1], weight_zero_point int8
    float-quantized        weight E4M3 [N, K], weight_scale [N, G], [1] or of blocks
    nvfp4-, mxfp4-pack-    weight_packed uint8 [N, K / 2], the first of two codes in the lower bits;
    quantized              weight_scale E4M3 [N, K / 16] with weight_global_scale, which divides it;
                           or exponents uint8 [N, K / 32], 127 added
    mxfp8-quantized        weight E4M3 [N, K], weight_scale exponents uint8 [N, K / 32]

w = scale x (code - zero); packed codes and zeros of b bits have 2^(b - 1) added. What the config
says of activations is not used (compressed_tensors/compressors, quantization/lifecycle).
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor

from ..quantization_config import QuantizationFields
from .format import PublishedFormat
from .fp8 import drop_activations, numbers, spread
from .layers import Integers, code_weight, integer_weights
from .mxfp4 import powers
from .schemes import Scheme, Schemes
from .stored import StoredTensors
from .unpack import unpack, words

_PACKED: Final = "weight_packed"
_SCALE: Final = "weight_scale"
_INTEGERS: Final = (torch.int32, torch.int64)


class CompressedTensors(PublishedFormat):
    """See the module."""

    name = "compressed_tensors"
    methods = ("compressed-tensors",)

    def read(self, config: QuantizationFields, stored: StoredTensors) -> dict[str, Tensor]:
        """See `PublishedFormat`."""
        config.inside("sparsity_config").text("format", ("dense",), "dense")
        if config.inside("transform_config").get("config_groups"):
            raise config.wrong("transform_config", "is not served: layers would need its products")
        schemes = Schemes(config)
        found: dict[str, Tensor] = {}
        integers: dict[str, Integers] = {}
        for module in stored.modules(_SCALE):
            scheme, name = schemes.of(module), f"{module}.weight"
            if scheme.kind == "int":
                integers[name] = _integers(module, scheme, stored)
            else:
                found[name] = _floats(module, scheme, stored)
        for module in stored.modules(_PACKED):
            name = f"{module}.{_PACKED}"
            raise stored.wrong(name, f"has no {_SCALE} beside it")
        drop_activations(stored)
        return found | integer_weights(integers) | stored.rest()


def _integers(module: str, scheme: Scheme, stored: StoredTensors) -> Integers:
    if scheme.form == "pack-quantized":
        codes, (outputs, inputs) = _packed_codes(module, scheme, stored)
    elif scheme.form in ("int-quantized", "naive-quantized"):
        codes, (outputs, inputs) = _plain_codes(module, scheme, stored)
    else:
        raise scheme.place.wrong("type", f"is int, and the format is {scheme.form}")
    middle = 1 << (scheme.bits - 1)
    of, group = f"{module}.{_SCALE}", scheme.group or inputs
    if inputs % group:
        raise stored.wrong(of, f"is of {inputs} inputs, which group_size ({group}) does not divide")
    shape, group_of = (outputs, inputs // group), None
    if stored.has(f"{module}.weight_g_idx"):
        group_of = _order(module, stored, inputs, group)
    scales = _grid(stored, of, stored.scales(of, of=of), shape, scheme)
    zeros: Tensor | int = middle
    zero_name = f"{module}.weight_zero_point"
    if not scheme.symmetric:
        given = stored.need(zero_name, of=of, dtypes=(torch.int8, torch.int32))
        if given.dtype == torch.int32:  # packed along the outputs
            stored.check(
                zero_name, given, dtypes=_INTEGERS, shape=(words(outputs, scheme.bits), shape[1])
            )
            zeros = unpack(given.t(), scheme.bits, outputs).t().contiguous()
        else:
            wide = _grid(stored, zero_name, given, shape, scheme).int() + middle
            if bool((wide < 0).any()) or bool((wide >= 2 * middle).any()):
                raise stored.wrong(zero_name, f"has zeros beyond {scheme.bits} bits")
            zeros = wide.to(torch.uint8)
    stored.drop([zero_name])
    return Integers(
        codes=codes, inputs=inputs, bits=scheme.bits, scales=scales, zeros=zeros, group_of=group_of
    )


def _packed_codes(
    module: str, scheme: Scheme, stored: StoredTensors
) -> tuple[Callable[[], Tensor], tuple[int, int]]:
    of, name, shape_name = (f"{module}.{part}" for part in (_SCALE, _PACKED, "weight_shape"))
    packed = stored.need(name, of=of, dtypes=(torch.int32,))
    given = stored.need(shape_name, of=of, dtypes=_INTEGERS, shape=(2,)).tolist()
    outputs, inputs = given
    fits = packed.ndim == 2 and outputs > 0 and inputs > 0
    if not fits or list(packed.shape) != [outputs, words(inputs, scheme.bits)]:
        raise stored.wrong(
            name, f"has the shape {list(packed.shape)}, which is none of {scheme.bits} bits for "
            f"{outputs} x {inputs} weights",
        )  # fmt: skip
    return partial(unpack, packed, scheme.bits, inputs), (outputs, inputs)


def _plain_codes(
    module: str, scheme: Scheme, stored: StoredTensors
) -> tuple[Callable[[], Tensor], tuple[int, int]]:
    name, middle = f"{module}.weight", 1 << (scheme.bits - 1)
    weight = stored.need(name, of=f"{module}.{_SCALE}", dtypes=(torch.int8,))
    if weight.ndim != 2 or not weight.numel():
        raise stored.wrong(name, "is no matrix")
    if int(weight.min()) < -middle or int(weight.max()) >= middle:
        raise stored.wrong(name, f"has codes beyond {scheme.bits} bits")
    return lambda: (weight.int() + middle).to(torch.uint8), (weight.shape[0], weight.shape[1])


def _order(module: str, stored: StoredTensors, inputs: int, group: int) -> Tensor | None:
    """The group of each input; None: groups are runs."""
    name = f"{module}.weight_g_idx"
    given = stored.need(name, of=name, dtypes=_INTEGERS, shape=(inputs,)).long()
    if bool((given == -1).all()):  # as it is filled where there is no order
        return None
    if bool((given < 0).any()) or bool((given >= inputs // group).any()):
        raise stored.wrong(name, f"names groups beyond the {inputs // group} that there are")
    return None if torch.equal(given, torch.arange(inputs) // group) else given


def _grid(
    stored: StoredTensors, name: str, given: Tensor, shape: tuple[int, int], scheme: Scheme
) -> Tensor:
    """Scales or zeros `[N, G]`; one for all is spread."""
    if given.numel() == 1:
        return given.reshape(1, 1).expand(shape)
    if given.ndim == 1 and shape[1] == 1:
        given = given[:, None]
    if tuple(given.shape) != shape:
        raise stored.wrong(
            name, f"has the shape {list(given.shape)}, and {list(shape)} is expected"
            + (f" (group_size is {scheme.group})" if scheme.group else ""),
        )  # fmt: skip
    return given


def _floats(module: str, scheme: Scheme, stored: StoredTensors) -> Tensor:
    four = ("nvfp4-pack-quantized", "mxfp4-pack-quantized")
    if scheme.bits == 4 and scheme.form in four:
        return _of_4_bits(module, scheme, stored)
    if scheme.bits != 8 or scheme.form in ("pack-quantized", "int-quantized", *four):
        raise scheme.place.wrong(
            "num_bits", f"is {scheme.bits}, of the type float and the format {scheme.form}"
        )
    of, name = f"{module}.{_SCALE}", f"{module}.weight"
    if not stored.has(name):
        raise stored.wrong(of, "has no weight beside it")
    codes = numbers(stored, name)
    outputs, inputs = codes.shape
    if scheme.form == "mxfp8-quantized":
        if inputs % 32:
            raise stored.wrong(name, f"has {inputs} inputs, which are not whole groups of 32")
        exponents = stored.need(of, of=of, dtypes=(torch.uint8,), shape=(outputs, inputs // 32))
        return code_weight(codes, powers(stored, of, exponents), "E4M3")
    scales = stored.scales(of, of=of).float()
    if scheme.block is not None:
        return code_weight(
            codes, spread(stored, of, scales, (outputs, inputs), scheme.block), "E4M3"
        )
    group = scheme.group or inputs
    if inputs % group:
        raise stored.wrong(of, f"is of {inputs} inputs, which group_size ({group}) does not divide")
    return code_weight(codes, _grid(stored, of, scales, (outputs, inputs // group), scheme), "E4M3")


def _of_4_bits(module: str, scheme: Scheme, stored: StoredTensors) -> Tensor:
    of, name = f"{module}.{_SCALE}", f"{module}.{_PACKED}"
    pairs = stored.need(name, of=of, dtypes=(torch.uint8,))
    group = 16 if scheme.form == "nvfp4-pack-quantized" else 32
    if pairs.ndim != 2 or not pairs.numel() or 2 * pairs.shape[1] % group:
        raise stored.wrong(
            name, f"has the shape {list(pairs.shape)}, which is none of groups of {group}"
        )
    outputs, inputs = pairs.shape[0], 2 * pairs.shape[1]
    shape = (outputs, inputs // group)
    codes = torch.stack((pairs & 15, pairs >> 4), dim=2).flatten(1)
    if group == 32:
        exponents = stored.need(of, of=of, dtypes=(torch.uint8,), shape=shape)
        return code_weight(codes, powers(stored, of, exponents), "E2M1")
    scales = stored.scales(of, of=of, shape=shape, more=(torch.float8_e4m3fn,)).float()
    divisor_name = f"{module}.weight_global_scale"
    divisor = stored.scales(divisor_name, of=of).float()
    if divisor.numel() != 1 or not bool(divisor > 0):
        raise stored.wrong(divisor_name, "is not one positive number")
    scales = scales / divisor.reshape(())
    stored.check_scales(divisor_name, scales)
    return code_weight(codes, scales, "E2M1")


COMPRESSED_TENSORS = CompressedTensors()
