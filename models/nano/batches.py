"""Batches without padding or storage: each step makes its documents from (seed, step).

A run that resumes therefore continues with the tokens it would have seen.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .corpus import Split, documents
from .plan import TrainingPlan


def rows(
    tokenizer: PreTrainedTokenizerBase, seed: int | str, row_tokens: int, split: Split = "train"
) -> Iterator[list[int]]:
    """Yield rows of `row_tokens` ids, each starting with a whole document, without padding."""
    row: list[int] = []
    for document in documents(seed, split):
        ids = cast("list[int]", tokenizer(document.text)["input_ids"])
        row += ids
        if len(row) >= row_tokens:
            yield row[:row_tokens]
            row = ids if len(row) > row_tokens and len(ids) < row_tokens else []


def batch(
    tokenizer: PreTrainedTokenizerBase, plan: TrainingPlan, step: int, split: Split = "train"
) -> Tensor:
    """Return ids_BT of one step, int64, in the shape that the plan gives it."""
    count, row_tokens = plan.shape(step)
    source = rows(tokenizer, f"{plan.seed}/{step}", row_tokens, split)
    return torch.tensor([next(source) for _ in range(count)])
