"""The texts of the study of the KV cache: what is read, what is fed, which tokens count.

Of nano's own: stories to a request, and long texts of facts with many questions, of which only the
answers count, since only those were ever learned. Both are held out. Or any text, in pieces.
"""

from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Final

from penstock.engine.requests.tokenizer import Tokenizer
from penstock.models.nano.abilities import recall, storytelling
from penstock.models.nano.abilities.example import Example
from penstock.models.nano.training.batches import Encoded, Encoder
from penstock.models.nano.training.corpus import conversation

STORY_PROMPT_TOKENS: Final = 64
FACT_WORDS: Final = 450
QUESTIONS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The first `prompt_tokens` are read at once, the others one by one as if generated.

    `counted`: positions of the tokens whose probability counts; none is in the prompt.
    """

    ids: tuple[int, ...]
    prompt_tokens: int
    counted: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A text of facts with a question behind it; what counts of `text` is the right answer."""

    example: Example
    text: Text


def stories(tokenizer: Tokenizer, rng: Random, count: int) -> list[Text]:
    """A request and its story each; the prompt ends within the story."""
    encoder = Encoder(tokenizer.hf)
    examples = [storytelling.example(rng, "held_out") for _ in range(count)]
    return [
        _text(encoded, STORY_PROMPT_TOKENS)
        for encoded in encoder([conversation(example.turns) for example in examples])
    ]


def facts(tokenizer: Tokenizer, rng: Random, count: int) -> list[Text]:
    """A text and questions about it; the prompt ends behind the first question."""
    encoder = Encoder(tokenizer.hf)
    examples = [
        recall.example(rng, "held_out", length_words=FACT_WORDS, questions=QUESTIONS)
        for _ in range(count)
    ]
    return [
        _text(encoded, _first(encoded))
        for encoded in encoder([conversation(example.turns) for example in examples])
    ]


def questions(tokenizer: Tokenizer, rng: Random, count: int) -> list[Question]:
    """One question each, behind its text; asked about are all depths of the text."""
    encoder = Encoder(tokenizer.hf)
    examples = [recall.example(rng, "held_out", length_words=FACT_WORDS) for _ in range(count)]
    return [
        Question(example=example, text=_text(encoded, _first(encoded)))
        for example, encoded in zip(
            examples, encoder([conversation(example.turns) for example in examples]), strict=True
        )
    ]


def pieces(
    tokenizer: Tokenizer, text: str, *, tokens: int, prompt_tokens: int, most: int
) -> list[Text]:
    """A text's tokens in pieces of `tokens`, the rest dropped; at most `most` of them."""
    ids = tokenizer.encode(text)
    return [
        Text(
            ids=tuple(ids[start : start + tokens]),
            prompt_tokens=prompt_tokens,
            counted=tuple(range(prompt_tokens, tokens)),
        )
        for start in islice(range(0, len(ids) - tokens + 1, tokens), most)
    ]


def _text(encoded: Encoded, prompt_tokens: int) -> Text:
    return Text(
        ids=tuple(encoded.ids),
        prompt_tokens=prompt_tokens,
        counted=tuple(
            at for at, weight in enumerate(encoded.weights) if weight and at >= prompt_tokens
        ),
    )


def _first(encoded: Encoded) -> int:
    """Where the first answer begins."""
    return next(at for at, weight in enumerate(encoded.weights) if weight)
