"""Positions beyond the length of training: as far as the model's rotary embedding is made for.

The kind: a length that two fields give. `max_position_embeddings` is the trained length in some
configurations and the extended one in others; the factor, the original length and what is asked for
have to be read together, and the angles have to be transformers' own at that length.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock import LLM, SamplingParams
from penstock.engine.config import EngineConfig
from penstock.engine.loading.loader import load_model
from penstock.errors import ConfigurationError
from tests.engine.reference import greedy
from tests.tiny import save_tiny

THETA = {"rope_theta": 10_000.0}
YARN = {**THETA, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    **THETA,
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + i / 16 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
LLAMA3 = {
    **THETA,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "default": ("llama", {}, 128, 128),
    "yarn": ("llama", {"rope_parameters": YARN}, 512, 512),
    "yarn that is declared": (
        "llama",
        {"rope_parameters": YARN, "max_position_embeddings": 600},
        600,
        600,
    ),
    "linear": (
        "llama",
        {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 4.0}},
        128,
        512,
    ),
    "dynamic": (
        "llama",
        {"rope_parameters": {**THETA, "rope_type": "dynamic", "factor": 4.0}},
        128,
        512,
    ),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 512}, 512, 512),
    "longrope": (
        "phi3",
        {
            "rope_parameters": LONG,
            "original_max_position_embeddings": 64,
            "max_position_embeddings": 512,
        },
        64,
        512,
    ),
    "su": (
        "phi3",
        {
            "rope_parameters": {**LONG, "rope_type": "su"},
            "original_max_position_embeddings": 64,
            "max_position_embeddings": 512,
        },
        64,
        512,
    ),
}
EXTENDED = [name for name in CASES if name not in ("default", "yarn that is declared")]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("rotary")
    made: dict[str, Path] = {}
    for name, (kind, fields, _, _) in CASES.items():
        changes: dict[str, Any] = {"max_position_embeddings": 128, **fields}
        made[name] = save_tiny(kind, base / name, base=None, **changes)
    return made


def context(folder: Path, asked: int | None = None) -> int:
    config = EngineConfig(model=str(folder), max_model_len=asked, threads=1)
    return load_model(config).info.max_length_tokens


@pytest.mark.parametrize("case", CASES)
def test_how_long_a_sequence_may_be(case: str, folders: dict[str, Path]) -> None:
    _, _, usual, most = CASES[case]
    assert context(folders[case]) == usual
    assert context(folders[case], most) == most
    with pytest.raises(ConfigurationError, match=f"--max-model-len is {most + 1}.* at most {most}"):
        context(folders[case], most + 1)


def prompt(length: int) -> list[int]:
    return [(31 * i + 7) % 256 for i in range(length)]


@pytest.mark.parametrize("case", EXTENDED)
def test_long_texts_equal_generate(case: str, folders: dict[str, Path]) -> None:
    """Longer than the original length; where angles follow the length, of one with that length."""
    most = CASES[case][3]
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    llm = LLM(
        str(folders[case]),
        max_model_len=most,
        kv_cache_memory=20_000_000,
        chunk_tokens=100,
        threads=1,
    )
    if case == "dynamic":
        # transformers' generate rotates each key by the angles of the moment it was read.
        answer = llm.generate([prompt(most)[:-1]], params.model_copy(update={"max_tokens": 1}))
        assert answer[0].outputs[0].token_ids == [_after_all_but_the_last(folders[case], most)]
        return
    texts = [prompt(most - 6), prompt(300)]
    answers = [out.outputs[0].token_ids for out in llm.generate(texts, params)]
    assert answers == greedy(folders[case], texts, 6)


def _after_all_but_the_last(folder: Path, length: int) -> int:
    """The likeliest token there, in one pass over a text of that length."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt(length)]), use_cache=False).logits
    return int(logits[0, -2].argmax())


def test_a_neighbour_changes_no_angle(folders: dict[str, Path]) -> None:
    """Short beside long: the batch's longest sequence must not choose the factors of all."""
    llm = LLM(str(folders["longrope"]), max_model_len=512, kv_cache_memory=20_000_000, threads=1)
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    short, long = prompt(20), prompt(400)
    alone = llm.generate([short], params)[0].outputs[0].token_ids
    together = llm.generate([long, short], params)[1].outputs[0].token_ids
    assert alone == together
