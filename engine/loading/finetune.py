"""A fine-tune as an adapter of its base: the low-rank part of each layer's difference, in few bits.

D = W' - W is nearly of low rank for most fine-tunes (arXiv:2106.09685, arXiv:2402.10193); its best
approximation of rank r is the truncated singular value decomposition (Eckart and Young, 1936). Of
each matrix the smallest rank is taken whose part has the wanted share of |D|^2. A is stored in
blocks first and B fitted to what A then is, so that B makes up for some of A's rounding.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ...errors import ConfigurationError
from ...kernels.linear.blocks import BLOCK_TYPES, QUANTISED, dequantise, quantise
from ..attention.interface import register
from ..model.fused.origins import linear_places
from . import adapter_folder
from .checkpoint import Checkpoint
from .safetensors_files import StoredTensor
from .settings import ModelSettings
from .text_part import without_memory
from .weights import build_config

Bits = Literal[4, 8, 16]
_ITERATIONS: Final = 4
_MORE: Final = 8
"""Singular vectors that are computed beyond those wanted, which makes these exact."""
_BLOCK_INPUTS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`rank`: of every matrix; None: the smallest with this share of |D|^2, up to `most`."""

    rank: int | None
    energy: float
    most: int
    bits: Bits


@dataclass(slots=True, kw_only=True)
class Kept:
    """What became of the difference. `squares`: sums of squares, of linear layers and the rest.

    `lost`: of the linear layers' difference, what the adapter does not have. `left_out`: changed
    tensors that no adapter can hold.
    """

    ranks: dict[str, int] = field(default_factory=dict[str, int])
    squares: float = 0.0
    lost: float = 0.0
    other_squares: float = 0.0
    left_out: list[str] = field(default_factory=list[str])
    adapter_bytes: int = 0
    tuned_bytes: int = 0


