"""The order in which keys are evicted: a policy's scores, `Retention`, and the model's windows."""

from typing import Any

import torch
from torch import Tensor

from ..registry import Choice
from .base import CachePolicy, HeldKeys, Retention


def scores_of(choice: Choice[CachePolicy[Any]], held: HeldKeys) -> Tensor:
    """The policy's scores, float32 `[layers, K, held]`, finite.

    Raises:
        Exception: whatever the policy raises, or because the shape is wrong.
    """
    scores = choice.method.score(held, choice.parameters).to(held.attention)
    return scores.expand_as(held.attention).nan_to_num()


def ranks_of(
    scores: Tensor, positions: Tensor, *, length: int, retention: Retention, windows: Tensor
) -> Tensor:
    """int64 in the order in which keys go; of equal scores the older position first.

    Slots whose key was dropped (position -1) go first, then keys beyond their layer's window; those
    that must stay come last. `length`: tokens so
    far. `windows`: `[layers, 1, 1]`, tokens that each layer's own sliding window holds.
    """
    scores = scores.masked_fill(length - positions >= windows, float("-inf"))
    stays = (positions >= length - retention.recent) | (positions < retention.sink)
    scores.masked_fill_(stays, float("inf"))
    scores.masked_fill_(positions < 0, float("-inf"))
    return (_in_order(scores).long() << 32) + positions


def _in_order(scores: Tensor) -> Tensor:
    """int32 in the order of float32 scores: their bits, those behind a negative sign flipped."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
