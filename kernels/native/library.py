"""The compiled kernels for CPUs: which build of them serves here, and the structures they take.

One source is compiled several times, each for processors of another kind (pyproject.toml); the best
that this processor runs is loaded. None of them there (no compiler at installation), or none that
loads: everything runs on torch, and `Unavailable` says why.
"""

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

_HERE: Final = Path(__file__).parent
_VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "_avx512": ("avx512_f", "avx512_cd", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni"),
    "_avx2": ("avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt"),
    "_plain": (),
}
"""Builds, the best first, and what a processor needs for each, as torch calls it."""


class PanelsStruct(Structure):
    """`Panels` of linear/native.h."""

    _fields_: ClassVar = [
        ("kind", c_int64),
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("zero", c_int64),
        ("end", c_int64),
    ]


class LinearStruct(Structure):
    """`Linear` of linear/native.h."""

    _fields_: ClassVar = [
        ("parts", POINTER(PanelsStruct)),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("rows_as", c_int64),
        ("order", c_void_p),
    ]


class CacheStruct(Structure):
    """`Cache` of paged_attention/native.h."""

    _fields_: ClassVar = [
        ("elements", c_void_p),
        ("scales", c_void_p),
        ("by_head", c_int64),
        ("by_page", c_int64),
        ("size", c_int64),
        ("stored", c_int64),
    ]


class AttentionStruct(Structure):
    """`Attention` of paged_attention/native.h."""

    _fields_: ClassVar = [
        ("keys", CacheStruct),
        ("values", CacheStruct),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int64),
        ("sinks", c_void_p),
    ]


class BatchStruct(Structure):
    """`Batch` of paged_attention/native.h."""

    _fields_: ClassVar = [
        ("sequences", c_int64),
        ("page_size", c_int64),
        ("starts", c_void_p),
        ("lengths", c_void_p),
        ("pages", c_void_p),
        ("paths", c_void_p),
        ("depths", c_void_p),
    ]


class NormStruct(Structure):
    """`Norm` of decoder/native.h."""

    _fields_: ClassVar = [("weight", c_void_p), ("floor", c_float)]


