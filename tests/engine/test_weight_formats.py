"""The seam of weight formats: choosing one, and a format whose checkpoints hold packed weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from penstock import SamplingParams
from penstock.engine.config import EngineConfig
from penstock.engine.loading.loader import LoadedModel
from penstock.engine.model.fused.compiled import CompiledDecoder
from penstock.engine.weights.base import Pack, WeightFormat
from penstock.engine.weights.choose import choose_format
from penstock.engine.weights.float import FLOAT
from penstock.engine.weights.int8 import INT8
from penstock.errors import ConfigurationError
from penstock.kernels.linear.native import NativeLinear, Packed, pack
from penstock.kernels.native.library import Library
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, run
from tests.tiny import save_tiny

METHOD: Final = "eetq"
"""A name that transformers knows, and would look for packages of its own to read it."""
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
JOB = Job(prompt=[5 + 7 * i % 280 for i in range(40)], params=GREEDY, logprobs=4)


class Steps(Tensor):
    """Float32 `[N, K]` kept as int16 steps `[N, K]` and the size of a step of each row `[N, 1]`."""

    steps: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls: type["Steps"], steps: Tensor, scale: Tensor) -> "Steps":
        make: Any = Tensor._make_wrapper_subclass  # pyright: ignore  # torch has no public name
        return make(cls, steps.shape, dtype=torch.float32)

    def __init__(self, steps: Tensor, scale: Tensor) -> None:
        self.steps, self.scale = steps, scale

    def dense(self) -> Tensor:
        return self.steps.float() * self.scale

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Rows are moved as they are packed; whatever else is done with it, is with its numbers."""
        if func.overloadpacket.__name__ in _OF_ROWS:
            return Steps(*(func(*_each(args, part), **kwargs or {}) for part in ("steps", "scale")))
        return func(*_each(args, "dense"), **kwargs or {})


_OF_ROWS: Final = ("detach", "alias", "cat", "index", "slice")


def _each(value: Any, part: str) -> Any:
    if isinstance(value, Steps):
        return value.dense() if part == "dense" else getattr(value, part)
    return type(value)(_each(x, part) for x in value) if isinstance(value, list | tuple) else value


class StepsLinear(nn.Module):
    def __init__(self, weight: Steps, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.dense(), self.bias)


class StepsFormat(WeightFormat):
    name = "steps"
    lossless = True

    def __init__(self) -> None:
        self.compiled: list[type[Tensor]] = []

    def recognises(self, path: Path, fields: Mapping[str, Any]) -> bool:
        return (fields.get("quantization_config") or {}).get("quant_method") == METHOD

    def tensors(self, path: Path, fields: Mapping[str, Any]) -> Mapping[str, Tensor]:
        stored = load_file(path / "model.safetensors")
        found = {name: each for name, each in stored.items() if each.dtype == torch.float32}
        for name in stored.keys() - found.keys():
            weight = name.removesuffix(".steps")
            found[weight] = Steps(stored[name], found.pop(f"{weight}.scale"))
        return found

    def stored_bytes(self, weight: Tensor) -> int:
        return 2 * weight.numel() + 4 * weight.shape[0]

    def linear(
        self, weight: Tensor, bias: Tensor | None, library: Library | None
    ) -> nn.Module | None:
        return StepsLinear(weight, bias) if isinstance(weight, Steps) else None

    def packer(self, library: Library) -> Pack:
        def packed(weight: Tensor, bias: Tensor | None) -> Packed:
            self.compiled.append(type(weight))
            return pack(library, weight + 0, bias)

        return packed


STEPS = StepsFormat()


