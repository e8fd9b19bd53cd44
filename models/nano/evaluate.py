"""Measures the embedded model: `python -m penstock.models.nano.evaluate`; prints the card's table.

Stories are judged by rules, not by taste: whether they end by themselves, name what was asked for,
do not loop and are not all alike. Requests are worded from held-out documents.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from .batches import rows
from .corpus import ask_for, documents
from .story import Story
from .trainer import token_loss

WEIGHTS: Final = Path(__file__).parent / "weights"
_STARTS: Final = ("Once upon a time", "One day,", "There was once", "In a small house lived", "The")
_LOOP_WORDS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model told, and the request it answers with the held-out story that fits it.

    Both are None where the model continued a plain start.
    """

    text: str
    ended: bool
    request: str | None = None
    story: Story | None = None


def load(folder: Path = WEIGHTS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Return the model in float32 and its tokenizer, without network."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return cast("LlamaForCausalLM", model.eval()), cast("PreTrainedTokenizerBase", tokenizer)


@torch.inference_mode()
def held_out_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, *, row_tokens: int, count: int
) -> float:
    """Return the mean loss over `count` rows of held-out documents, in nats per token."""
    source = rows(tokenizer, "evaluate", row_tokens, "held_out")
    losses = [token_loss(model, torch.tensor([row])).item() for row in islice(source, count)]
    return sum(losses) / len(losses)


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    temperature: float,
    max_new_tokens: int = 512,
) -> tuple[str, bool]:
    """Return the continuation of `prompt` (special tokens written out) and whether it ended."""
    ids = cast("list[int]", tokenizer(prompt, add_special_tokens=False)["input_ids"])
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0}
        if temperature > 0
        else {"do_sample": False, "temperature": None}
    )
    generate = cast("Any", model).generate  # typed for a protocol that its own classes miss
    ids_1T = torch.tensor([ids])
    out_1T = generate(
        ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=max_new_tokens, **sampling
    )
    new = cast("list[int]", out_1T[0, len(ids) :].tolist())
    ends = cast("list[int]", model.generation_config.eos_token_id)  # pyright: ignore[reportOptionalMemberAccess]
    return cast("str", tokenizer.decode(new, skip_special_tokens=True)), new[-1] in ends


def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, *, temperature: float, count: int
) -> list[Answer]:
    """Return the answers to `count` requests for held-out stories and to a few plain starts."""
    rng = Random("requests")
    found: list[Answer] = []
    for document in islice(documents("evaluate/requests", "held_out"), count):
        assert document.story is not None
        request = ask_for(document.story, rng)
        message = {"role": "user", "content": request}
        prompt = cast(
            "str",
            tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True),
        )
        text, ended = complete(model, tokenizer, prompt, temperature=temperature)
        found.append(Answer(text=text, ended=ended, request=request, story=document.story))
    for start in _STARTS:
        prompt = f"{tokenizer.bos_token}{start}"
        text, ended = complete(model, tokenizer, prompt, temperature=temperature)
        found.append(Answer(text=start + text, ended=ended))
    return found


def loops(text: str) -> bool:
    """Say whether some run of eight words occurs three times."""
    words = text.split()
    runs = [tuple(words[i : i + _LOOP_WORDS]) for i in range(len(words) - _LOOP_WORDS + 1)]
    return any(runs.count(run) >= 3 for run in set(runs))


def distinct_share(texts: Sequence[str], size: int = 4) -> float:
    """Return how many of all runs of `size` words are different, between 0 and 1."""
    runs = [
        tuple(words[i : i + size])
        for words in (text.split() for text in texts)
        for i in range(len(words) - size + 1)
    ]
    return len(set(runs)) / max(1, len(runs))


def _mentions(answer: Answer, wanted: Callable[[Story], str | None]) -> list[bool]:
    """Return whether the answer names what is wanted, or nothing where it was not asked for."""
    word = wanted(answer.story) if answer.story else None
    if not word or not answer.request or word.lower() not in answer.request.lower():
        return []
    return [word.lower() in answer.text.lower()]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else math.nan


def scores(found: Sequence[Answer]) -> dict[str, float]:
    """Return the shares of one set of answers, by the names of the table's columns."""
    heroes = [hit for a in found for hit in _mentions(a, lambda story: story.kind)]
    names = [hit for a in found for hit in _mentions(a, lambda story: story.name)]
    things = [hit for a in found for hit in _mentions(a, lambda story: story.topic)]
    texts = [a.text for a in found]
    return {
        "ended": sum(a.ended for a in found) / len(found),
        "hero": _share(heroes),
        "name": _share(names),
        "topic": _share(things),
        "no loop": sum(not loops(text) for text in texts) / len(texts),
        "different": len(set(texts)) / len(texts),
        "distinct 4-grams": distinct_share(texts),
        "words": sum(len(text.split()) for text in texts) / len(texts),
    }


def main() -> None:
    """Print held-out loss and the scores at several temperatures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7, 1.0])
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.weights)
    for row_tokens in (512, 2048):
        count = max(1, arguments.rows * 512 // row_tokens)
        loss = held_out_loss(model, tokenizer, row_tokens=row_tokens, count=count)
        print(f"held-out, rows of {row_tokens}: {loss:.3f} nats, perplexity {math.exp(loss):.3f}")
    header = False
    for temperature in arguments.temperatures:
        torch.manual_seed(0)
        found = answers(model, tokenizer, temperature=temperature, count=arguments.requests)
        row = scores(found)
        if not header:
            print("\n| temperature | " + " | ".join(row) + " |\n|" + " --- |" * (len(row) + 1))
            header = True
        print(f"| {temperature} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |")
    print()
    for request in ("Write a story about a cat.", "Tell me a story about a dragon who lost a key."):
        message = [{"role": "user", "content": request}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        text, _ = complete(model, tokenizer, cast("str", prompt), temperature=0)
        print(f"> {request}\n\n{text}\n")


if __name__ == "__main__":
    main()
