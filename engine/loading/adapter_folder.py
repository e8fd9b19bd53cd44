"""Reads a LoRA adapter from a folder of peft's format, or one that `compress-finetune` made.

    adapter_config.json           r, lora_alpha, and what else changes the formula
    adapter_model.safetensors     base_model.model.<module>.lora_A.weight [r, K], and lora_B [N, r]

The added term is (lora_alpha / r) B A x (arXiv:2106.09685); with `use_rslora` (arXiv:2312.03732),
lora_alpha / sqrt(r). Adapters that compute anything else are refused by the name of the field.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from ...errors import ConfigurationError
from ...kernels.linear.blocks import BLOCK_TYPES, dequantise
from ..adapters.weights import AdapterWeights, LowRankPair
from .folder import read_object
from .safetensors_files import StoredTensor, file_tensors
from .stages import printable, stage

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
BLOCKS: Final = "blocks"
"""Behind lora_A or lora_B: rows in the blocks that `BLOCK_TYPE` names, of B the transposed."""
BLOCK_TYPE: Final = "penstock_blocks"
"""The field of the configuration that names the type of these blocks."""
PREFIX: Final = "base_model.model."

_MOST_ALPHA: Final = 1e30
_PARTS: Final = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])\.(?P<how>weight|blocks)")
_BASE: Final = re.compile(r".+\.base_layer\.(weight|bias)")
"""The model's own, which peft writes too where a head is changed; LoRA leaves it as it is."""
_PLAIN: Final = re.compile(r"\^?[A-Za-z0-9_.]+")
_REFUSED: Final[Mapping[str, str]] = {
    "use_dora": "weights are rescaled (DoRA)",
    "use_qalora": "inputs are pooled (QA-LoRA)",
    "alora_invocation_tokens": "it begins in the middle of a prompt (aLoRA)",
    "lora_bias": "it has biases",
    "layer_replication": "layers are there several times",
    "megatron_config": "it is for Megatron's layers",
    "modules_to_save": "it replaces whole modules",
    "trainable_token_indices": "it replaces embeddings of tokens",
    "target_parameters": "it changes parameters that belong to no linear layer",
    "arrow_config": "adapters are chosen by token (Arrow)",
    "kasa_config": "weights are truncated (KaSA)",
    "monteclora_config": "it is sampled (MonteCLoRA)",
    "use_bdlora": "its matrices are block-diagonal (BD-LoRA)",
}
_CHANGE_THE_MODEL: Final = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations that also change the model's own weights."""
Shape = tuple[int, ...]


def read_adapter(folder: Path, *, max_rank: int) -> AdapterWeights:
    """Read an adapter; nothing of it is trusted.

    Raises:
        ConfigurationError: it is damaged, of another kind, or of a higher rank; one line.
    """
    with stage(f"{folder}: the adapter cannot be read"):
        fields = read_object(folder / CONFIG)
        _check(folder / CONFIG, fields)
        path = folder / WEIGHTS
        stored = file_tensors(path)
        pairs = _pairs(path, stored)
        scales: dict[str, float] = {}
        for module, names in pairs.items():
            rank, scales[module] = _scale(folder / CONFIG, fields, module)
            shapes = stored[names[0]].shape, stored[names[1]].shape
            in_blocks = names[1].endswith(BLOCKS)
            _check_rank(path, module, *shapes, rank, max_rank, in_blocks=in_blocks)
        kind = fields.get(BLOCK_TYPE)
        if kind is not None and not (isinstance(kind, str) and kind in BLOCK_TYPES):
            raise ConfigurationError(f"{folder / CONFIG}: {BLOCK_TYPE} names no type of blocks")
        layers: dict[str, LowRankPair] = {}
        with safe_open(path, framework="pt") as file:
            for module, names in pairs.items():
                down, up = (_numbers(path, file, name, kind) for name in names)
                up = up * scales[module]
                if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
                    raise ConfigurationError(f"{path}: {printable(module)} holds NaN or infinity")
                layers[module] = LowRankPair(down=down, up=up)
    ranks = (pair.down.shape[0] for pair in layers.values())
    return AdapterWeights(source=str(folder), rank=max(ranks), layers=layers)


