"""What cannot be served is refused at start-up, by name and with the reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from penstock.engine.config import EngineConfig
from penstock.engine.loading.folder import EMBEDDED_MODEL
from penstock.engine.loading.loader import load_model
from penstock.engine.model.fused.compiled import CompiledDecoder
from penstock.errors import ConfigurationError, UnsupportedModelError
from penstock.kernels.linear.int8 import Int8Linear
from penstock.kernels.linear.native import NativeLinear
from penstock.kernels.native.library import Library, Unavailable, library
from tests.conftest import TinyModel
from tests.tiny import byte_tokenizer, enlarge_weights, save_tiny

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
BYPASSING: dict[str, dict[str, Any]] = {
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64},
    "bert": {**SMALL, "is_decoder": False},
    "diffllama": SMALL,
}


REASONS = {
    "gptj": "attention classes of its own",
    "bloom": "0 of its 2 layers",
    "mpt": "its forward pass failed",
    "codegen": "0 of its 2 layers",
    "rwkv": "0 of its 2 layers",
    "bert": "its logits differ",
    "diffllama": "its logits differ",
}


@pytest.mark.parametrize("kind", BYPASSING)
def test_architectures_that_bypass_the_interface(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        kind, vocab_size=300, eos_token_id=1, bos_token_id=0, pad_token_id=0, **BYPASSING[kind]
    )
    model = AutoModelForCausalLM.from_config(config)
    enlarge_weights(model)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=f"'{kind}' is not supported: .*{REASONS[kind]}"
    ):
        load_model(EngineConfig(model=str(tmp_path)))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such model folder"):
        load_model(EngineConfig(model=str(tmp_path / "nothing")))


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json: no such file"):
        load_model(EngineConfig(model=str(tmp_path)))


def test_context_is_the_models_own_or_less(tiny_model: TinyModel) -> None:
    folder = str(tiny_model("llama"))
    assert load_model(EngineConfig(model=folder)).info.max_length_tokens == 512
    shorter = EngineConfig(model=folder, max_model_len=100)
    assert load_model(shorter).info.max_length_tokens == 100
    with pytest.raises(ConfigurationError, match="at most 512"):
        load_model(EngineConfig(model=folder, max_model_len=513))


@pytest.mark.parametrize(("kind", "context"), [("phimoe", 64), ("mistral", 512)])
def test_a_window_that_is_not_told_bounds_the_context(
    kind: str, context: int, tmp_path: Path
) -> None:
    """phimoe keeps its window in a mask that we do not see; up to its length nothing differs."""
    fields = {**SMALL, "num_local_experts": 2} if kind == "phimoe" else SMALL
    config = AutoConfig.for_model(
        kind, vocab_size=300, sliding_window=64, max_position_embeddings=512, **fields
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_model(EngineConfig(model=str(tmp_path))).info.max_length_tokens == context


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_that_is_none(window: int, tmp_path: Path) -> None:
    """A field that the architecture does not use bounds nothing; one that it uses is refused."""
    unused = load_model(
        EngineConfig(model=str(save_tiny("llama", tmp_path / "llama", sliding_window=window)))
    )
    assert unused.info.max_length_tokens == 512
    folder = save_tiny("mistral", tmp_path / "mistral", sliding_window=window)
    with pytest.raises(UnsupportedModelError, match=f"sliding_window is {window}; write null"):
        load_model(EngineConfig(model=str(folder)))


def test_dtype_follows_the_setting(tiny_model: TinyModel) -> None:
    loaded = load_model(EngineConfig(model=str(tiny_model("llama")), dtype="bfloat16"))
    assert loaded.dtype == torch.bfloat16
    assert next(loaded.model.parameters()).dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(tiny_model: TinyModel) -> None:
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        load_model(EngineConfig(model=str(tiny_model("llama")), device="cuda"))


def test_the_embedded_model_is_there() -> None:
    loaded = load_model(EngineConfig())
    assert (EMBEDDED_MODEL / "model.safetensors").stat().st_size <= 20_000_000
    assert loaded.info.id == "nano"
    assert loaded.info.max_length_tokens >= 2048


def test_a_model_that_cannot_be_rewritten_runs_as_it_is(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(model: torch.nn.Module) -> torch.nn.Module:
        model.lm_head = torch.nn.Identity()  # half-way through
        raise KeyError("whatever")

    monkeypatch.setattr("penstock.engine.model.fused.prepare.rewrite", refuse)
    loaded = load_model(EngineConfig(model=str(tiny_model("llama"))))
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert not isinstance(loaded.model.get_submodule("lm_head"), torch.nn.Identity)
    assert "runs as transformers has it" in caplog.text
    quantised = load_model(EngineConfig(model=str(tiny_model("llama")), quantization="int8"))
    assert isinstance(quantised.model.get_submodule("lm_head"), Int8Linear | NativeLinear)


def test_a_context_in_which_rotation_depends_on_neighbours_is_cut(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 128,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    }
    save_tiny("phi3", tmp_path, rope_parameters=rope, original_max_position_embeddings=128)
    assert load_model(EngineConfig(model=str(tmp_path))).info.max_length_tokens == 128


def test_int8_weights_take_the_place_of_linear_layers(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch where nothing is compiled, or the processor does not multiply bytes (VNNI).

    Alone where a model is not known as a whole.
    """
    compiled = library()
    in_bytes = isinstance(compiled, Library) and compiled.multiplies_bytes

    def kinds(kind: str, **settings: Any) -> set[type]:
        config = EngineConfig(model=str(tiny_model(kind)), quantization="int8", **settings)
        return {type(module) for module in load_model(config).model.modules()}

    assert (CompiledDecoder in kinds("llama")) == in_bytes
    found = kinds("gemma2")
    assert (NativeLinear in found) == in_bytes
    assert (Int8Linear in found) != in_bytes
    assert torch.nn.Linear not in found
    for found in (kinds("llama", dtype="bfloat16"), _without_compiled(kinds, monkeypatch)):
        assert Int8Linear in found
        assert not found & {NativeLinear, CompiledDecoder, torch.nn.Linear}


def _without_compiled(
    kinds: Callable[[str], set[type]], monkeypatch: pytest.MonkeyPatch
) -> set[type]:
    monkeypatch.setattr(
        "penstock.engine.model.fused.linears.library", lambda: Unavailable("in a test")
    )
    return kinds("llama")


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled for AVX2"])
@pytest.mark.parametrize(
    ("capabilities", "warns"),
    [
        ({"architecture": "x86_64", "avx2": True}, True),
        ({"architecture": "x86_64", "avx512_vnni": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
    ids=["avx2", "vnni", "arm"],
)
def test_int8_on_a_processor_without_its_instructions_warns(
    capabilities: dict[str, Any],
    warns: bool,
    compiled: bool,
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = library()
    assert isinstance(found, Library)
    without = replace(found, multiplies_bytes=False) if compiled else Unavailable("in a test")
    monkeypatch.setattr("penstock.engine.model.fused.linears.library", lambda: without)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    load_model(EngineConfig(model=str(tiny_model("llama")), quantization="int8"))
    assert ("VNNI" in caplog.text) is warns
