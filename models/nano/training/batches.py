"""Batches without storage: each step makes its documents from (seed, step).

A run that resumes therefore continues with the tokens it would have seen. Whole documents are
packed into rows; what remains of a row is padded and not learned.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..abilities.example import Split
from .corpus import END_OF_DOCUMENT, END_OF_TURN, START_OF_TURN, documents
from .plan import LONG_ROW_TOKENS, TrainingPlan

_DRAWN_AT_ONCE: Final = 16
_SHORT_ANSWER_TOKENS: Final = 16  # a shorter answer weighs as much as one of this length


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids_BT` int64; `weight_BT` float32: how much predicting that token counts (0: nothing)."""

    ids_BT: Tensor
    weight_BT: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return Batch(self.ids_BT.to(device), self.weight_BT.to(device))


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of a document or a row, and the weight of each."""

    ids: list[int]
    weights: list[float]


class Encoder:
    """Turns documents into ids, and says how much each of them is to be learned."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.document, self.start, self.end, self.assistant = (
            cast("int", tokenizer.convert_tokens_to_ids(token))
            for token in (END_OF_DOCUMENT, START_OF_TURN, END_OF_TURN, "assistant")
        )

    def __call__(self, texts: list[str]) -> list[Encoded]:
        """Return ids and weights of each text; the marker of the document's start comes first.

        Of a conversation the assistant's words and the ends of its turns are learned. Of a plain
        text all is, and the end, which is a further marker.
        """
        found: list[Encoded] = []
        for ids in cast("list[list[int]]", self.tokenizer(texts)["input_ids"]):
            if self.start in ids:
                found.append(Encoded(ids, self._weights(ids)))
            else:
                found.append(Encoded([*ids, self.document], [0.0, *[1.0] * len(ids)]))
        return found

    def _weights(self, ids: list[int]) -> list[float]:
        weights = [0.0] * len(ids)
        for index, token in enumerate(ids):
            # <|im_start|> assistant newline text <|im_end|>
            if token == self.start and ids[index + 1] == self.assistant:
                end = ids.index(self.end, index) + 1
                length = end - (index + 3)
                weight = max(1.0, _SHORT_ANSWER_TOKENS / length)
                weights[index + 3 : end] = [weight] * length
        return weights


def rows(
    encoder: Encoder,
    seed: int | str,
    row_tokens: int,
    split: Split = "train",
    *,
    mix: str = "main",
    long: bool = False,
) -> Iterator[Encoded]:
    """Yield rows of `row_tokens` ids with their weights: whole documents, each where it first fits.

    Documents longer than a row are left out; what is free at a row's end is padding of no weight.
    """
    source = documents(seed, split, mix=mix, long=long)
    waiting: list[Encoded] = []
    while True:
        row = Encoded([], [])
        drawn = False
        while True:
            room = row_tokens - len(row.ids)
            fits = next((each for each in waiting if len(each.ids) <= room), None)
            if fits is not None:
                waiting.remove(fits)
                row.ids.extend(fits.ids)
                row.weights.extend(fits.weights)
            elif drawn:
                break
            else:
                new = encoder(list(islice(source, _DRAWN_AT_ONCE)))
                waiting += [each for each in new if len(each.ids) <= row_tokens]
                drawn = True
        padding = row_tokens - len(row.ids)
        yield Encoded(row.ids + [encoder.document] * padding, row.weights + [0.0] * padding)


def collate(found: Iterable[Encoded]) -> Batch:
    """Return rows of equal length as one batch."""
    chosen = list(found)
    return Batch(
        torch.tensor([row.ids for row in chosen]), torch.tensor([row.weights for row in chosen])
    )


def batch(encoder: Encoder, plan: TrainingPlan, step: int, split: Split = "train") -> Batch:
    """Return the batch of one step, in the shape that the plan gives it."""
    count, row_tokens = plan.shape(step)
    found = rows(
        encoder,
        f"{plan.seed}/{step}",
        row_tokens,
        split,
        mix=plan.mix(step),
        long=row_tokens == LONG_ROW_TOKENS,
    )
    return collate(islice(found, count))