def pack_folder(folder: Path) -> Path:
    """The same checkpoint with packed linear layers; the folder keeps their numbers as floats."""
    packed = folder.with_name(f"{folder.name}-packed")
    packed.mkdir()
    for file in folder.iterdir():
        (packed / file.name).write_bytes(file.read_bytes())
    found = load_file(folder / "model.safetensors")
    kept: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if not name.endswith("proj.weight"):
            kept[name] = tensor
            continue
        size = tensor.abs().amax(dim=1, keepdim=True) / 32767
        steps = (tensor / size).round().to(torch.int16)
        kept |= {f"{name}.steps": steps, f"{name}.scale": size}
        found[name] = steps.float() * size
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    save_file(kept, packed / "model.safetensors", {"format": "pt"})
    fields = json.loads((packed / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": METHOD, "bits": 16}
    (packed / "config.json").write_text(json.dumps(fields))
    return packed


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that registers the format."""
    info = tmp_path / "site" / "steps-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steps\nVersion: 1.0\n")
    line = f"steps = {__name__}:STEPS"
    (info / "entry_points.txt").write_text(f"[penstock.weight_formats]\n{line}\n")
    monkeypatch.syspath_prepend(str(info.parent))


def served(folder: Path, **settings: Any) -> tuple[LoadedModel, list[list[int]]]:
    built = build(folder, **settings)
    (answer,) = run(built, [JOB])
    return built.loaded, answer.tokens


@pytest.mark.usefixtures("installed")
def test_packed_weights_reach_the_compiled_decoder_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STEPS, "compiled", [])
    folder = save_tiny("llama", tmp_path / "llama")
    packed = pack_folder(folder)
    loaded, tokens = served(packed)
    assert loaded.weights is STEPS
    assert isinstance(loaded.model, CompiledDecoder)
    of_layers, of_head = STEPS.compiled[:-1], STEPS.compiled[-1]
    assert set(of_layers) == {Steps}
    assert of_head is nn.Parameter  # which this checkpoint does not pack
    assert tokens == served(folder)[1]


@pytest.mark.usefixtures("installed")
def test_packed_weights_get_layers_of_their_own(tmp_path: Path) -> None:
    """In a decoder that is not compiled as a whole; what is not packed is served as ever."""
    folder = save_tiny("gemma2", tmp_path / "gemma2")
    packed = pack_folder(folder)
    loaded, tokens = served(packed)
    kinds = {type(module) for module in loaded.model.modules()}
    assert {StepsLinear, NativeLinear} <= kinds
    assert nn.Linear not in kinds
    assert tokens == served(folder)[1]


@pytest.mark.usefixtures("installed")
def test_a_format_that_promises_no_order_of_sums_is_not_deterministic(tmp_path: Path) -> None:
    packed = pack_folder(save_tiny("gemma2", tmp_path / "gemma2"))
    with pytest.raises(ConfigurationError, match="--deterministic"):
        build(packed, deterministic=True)


@pytest.mark.usefixtures("installed")
def test_a_checkpoint_is_served_in_its_own_format_unless_another_is_named(tmp_path: Path) -> None:
    packed = {"quantization_config": {"quant_method": METHOD}}
    assert choose_format("none", tmp_path, packed) is STEPS
    assert choose_format("none", tmp_path, {}) is FLOAT
    assert choose_format("float", tmp_path, packed) is FLOAT
    assert choose_format("int8", tmp_path, packed) is INT8


@pytest.mark.usefixtures("installed")
def test_two_formats_that_recognise_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = {"quantization_config": {"quant_method": METHOD}}
    monkeypatch.setattr(INT8, "recognises", STEPS.recognises, raising=False)
    with pytest.raises(ConfigurationError, match="int8, steps all recognise"):
        choose_format("none", tmp_path, packed)


@pytest.mark.usefixtures("installed")
def test_names_are_those_that_packages_register() -> None:
    assert EngineConfig(quantization="steps").quantization == "steps"
    with pytest.raises(
        ValidationError,
        match="must be one of none, awq, bitsandbytes, compressed_tensors, float, fp8, gguf, "
        "gptq, int4, int8, mxfp4, steps",
    ):
        EngineConfig(quantization="int3")


def test_named_or_not_floats_are_floats(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    assert served(folder, quantization="float")[1] == served(folder)[1]
