"""Folders of adapters that are damaged, or that compute something else: one line says why."""

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.engine.loading.adapter_folder import read_adapter
from penstock.errors import ConfigurationError

Q = "base_model.model.model.layers.0.self_attn.q_proj"
V = "base_model.model.model.layers.1.self_attn.v_proj"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FIELDS: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
LITTLE_BYTES = 8 << 20


def tensors() -> dict[str, Tensor]:
    return {
        f"{Q}.lora_A.weight": torch.randn(4, 12),
        f"{Q}.lora_B.weight": torch.randn(10, 4),
        f"{V}.lora_A.weight": torch.randn(4, 12),
        f"{V}.lora_B.weight": torch.randn(6, 4),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / CONFIG).write_text(json.dumps(FIELDS))
    save_file(tensors(), tmp_path / WEIGHTS)
    return tmp_path


def refused(folder: Path, file: str | None = None) -> str:
    """What is said of it; `file`: the one that it names."""
    began_s = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError) as found:
            read_adapter(folder, max_rank=64)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began_s < 10
    assert peak_bytes < LITTLE_BYTES
    said = str(found.value)
    assert said.isprintable()
    assert len(said) < 1000
    assert said.startswith(str(folder / file) if file else str(folder)), said
    return said


def configure(folder: Path, **fields: Any) -> None:
    (folder / CONFIG).write_text(json.dumps({**FIELDS, **fields}))


def test_what_is_read(folder: Path) -> None:
    found = read_adapter(folder, max_rank=4)
    stored = load_file(folder / WEIGHTS)
    assert sorted(found.layers) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    assert found.rank == 4
    pair = found.layers["model.layers.0.self_attn.q_proj"]
    assert torch.equal(pair.down, stored[f"{Q}.lora_A.weight"])
    assert torch.equal(pair.up, stored[f"{Q}.lora_B.weight"] * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_floats(dtype: torch.dtype, folder: Path) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    save_file(stored, folder / WEIGHTS)
    pair = read_adapter(folder, max_rank=4).layers["model.layers.0.self_attn.q_proj"]
    assert torch.equal(pair.down, stored[f"{Q}.lora_A.weight"].float())


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"use_rslora": True}, 4.0),
        ({"lora_alpha": 0.5}, 0.125),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"self_attn.q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"v_proj": 2, "proj": 2, "^q_proj": 2}}, 2.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 4, "q_proj": 2}}, 1.0),
        ({"r": 5, "rank_pattern": {"q_proj": 4, "v_proj": 4}}, 2.0),
    ],
    ids=str,
)
def test_scale(fields: dict[str, Any], scale: float, folder: Path) -> None:
    configure(folder, **fields)
    pair = read_adapter(folder, max_rank=64).layers["model.layers.0.self_attn.q_proj"]
    assert torch.equal(pair.up, load_file(folder / WEIGHTS)[f"{Q}.lora_B.weight"] * scale)


CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "peft_type is 'IA3', and only LORA is served"),
    "no kind": ({"peft_type": None}, "peft_type is None"),
    "dora": ({"use_dora": True}, "use_dora is set: weights are rescaled"),
    "bias": ({"bias": "lora_only"}, "bias is set"),
    "lora_bias": ({"lora_bias": True}, "lora_bias is set"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is set"),
    "experts": ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters is set"),
    "layers again": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is set"),
    "activated": ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens is set"),
    "pooled": ({"use_qalora": True}, "use_qalora is set"),
    "truncated": ({"kasa_config": {"beta": 1}}, "kasa_config is set"),
    "diagonal": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is set"),
    "pissa": (
        {"init_lora_weights": "pissa_niter_16"},
        "init_lora_weights is pissa_niter_16, which",
    ),
    "olora": ({"init_lora_weights": "OLoRA"}, "init_lora_weights is OLoRA, which changes"),
    "loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights is loftq, which changes"),
    "rank in words": ({"r": "four"}, "r is 'four', which is no rank"),
    "rank true": ({"r": True}, "r is True, which is no rank"),
    "rank 0": ({"r": 0}, "r is 0, which is no rank"),
    "rank of many digits": ({"r": 10**4000}, "has the rank 4 (A) and 4 (B), and"),
    "another rank": ({"r": 5}, "has the rank 4 (A) and 4 (B), and adapter_config.json says 5"),
    "alpha in words": ({"lora_alpha": "8"}, "lora_alpha is '8', no number"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha is nan, no number"),
    "alpha of many digits": ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
    "a list of ranks": ({"rank_pattern": [4]}, "rank_pattern is not an object"),
    "a pattern": ({"rank_pattern": {"layers.[01].*": 4}}, "rank_pattern has 'layers.[01].*'; only"),
    "a pattern of alpha": ({"alpha_pattern": {"(q|v)_proj": 4}}, "alpha_pattern has '(q|v)_proj'"),
    "a pattern of nothing": ({"alpha_pattern": {"": 4}}, "alpha_pattern has ''"),
    "an object as rank": ({"rank_pattern": {"q_proj": {}}}, "r is {}, which is no rank"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configurations(case: str, folder: Path) -> None:
    fields, said = CONFIGURATIONS[case]
    configure(folder, **fields)
    by_header = "has the rank" in said
    assert said in refused(folder, WEIGHTS if by_header else CONFIG)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "an object is expected"),
        ('{"r": 1, "r": 2}', "'r' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ("\udcff", "not UTF-8"),
        ('{"r": ' + "1" * 5000 + "}", "not JSON"),
    ],
    ids=["empty", "cut", "list", "twice", "deep", "bytes", "digits"],
)
def test_no_configuration(text: str, said: str, folder: Path) -> None:
    (folder / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert said in refused(folder, CONFIG)


def with_tensor(name: str, tensor: Tensor | None) -> Callable[[Path], None]:
    """Store another one under a name; None: none."""

    def change(folder: Path) -> None:
        stored = tensors()
        stored.pop(name, None)
        if tensor is not None:
            stored[name] = tensor
        save_file(stored, folder / WEIGHTS)

    return change


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-10])


