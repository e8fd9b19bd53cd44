"""GGUF files whose metadata or tensors make no model that is served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.engine.config import EngineConfig
from penstock.engine.loading.loader import load_model
from penstock.errors import ConfigurationError
from tests.engine.loading.gguf_files import merging_tokenizer, save_gguf
from tests.engine.loading.refused import refused
from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("gguf") / "m", tokenizer=merging_tokenizer())


Metadata = dict[str, Any]


def key(name: str, value: Any) -> Callable[[Metadata], None]:
    """Set one key; None takes it away."""

    def change(metadata: Metadata) -> None:
        metadata[name] = value
        if value is None:
            del metadata[name]

    return change


def token(i: int, value: str) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        metadata["tokenizer.ggml.tokens"][i] = value

    return change


KEYS: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "no layers": (key("llama.block_count", None), "llama.block_count is missing"),
    "0 layers": (key("llama.block_count", 0), "llama.block_count is 0, and an integer from 1"),
    "2^31 layers": (key("llama.block_count", 2**31), f"llama.block_count is {2**31}"),
    "more layers than tensors": (key("llama.block_count", 4000), "num_hidden_layers is 4000"),
    "one layer more": (key("llama.block_count", 4), "the weights lack model.layers.3."),
    "one layer fewer": (key("llama.block_count", 2), "the model has no place for model.layers.2."),
    "layers in words": (key("llama.block_count", "three"), "llama.block_count is 'three'"),
    "layers that differ": (
        key("llama.feed_forward_length", [96, 96, 32]),
        "llama.feed_forward_length differs between layers",
    ),
    "another width": (key("llama.embedding_length", 128), "has the shape [320, 64], and"),
    "heads that do not fit": (
        key("llama.attention.head_count_kv", 3),
        "llama.attention.head_count is 4, which head_count_kv (3) does not divide",
    ),
    "half a head": (
        lambda metadata: (
            metadata.pop("llama.attention.key_length"),
            metadata.update({"llama.attention.head_count": 6, "llama.attention.head_count_kv": 2}),
        ),
        "llama.embedding_length is 64, which attention.head_count (6) does not divide",
    ),
    "values of another size": (
        key("llama.attention.value_length", 8),
        "llama.attention.value_length is 8, and key_length is 16",
    ),
    "no epsilon": (
        key("llama.attention.layer_norm_rms_epsilon", None),
        "llama.attention.layer_norm_rms_epsilon is missing",
    ),
    "an epsilon that is none": (
        key("llama.attention.layer_norm_rms_epsilon", float("nan")),
        "llama.attention.layer_norm_rms_epsilon is nan, and a finite number",
    ),
    "theta 0": (key("llama.rope.freq_base", 0.0), "rope_theta is 0.0"),
    "half the head rotated": (
        key("llama.rope.dimension_count", 8),
        "llama.rope.dimension_count is 8, and heads of 16 are rotated as a whole",
    ),
    "a scaling of a page": (
        key("llama.rope.scaling.type", "x" * 10_000),
        "llama.rope.scaling.type is 'xxx",
    ),
    "an unknown scaling": (
        key("llama.rope.scaling.type", "magic"),
        "llama.rope.scaling.type is 'magic', and one of none, linear, yarn, longrope",
    ),
    "no factors": (
        key("llama.rope.scaling.type", "longrope"),
        "it has no tensor rope_factors_short.weight",
    ),
    "both ways": (
        key("llama.attention.causal", False),
        "llama.attention.causal is False",
    ),
    "clamped": (
        key("llama.attention.clamp_kqv", 8.0),
        "llama.attention.clamp_kqv is 8.0, which is not served",
    ),
    "angles with a factor": (
        key("llama.rope.scaling.attn_factor", 1.5),
        "llama.rope.scaling.attn_factor is 1.5, which is not served",
    ),
    "experts with a factor": (
        key("llama.expert_weights_scale", 2.5),
        "llama.expert_weights_scale is 2.5, which is not served",
    ),
    "scaled": (key("llama.logit_scale", 16.0), "llama.logit_scale is 16.0, which is not served"),
    "no tokenizer": (
        key("tokenizer.ggml.tokens", None),
        "tokenizer.ggml.tokens is missing: the file has no tokenizer",
    ),
    "no merges": (key("tokenizer.ggml.merges", None), "tokenizer.ggml.merges is missing"),
    "half a merge": (
        key("tokenizer.ggml.merges", ["h e", "ll"]),
        "tokenizer.ggml.merges[1] is 'll', and two tokens are expected",
    ),
    "merges of nothing": (
        key("tokenizer.ggml.merges", ["x yz"]),
        "the tokenizer cannot be built: ",
    ),
    "another tokenizer": (
        key("tokenizer.ggml.model", "bert"),
        "tokenizer.ggml.model is 'bert', and one of gpt2, llama",
    ),
    "an unknown split": (
        key("tokenizer.ggml.pre", "mine"),
        "tokenizer.ggml.pre is 'mine'; served: chatglm-bpe",
    ),
    "types of other tokens": (
        key("tokenizer.ggml.token_type", [1, 1]),
        "tokenizer.ggml.token_type has 2 values, and there are 320 tokens",
    ),
    "a token twice": (token(5, "he"), "tokenizer.ggml.tokens has 'he' twice"),
    "a token of a page": (token(5, "x" * 5000), "has a token of 5000 letters"),
    "an end that is none": (
        key("tokenizer.ggml.eos_token_id", 320),
        "tokenizer.ggml.eos_token_id is 320, and an integer from 0 to 319",
    ),
    "a beginning that is missing": (
        key("tokenizer.ggml.add_bos_token", True),
        "tokenizer.ggml.add_bos_token is true, and bos_token_id is missing",
    ),
    "a flag that is none": (
        key("tokenizer.ggml.add_bos_token", 1),
        "tokenizer.ggml.add_bos_token is 1, and a truth value is expected",
    ),
    "a template that does not parse": (
        key("tokenizer.chat_template", "{% for x in %}"),
        "the chat template does not compile",
    ),
    "a template that is none": (
        key("tokenizer.chat_template", 5),
        "tokenizer.chat_template is 5, and a string is expected",
    ),
    "a temperature of 99": (key("general.sampling.temp", 99.0), "temperature is 99.0"),
    "a mixture without experts": (
        lambda metadata: metadata.update({"llama.expert_count": 2, "llama.expert_used_count": 2}),
        "the weights lack model.layers.0.mlp.experts.",
    ),
    "more experts used than there are": (
        lambda metadata: metadata.update({"llama.expert_count": 2, "llama.expert_used_count": 3}),
        "llama.expert_used_count is 3, and an integer from 1 to 2",
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_metadata(name: str, folder: Path, tmp_path: Path) -> None:
    change, expected = KEYS[name]
    file = save_gguf(folder, tmp_path / "m.gguf", metadata=change)
    assert expected in refused(file)


Arrays = dict[str, np.ndarray]
ONES = np.ones(64, np.float32)
TENSORS: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "an unknown tensor": (
        lambda w: w.update({"blk.0.attn_sinks.weight": ONES}),
        "the model has no place for blk.0.attn_sinks.weight",
    ),
    "a tensor outside": (lambda w: w.update(thing=ONES), "the model has no place for thing"),
    "no embedding": (
        lambda w: w.pop("token_embd.weight"),
        "it has no tensor token_embd.weight",
    ),
    "no norm": (lambda w: w.pop("output_norm.weight"), "the weights lack model.norm.weight"),
    "no key": (
        lambda w: w.pop("blk.1.attn_k.weight"),
        "the weights lack model.layers.1.self_attn.k_proj.weight",
    ),
    "a key of another size": (
        lambda w: w.update({"blk.1.attn_k.weight": np.ones((33, 64), np.float32)}),
        "model.layers.1.self_attn.k_proj.weight has the shape [33, 64]",
    ),
    "NaN": (
        lambda w: w["blk.1.ffn_up.weight"].fill(np.nan),
        "model.layers.1.mlp.up_proj.weight holds NaN",
    ),
    "divisors of another size": (
        lambda w: w.update({"rope_freqs.weight": ONES}),
        "rope_freqs.weight is F32 [64], and F32 [8] is expected",
    ),
    "divisors of 0": (
        lambda w: w.update({"rope_freqs.weight": np.zeros(8, np.float32)}),
        "rope_freqs.weight holds numbers that are not positive",
    ),
    "ups without gates": (
        lambda w: w.update({"blk.0.ffn_up_exps.weight": np.ones((2, 96, 64), np.float32)}),
        "model.layers.0.mlp.experts.gate_up_proj cannot be made of blk.0.ffn_up_exps.weight",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name: str, folder: Path, tmp_path: Path) -> None:
    change, expected = TENSORS[name]
    file = save_gguf(folder, tmp_path / "m.gguf", tensors=change)
    assert expected in refused(file)


def test_parts_that_do_not_belong_together(folder: Path, tmp_path: Path) -> None:
    save_gguf(folder, tmp_path / "big.gguf", parts_of=10)
    first, second, third = sorted(tmp_path.glob("big-*.gguf"))
    assert "name the first: big-00001-of-00003.gguf" in _said(second)
    whole = second.read_bytes()
    second.write_bytes(third.read_bytes())
    assert f"{second}: split.no is 2, and by its name it is part 2 of 3" in _said(first)
    second.write_bytes(whole[:-64])
    assert f"{second}: damaged or cut off" in _said(first)
    second.unlink()
    assert f"{second}: no such file; {first.name} is part 1 of 3" in _said(first)
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(first.read_bytes())
    assert "split.count is 3, and by its name it is part 1 of 1" in _said(alone)


def _said(file: Path) -> str:
    with pytest.raises(ConfigurationError) as found:
        load_model(EngineConfig(model=str(file), threads=1))
    assert str(found.value).isprintable()
    return str(found.value)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such file" in _said(tmp_path / "nothing.gguf")
    place = tmp_path / "only"
    place.mkdir()
    (place / "m.gguf").write_bytes(b"GGUF")
    assert f"{place}: no config.json; name a file of it, such as {place / 'm.gguf'}" in _said(place)
