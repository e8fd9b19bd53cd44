"""Quantised checkpoints as they are published: their numbers to the bit, and models that run."""

import json
from contextlib import suppress
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.engine.loading.loader import LoadedModel
from penstock.engine.model.fused.compiled import CompiledDecoder
from penstock.engine.model.fused.observe import DenseStep
from penstock.engine.weights.blocks import BlockLinear, BlockTensor
from penstock.engine.weights.choose import choose_format
from penstock.errors import ConfigurationError
from penstock.kernels.native.library import Unavailable, builds
from tests.engine.loading.published_cases import CASES
from tests.engine.loading.published_files import (
    Case,
    Written,
    edit_config,
    edit_tensors,
    save_published,
    write_experts,
)
from tests.engine.loading.test_gguf import loaded, tokens
from tests.tiny import save_tiny

NUMBERS = {"quantization": "float"}
BUILDS = builds()[0]
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def read(folder: Path) -> dict[str, Tensor]:
    """As the format gives them to the model."""
    fields = json.loads((folder / "config.json").read_text())
    found = choose_format("none", folder, fields).tensors(folder, fields)
    assert found is not None
    return dict(found)


def dense(tensor: Tensor) -> Tensor:
    return tensor.dequantise() if isinstance(tensor, BlockTensor) else tensor


@each_case
def test_numbers_to_the_bit(case: Case, tmp_path: Path) -> None:
    folder, plain = save_published(case, tmp_path)
    found, numbers = read(folder), load_file(plain / "model.safetensors")
    assert found.keys() == numbers.keys()
    kinds: set[str] = set()
    for name, tensor in found.items():
        assert torch.equal(dense(tensor).float(), numbers[name]), name
        if isinstance(tensor, BlockTensor):
            kinds |= {part.kind for part in tensor.parts}
    assert kinds == set(case.kinds)


@each_case
def test_tokens_of_the_numbers(case: Case, tmp_path: Path) -> None:
    """Of codes of floats also with the products of packed weights."""
    folder, plain = save_published(case, tmp_path)
    expected = tokens(plain)
    assert tokens(folder, **NUMBERS) == expected
    if case.exact_rows:
        assert tokens(folder) == expected


def logits(model: LoadedModel) -> Tensor:
    """[40, vocabulary], without a cache."""
    given = {
        "input_ids": torch.tensor([[5 + i * 7 % 250 for i in range(40)]]),
        "position_ids": torch.arange(40)[None],
        "logits_to_keep": torch.arange(40),
    }
    with torch.inference_mode():
        return model.model(**given, penstock_step=DenseStep()).logits[0]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kinds])
def test_packed_weights_are_multiplied(name: str, tmp_path: Path) -> None:
    folder, plain = save_published(CASES[name], tmp_path)
    found, exact = loaded(folder), logits(loaded(plain))
    methods = {CASES[name].config["quant_method"].replace("-", "_").replace("fbgemm_", "")}
    assert {found.weights.name} == methods
    assert isinstance(found.model, CompiledDecoder)
    weights = load_file(plain / "model.safetensors")
    numbers = sum(
        each.numel() for name, each in weights.items() if "proj" in name or "head" in name
    )
    assert found.model.step_bytes <= 9.25 / 8 * numbers, "some layers became floats"
    error = (logits(found) - exact).norm() / exact.norm()
    assert error == 0 if CASES[name].exact_rows else error < 0.04


@pytest.mark.parametrize("build", BUILDS, ids=[build.name for build in BUILDS])
@pytest.mark.parametrize("name", ["gptq-4", "int-channel", "fp8-blocks", "nf4", "nvfp4"])
def test_each_build(name: str, build: Any, tmp_path: Path, monkeypatch: Any) -> None:
    folder, plain = save_published(CASES[name], tmp_path)
    for module in ("engine.model.fused.linears", "engine.loading.loader", "kernels.linear.blocks"):
        monkeypatch.setattr(f"penstock.{module}.library", lambda: build)
    exact = logits(loaded(plain))
    error = (logits(loaded(folder)) - exact).norm() / exact.norm()
    assert error == 0 if CASES[name].exact_rows else error < 0.04


@pytest.mark.parametrize("name", ["gptq-4", "gptq-8-symmetric", "fp8-blocks", "nf4-nested"])
def test_without_compiled_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = save_published(CASES[name], tmp_path)
    exact = tokens(folder, **NUMBERS)
    for module in ("engine.model.fused.linears", "engine.loading.loader", "kernels.linear.blocks"):
        monkeypatch.setattr(f"penstock.{module}.library", lambda: Unavailable("in a test"))
    assert tokens(folder) == exact
    model = loaded(folder).model
    assert any(isinstance(module, BlockLinear) for module in model.modules())