def write(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).write_bytes(content)


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no A": (with_tensor(A, None), "model.layers.0.self_attn.q_proj has no pair of lora_A and"),
    "no B": (with_tensor(B, None), "model.layers.0.self_attn.q_proj has no pair of lora_A and"),
    "another rank of B": (with_tensor(B, torch.ones(10, 3)), "has the rank 4 (A) and 3 (B)"),
    "a vector": (with_tensor(A, torch.ones(12)), "lora_A of the shape [12]"),
    "no numbers": (with_tensor(B, torch.ones(0, 4)), "lora_B of [0, 4], and matrices are"),
    "integers": (with_tensor(A, torch.ones(4, 12, dtype=torch.int32)), "is of int32"),
    "bytes": (with_tensor(B, torch.ones(10, 4, dtype=torch.uint8)), "is of uint8"),
    "NaN": (with_tensor(B, torch.full((10, 4), float("nan"))), "holds NaN or infinity"),
    "infinite when scaled": (with_tensor(B, torch.full((10, 4), 3e38)), "holds NaN or infinity"),
    "an embedding": (
        with_tensor("base_model.model.model.embed_tokens.lora_embedding_A", torch.ones(4, 9)),
        "embed_tokens.lora_embedding_A is no part of LoRA",
    ),
    "a whole module": (
        with_tensor("base_model.model.lm_head.modules_to_save.weight", torch.ones(9, 12)),
        "modules_to_save.weight is no part of LoRA",
    ),
    "a bias": (with_tensor(f"{Q}.lora_B.bias", torch.ones(10)), "lora_B.bias is no part of LoRA"),
    "a magnitude": (
        with_tensor(f"{Q}.lora_magnitude_vector", torch.ones(10)),
        "lora_magnitude_vector is no part of LoRA",
    ),
    "another prefix": (
        with_tensor("model.x.lora_A.weight", torch.ones(4, 2)),
        "is no part of LoRA",
    ),
    "a name on two lines": (with_tensor("a\nb", torch.ones(2)), "a b is no part of LoRA"),
    "the model's own alone": (
        lambda folder: save_file(
            {"base_model.model.lm_head.base_layer.weight": torch.ones(2, 2)}, folder / WEIGHTS
        ),
        "it holds no lora_A and lora_B",
    ),
    "blocks of no type": (
        with_tensor(f"{Q}.lora_A.blocks", torch.ones(4, 12, dtype=torch.uint8)),
        "lora_A.blocks is there twice",
    ),
    "cut off": (cut, "damaged or cut off"),
    "empty": (write(b""), "damaged or cut off: 0 bytes"),
    "Git LFS": (write(b"version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS"),
    "a header of 2^60 bytes": (write((2**60).to_bytes(8, "little") + b"{}"), "damaged or cut off"),
    "a pickle instead": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
        "adapter_model.bin is a pickle",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, folder: Path) -> None:
    change, said = FILES[case]
    change(folder)
    assert said in refused(folder, WEIGHTS)


def test_a_rank_above_the_limit_is_refused_before_anything_is_read(folder: Path) -> None:
    """A gigabyte by its header, of which nothing is stored."""
    shape, size = [65, 4_000_000], 65 * 4_000_000 * 4
    header = {
        f"{Q}.lora_A.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]},
        f"{Q}.lora_B.weight": {
            "dtype": "F32",
            "shape": [4, 65],
            "data_offsets": [size, size + 1040],
        },
    }
    content = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + size + 1040)
    configure(folder, r=65)
    assert "the rank 65, above the limit of 64 (--max-adapter-rank)" in refused(folder, WEIGHTS)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_pipe_is_not_waited_for(file: str, folder: Path) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert "not a regular file" in refused(folder, file)


def test_no_folder(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere", CONFIG)
    (tmp_path / "file").write_text("x")
    assert "cannot be read: Not a directory" in refused(tmp_path / "file")


def test_blocks_of_a_type_that_is_none(folder: Path) -> None:
    """What `compress-finetune` writes, with a type that no block has."""
    configure(folder, penstock_blocks=["Q4_0"])
    assert "penstock_blocks names no type of blocks" in refused(folder, CONFIG)
    stored = tensors()
    stored[f"{Q}.lora_A.blocks"] = torch.ones(4, 18, dtype=torch.uint8)
    del stored[f"{Q}.lora_A.weight"]
    save_file(stored, folder / WEIGHTS)
    configure(folder)
    assert "lora_A.blocks has no whole blocks of a known type" in refused(folder, WEIGHTS)


def test_the_head_of_the_model_that_peft_writes_too_is_left_out(folder: Path) -> None:
    with_tensor("base_model.model.lm_head.base_layer.weight", torch.ones(9, 12))(folder)
    assert len(read_adapter(folder, max_rank=64).layers) == 2
