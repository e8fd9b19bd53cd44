"""Writes quantised checkpoints as they are published, and the same models in float32.

Every writer is the format's definition a second time, number by number: integers are packed as one
large integer, weights are what the definition says of random codes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.kernels.own_blocks import TABLES
from tests.tiny import save_tiny

Written = tuple[dict[str, Tensor], Tensor]
"""What is stored of a layer, by the names behind its own; and its weight, float32 `[N, K]`."""
Writer = Callable[[int, int], Written]
"""Of outputs and inputs."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A checkpoint. `kinds`: of blocks that its layers become; none: they become floats."""

    config: dict[str, Any]
    write: Writer
    kinds: tuple[str, ...]
    architecture: str = "llama"
    changes: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ("proj.weight",)

    @property
    def exact_rows(self) -> bool:
        """Whether products are those of the numbers and not of rows in 8 bits."""
        return not any(kind.startswith(("U", "Q")) for kind in self.kinds)


def save_published(case: Case, place: Path) -> tuple[Path, Path]:
    """A folder as it is published, and one with the same numbers in float32."""
    torch.manual_seed(11)
    plain = save_tiny(case.architecture, place / "plain", **case.changes)
    folder = place / "published"
    copytree(plain, folder)
    numbers = load_file(plain / "model.safetensors")
    kept: dict[str, Tensor] = {}
    for name, tensor in sorted(numbers.items()):
        if not name.endswith((*case.layers, "lm_head.weight")):
            kept[name] = tensor
            continue
        parts, weight = case.write(*tensor.shape)
        module = name.removesuffix(".weight")
        kept |= {f"{module}.{part}": each.clone().contiguous() for part, each in parts.items()}
        numbers[name] = weight.contiguous()
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    save_file(numbers, plain / "model.safetensors", {"format": "pt"})
    edit_config(folder, lambda config: config.update(quantization_config=case.config))
    return folder, plain


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


def in_words(values: Tensor, bits: int) -> Tensor:
    """int32 `[R, words]` of integers `[R, n]`, the first in the lowest bits."""
    rows: list[list[int]] = []
    for row in values.tolist():
        whole = sum(value << i * bits for i, value in enumerate(row))
        size = -(-len(row) * bits // 32)
        raw = whole.to_bytes(4 * size, "little")
        at = range(0, len(raw), 4)
        rows.append([int.from_bytes(raw[i : i + 4], "little", signed=True) for i in at])
    return torch.tensor(rows, dtype=torch.int32)


def some(bits: int, *shape: int) -> Tensor:
    return torch.randint(0, 1 << bits, shape)


def scales(bits: int, *shape: int) -> Tensor:
    """For weights of some 0.1, whatever the bits."""
    return (0.5 + torch.rand(shape)) * 0.3 / (1 << bits)


def shuffled(inputs: int) -> Tensor:
    """One order for all layers of so many inputs: queries, keys and values share theirs."""
    return torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))


