"""The sampler: rows of logits to tokens, greedy or seeded, with the usual filters.

Everything is vectorised over the rows of a step, and every row's token is a function of its own
logits, parameters, history and position alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..kernels.backend import TORCH, Kernels
from ..kernels.gumbel_argmax.reference import NOTHING as NOTHING
from ..kernels.transfer import to_device
from .constraint.masks import Masks
from .gumbel import row_keys
from .logit_rules import RuleBook
from .logprobs import log_total
from .pieces import Pieces
from .sampling import Row, Sampling

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them would overflow."""

_CANDIDATES = 1024
"""Best tokens among which top-p looks first; they nearly always suffice."""


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
        """Whether some row has top-k, top-p or min-p."""
        return any(each is not None for each in (self.top_k, self.top_p, self.min_p))

    def repeated(self, counts: list[int]) -> "_Packed":
        """The same with row i `counts[i]` times.

        Unchanged if all rows are greedy and none has rules: then only `all_greedy` is read.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What was chosen for each row.

    `ids`: int64 `[R]`; `NOTHING` where no token is left, because all are forbidden or because the
    row's logits are not finite. `logits`: float32 `[R, V]`, after masks and rules, before filters.
    `limited`: rows that have masks or rules. `largest`: the largest logit of each before these.
    """

    ids: Tensor
    logits: Tensor
    limited: list[int]
    largest: Tensor | None

    def forbidden(self, rows: list[int]) -> list[int]:
        """Of `rows`, all `NOTHING`, those whose mask and rules forbid all; waits for the device."""
        if self.largest is None:
            return []
        finite = self.largest.isfinite().tolist()
        fine = {row for row, sound in zip(self.limited, finite, strict=True) if sound}
        return [row for row in rows if row in fine]


class Sampler:
    """Chooses one token per row. Keeps only what it can recompute: packed parameters and rules."""

    def __init__(self, kernels: Kernels = TORCH, pieces: Pieces | None = None) -> None:
        self._kernels = kernels
        self._rules = RuleBook(pieces or Pieces([]))
        # The last step's parameters: sequences mostly stay the same while their drafts change.
        self._samplings: list[Sampling] = []
        self._packed: _Packed | None = None

    def sample(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """The ids of `draw`."""
        return self.draw(logits, rows).ids

    def draw(self, logits: Tensor, rows: Sequence[Row], masks: Masks | None = None) -> Drawn:
        """The next token of each row, for float `logits [R, V]`, which may be overwritten.

        `masks`: of the rows that are constrained; they come before the rules.
        """
        packed = self._pack(rows, logits.device)
        logits = logits.float()
        limited, largest = packed.with_rules, None
        if masks is not None:
            limited = sorted({*limited, *masks.rows})
        if limited:
            logits = logits.contiguous()
            before = logits if len(limited) == len(rows) else logits[limited]
            largest = before.amax(dim=-1)
            if masks is not None:
                masks.apply(logits)
            if packed.with_rules:
                self._rules.apply(logits, rows, packed.with_rules)
        ids = self._choose(logits, rows, packed)
        return Drawn(ids=ids, logits=logits, limited=limited, largest=largest)

    def _choose(self, logits: Tensor, rows: Sequence[Row], packed: _Packed) -> Tensor:
        if packed.all_greedy:
            return self._kernels.argmax(logits)
        temperature = packed.temperature
        if packed.has_filters:
            logits = _filtered(logits / temperature, packed)
            temperature = torch.ones_like(temperature)
        positions = np.fromiter((len(row.tokens) for row in rows), np.uint64, len(rows))
        keys = to_device(row_keys(packed.seeds, positions), None, logits.device)
        return self._kernels.gumbel_argmax(logits, temperature, keys, packed.greedy)

    def drop_filtered(self, scores: Tensor, rows: Sequence[Row]) -> Tensor:
        """Float32 `scores [R, V]` with minus infinity for tokens that the filters drop.

        Rows at temperature 0 are filtered as at 1.
        """
        packed = self._pack(rows, scores.device)
        if not packed.has_filters:
            return scores
        left = _filtered(scores / packed.temperature, packed)
        return scores.masked_fill(left == float("-inf"), float("-inf"))

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
    """Scores with dropped tokens at minus infinity; a row's best token is never dropped."""
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
        with_rules=[i for i, s in enumerate(samplings) if s.rules is not None],
    )


def _keep_top_k(scores: Tensor, top_k: Tensor, max_top_k: int) -> None:
    """Drop scores below the k-th best; ties with it stay. top_k 0 keeps all."""
    best = scores.topk(min(max_top_k, scores.shape[1]), dim=-1).values
    kth = best.gather(1, (top_k - 1).clamp(0, best.shape[1] - 1))
    kth.masked_fill_(top_k == 0, float("-inf"))
    scores.masked_fill_(scores < kth, float("-inf"))


def _keep_top_p(scores: Tensor, top_p: Tensor) -> None:
    """Keep the best tokens whose probabilities sum to top_p (Holtzman et al. 2020).

    The token that crosses the threshold stays, and so do ties with it.
    """
    active = top_p[:, 0] < 1
    total = log_total(scores)
    best = scores.topk(min(_CANDIDATES, scores.shape[1]), dim=-1).values
    reached = (best - total).exp().cumsum(dim=-1)
    short = active & (reached[:, -1] < top_p[:, 0])
    if best.shape[1] < scores.shape[1] and bool(short.any()):
        # Flat distributions need a full sort; each row is decided by itself.
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