@pytest.mark.parametrize("kind", ["qwen2", "mixtral", "gemma2", "phi3"])
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    """Biases, experts (which become floats), layers that are not compiled, merged matrices."""
    case = replace_architecture(CASES["fp8-tensor"], kind)
    folder, plain = save_published(case, tmp_path)
    assert tokens(folder) == tokens(plain)


def replace_architecture(case: Case, kind: str) -> Case:
    layers = (*case.layers, "w1.weight", "w2.weight", "w3.weight")  # of mixtral
    changes = {"tie_word_embeddings": False, **case.changes}
    return Case(
        config=case.config, write=case.write, kinds=case.kinds, architecture=kind, layers=layers,
        changes=changes,
    )  # fmt: skip


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    plain = save_tiny("gpt_oss", tmp_path / "plain")
    folder = copytree(plain, tmp_path / "published")
    numbers = load_file(plain / "model.safetensors")
    kept: dict[str, Tensor] = {}
    for name, tensor in sorted(numbers.items()):
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            kept[name] = tensor
            continue
        parts, numbers[name] = write_experts(*tensor.shape)
        numbers[name] = numbers[name].contiguous()
        kept |= {f"{name}_{part}": each for part, each in parts.items()}
    assert len(kept) > len(numbers)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    save_file(numbers, plain / "model.safetensors", {"format": "pt"})
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    edit_config(folder, lambda fields: fields.update(quantization_config=config))
    assert tokens(folder) == tokens(plain)
    edit_tensors(folder, lambda tensors: tensors.update(damaged(tensors)))
    with pytest.raises(ConfigurationError, match=r"down_proj_scales holds NaN"):
        loaded(folder)


def damaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "model.layers.1.mlp.experts.down_proj_scales"
    return {name: torch.full_like(tensors[name], 255)}


def test_layers_of_several_schemes(tmp_path: Path) -> None:
    """By name before class; layers that are ignored stay as they are."""
    four, eight = CASES["packed-4"], CASES["float-channel"]
    ignored = "model.layers.2.mlp.down_proj"

    def write(name: str, shape: tuple[int, int]) -> Written:
        return (four if "self_attn" in name else eight).write(*shape)

    plain = save_tiny("llama", tmp_path / "plain")
    folder = copytree(plain, tmp_path / "published")
    numbers = load_file(plain / "model.safetensors")
    kept: dict[str, Tensor] = {}
    for name, tensor in sorted(numbers.items()):
        module = name.removesuffix(".weight")
        if not module.endswith("proj") or module == ignored:
            kept[name] = tensor
            continue
        parts, numbers[name] = write(name, (tensor.shape[0], tensor.shape[1]))
        kept |= {f"{module}.{part}": each.clone().contiguous() for part, each in parts.items()}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    save_file(numbers, plain / "model.safetensors", {"format": "pt"})
    schemes = [
        {
            "targets": targets,
            "format": case.config["format"],
            "weights": case.config["config_groups"]["group_0"]["weights"],
        }
        for case, targets in ((eight, ["Linear"]), (four, ["re:.*self_attn\\..*"]))
    ]
    config = {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": [ignored],
        "config_groups": {f"group_{i}": scheme for i, scheme in enumerate(schemes)},
    }  # fmt: skip
    edit_config(folder, lambda fields: fields.update(quantization_config=config))
    found = read(folder)
    assert all(torch.equal(dense(found[name]), numbers[name]) for name in numbers)
    assert tokens(folder, **NUMBERS) == tokens(plain)


def test_other_formats_and_dtypes(tmp_path: Path) -> None:
    """The numbers are read by the checkpoint's format, whatever serves them."""
    folder, plain = save_published(CASES["gptq-4"], tmp_path)
    for name in ("int8", "int4"):
        assert loaded(folder, quantization=name).weights.name == name
        assert tokens(folder, quantization=name) == tokens(plain, quantization=name)
    half = loaded(folder, dtype="bfloat16")
    assert half.weights.name == "float"
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


def test_numbers_beyond_half_precision_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = save_published(CASES["fp8-tensor"], tmp_path)
    name = "model.layers.1.mlp.up_proj.weight_scale"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.tensor([[1e3]])}))
    with suppress(ConfigurationError):  # its logits are not finite either
        loaded(folder, dtype="float16")
    assert "up_proj.weight holds values too large for float16" in caplog.text


def test_weights_in_several_files(tmp_path: Path) -> None:
    """A layer's tensors may be in two; files that the index does not name are not read."""
    folder, plain = save_published(CASES["gptq-4"], tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    places: dict[str, str] = {}
    for i in range(2):
        part = {name: tensors[name] for name in sorted(tensors)[i::2]}
        save_file(part, folder / f"model-{i}.safetensors", {"format": "pt"})
        places |= dict.fromkeys(part, f"model-{i}.safetensors")
    save_file({"other": torch.ones(1)}, folder / "consolidated.safetensors")
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert tokens(folder, **NUMBERS) == tokens(plain)