def gptq(
    bits: int,
    group: int,
    *,
    symmetric: bool = False,
    second: bool = False,
    ordered: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Case:
    def write(outputs: int, inputs: int) -> Written:
        size = inputs if group == -1 else group
        groups = -(-inputs // size)
        codes, zeros = some(bits, outputs, inputs), some(bits, outputs, groups)
        if symmetric:
            zeros[:] = 1 << (bits - 1)
        scale = scales(bits, outputs, groups).to(dtype)
        of = torch.arange(inputs) // size
        if ordered:
            of = of[shuffled(inputs)]
        stored = zeros if second else (zeros - 1) % (1 << bits)
        parts = {
            "qweight": in_words(codes, bits).t(),
            "qzeros": in_words(stored.t(), bits),
            "scales": scale.t(),
            "g_idx": of.int(),
        }
        return parts, scale.float()[:, of] * (codes - zeros[:, of])

    config = {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered,
        "sym": symmetric, "checkpoint_format": "gptq_v2" if second else "gptq", "lm_head": True,
    }  # fmt: skip
    width = "F32" if dtype == torch.float32 else "F16"
    kinds = (f"U{4 if bits <= 4 else 8}_{width}",)
    if symmetric and dtype != torch.float32:
        kinds = ("Q4_0" if bits <= 4 else "Q8_0",)
    return Case(config=config, write=write, kinds=kinds)


def awq(group: int) -> Case:
    def interleaved(values: Tensor) -> Tensor:
        """Of eight outputs 0, 2, 4, 6, 1, 3, 5, 7."""
        order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
        return in_words(values.t().unflatten(1, (-1, 8))[:, :, order].flatten(1), 4)

    def write(outputs: int, inputs: int) -> Written:
        groups = inputs // group
        codes, zeros = some(4, outputs, inputs), some(4, outputs, groups)
        scale = scales(4, outputs, groups).half()
        of = torch.arange(inputs) // group
        parts = {
            "qweight": interleaved(codes), "qzeros": interleaved(zeros), "scales": scale.t(),
        }  # fmt: skip
        return parts, scale.float()[:, of] * (codes - zeros[:, of])

    config = {
        "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True,
        "version": "gemm",
    }  # fmt: skip
    return Case(config=config, write=write, kinds=("U4_F16",))


def compressed(form: str, weights: dict[str, Any], write: Writer, *kinds: str) -> Case:
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    config = {
        "quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": scheme},
        "ignore": [], "quantization_status": "compressed", "kv_cache_scheme": None,
    }  # fmt: skip
    return Case(config=config, write=write, kinds=kinds)


def packed_integers(
    bits: int, group: int | None, *kinds: str, symmetric: bool = True, ordered: bool = False
) -> Case:
    def write(outputs: int, inputs: int) -> Written:
        groups = inputs // (group or inputs)
        codes, zeros = some(bits, outputs, inputs), some(bits, outputs, groups)
        if symmetric:
            zeros[:] = 1 << (bits - 1)
        scale = scales(bits, outputs, groups).bfloat16()
        of = torch.arange(inputs) // (group or inputs)
        of = of[shuffled(inputs)] if ordered else of
        parts = {
            "weight_packed": in_words(codes, bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor([outputs, inputs]),
        }
        if not symmetric:
            parts["weight_zero_point"] = in_words(zeros.t(), bits).t()
        if ordered:
            parts["weight_g_idx"] = of.int()
        return parts, scale.float()[:, of] * (codes - zeros[:, of])

    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}
    return compressed("pack-quantized", weights, write, *kinds)


def plain_integers(strategy: str, form: str, *kinds: str, symmetric: bool = True) -> Case:
    def write(outputs: int, inputs: int) -> Written:
        codes = some(8, outputs, inputs) - 128
        size = outputs if strategy == "channel" else 1
        scale, zeros = scales(8, size, 1), torch.zeros(size, 1, dtype=torch.int64)
        if not symmetric:
            zeros = some(8, size, 1) - 128
        parts = {"weight": codes.to(torch.int8), "weight_scale": scale}
        if not symmetric:
            parts["weight_zero_point"] = zeros.to(torch.int8)
        return parts, scale * (codes - zeros)

    weights = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": strategy}
    return compressed(form, weights, write, *kinds)


def eights(outputs: int, inputs: int) -> Tensor:
    """E4M3 of every magnitude."""
    sizes = torch.randn(outputs, inputs) * torch.logspace(-3, 1.5, inputs)
    return sizes.to(torch.float8_e4m3fn)


def write_eights(
    rows: int | None, columns: int | None, name: str, dtype: torch.dtype = torch.float32
) -> Writer:
    """A scale for blocks of rows and columns; None: all of them."""

    def write(outputs: int, inputs: int) -> Written:
        high, wide = rows or outputs, columns or inputs
        codes = eights(outputs, inputs)
        grid = (-(-outputs // high), -(-inputs // wide))
        scale = (torch.rand(grid) * 0.02 + 0.01).to(dtype)
        at = torch.arange(outputs)[:, None] // high, torch.arange(inputs) // wide
        parts = {"weight": codes, name: scale, "input_scale": torch.ones(1)}
        return parts, codes.float() * scale.float()[at]

    return write


def fp8(write: Writer, *kinds: str, method: str = "fp8", **fields: Any) -> Case:
    config = {"quant_method": method, "activation_scheme": "dynamic", **fields}
    return Case(config=config, write=write, kinds=kinds)


def write_fours(group: int, *, exponents: bool) -> Writer:
    """NVFP4, and MXFP4 with exponents."""

    def write(outputs: int, inputs: int) -> Written:
        codes, shape = some(4, outputs, inputs), (outputs, inputs // group)
        parts = {"weight_packed": (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)}
        if exponents:
            powers = torch.randint(118, 124, shape)
            parts["weight_scale"] = powers.to(torch.uint8)
            scale = 2.0 ** (powers - 127).float()
        else:
            small = (torch.rand(shape) * 300 + 1).to(torch.float8_e4m3fn)
            parts |= {"weight_scale": small, "weight_global_scale": torch.tensor([7351.5])}
            scale = small.float() / 7351.5
        table = torch.tensor(TABLES["E2M1"])
        return parts, table[codes] * scale.repeat_interleave(group, dim=1)

    return write


def write_exponents(outputs: int, inputs: int) -> Written:
    """MXFP8."""
    codes, powers = eights(outputs, inputs), torch.randint(118, 124, (outputs, inputs // 32))
    scale = (2.0 ** (powers - 127).float()).repeat_interleave(32, dim=1)
    return {"weight": codes, "weight_scale": powers.to(torch.uint8)}, codes.float() * scale


def bitsandbytes(kind: str, block: int, *kinds: str, nested: bool) -> Case:
    table = torch.tensor([float(each) for each in TABLES[kind.upper()]])

    def write(outputs: int, inputs: int) -> Written:
        codes, count = some(4, outputs * inputs), -(-outputs * inputs // block)
        state: dict[str, Any] = {
            "quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [outputs, inputs],
        }  # fmt: skip
        parts = {
            "weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None],
            "weight.quant_map": table,
        }
        scale = torch.rand(count) * 0.2
        if nested:
            small, numbers = some(8, count), torch.linspace(-1, 1, 256)
            outer = torch.rand(-(-count // 256)) * 0.1
            scale = numbers[small] * outer[torch.arange(count) // 256] + 0.15
            parts |= {
                "weight.absmax": small.to(torch.uint8),
                "weight.nested_absmax": outer,
                "weight.nested_quant_map": numbers,
            }
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.15}
        else:
            parts["weight.absmax"] = scale
        raw = json.dumps(state).encode()
        name = f"weight.quant_state.bitsandbytes__{kind}"
        parts[name] = torch.tensor(list(raw), dtype=torch.uint8)
        weight = table[codes] * scale[torch.arange(outputs * inputs) // block]
        return parts, weight.view(outputs, inputs)

    config = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
        "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested,
    }  # fmt: skip
    return Case(config=config, write=write, kinds=kinds)


def write_rows(outputs: int, inputs: int) -> Written:
    """LLM.int8()."""
    codes, largest = some(8, outputs, inputs) - 128, torch.rand(outputs) * 0.3
    parts = {
        "weight": codes.to(torch.int8),
        "SCB": largest,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return parts, codes * (largest * (1.0 / 127.0))[:, None]


def write_experts(experts: int, inputs: int, outputs: int) -> Written:
    """gpt-oss; the names of parts are put behind the parameter's."""
    codes = some(4, experts, outputs, inputs)
    powers = torch.randint(118, 124, (experts, outputs, inputs // 32))
    pairs = (codes[:, :, ::2] | codes[:, :, 1::2] << 4).unflatten(2, (-1, 16))
    numbers = torch.tensor(TABLES["E2M1"])[codes]
    scale = (2.0 ** (powers - 127).float()).repeat_interleave(32, dim=2)
    parts = {"blocks": pairs.to(torch.uint8), "scales": powers.to(torch.uint8)}
    return parts, (numbers * scale).transpose(1, 2)
