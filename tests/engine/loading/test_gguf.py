"""A GGUF file is the model that it was made from: the same tokens, context, ends and chats."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from penstock import LLM, SamplingParams
from penstock.engine.config import EngineConfig
from penstock.engine.loading.loader import LoadedModel, load_model
from penstock.engine.loading.open_checkpoint import open_checkpoint
from penstock.engine.weights.blocks import BlockLinear, BlockTensor
from penstock.kernels.linear.blocks import BLOCK_TYPES
from penstock.kernels.linear.int8 import Int8Linear
from penstock.kernels.linear.native import NativeLinear
from penstock.kernels.native.library import Unavailable
from tests.engine.loading.gguf_files import (
    gguf_tensors,
    merging_tokenizer,
    save_gguf,
    set_parameter,
    vary_norms,
)
from tests.tiny import save_tiny

NUMBERS = {"quantization": "float"}
"""Blocks become float32 when they are loaded, so that tokens are exactly those of the numbers."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "large-heads": ("llama", {"head_dim": 24}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 16, "num_hidden_layers": 7}),
    "phi3": ("phi3", {"original_max_position_embeddings": 512}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.7}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "olmo2": ("olmo2", {}),
}
WHOLE = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
SCALES = {  # where the scales of a block are, in floats of 16 bits; random ones may be NaN
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


def tokens(model: Path, **settings: Any) -> list[list[int]]:
    """Greedy tokens after three prompts, one longer than the windows."""
    llm = LLM(str(model), threads=1, kv_cache_memory=4_000_000, **settings)
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    prompts = [[5 + i * 7 % 250 for i in range(length)] for length in (3, 40, 90)]
    found = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in found]


def tiny(place: Path, kind: str, **changes: Any) -> Path:
    folder = save_tiny(kind, place / "folder", tokenizer=merging_tokenizer(), **changes)
    vary_norms(folder)
    return folder


def loaded(model: Path, **settings: Any) -> LoadedModel:
    return load_model(EngineConfig(model=str(model), threads=1, **settings))


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model_as_its_folder(name: str, tmp_path: Path) -> None:
    kind, changes = MODELS[name]
    folder = tiny(tmp_path, kind, **changes)
    file = save_gguf(folder, tmp_path / "some-model.gguf")
    assert tokens(file) == tokens(folder)
    ours, theirs = loaded(file), loaded(folder)
    assert ours.info.id == "some-model"
    assert ours.info.parameters == theirs.info.parameters
    assert ours.info.max_length_tokens == theirs.info.max_length_tokens
    assert ours.eos_token_ids == theirs.eos_token_ids


def test_norms_and_order_of_rows_matter(tmp_path: Path) -> None:
    """What the comparison above would not notice, it could not check."""
    folder = tiny(tmp_path, "llama")
    expected = tokens(folder)

    def as_they_are(weights: dict[str, np.ndarray]) -> None:
        for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight"):
            weights[name] = np.roll(weights[name], 1, axis=0)

    assert tokens(save_gguf(folder, tmp_path / "a.gguf", tensors=as_they_are)) != expected

    def shifted(weights: dict[str, np.ndarray]) -> None:
        weights["blk.0.ffn_norm.weight"] = weights["blk.0.ffn_norm.weight"] + 1

    assert tokens(save_gguf(folder, tmp_path / "b.gguf", tensors=shifted)) != expected


@pytest.mark.parametrize("kind", WHOLE)
def test_numbers_of_blocks(kind: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path, "llama")
    file = save_gguf(folder, tmp_path / "m.gguf", kind=kind)
    plain = save_gguf(folder, tmp_path / "plain.gguf", tensors=lambda w: _round(w, kind))
    assert tokens(file, **NUMBERS) == tokens(plain)


def _round(weights: dict[str, np.ndarray], kind: str) -> None:
    of = GGMLQuantizationType[kind]
    for name, values in weights.items():
        if values.ndim > 1:
            weights[name] = gguf.quants.dequantize(gguf.quants.quantize(values, of), of)


