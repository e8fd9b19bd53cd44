"""Quantised checkpoints that are not served, or damaged: a line that names the field or tensor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.engine.config import EngineConfig
from penstock.engine.loading.loader import load_model
from penstock.errors import ConfigurationError
from tests.engine.loading.published_cases import CASES
from tests.engine.loading.published_files import edit_config, edit_tensors, save_published

Q = "model.layers.1.self_attn.q_proj"
STATE = f"{Q}.weight.quant_state.bitsandbytes__nf4"
UNSERVED = ("aqlm", "hqq", "eetq", "quip", "spqr", "vptq", "bitnet", "quark", "torchao")


def refused(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as found:
        load_model(EngineConfig(model=str(folder), threads=1))
    said = str(found.value)
    assert said.isprintable()
    assert len(said) < 500 + len(str(folder))
    assert said.startswith(str(folder))
    return said.replace(f"{folder}/", "")


def at(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set a field of quantization_config, by names with dots."""

    def edit(config: dict[str, Any]) -> None:
        inner = config["quantization_config"]
        *names, last = place.split(".")
        for name in names:
            inner = inner[name]
        inner[last] = value

    return edit


GROUP = "config_groups.group_0"
CONFIGS: list[tuple[str, str, Any, str]] = [
    *(("awq", "quant_method", name, f"is '{name}'; served: awq, bits") for name in UNSERVED),
    ("awq", "quant_method", 5, "is 5; served"),
    ("awq", "quant_method", None, "is null; served"),
    ("gptq-4", "bits", 5, "is 5; served: 2, 3, 4, 8"),
    ("gptq-4", "bits", "4", "is '4'; served: 2, 3, 4, 8"),
    ("gptq-4", "checkpoint_format", "marlin", "is 'marlin'; served: gptq, gptq_v2"),
    ("gptq-4", "pack_dtype", "int16", "is 'int16'; served: int32"),
    ("gptq-4", "group_size", 0, "is 0, and"),
    ("gptq-4", "group_size", [32], "is a list of 1, and"),
    ("gptq-4", "group_size", 10**30, "is 1000"),
    ("awq", "version", "gemv", "is 'gemv'; served: gemm"),
    ("awq", "version", "gemv_fast", "is 'gemv_fast'; served: gemm"),
    ("awq", "bits", 8, "is 8; served: 4"),
    ("awq", "zero_point", False, "is false; served: True"),
    ("packed-4", "format", "marlin-24", "is 'marlin-24'; served: pack-quantized"),
    ("packed-4", "format", "sparse-bitmask", "is 'sparse-bitmask'; served: pack-quantized"),
    ("packed-4", "sparsity_config", {"format": "sparse-24-bitmask"}, ""),
    ("packed-4", "sparsity_config", 3, "is 3, and an object"),
    ("packed-4", "transform_config", {"config_groups": {"u": {}}}, "is not served"),
    ("packed-4", "config_groups", {}, "has no scheme"),
    ("packed-4", "config_groups", [], "is a list of 0, and an object"),
    ("packed-4", "ignore", [Q], f"has '{Q}', which is quantised"),
    ("packed-4", "ignore", ["re:.*q_proj$"], "has 'model.layers.0.self_attn.q_proj'"),
    ("packed-4", "ignore", ["re:("], "has no expression"),
    ("packed-4", "ignore", ["re:" + "x" * 600], "has an expression of 603 letters"),
    ("packed-4", "ignore", 3, "is no list of names"),
    ("packed-4", f"{GROUP}.targets", ["re:.*k_proj"], ""),
    ("packed-4", f"{GROUP}.weights", 3, "is 3, and an object"),
    ("packed-4", f"{GROUP}.weights.num_bits", 16, "is 16; served: 2, 3"),
    ("packed-4", f"{GROUP}.weights.type", "complex", "is 'complex'; served: int, float"),
    ("packed-4", f"{GROUP}.weights.type", "float", ""),
    ("packed-4", f"{GROUP}.weights.strategy", "token", "is 'token'; served: tensor"),
    ("packed-4", f"{GROUP}.weights.group_size", -1, "is missing, and strategy is group"),
    ("float-blocks", f"{GROUP}.weights.block_structure", "8x8", "is '8x8', and a list"),
    ("float-blocks", f"{GROUP}.weights.block_structure", None, "is missing"),
    ("float-channel", f"{GROUP}.weights.num_bits", 4, "is 4, of the type float and the format"),
    ("float-channel", f"{GROUP}.weights.type", "int", ""),
    ("fp8-blocks", "fmt", "e5m2", "is 'e5m2'; served: e4m3"),
    ("fp8-blocks", "weight_block_size", [128], "is a list of 1, and a list of two sizes"),
    ("fp8-blocks", "weight_block_size", [0, 128], "is a list of 2, and a list of two sizes"),
    ("fp8-blocks", "weight_block_size", [2**31, 1], "is a list of 2, and a list of two sizes"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "field", "value", "told"), CONFIGS, ids=[f"{c}-{f}-{v}" for c, f, v, _ in CONFIGS]
)
def test_fields_that_are_not_served(
    case: str, field: str, value: Any, told: str, tmp_path: Path
) -> None:
    folder, _ = save_published(CASES[case], tmp_path)
    edit_config(folder, at(field, value))
    said = refused(folder)
    assert said.startswith("config.json: quantization_config.")
    assert told in said
    if told:
        assert f".{field} " in said


