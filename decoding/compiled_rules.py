"""A request's rules as tensors, compiled once for all of its choices and steps."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.transfer import to_device
from .pieces import Pieces
from .rules import Rules
from .words import Words


class CompiledRules:
    """The rules of one request for a vocabulary and a device. `of`: the rules they are made from.

    Permanent bans and biases are one vector that is added to the logits.
    """

    def __init__(self, rules: Rules, pieces: Pieces, size: int, device: torch.device) -> None:
        self.of = rules
        self.words = words_of(rules, pieces)
        added = standing(rules, self.words, size)
        for token, bias in rules.logit_bias:
            added[token] += bias
        self.added = to_device(added, np.float32, device) if added.any() else None
        self._early: Tensor | None = None
        if rules.min_tokens and rules.suppressed_until_min:
            early = added.copy()
            early[list(rules.suppressed_until_min)] = -np.inf
            self._early = to_device(early, np.float32, device)

    def addend(self, generated: int) -> Tensor | None:
        """What to add to the logits after `generated` tokens of the answer; None: nothing."""
        early = self._early is not None and generated < self.of.min_tokens
        return self._early if early else self.added


def words_of(rules: Rules, pieces: Pieces) -> Words | None:
    """The bad words; None: there are none."""
    if not rules.bad_words:
        return None
    return Words(rules.bad_words, pieces.with_special if rules.shows_special else pieces)


def standing(rules: Rules, words: Words | None, size: int) -> np.ndarray[Any, Any]:
    """Float32 `[size]`: minus infinity for tokens that are always forbidden, 0 for others."""
    found = np.zeros(size, dtype=np.float32)
    if rules.allowed_token_ids is not None:
        found.fill(-np.inf)
        found[list(rules.allowed_token_ids)] = 0.0
    if words is not None:
        always = words.always
        found[always[always < size]] = -np.inf
    return found
