"""From rows of logits to tokens: greedy, or seeded sampling with the usual filters.

Everything is vectorised over the rows of a step, and every row's token is a function of its own
logits, parameters, history and position alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..kernels.backend import TORCH, Kernels
from ..kernels.transfer import to_device
from .gumbel import row_keys
from .logit_rules import apply_rules, has_rules
from .logprobs import log_total
from .sampling import Row, Sampling

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them would overflow."""

_CANDIDATES = 1024
"""Top-p first looks among so many best tokens, which nearly always suffices."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """The parameters of some rows as tensors."""

    all_greedy: bool
    greedy: Tensor
    temperature: Tensor
    top_k: Tensor | None
    max_top_k: int
    top_p: Tensor | None
    min_p: Tensor | None
    seeds: np.ndarray
    with_rules: list[int]

    @property
    def has_filters(self) -> bool:
        """Whether some row drops tokens."""
        return any(each is not None for each in (self.top_k, self.top_p, self.min_p))

    def repeated(self, counts: list[int]) -> "_Packed":
        """The same with row i `counts[i]` times.

        As it is where all rows are greedy and none has rules: nobody reads more of it then.
        """
        if self.all_greedy and not self.with_rules:
            return self
        index = np.repeat(np.arange(len(counts)), counts)
        with_rules = self.with_rules
        if with_rules:
            having = frozenset(with_rules)
            with_rules = [row for row, i in enumerate(index.tolist()) if i in having]
        if self.all_greedy:
            return replace(self, with_rules=with_rules)
        at = to_device(index, np.int64, self.greedy.device)
        return _Packed(
            all_greedy=False,
            greedy=self.greedy[at],
            temperature=self.temperature[at],
            top_k=None if self.top_k is None else self.top_k[at],
            max_top_k=self.max_top_k,
            top_p=None if self.top_p is None else self.top_p[at],
            min_p=None if self.min_p is None else self.min_p[at],
            seeds=self.seeds[index],
            with_rules=with_rules,
        )


class Sampler:
    """Chooses one token per row. Keeps only what it can recompute: packed parameters, token ids."""

    def __init__(self, kernels: Kernels = TORCH) -> None:
        self._kernels = kernels
        # Of the sequences of the last step; they mostly stay while their drafts change.
        self._samplings: list[Sampling] = []
        self._packed: _Packed | None = None

    def sample(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """Token ids, int64 `[R]`, for float `logits [R, V]`, which may be overwritten."""
        packed = self._pack(rows, logits.device)
        logits = logits.float()
        if packed.with_rules:
            apply_rules(logits, rows, packed.with_rules)
        if packed.all_greedy:
            return self._kernels.argmax(logits)
        temperature = packed.temperature
        if packed.has_filters:
            logits = _filtered(logits / temperature, packed)
            temperature = torch.ones_like(temperature)
        positions = np.fromiter((len(row.tokens) for row in rows), np.uint64, len(rows))
        keys = to_device(row_keys(packed.seeds, positions), None, logits.device)
        return self._kernels.gumbel_argmax(logits, temperature, keys, packed.greedy)

    def _pack(self, rows: Sequence[Row], device: torch.device) -> _Packed:
        samplings: list[Sampling] = []
        counts: list[int] = []
        for row in rows:
            if samplings and row.sampling is samplings[-1]:
                counts[-1] += 1
            else:
                samplings.append(row.sampling)
                counts.append(1)
        packed = self._packed
        if packed is None or not _same(self._samplings, samplings):
            packed = self._packed = _pack(samplings, device)
            self._samplings = samplings
        return packed if len(samplings) == len(rows) else packed.repeated(counts)


def _filtered(scores: Tensor, packed: _Packed) -> Tensor:
    """Scores with what the filters drop at minus infinity; the best of a row is never dropped."""
    if packed.min_p is not None:
        floor = scores.amax(dim=-1, keepdim=True) + packed.min_p.log()
        scores.masked_fill_(scores < floor, float("-inf"))
    if packed.top_k is not None:
        _keep_top_k(scores, packed.top_k, packed.max_top_k)
    if packed.top_p is not None:
        _keep_top_p(scores, packed.top_p)
    return scores


def _same(a: list[Sampling], b: list[Sampling]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _pack(samplings: list[Sampling], device: torch.device) -> _Packed:
    def column(values: list[float]) -> Tensor:
        return to_device(values, np.float32, device)[:, None]

    greedy = [s.temperature < GREEDY_BELOW for s in samplings]
    top_k = [s.top_k for s in samplings]
    return _Packed(
        all_greedy=all(greedy),
        greedy=to_device(greedy, np.bool_, device),
        temperature=column(
            [1.0 if cold else s.temperature for s, cold in zip(samplings, greedy, strict=True)]
        ),
        top_k=to_device(top_k, np.int64, device)[:, None] if any(top_k) else None,
        max_top_k=max(top_k, default=0),
        top_p=column([s.top_p for s in samplings]) if any(s.top_p < 1 for s in samplings) else None,
        min_p=column([s.min_p for s in samplings]) if any(s.min_p > 0 for s in samplings) else None,
        seeds=np.array([s.seed & 0xFFFFFFFFFFFFFFFF for s in samplings], dtype=np.uint64),
        with_rules=[i for i, s in enumerate(samplings) if has_rules(s)],
    )


def _keep_top_k(scores: Tensor, top_k: Tensor, max_top_k: int) -> None:
    """Drop what is below the k-th best score; ties with it stay. top_k 0 keeps all."""
    best = scores.topk(min(max_top_k, scores.shape[1]), dim=-1).values
    kth = best.gather(1, (top_k - 1).clamp(0, best.shape[1] - 1))
    kth.masked_fill_(top_k == 0, float("-inf"))
    scores.masked_fill_(scores < kth, float("-inf"))


def _keep_top_p(scores: Tensor, top_p: Tensor) -> None:
    """Keep the best tokens whose probabilities reach top_p together (Holtzman et al. 2020).

    The token that crosses the threshold stays, and so do ties with it.
    """
    active = top_p[:, 0] < 1
    total = log_total(scores)
    best = scores.topk(min(_CANDIDATES, scores.shape[1]), dim=-1).values
    reached = (best - total).exp().cumsum(dim=-1)
    short = active & (reached[:, -1] < top_p[:, 0])
    if best.shape[1] < scores.shape[1] and bool(short.any()):
        # Flat distributions need the whole order; each row decides for itself which way it goes.
        for i in short.nonzero()[:, 0].tolist():
            _cut(scores[i : i + 1], total[i : i + 1], top_p[i : i + 1])
        active &= ~short
    below = (reached < top_p).sum(dim=-1, keepdim=True).clamp(max=best.shape[1] - 1)
    floor = best.gather(1, below)
    floor.masked_fill_(~active[:, None], float("-inf"))
    scores.masked_fill_(scores < floor, float("-inf"))


def _cut(scores: Tensor, total: Tensor, top_p: Tensor) -> None:
    ordered = scores.sort(dim=-1, descending=True).values
    reached = (ordered - total).exp().cumsum(dim=-1)
    below = (reached < top_p).sum(dim=-1, keepdim=True).clamp(max=scores.shape[1] - 1)
    scores.masked_fill_(scores < ordered.gather(1, below), float("-inf"))
