"""On the compiled kernels nothing around a request changes a bit of what it is told."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock import SamplingParams
from penstock.engine.build import Built
from penstock.engine.model.fused.compiled import CompiledDecoder
from penstock.kernels.decoder.native import NativeLayers
from penstock.kernels.linear.native import NativeLinear
from penstock.kernels.native.library import Library, library
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, Job, build, run
from tests.tiny import save_tiny

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=12, temperature=0.9, seed=5, ignore_eos=True)
JOBS = [
    Job(prompt=[5 + 7 * i % 280 for i in range(75)], params=GREEDY, logprobs=4),
    Job(prompt=[9, 11, 9, 11, 9, 11], params=SEEDED, logprobs=4),
    Job(prompt=[3], params=GREEDY, logprobs=4),
    Job(prompt=[5 + 7 * i % 280 for i in range(40)], params=SEEDED, logprobs=4),
]
DRAFTS: list[Any] = [
    {"jacobi": {"window": 7, "init": "random", "adaptive": False}},
    {"ngram": {"window": 5, "adaptive": False, "shared": False}},
]
"""Lines: in a tree, the keys of a path stand in other places, and are added in another order."""


def alone(built: Built) -> list[Answer]:
    return [run(built, [job])[0] for job in JOBS]


def seen(answers: list[Answer]) -> list[Any]:
    """Tokens and every logprob that was told, as they are."""
    return [(answer.tokens, answer.logprobs) for answer in answers]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2", "gpt2"])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_company_chunks_and_drafts(kind: str, quantization: str, tiny_model: TinyModel) -> None:
    settings: dict[str, Any] = {"quantization": quantization, "prefix_cache": False}
    built = build(tiny_model(kind), **settings)
    expected = seen(alone(built))
    assert seen(run(built, JOBS)) == expected
    for drafting in DRAFTS:
        assert seen(run(built, [job.with_decoding(drafting) for job in JOBS])) == expected
    for chunk in (7, 33):
        in_pieces = build(tiny_model(kind), chunk_tokens=chunk, **settings)
        assert seen(run(in_pieces, JOBS)) == expected


@pytest.mark.parametrize(
    "settings",
    [{}, {"kv_cache_dtype": "int8"}, {"kv_cache_dtype": "fp8"}, {"threads": 3}],
    ids=["float32", "int8-cache", "fp8-cache", "threads"],
)
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_contexts_of_2000_tokens(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Kind: promises that only short contexts kept. Here they are cut into splits, and shared."""
    folder = save_tiny(kind, tmp_path, max_position_embeddings=2048, num_hidden_layers=2)
    long = Job(prompt=[5 + 7 * i % 280 for i in range(2000)], params=GREEDY, logprobs=4)
    in_one = build(folder, max_batch_tokens=2048, **{**settings, "threads": 1})
    expected = seen(run(in_one, [long]))
    for chunk in (61, 512):
        in_pieces = build(folder, chunk_tokens=chunk, **{"threads": 1, **settings})
        assert seen(run(in_pieces, [long, *JOBS])[:1]) == expected
    drafted = long.with_decoding(DRAFTS[0])
    assert seen(run(in_pieces, [drafted])) == expected, "over a cached prefix"


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_16_bits(
    kind: str, dtype: str, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are kept as they are stored, and give the bits that they gave in float32."""
    compiled = library()
    if not isinstance(compiled, Library):
        pytest.skip("needs the compiled kernels")
    copytree(tiny_model(kind), tmp_path, dirs_exist_ok=True)
    stored = load_file(tmp_path / "model.safetensors")
    narrow = {name: tensor.to(getattr(torch, dtype)) for name, tensor in stored.items()}
    save_file(narrow, tmp_path / "model.safetensors", {"format": "pt"})
    narrowed = build(tmp_path)
    as_numbers = {name: tensor.float() for name, tensor in narrow.items()}
    save_file(as_numbers, tmp_path / "model.safetensors", {"format": "pt"})
    assert stored_bytes(build(tmp_path)) == stored_bytes(narrowed)
    monkeypatch.setattr(compiled.call, "narrowest", in_float32)
    wide = build(tmp_path)
    assert stored_bytes(wide) == 2 * stored_bytes(narrowed)
    assert seen(run(narrowed, JOBS)) == seen(run(wide, JOBS))


def in_float32(_weights: int, _count: int) -> int:
    return 0


def stored_bytes(built: Built) -> int:
    model = built.loaded.model
    if isinstance(model, CompiledDecoder):
        return model.stored_bytes
    layers = (module for module in model.modules() if isinstance(module, NativeLinear))
    return sum(layer.packed.stored_bytes for layer in layers)


def test_prefixes_that_others_have_read(tiny_model: TinyModel) -> None:
    expected = seen(alone(build(tiny_model("llama"), prefix_cache=False)))
    built = build(tiny_model("llama"))
    assert seen([*run(built, JOBS), *run(built, JOBS)]) == expected * 2


@pytest.mark.parametrize(
    "policy",
    [
        {"h2o": {"heavy": 6, "recent": 6, "interval": 3}},
        {"h2o": {"heavy": 6, "recent": 6, "score": "decay", "score_window": 16}},
        {"window": {"recent": 12, "sink": 2, "interval": 4}},
        {"tova": {"keep": 14}},
        {"keynorm": {"low": 6, "recent": 8}},
    ],
    ids=["h2o", "h2o-decay", "window", "tova", "keynorm"],
)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_eviction_in_one_call_or_layer_by_layer(
    kind: str, policy: dict[str, Any], tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of prompts whose attention counts, of keys in slots, and of ordinary rows beside them."""
    if not isinstance(library(), Library):
        pytest.skip("needs the compiled kernels")
    prompts = [list(range(60, 100)), [5 + 7 * i % 280 for i in range(75)]]
    evicting = [Job(prompt=prompt, params=GREEDY, kv_cache=policy) for prompt in prompts]
    jobs = [JOBS[0], evicting[0], JOBS[1], evicting[1]]
    by_layer = build(tiny_model(kind), prefix_cache=False, chunk_tokens=33)
    by_layer.engine.runner.evicts_in_layers = False
    expected = seen(run(by_layer, jobs))
    in_one_call = build(tiny_model(kind), prefix_cache=False, chunk_tokens=33)
    monkeypatch.setattr(NativeLayers, "before_attention", None)  # of single layers
    assert seen(run(in_one_call, jobs)) == expected


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_neighbour_that_evicts(kind: str, tiny_model: TinyModel) -> None:
    """Then the step takes another way through the layers."""
    built = build(tiny_model(kind), prefix_cache=False)
    expected = seen(alone(built))
    evicting = Job(
        prompt=list(range(60, 100)), params=GREEDY, kv_cache={"h2o": {"heavy": 6, "recent": 6}}
    )
    assert seen(run(built, [*JOBS, evicting])[:-1]) == expected