class LayerStruct(Structure):
    """`Layer` of decoder/native.h."""

    _fields_: ClassVar = [
        ("before", NormStruct),
        ("after", NormStruct),
        ("of_queries", NormStruct),
        ("of_keys", NormStruct),
        ("qkv", LinearStruct),
        ("out", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("attention", AttentionStruct),
        ("width", c_int64),
        ("rotary_size", c_int64),
        ("gates", c_int64),
    ]


class HeadStruct(Structure):
    """`Head` of decoder/native.h."""

    _fields_: ClassVar = [("norm", NormStruct), ("linear", LinearStruct)]


class BytesStruct(Structure):
    """`Bytes` of linear/native.h."""

    _fields_: ClassVar = [("values", c_void_p), ("scales", c_void_p), ("sums", c_void_p)]


class RoomStruct(Structure):
    """`Room` of decoder/native.h."""

    _fields_: ClassVar = [
        ("x", c_void_p),
        ("normed", c_void_p),
        ("qkv", c_void_p),
        ("attended", c_void_p),
        ("gated", c_void_p),
        ("bytes", BytesStruct),
    ]


class EvictingStruct(Structure):
    """`Evicting` of decoder/native.h."""

    _fields_: ClassVar = [("slots", c_void_p), ("weights", c_void_p), ("votes", c_void_p)]


class LowRankStruct(Structure):
    """`LowRank` of linear/low_rank.h."""

    _fields_: ClassVar = [
        ("down", c_void_p),
        ("up", c_void_p),
        ("firsts", c_void_p),
        ("begins", c_void_p),
        ("ranks", c_int64),
    ]


class AdapterSpanStruct(Structure):
    """`AdapterSpan` of linear/low_rank.h."""

    _fields_: ClassVar = [("begin", c_int64), ("end", c_int64), ("layers", POINTER(LowRankStruct))]


class AdaptersStruct(Structure):
    """`Adapters` of linear/low_rank.h."""

    _fields_: ClassVar = [
        ("spans", POINTER(AdapterSpanStruct)),
        ("count", c_int64),
        ("of_row", c_void_p),
        ("room", c_void_p),
        ("width", c_int64),
    ]


class AddedStruct(Structure):
    """`Added` of linear/low_rank.h."""

    _fields_: ClassVar = [("adapters", POINTER(AdaptersStruct)), ("layer", c_int64)]


class StepStruct(Structure):
    """`Step` of decoder/native.h."""

    _fields_: ClassVar = [
        ("batch", BatchStruct),
        ("rows", c_int64),
        ("evicting", POINTER(EvictingStruct)),
        ("adapters", POINTER(AdaptersStruct)),
        ("factors", c_void_p),
        ("slots", c_void_p),
        ("room", RoomStruct),
    ]


class StridedStruct(Structure):
    """`Strided` of recurrence/native.h."""

    _fields_: ClassVar = [
        ("at", c_void_p),
        ("by_sequence", c_int64),
        ("by_token", c_int64),
        ("by_head", c_int64),
    ]


class DeltaStruct(Structure):
    """`Delta` of recurrence/native.h."""

    _fields_: ClassVar = [
        *((name, StridedStruct) for name in ("q", "k", "v", "decay", "beta")),
        ("state", c_void_p),
        ("out", c_void_p),
        *((name, c_int64) for name in ("sequences", "tokens", "key_heads", "heads")),
        *((name, c_int64) for name in ("key_size", "value_size", "by_key", "normalise")),
        ("scale", c_float),
    ]


class StateSpaceStruct(Structure):
    """`StateSpace` of recurrence/native.h."""

    _fields_: ClassVar = [
        *((name, StridedStruct) for name in ("x", "dt", "b", "c")),
        *((name, c_void_p) for name in ("a", "d", "state", "out")),
        *((name, c_int64) for name in ("sequences", "tokens", "groups", "heads")),
        *((name, c_int64) for name in ("head_size", "state_size")),
    ]


class ScanStruct(Structure):
    """`Scan` of recurrence/native.h."""

    _fields_: ClassVar = [
        *((name, StridedStruct) for name in ("x", "dt", "b", "c")),
        *((name, c_void_p) for name in ("a", "d", "state", "out")),
        *((name, c_int64) for name in ("sequences", "tokens", "channels", "state_size")),
    ]


class ConvolutionStruct(Structure):
    """`Convolution` of recurrence/native.h."""

    _fields_: ClassVar = [
        ("x", c_void_p),
        *((name, c_int64) for name in ("by_sequence", "by_channel", "by_token")),
        *((name, c_void_p) for name in ("state", "weight", "bias", "out")),
        *((name, c_int64) for name in ("sequences", "tokens", "channels", "width", "held")),
        ("activates", c_int64),
    ]


_LONG = c_int64
_AT = c_void_p
_SIGNATURES: Final[Mapping[str, tuple[list[Any], Any]]] = {
    "lanes": ([], _LONG),
    "multiplies_bytes": ([], _LONG),
    "packed_size": ([_LONG, _LONG], _LONG),
    "narrowest": ([_AT, _LONG], _LONG),
    "pack": ([_AT, _LONG, _LONG, _LONG, _AT, _LONG], None),
    "pack_words": ([_AT, _LONG, _LONG, _LONG, _AT, _LONG], None),
    "block_layout": ([_LONG], _LONG),
    "block_zero": ([_LONG], _LONG),
    "block_bytes": ([_LONG, _LONG, _LONG], _LONG),
    "pack_blocks": ([_LONG, _AT, _LONG, _LONG, _AT, _LONG], None),
    "dequantise": ([_LONG, _AT, _LONG, _LONG, _AT, _LONG], None),
    "planes": ([_LONG, _AT, _LONG, _LONG, *[_AT] * 4, _LONG], None),
    "quantise": ([_AT, _LONG, _LONG, _AT, _LONG], None),
    "unpack_rows": ([POINTER(LinearStruct), _AT, _LONG, _AT, _LONG], _LONG),
    "pack_bytes": ([_AT, _LONG, _LONG, _AT, _AT, _LONG], None),
    "linear": ([POINTER(LinearStruct), _AT, _LONG, _AT, POINTER(BytesStruct), _LONG], None),
    "paged_attention": (
        [POINTER(BatchStruct), POINTER(AttentionStruct), _AT, _LONG, _AT, _LONG, _LONG],
        None,
    ),
    "scored_attention": (
        [POINTER(BatchStruct), POINTER(AttentionStruct), *[_AT, _LONG] * 2, _AT, _AT, _LONG],
        None,
    ),
    "grouped": (
        [POINTER(LinearStruct), _AT, _LONG, _AT, _AT, POINTER(BytesStruct), _LONG],
        None,
    ),
    "delta": ([POINTER(DeltaStruct), _LONG], None),
    "state_space": ([POINTER(StateSpaceStruct), _LONG], None),
    "scan": ([POINTER(ScanStruct), _LONG], None),
    "convolve": ([POINTER(ConvolutionStruct), _LONG], None),
    "most_group": ([], _LONG),
    "gumbel_argmax": ([_AT, _LONG, _LONG, _AT, _AT, _AT, _AT, _LONG], None),
    "layers": ([POINTER(LayerStruct), _LONG, POINTER(StepStruct), _LONG], None),
    "before_attention": ([POINTER(LayerStruct), _LONG, POINTER(StepStruct), _LONG], None),
    "after_attention": ([POINTER(LayerStruct), _LONG, POINTER(StepStruct), _LONG], None),
    "memory_new": ([], _AT),
    "memory_free": ([_AT], None),
    "suggester_new": ([_AT, _AT, _LONG, _LONG, _LONG, _LONG], _AT),
    "suggester_free": ([_AT], None),
    "suggest": ([_AT, _LONG, _LONG, _AT, _LONG, c_double, _AT], _LONG),
    "suggester_draft": ([_AT, _LONG, _AT, _AT], _LONG),
    "suggester_learn": ([_AT, _AT, _LONG], None),
    "suggester_finish": ([_AT], None),
    "head": (
        [
            POINTER(HeadStruct),
            POINTER(StepStruct),
            _AT,
            _LONG,
            _AT,
            _AT,
            POINTER(AddedStruct),
            _LONG,
        ],
        None,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A build that was loaded. `call`: its functions, by their names without `penstock_`.

    `lanes`: floats of one vector. `multiplies_bytes`: it has products of 8 bits (VNNI).
    """

    name: str
    call: Any
    lanes: int
    multiplies_bytes: bool


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why no build serves, in words that follow a colon."""

    reason: str


@cache
def library() -> Library | Unavailable:
    """The best build for this processor; found once."""
    found, problems = builds()
    if found:
        return found[0]
    return Unavailable(
        "; ".join(problems) or "they have not been compiled (a C++ compiler at installation)"
    )


def builds() -> tuple[list[Library], list[str]]:
    """All builds that run on this processor, the best first; and why others do not load."""
    has = torch.cpu.get_capabilities()
    found: list[Library] = []
    problems: list[str] = []
    for name, needs in _VARIANTS.items():
        path = next(
            filter(Path.is_file, (_HERE / (name + end) for end in EXTENSION_SUFFIXES)), None
        )
        if path is None or not all(has.get(need) for need in needs):
            continue
        try:
            found.append(_load(name.removeprefix("_"), path))
        except (OSError, AttributeError) as error:
            problems.append(f"{path.name} does not load ({error})")
    return found, problems


def _load(name: str, path: Path) -> Library:
    loaded = ctypes.CDLL(str(path))
    call = SimpleNamespace()
    for function, (arguments, result) in _SIGNATURES.items():
        found = getattr(loaded, f"penstock_{function}")
        found.argtypes, found.restype = arguments, result
        setattr(call, function, found)
    return Library(
        name=name,
        call=call,
        lanes=call.lanes(),
        multiplies_bytes=bool(call.multiplies_bytes()),
    )


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's elements begin. Whoever passes it on keeps the tensor."""
    return None if tensor is None else tensor.data_ptr()