@pytest.mark.parametrize("kind", SCALES)
def test_numbers_of_blocks_that_only_others_write(kind: str, tmp_path: Path) -> None:
    """Every pattern of bits is a block."""
    folder = tiny(tmp_path, "qwen3", hidden_size=256, intermediate_size=256, head_dim=64)
    source = np.random.default_rng(3)
    inputs, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    packed: dict[str, np.ndarray] = {}
    numbers: dict[str, np.ndarray] = {}
    for name, values in gguf_tensors(folder).items():
        if values.ndim == 2:
            rows = values.shape[0]
            blocks = source.integers(0, 256, (rows, values.shape[1] // inputs, size), np.uint8)
            for place in SCALES[kind]:
                scale = np.full((rows, blocks.shape[1], 1), 2e-4, np.float16)
                blocks[:, :, place : place + 2] = scale.view(np.uint8)
            packed[name] = blocks.reshape(rows, -1)
            numbers[name] = gguf.quants.dequantize(packed[name], GGMLQuantizationType[kind])
    file = save_gguf(folder, tmp_path / "m.gguf", kind=kind, packed=packed)
    plain = save_gguf(folder, tmp_path / "plain.gguf", tensors=lambda w: w.update(numbers))
    assert tokens(file, **NUMBERS) == tokens(plain)


@pytest.mark.parametrize("name", ["llama", "large-heads", "mixtral", "gemma3", "phi3"])
def test_packed_matrices_are_the_same_numbers(name: str, tmp_path: Path) -> None:
    kind, changes = MODELS[name]
    file = save_gguf(tiny(tmp_path, kind, **changes), tmp_path / "m.gguf", kind="Q8_0")
    with open_checkpoint(EngineConfig(model=str(file))) as checkpoint:
        packed = checkpoint.tensors(torch.float32, packed=BLOCK_TYPES)
        numbers = checkpoint.tensors(torch.float32, packed=())
        assert packed is not None
        assert numbers is not None
        assert list(packed) == list(numbers) == list(checkpoint.stored())
        for each, tensor in checkpoint.stored().items():
            found = packed[each]
            assert isinstance(found, BlockTensor) == (found.ndim == 2)
            dense = found.dequantise() if isinstance(found, BlockTensor) else found
            assert torch.equal(dense, numbers[each])
            assert tuple(dense.shape) == tensor.shape
            assert torch.equal(checkpoint.read(each, tensor), dense)


def test_packed_weights_are_served(tmp_path: Path) -> None:
    """Products in 8 bits are close to those of the numbers, so most tokens are theirs."""
    file = save_gguf(tiny(tmp_path, "llama"), tmp_path / "m.gguf", kind="Q8_0")
    assert loaded(file).weights.name == "gguf"
    ours = [each for sequence in tokens(file) for each in sequence]
    exact = [each for sequence in tokens(file, **NUMBERS) for each in sequence]
    same = sum(a == b for a, b in zip(ours, exact, strict=True))
    assert same >= len(exact) // 3  # a chance hit is one in 320


def test_without_compiled_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks stay as they are, and are multiplied as the numbers that they stand for."""
    folder = tiny(tmp_path, "llama", tie_word_embeddings=True)
    file = save_gguf(folder, tmp_path / "m.gguf", kind="Q4_0")
    exact = tokens(file, **NUMBERS)
    for module in ("engine.model.fused.linears", "engine.loading.loader", "kernels.linear.blocks"):
        monkeypatch.setattr(f"penstock.{module}.library", lambda: Unavailable("in a test"))
    assert tokens(file) == exact
    model = loaded(file).model
    assert any(isinstance(module, BlockLinear) for module in model.modules())
    assert "as transformers has it" not in caplog.text


def test_other_formats_and_dtypes(tmp_path: Path) -> None:
    file = save_gguf(tiny(tmp_path, "llama"), tmp_path / "m.gguf", kind="Q4_0")
    quantised = loaded(file, quantization="int8")
    assert quantised.weights.name == "int8"
    assert isinstance(quantised.model, torch.nn.Module)
    assert tokens(file, quantization="int8")
    half = loaded(file, dtype="bfloat16")
    assert half.weights.name == "float"
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    kinds = (Int8Linear, NativeLinear)
    assert not any(isinstance(module, kinds) for module in half.model.modules())


def test_names_of_the_model(tmp_path: Path) -> None:
    file = save_gguf(tiny(tmp_path, "llama"), tmp_path / "Tiny.Q8_0.gguf")
    assert loaded(file).info.id == "Tiny.Q8_0"
    assert loaded(file, served_model_name="other").info.id == "other"


ROPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": (
        {"rope_type": "linear", "factor": 2.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
    ),
    "linear-of-old": ({"rope_type": "linear", "factor": 4.0}, {"rope.scale_linear": 4.0}),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 128,
        },
    ),
}


@pytest.mark.parametrize("name", ROPES)
def test_scaled_angles(name: str, tmp_path: Path) -> None:
    rope, keys = ROPES[name]
    folder = tiny(tmp_path, "qwen3", rope_parameters={"rope_theta": 10_000.0, **rope})

    def scaled(metadata: dict[str, Any]) -> None:
        metadata.update({f"qwen3.{key}": value for key, value in keys.items()})

    file = save_gguf(folder, tmp_path / "m.gguf", metadata=scaled)
    assert tokens(file) == tokens(folder) != tokens(save_gguf(folder, tmp_path / "plain.gguf"))
    assert loaded(file).info.max_length_tokens == loaded(folder).info.max_length_tokens


def test_divided_frequencies(tmp_path: Path) -> None:
    """Llama 3.1: a tensor says what each frequency is divided by."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = tiny(tmp_path, "llama", rope_parameters=rope)
    usual = 1 / 10_000 ** (torch.arange(0, 16, 2) / 16)
    divided, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(folder))
    divisors = (usual / divided).numpy()
    assert divisors.max() > 7

    def with_divisors(weights: dict[str, np.ndarray]) -> None:
        weights["rope_freqs.weight"] = divisors

    file = save_gguf(folder, tmp_path / "m.gguf", tensors=with_divisors)
    assert tokens(file) == tokens(folder) != tokens(save_gguf(folder, tmp_path / "plain.gguf"))
    assert loaded(file).info.max_length_tokens == 512


def test_long_and_short_angles(tmp_path: Path) -> None:
    factors = {
        "short_factor": [1 + i / 8 for i in range(8)],
        "long_factor": [4.0 + i for i in range(8)],
    }
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 128,
        **factors,
    }
    folder = tiny(tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=128)

    def with_factors(weights: dict[str, np.ndarray]) -> None:
        for name in ("short", "long"):
            values = np.array(factors[f"{name}_factor"], np.float32)
            weights[f"rope_factors_{name}.weight"] = values

    def original(metadata: dict[str, Any]) -> None:
        metadata["phi3.rope.scaling.original_context_length"] = 128

    file = save_gguf(folder, tmp_path / "m.gguf", tensors=with_factors, metadata=original)
    assert loaded(file).info.max_length_tokens == loaded(folder).info.max_length_tokens == 128
    assert tokens(file) == tokens(folder)
    longer = {"max_model_len": 300}
    assert tokens(file, **longer) == tokens(folder, **longer) != tokens(file)