def _check(path: Path, fields: Mapping[str, Any]) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise ConfigurationError(
            f"{path}: peft_type is {printable(repr(kind))}, and only LORA is served"
        )
    for name, why in _REFUSED.items():
        if fields.get(name):
            raise ConfigurationError(f"{path}: {name} is set: {why}, which is not served")
    if fields.get("bias", "none") != "none":
        raise ConfigurationError(f"{path}: bias is set: it has biases, which is not served")
    begun = fields.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGE_THE_MODEL):
        raise ConfigurationError(
            f"{path}: init_lora_weights is {printable(begun)}, which changes the model's own "
            "weights too; convert the adapter to a plain one (peft: save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )


def _pairs(path: Path, stored: Mapping[str, StoredTensor]) -> dict[str, tuple[str, str]]:
    """The names of A and B by module."""
    found: dict[str, dict[str, str]] = {}
    for name in stored:
        if _BASE.fullmatch(name):
            continue
        parts = _PARTS.fullmatch(name)
        if parts is None or not name.startswith(PREFIX):
            raise ConfigurationError(f"{path}: {printable(name)} is no part of LoRA that is served")
        of_module = found.setdefault(parts["module"].removeprefix(PREFIX), {})
        if parts["which"] in of_module:
            raise ConfigurationError(f"{path}: {printable(name)} is there twice")
        of_module[parts["which"]] = name
    if not found:
        raise ConfigurationError(f"{path}: it holds no lora_A and lora_B")
    for module, names in found.items():
        if len(names) < 2:
            raise ConfigurationError(
                f"{path}: {printable(module)} has no pair of lora_A and lora_B"
            )
    return {module: (names["A"], names["B"]) for module, names in found.items()}


def _check_rank(
    path: Path,
    module: str,
    down: Shape,
    up: Shape,
    rank: int,
    max_rank: int,
    *,
    in_blocks: bool,
) -> None:
    """Check a module's rank by the header, before anything large is read."""
    if len(down) != 2 or len(up) != 2 or 0 in (*down, *up):
        raise ConfigurationError(
            f"{path}: {printable(module)} has lora_A of the shape {list(down)} and lora_B of "
            f"{list(up)}, and matrices are expected"
        )
    given = down[0], up[0] if in_blocks else up[1]
    if given != (rank, rank):
        raise ConfigurationError(
            f"{path}: {printable(module)} has the rank {given[0]} (A) and {given[1]} (B), and "
            f"{CONFIG} says {printable(str(rank))}"
        )
    if rank > max_rank:
        raise ConfigurationError(
            f"{path}: {printable(module)} has the rank {rank}, above the limit of {max_rank} "
            "(--max-adapter-rank)"
        )


def _numbers(path: Path, file: Any, name: str, kind: str | None) -> Tensor:
    """A or B in float32."""
    tensor: Tensor = file.get_tensor(name)
    if not name.endswith(BLOCKS):
        if not tensor.is_floating_point():
            raise ConfigurationError(
                f"{path}: {printable(name)} is of {str(tensor.dtype).removeprefix('torch.')}"
            )
        return tensor.float()
    if kind is None or tensor.dtype != torch.uint8 or tensor.shape[1] % BLOCK_TYPES[kind].bytes:
        raise ConfigurationError(f"{path}: {printable(name)} has no whole blocks of a known type")
    rows = dequantise(tensor, kind)
    return rows.t() if ".lora_B." in name else rows


def _scale(path: Path, fields: Mapping[str, Any], module: str) -> tuple[int, float]:
    """A module's rank and the factor of its product."""
    rank = _of_module(path, fields, "r", "rank_pattern", module)
    alpha = _of_module(path, fields, "lora_alpha", "alpha_pattern", module)
    if type(rank) is not int or rank < 1:
        raise ConfigurationError(f"{path}: r is {printable(repr(rank))}, which is no rank")
    if type(alpha) not in (int, float) or not abs(alpha) <= _MOST_ALPHA:
        raise ConfigurationError(f"{path}: lora_alpha is {printable(repr(alpha))}, no number")
    return rank, alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)


def _of_module(path: Path, fields: Mapping[str, Any], name: str, pattern: str, module: str) -> Any:
    patterns = fields.get(pattern) or {}
    if not isinstance(patterns, dict):
        raise ConfigurationError(f"{path}: {pattern} is not an object")
    for each, value in patterns.items():
        if not _PLAIN.fullmatch(each):
            raise ConfigurationError(
                f"{path}: {pattern} has {printable(repr(each))}; only names of modules are served"
            )
        if module == each.removeprefix("^") or (each[0] != "^" and module.endswith("." + each)):
            return value
    return fields.get(name, 8)