def compress(
    base: Checkpoint,
    tuned: Checkpoint,
    output: Path,
    wanted: Wanted,
    *,
    progress: Callable[[Iterator[str], int], Iterator[str]],
) -> Kept:
    """Write an adapter of `base` that comes near to `tuned`.

    `progress`: passes on the names of tensors, and may show how far it is.

    Raises:
        ConfigurationError: they are no two checkpoints of one shape, or do not differ in a layer.
    """
    stored, other = base.stored(), tuned.stored()
    _check(base, tuned, stored, other)
    layers = _linear_weights(base)
    kept, tensors = Kept(tuned_bytes=_bytes(other)), dict[str, Tensor]()
    for name in progress(iter(sorted(stored)), len(stored)):
        difference = tuned.read(name, other[name]).float() - base.read(name, stored[name]).float()
        squares = float(difference.double().square().sum())
        if not squares:
            continue
        if name not in layers:
            kept.other_squares += squares
            kept.left_out.append(name)
            continue
        module, is_transposed = layers[name]
        matrix = difference.t().contiguous() if is_transposed else difference
        down, up = factors(matrix, squares, wanted)
        stored_pair, down, up = _stored(down, matrix, wanted.bits, up)
        for part, tensor in stored_pair.items():
            tensors[f"{adapter_folder.PREFIX}{module}.{part}"] = tensor
        kept.ranks[module] = down.shape[0]
        kept.squares += squares
        kept.lost += float((matrix - up @ down).double().square().sum())
    if not tensors:
        raise ConfigurationError(f"{tuned.path}: no linear layer differs from {base.path}")
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / adapter_folder.WEIGHTS, metadata={"format": "pt"})
    fields = _fields(kept.ranks, base, wanted.bits)
    (output / adapter_folder.CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
    kept.adapter_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return kept


def factors(matrix: Tensor, squares: float, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """A `[r, K]` and B `[N, r]` with B A near to the matrix `[N, K]`, whose |D|^2 is `squares`."""
    smallest = min(matrix.shape)
    limit = min(smallest, wanted.most if wanted.rank is None else wanted.rank)
    if 2 * limit >= smallest:
        u, s, v_t = torch.linalg.svd(matrix, full_matrices=False)
        v = v_t.t()
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=limit + _MORE, niter=_ITERATIONS)
    rank = limit
    if wanted.rank is None:
        reached = s.double().square().cumsum(0) >= wanted.energy * squares
        rank = min(limit, int((~reached).sum()) + 1)
    root = s[:rank].sqrt()
    return (v[:, :rank] * root).t().contiguous(), (u[:, :rank] * root).contiguous()


def _stored(
    down: Tensor, matrix: Tensor, bits: Bits, up: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The pair as it is stored, and A and B as they will be read."""
    found: dict[str, Tensor] = {}
    found["lora_A." + _how(down, bits)], down = _in_bits(down, bits)
    # The best B for this A: it minimises |D - B A|^2.
    gram = down.double() @ down.double().t()
    solved = torch.linalg.lstsq(gram, down.double() @ matrix.double().t()).solution
    if torch.isfinite(solved).all():
        up = solved.t().float()
    rows = up.t().contiguous()
    how = _how(rows, bits)
    kept, rows = _in_bits(rows, bits)
    found["lora_B." + how] = kept if how == adapter_folder.BLOCKS else kept.t().contiguous()
    return found, down, rows.t()


def _how(rows: Tensor, bits: Bits) -> str:
    whole = bits != 16 and rows.shape[1] % _BLOCK_INPUTS == 0
    return adapter_folder.BLOCKS if whole else "weight"


def _in_bits(rows: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Rows as they are stored, and in float32 as they will be read."""
    if _how(rows, bits) == "weight":
        kept = rows.to(torch.bfloat16)
        return kept, kept.float()
    kept = quantise(rows) if bits == 4 else _q8_0(rows)
    return kept, dequantise(kept, block_type(bits))


def block_type(bits: Bits) -> str:
    """The blocks of 4 or 8 bits."""
    return QUANTISED if bits == 4 else "Q8_0"


def _q8_0(rows: Tensor) -> Tensor:
    """Blocks of 32 integers of 8 bits and a scale in half precision."""
    blocks = rows.unflatten(1, (-1, _BLOCK_INPUTS))
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    inverse = torch.where(scales > 0, 1 / scales.float(), 0)
    codes = (blocks * inverse).round().clamp(-127, 127).to(torch.int8)
    raw = torch.cat((scales.view(torch.uint8), codes.view(torch.uint8)), dim=-1)
    assert raw.shape[-1] == BLOCK_TYPES["Q8_0"].bytes
    return raw.flatten(1)


def _fields(ranks: Mapping[str, int], base: Checkpoint, bits: Bits) -> dict[str, Any]:
    """An adapter_config.json: B A as it is, alpha equal to the rank."""
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": dict(ranks),
        "alpha_pattern": dict(ranks),
        "target_modules": sorted(ranks),
        "bias": "none",
        "inference_mode": True,
    }
    return fields if bits == 16 else fields | {adapter_folder.BLOCK_TYPE: block_type(bits)}


def _linear_weights(base: Checkpoint) -> dict[str, tuple[str, bool]]:
    """Names of the weights of linear layers, with the layer's name, and whether they are `[K, N]`.

    Experts of mixtures see some rows only, and take no adapters.
    """
    register()
    settings = ModelSettings(model=str(base.path))
    model = without_memory(build_config(base.folder, settings), settings)
    found: dict[str, tuple[str, bool]] = {}
    for place in linear_places(model):
        (origin,) = place.site.origins
        if "experts" not in origin.name.split("."):
            layer = place.parent.get_submodule(place.name)
            found[f"{origin.name}.weight"] = origin.name, isinstance(layer, Conv1D)
    return found


def _check(
    base: Checkpoint,
    tuned: Checkpoint,
    stored: Mapping[str, StoredTensor],
    other: Mapping[str, StoredTensor],
) -> None:
    """Raise ConfigurationError where two checkpoints are no base and fine-tune."""
    for name in sorted(stored.keys() ^ other.keys()):
        has, lacks = (base, tuned) if name in stored else (tuned, base)
        raise ConfigurationError(f"{lacks.path}: it has no {name}, and {has.path} has")
    for name in sorted(stored):
        if stored[name].shape != other[name].shape:
            raise ConfigurationError(
                f"{tuned.path}: {name} has the shape {list(other[name].shape)}, and in "
                f"{base.path} {list(stored[name].shape)}"
            )
        if not (stored[name].is_floating and other[name].is_floating):
            raise ConfigurationError(f"{base.path}: {name} is no floating-point tensor")


def _bytes(stored: Mapping[str, StoredTensor]) -> int:
    return sum(tensor.numel * tensor.bits // 8 for tensor in stored.values())