def test_a_part_of_each_head_is_rotated(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    folder = tiny(tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=512)

    def half(metadata: dict[str, Any]) -> None:
        metadata["phi3.rope.dimension_count"] = 8

    file = save_gguf(folder, tmp_path / "m.gguf", metadata=half)
    assert tokens(file) == tokens(folder)


def test_which_layers_have_windows(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    folder = tiny(tmp_path, "gemma3_text", query_pre_attn_scalar=16, layer_types=kinds)

    def pattern(metadata: dict[str, Any]) -> None:
        metadata["gemma3.attention.sliding_window_pattern"] = [False, True, True]

    file = save_gguf(folder, tmp_path / "m.gguf", metadata=pattern)
    assert tokens(file) == tokens(folder) != tokens(save_gguf(folder, tmp_path / "b.gguf"))


def test_ends_and_defaults_of_sampling(tmp_path: Path) -> None:
    def more(metadata: dict[str, Any]) -> None:
        metadata["tokenizer.ggml.eot_token_id"] = 258
        metadata["general.sampling.temp"] = 0.6
        metadata["general.sampling.top_k"] = 20

    file = save_gguf(tiny(tmp_path, "llama"), tmp_path / "m.gguf", metadata=more)
    found = loaded(file)
    assert found.eos_token_ids == {258, 300}
    assert found.sampling_defaults == {"temperature": 0.6, "top_k": 20}


def test_keys_that_nobody_knows_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def more(metadata: dict[str, Any]) -> None:
        metadata["llama.attention.sliding_window"] = 64
        metadata["llama.novelty"] = 1

    folder = tiny(tmp_path, "llama")
    loaded(save_gguf(folder, tmp_path / "plain.gguf"))
    assert "ignored metadata" not in caplog.text
    loaded(save_gguf(folder, tmp_path / "m.gguf", metadata=more))
    assert "may matter: ['attention.sliding_window', 'novelty']" in caplog.text


def test_a_model_in_parts(tmp_path: Path) -> None:
    folder = tiny(tmp_path, "llama")
    save_gguf(folder, tmp_path / "big.gguf", parts_of=10)
    first = tmp_path / "big-00001-of-00003.gguf"
    assert len(list(tmp_path.glob("big-*"))) == 3
    assert tokens(first) == tokens(folder)
    assert loaded(first).info.id == "big"


def test_a_stored_tensor_is_not_read_into_memory(tmp_path: Path) -> None:
    """Parameters of the file's own type are the mapped file, as long as nobody writes to them."""
    folder = tiny(tmp_path, "llama")
    set_parameter(folder, "model.norm.weight", torch.full((64,), 2.0))
    file = save_gguf(folder, tmp_path / "m.gguf", kind="Q8_0")
    before = file.read_bytes()
    tokens(file)
    assert file.read_bytes() == before


def test_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_gguf(tiny(tmp_path, "llama"), tmp_path / "m.gguf")
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    loaded(file)
    assert list(place.iterdir()) == []


def test_the_engine_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The server's process loads the tokenizer, and not the model."""
    from penstock.engine.loading.loader import load_tokenizer

    folder = tiny(tmp_path, "llama")
    file = save_gguf(folder, tmp_path / "m.gguf")
    ours = load_tokenizer(EngineConfig(model=str(file)), frozenset())
    theirs = load_tokenizer(EngineConfig(model=str(folder)), frozenset())
    text = "hello <eos> 123\n\n é"
    assert ours.encode(text) == theirs.encode(text)
    assert 258 in ours.encode(text)
    assert json.dumps(ours.hf.chat_template) == json.dumps(theirs.hf.chat_template)