@pytest.mark.parametrize("value", [3, ["gptq"], "gptq"])
def test_a_config_that_is_none(value: Any, tmp_path: Path) -> None:
    folder, _ = save_published(CASES["awq"], tmp_path)
    edit_config(folder, lambda config: config.update(quantization_config=value))
    assert "quant_method is missing; served: awq" in refused(folder)


Edit = Callable[[dict[str, Tensor]], object]


def without(name: str) -> Edit:
    return lambda tensors: tensors.pop(name)


def cut(name: str) -> Edit:
    return lambda tensors: tensors.update({name: tensors[name][:-1].clone()})


def put(name: str, value: float) -> Edit:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensor = tensors[name].clone()
        if tensor.dtype == torch.float8_e4m3fn:
            tensor.view(torch.uint8).view(-1)[7] = int(value)
        else:
            tensor.view(-1)[0] = value
        tensors[name] = tensor

    return edit


def cast(name: str, dtype: torch.dtype) -> Edit:
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def text(raw: bytes) -> Edit:
    return lambda tensors: tensors.update({STATE: torch.tensor(list(raw), dtype=torch.uint8)})


NAN, INF = float("nan"), float("inf")
DAMAGES: list[tuple[str, str, Edit, str]] = [
    ("gptq-4", "scales", without(f"{Q}.scales"), f"{Q}.qweight has no {Q}.scales beside it"),
    ("gptq-4", "zeros", without(f"{Q}.qzeros"), f"{Q}.qweight has no {Q}.qzeros beside it"),
    ("gptq-4", "codes", without(f"{Q}.qweight"), f"{Q}.qzeros"),
    ("gptq-4", "nan", put(f"{Q}.scales", NAN), f"{Q}.scales holds NaN"),
    ("gptq-4", "infinite", put(f"{Q}.scales", INF), f"{Q}.scales holds NaN"),
    ("gptq-4", "short scales", cut(f"{Q}.scales"), "has the shape [1, 64], and [2, 64]"),
    ("gptq-4", "short zeros", cut(f"{Q}.qzeros"), f"{Q}.scales has the shape"),
    ("gptq-4", "short codes", cut(f"{Q}.qweight"), f"{Q}"),
    ("gptq-4", "flat codes", lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"].flatten()}), Q),
    ("gptq-4", "wide codes", cast(f"{Q}.qweight", torch.int64), f"{Q}.qweight holds int64"),
    ("gptq-4", "integer scales", cast(f"{Q}.scales", torch.int32), f"{Q}.scales holds int32"),
    ("gptq-4", "order", put(f"{Q}.g_idx", 2), f"{Q}.g_idx names groups beyond the 2"),
    ("gptq-4", "order below", put(f"{Q}.g_idx", -1), f"{Q}.g_idx names groups beyond the 2"),
    ("gptq-4", "short order", cut(f"{Q}.g_idx"), f"{Q}.g_idx has the shape [63], and [64]"),
    ("gptq-4", "other bits", lambda t: t.update({f"{Q}.qzeros": t[f"{Q}.qzeros"][:, :4].clone()}),
     f"{Q}.qweight and its zeros have 2 bits"),
    ("awq", "scales", without(f"{Q}.scales"), f"{Q}.qweight has no {Q}.scales beside it"),
    ("awq", "short zeros", cut(f"{Q}.qzeros"), f"{Q}.qzeros has the shape [1, 8], and [2, 8]"),
    ("awq", "short codes", cut(f"{Q}.qweight"), "has 63 inputs, which group_size (32)"),
    ("packed-4", "scale", without(f"{Q}.weight_scale"), f"{Q}.weight_packed has no weight_scale"),
    ("packed-4", "codes", without(f"{Q}.weight_packed"), f"has no {Q}.weight_packed beside it"),
    ("packed-4", "shape", without(f"{Q}.weight_shape"), f"has no {Q}.weight_shape beside it"),
    ("packed-4", "other shape", put(f"{Q}.weight_shape", 9), f"{Q}.weight_packed has the shape"),
    ("packed-4", "below zero", put(f"{Q}.weight_shape", -64), f"{Q}.weight_packed has the shape"),
    ("packed-4", "infinite", put(f"{Q}.weight_scale", INF), f"{Q}.weight_scale holds NaN"),
    ("packed-4", "short", cut(f"{Q}.weight_scale"), "[63, 2], and [64, 2] is expected"),
    ("packed-4-zeros", "zeros", without(f"{Q}.weight_zero_point"), f"no {Q}.weight_zero_point"),
    ("packed-4-zeros", "short zeros", cut(f"{Q}.weight_zero_point"), "[7, 2], and [8, 2]"),
    ("packed-4-ordered", "order", put(f"{Q}.weight_g_idx", 99), "names groups beyond the 2"),
    ("int-channel", "floats", cast(f"{Q}.weight", torch.float32), f"{Q}.weight holds float32"),
    ("float-channel", "nan", put(f"{Q}.weight", 127), f"{Q}.weight holds NaN"),
    ("float-channel", "scale", without(f"{Q}.weight_scale"), "and has no scales beside it"),
    ("float-channel", "weight", without(f"{Q}.weight"), "weight_scale has no weight beside it"),
    ("float-channel", "huge", put(f"{Q}.weight_scale", 1e38), f"{Q}.weight_scale holds NaN"),
    ("float-blocks", "short", cut(f"{Q}.weight_scale"), "[1, 2], and [2, 2] is expected"),
    ("nvfp4", "divisor", put(f"{Q}.weight_global_scale", 0), "is not one positive number"),
    ("nvfp4", "scale", put(f"{Q}.weight_scale", 127), f"{Q}.weight_scale holds NaN"),
    ("nvfp4", "no divisor", without(f"{Q}.weight_global_scale"), "weight_global_scale beside it"),
    ("mxfp4-packed", "scale", put(f"{Q}.weight_scale", 255), f"{Q}.weight_scale holds NaN"),
    ("mxfp8", "short", cut(f"{Q}.weight_scale"), "[63, 2], and [64, 2] is expected"),
    ("fp8-blocks", "nan", put(f"{Q}.weight", 255), f"{Q}.weight holds NaN"),
    ("fp8-blocks", "scale", without(f"{Q}.weight_scale_inv"), "and has no scales beside it"),
    ("fp8-blocks", "short", cut(f"{Q}.weight_scale_inv"), "[1, 2], and [2, 2] is expected"),
    ("fp8-blocks", "floats", cast(f"{Q}.weight", torch.bfloat16), f"{Q}.weight holds bfloat16"),
    ("fp8-rows", "short", cut(f"{Q}.weight_scale"), "[63, 1], and [1] or [64, 1] is expected"),
    ("nf4", "absmax", without(f"{Q}.weight.absmax"), f"{Q}.weight has no {Q}.weight.absmax"),
    ("nf4", "short absmax", cut(f"{Q}.weight.absmax"), f"{Q}.weight.absmax has the shape [63]"),
    ("nf4", "nan", put(f"{Q}.weight.absmax", NAN), f"{Q}.weight.absmax holds NaN"),
    ("nf4", "short", cut(f"{Q}.weight"), f"{Q}.weight has 2047 bytes, and 2048"),
    ("nf4", "map", put(f"{Q}.weight.quant_map", 0.5), f"{Q}.weight.quant_map is not that of nf4"),
    ("nf4", "state", without(STATE), f"{Q}.weight holds uint8, and has no scales beside it"),
    ("nf4", "text", text(b"{"), f"{STATE} is no JSON"),
    ("nf4", "texts", lambda t: t.update({STATE: torch.stack([t[STATE]] * 2)}), "is no JSON"),
    ("nf4", "bytes", text(b"\xff\xfe"), f"{STATE} is no JSON"),
    ("nf4", "list", text(b"[]"), f"{STATE} is no JSON object"),
    ("nf4", "shape", text(b'{"blocksize": 64, "shape": [64]}'), "has no shape of two sizes"),
    ("nf4", "size", text(b'{"blocksize": 64, "shape": [64, "64"]}'), "has no positive shape"),
    ("nf4", "block", text(b'{"blocksize": 0, "shape": [64, 64]}'), "has no positive blocksize"),
    ("nf4-nested", "offset", text(
        b'{"blocksize": 64, "shape": [64, 64], "nested_blocksize": 256, "nested_offset": NaN}'
    ), "has no finite nested_offset"),
    ("nf4-nested", "outer", put(f"{Q}.weight.nested_absmax", INF), "nested_absmax holds NaN"),
    ("int8-rows", "scales", without(f"{Q}.SCB"), f"{Q}.weight holds int8, and has no scales"),
    ("int8-rows", "short", cut(f"{Q}.SCB"), f"{Q}.SCB has the shape [63], and [64]"),
    ("int8-rows", "order", put(f"{Q}.weight_format", 2), f"{Q}.weight_format is 2; served: 0"),
    ("int8-rows", "weight", without(f"{Q}.weight"), f"{Q}.SCB has no weight beside it"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "edit", "told"),
    [(case, edit, told) for case, _, edit, told in DAMAGES],
    ids=[f"{case}-{what}" for case, what, _, _ in DAMAGES],
)
def test_damaged_tensors(case: str, edit: Edit, told: str, tmp_path: Path) -> None:
    folder, _ = save_published(CASES[case], tmp_path)
    edit_tensors(folder, edit)
    assert told in refused(folder)


def test_a_weight_of_another_size_than_the_config_says(tmp_path: Path) -> None:
    folder, _ = save_published(CASES["fp8-tensor"], tmp_path)
    edit_config(folder, lambda config: config.update(intermediate_size=128))
    assert "has the shape [64, 96], and config.json makes it [64, 128]" in refused(folder)


def test_a_config_far_larger_than_the_weights(tmp_path: Path) -> None:
    """It is refused before anything of that size is made."""
    folder, _ = save_published(CASES["gptq-4"], tmp_path)
    edit_config(folder, lambda config: config.update(vocab_size=2**25))
    assert "it describes" in refused(folder)
