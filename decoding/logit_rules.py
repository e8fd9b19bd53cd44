"""Logits processors: masks, biases, bad words and penalties, by a row's own history.

A request's rules are compiled once, for all of its choices and steps. Each row's result is a
function of its prefix alone, so it is the same in any batch.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ..kernels.transfer import to_device, together
from .compiled_rules import CompiledRules
from .drafting.draft import DraftedRow
from .pieces import Pieces
from .rule_state import RuleState
from .rules import Rules
from .sampling import Row

_REMEMBERED: Final = 64
"""Compiled rules that are kept, for requests with the same rules."""


class RuleBook:
    """Applies each row's rules to its logits. `pieces`: those of the vocabulary, for bad words."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._compiled: OrderedDict[Rules, CompiledRules] = OrderedDict()

    def apply(self, logits: Tensor, rows: Sequence[Row], indices: Sequence[int]) -> None:
        """Change float32 `logits[indices]` in place, `[R, V]`, contiguous."""
        states = self._states(logits, rows, indices)
        _add(logits, rows, indices, states)
        _forbid_completions(logits, indices, states)
        _penalise(logits, indices, states)

    def _states(
        self, logits: Tensor, rows: Sequence[Row], indices: Sequence[int]
    ) -> list[RuleState]:
        """The states of `rows[indices]`; a draft token's row continues the state of its parent."""
        found: list[RuleState] = []
        for i in indices:
            row = rows[i]
            if isinstance(row, DraftedRow) and row.parent is not None:
                before = row.parent.rule_state
                assert before is not None, "parents stand before their children"
                row.rule_state = before.followed_by(row.tokens[-1])
            elif row.rule_state is None:
                rules = row.sampling.rules
                assert rules is not None
                compiled = self._compile(rules, logits)
                state = RuleState(compiled, row.tokens, row.answer_start)
                row.rule_state = state.catch_up(row.tokens)
            else:
                row.rule_state.catch_up(row.tokens)
            assert row.rule_state is not None
            found.append(row.rule_state)
        return found

    def _compile(self, rules: Rules, logits: Tensor) -> CompiledRules:
        compiled = self._compiled.get(rules)
        if compiled is None:
            compiled = CompiledRules(rules, self._pieces, logits.shape[1], logits.device)
            self._compiled[rules] = compiled
            if len(self._compiled) > _REMEMBERED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(rules)
        return compiled


def _add(
    logits: Tensor, rows: Sequence[Row], indices: Sequence[int], states: Sequence[RuleState]
) -> None:
    """Add masks and biases: one addition for adjacent rows that share them."""

    def addends() -> Iterator[tuple[int, Tensor | None]]:
        for i, state in zip(indices, states, strict=True):
            yield i, state.rules.addend(state.read - rows[i].answer_start)
        yield -1, None

    start = stop = 0
    shared: Tensor | None = None
    for i, addend in addends():
        if shared is not None and (addend is not shared or i != stop):
            logits[start:stop] += shared
            shared = None
        if shared is None:
            start, shared = i, addend
        stop = i + 1


def _forbid_completions(
    logits: Tensor, indices: Sequence[int], states: Sequence[RuleState]
) -> None:
    at: list[np.ndarray[Any, Any]] = []
    size = logits.shape[1]
    for i, state in zip(indices, states, strict=True):
        if state.word_state and state.rules.words is not None:
            ids = state.rules.words.forbidden(state.word_state)
            at.append(ids[ids < size] + i * size)
    if at:
        index = to_device(np.concatenate(at), np.int64, logits.device)
        logits.view(-1).index_fill_(0, index, float("-inf"))


def _penalise(logits: Tensor, indices: Sequence[int], states: Sequence[RuleState]) -> None:
    """Repetition (Keskar et al. 2019; prompt and answer), presence and frequency (answer only)."""
    size = logits.shape[1]
    having = [
        (i, state)
        for i, state in zip(indices, states, strict=True)
        if state.rules.of.penalises and state.ids.size
    ]
    if not having:
        return
    sizes = [state.ids.size for _, state in having]

    def each(values: list[float]) -> np.ndarray[Any, Any]:
        return np.repeat(np.array(values, dtype=np.float32), sizes)

    rules = [state.rules.of for _, state in having]
    index, counts, repetition, frequency, presence = together(
        [
            np.concatenate([state.ids + i * size for i, state in having]),
            np.concatenate([state.counts for _, state in having]),
            each([one.repetition_penalty for one in rules]),
            each([one.frequency_penalty for one in rules]),
            each([one.presence_penalty for one in rules]),
        ],
        logits.device,
    )
    flat = logits.view(-1)
    picked = flat[index]
    picked = torch.where(picked > 0, picked / repetition, picked * repetition)
    picked -= frequency * counts
    picked -= presence * (counts > 0)
    flat.scatter_(0, index, picked)
