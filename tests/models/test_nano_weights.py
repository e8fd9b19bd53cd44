import csv
import math
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from penstock.engine.loading.folder import EMBEDDED_MODEL as WEIGHTS
from penstock.models.nano.training.batches import Encoder, collate, rows
from penstock.models.nano.training.plan import TrainingPlan
from penstock.models.nano.training.trainer import token_loss

LOSSES = WEIGHTS.parent / "loss.csv"

Nano = tuple[LlamaForCausalLM, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def nano() -> Nano:
    model = AutoModelForCausalLM.from_pretrained(
        WEIGHTS, local_files_only=True, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS, local_files_only=True)
    return cast("LlamaForCausalLM", model.eval()), cast("PreTrainedTokenizerBase", tokenizer)


def _greedy(nano: Nano, prompt: str) -> tuple[str, bool]:
    """Return what follows `prompt`, and whether it ended by itself."""
    model, tokenizer = nano
    ids = cast("list[int]", tokenizer(prompt, add_special_tokens=False)["input_ids"])
    generate = cast("Any", model).generate  # typed for a protocol that its own classes miss
    ids_1T = torch.tensor([ids])
    out_1T = generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=512,
        do_sample=False,
        temperature=None,
    )
    new = cast("list[int]", out_1T[0, len(ids) :].tolist())
    ends = cast("list[int]", cast("Any", model.generation_config).eos_token_id)
    return cast("str", tokenizer.decode(new, skip_special_tokens=True)), new[-1] in ends


def _asked(text: str) -> str:
    return f"<|endoftext|><|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_size() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 20_000_000
    assert {t.dtype for t in load_file(WEIGHTS / "model.safetensors").values()} == {torch.bfloat16}


def test_no_path_of_the_machine_is_in_the_files() -> None:
    for file in WEIGHTS.iterdir():
        if file.suffix != ".safetensors":
            for path in (Path.home(), WEIGHTS.resolve().parents[2]):
                assert str(path) not in file.read_text(), file


def test_shape(nano: Nano) -> None:
    config = nano[0].config
    assert config.model_type == "llama"
    assert config.max_position_embeddings == 2048
    assert config.tie_word_embeddings
    assert config.num_attention_heads > (config.num_key_value_heads or 0)
    assert config.vocab_size == len(nano[1])


def test_both_kinds_of_end_stop_generation(nano: Nano) -> None:
    config = GenerationConfig.from_pretrained(WEIGHTS, local_files_only=True)
    _, tokenizer = nano
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    assert sorted(config.eos_token_id) == sorted(ends)


def test_the_loss_curve_is_that_of_these_weights(nano: Nano) -> None:
    """Its last line, measured again; what rounding to bfloat16 changes is allowed for."""
    model, tokenizer = nano
    with LOSSES.open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    source = rows(Encoder(tokenizer), TrainingPlan(steps=1).seed, 512, "held_out")
    with torch.no_grad():
        loss = token_loss(model, collate(islice(source, 16))).item()
    assert math.isclose(loss, float(last["held_out_loss"]), rel_tol=0.03)


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("<|endoftext|>Once upon a time", id="plain"),
        pytest.param(_asked("Write a story about a cat."), id="chat"),
    ],
)
def test_a_greedy_story_ends_by_itself(nano: Nano, prompt: str) -> None:
    text, ended = _greedy(nano, prompt)
    assert ended
    assert 40 < len(text.split()) < 350
    if "cat" in prompt:
        assert "cat" in text


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        pytest.param(
            "Repeat this list: apple, river, Lena, stone",
            "apple, river, Lena, stone",
            id="copy",
        ),
        pytest.param(
            "Anna lives in Toruma. The wind was strong. Tom's kite is red. Ella likes honey."
            "\n\nWhat colour is Tom's kite?",
            "Tom's kite is red.",
            id="recall",
        ),
        pytest.param(
            "Game of 24: 10 14\nPossible next steps:",
            "10 + 14 = 24 (left: 24)\n10 * 14 = 140 (left: 140)\n14 - 10 = 4 (left: 4)",
            id="propose",
        ),
        pytest.param("Game of 24: 4 20\nsure, likely or impossible?", "sure", id="judge"),
        pytest.param("Game of 24: 1 11\nsure, likely or impossible?", "impossible", id="judge no"),
    ],
)
def test_it_answers(nano: Nano, question: str, answer: str) -> None:
    assert _greedy(nano, _asked(question)) == (answer, True)
