import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from penstock.models.nano.batches import rows
from penstock.models.nano.evaluate import (
    WEIGHTS,
    Answer,
    complete,
    distinct_share,
    held_out_loss,
    load,
    loops,
    scores,
)

CARD_PERPLEXITY = 1.69  # models/nano/README.md: held-out documents in rows of 512 tokens

Nano = tuple[LlamaForCausalLM, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def nano() -> Nano:
    return load()


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


@pytest.mark.parametrize(("row_tokens", "count"), [(512, 8), (2048, 2)], ids=["short", "long"])
def test_held_out_perplexity(nano: Nano, row_tokens: int, count: int) -> None:
    # 5 % of room: fewer rows are read here than for the card.
    loss = held_out_loss(*nano, row_tokens=row_tokens, count=count)
    assert math.exp(loss) < CARD_PERPLEXITY * 1.05


def test_late_positions_are_no_worse(nano: Nano) -> None:
    """The last quarter of a full context is predicted as well as the second one."""
    model, tokenizer = nano
    ids_1T = torch.tensor([next(rows(tokenizer, "late", 2048, "held_out"))])
    with torch.inference_mode():
        logits_TV = model(ids_1T).logits[0, :-1]
    loss_T = torch.nn.functional.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="none")
    assert loss_T[1536:].mean() < loss_T[512:1024].mean() * 1.25


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("<|endoftext|>Once upon a time", id="plain"),
        pytest.param(
            "<|endoftext|><|im_start|>user\nWrite a story about a cat.<|im_end|>\n"
            "<|im_start|>assistant\n",
            id="chat",
        ),
    ],
)
def test_a_greedy_story_ends_by_itself(nano: Nano, prompt: str) -> None:
    text, ended = complete(*nano, prompt, temperature=0)
    assert ended
    assert 40 < len(text.split()) < 350
    assert not loops(text)
    if "cat" in prompt:
        assert "cat" in text


def test_loops() -> None:
    assert loops("a b c d e f g h " * 3)
    assert not loops("a b c d e f g h " * 2)
    assert not loops("short")


def test_distinct_share() -> None:
    assert distinct_share(["a b c d e"]) == 1
    assert distinct_share(["a b c d", "a b c d"]) == 0.5


def test_scores_of_a_plain_start_alone_count_no_requests() -> None:
    found = scores([Answer(text="The end.", ended=True)])
    assert found["ended"] == 1
    assert math.isnan(found["hero"])
