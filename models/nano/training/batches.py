"""Batches without storage: each step makes its documents from (seed, step).

A run that resumes therefore continues with the tokens it would have seen. Whole documents are
packed into rows; what remains of a row is padded and not learned.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from ..abilities.example import Split
from .corpus import END_OF_DOCUMENT, END_OF_TURN, START_OF_TURN, documents
from .plan import LONG_ROW_TOKENS, TrainingPlan
from .stumbles import LEARNED_FROM_HERE

_DRAWN_AT_ONCE: Final = 16
_SHORT_ANSWER_TOKENS: Final = 16  # a shorter answer weighs as much as one of this length


class Batch(NamedTuple):
    """Rows of ids, and which of the tokens are learned.

    `ids_BT`: int64. `places_N`: int64, where in the flattened `ids_BT` the learned tokens stand,
    none of them the first of a row; `weight_N`: float32, how much predicting each counts. They are
    listed here, on the CPU: to look for them on a GPU would make every step wait for it.
    """

    ids_BT: Tensor
    places_N: Tensor
    weight_N: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


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
        # What is not learned of an answer is encoded by itself, so that the cut is between tokens.
        parts = [text.split(LEARNED_FROM_HERE) for text in texts]
        encoded = self.tokenizer([part for each in parts for part in each])["input_ids"]
        rest = iter(cast("list[list[int]]", encoded))
        found: list[Encoded] = []
        for each in parts:
            ids = next(rest)
            if self.start not in ids:
                found.append(Encoded([*ids, self.document], [0.0, *[1.0] * len(ids)]))
                continue
            begun = len(ids) if len(each) > 1 else 0
            for _ in each[1:]:
                ids = ids + next(rest)[1:]
            found.append(Encoded(ids, self._weights(ids, begun)))
        return found

    def _weights(self, ids: list[int], begun: int) -> list[float]:
        """Weigh the answers' tokens, but for those among the first `begun` ids."""
        weights = [0.0] * len(ids)
        for index, token in enumerate(ids):
            # <|im_start|> assistant newline text <|im_end|>
            if token == self.start and ids[index + 1] == self.assistant:
                end = ids.index(self.end, index) + 1
                first = max(begun, index + 3)
                length = end - first
                weight = max(1.0, _SHORT_ANSWER_TOKENS / length)
                weights[first:end] = [weight] * length
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
    weight_BT = torch.tensor([row.weights for row in chosen])
    weight_BT[:, 0] = 0
    places_N = weight_BT.flatten().nonzero()[:, 0]
    ids_BT = torch.tensor([row.ids for row in chosen])
    return Batch(ids_BT, places_N, weight_BT.flatten()[places_N])


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


class Batches(Dataset[Batch]):
    """The batches of a run by step, for worker processes to make ahead of it."""

    def __init__(self, encoder: Encoder, plan: TrainingPlan) -> None:
        self.encoder, self.plan = encoder, plan

    def __getitem__(self, step: int) -> Batch:
        return batch(self.encoder, self.plan, step)


def in_order(
    encoder: Encoder, plan: TrainingPlan, steps: range, *, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Yield the batches of `steps`; `workers` processes make them ahead, or none."""
    loader = DataLoader(
        Batches(encoder, plan),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )
    yield from loader


def _start_worker(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each is enough
    torch.set_num_threads(1)
