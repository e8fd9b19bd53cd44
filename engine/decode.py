"""From a step's logits to each sequence's next tokens: targets, sampler, verification, logprobs."""

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..decoding.base import Target
from ..decoding.drafting.draft import Draft, drafted_rows
from ..decoding.logprobs import gather_logprobs
from ..decoding.sampler import Sampler
from ..decoding.sampling import Row
from ..kernels.backend import Kernels
from ..kernels.transfer import to_device
from .deterministic import AS_THEY_ARE, Numerics
from .request import TokenLogprobs
from .runner import wanted_of
from .sequence import Sequence
from .step import Chunk, Step


@dataclass(slots=True, kw_only=True)
class Decoded:
    """A sequence's next tokens, and their logprobs if asked for.

    `accepted`: guesses of `draft` that were right; the tokens are those and one more.
    `predictions`: what followed the newest token and each guess.
    """

    sequence: Sequence
    tokens: list[int]
    logprobs: tuple[TokenLogprobs, ...] = ()
    draft: Draft | None = None
    accepted: list[int]
    predictions: list[int]


Fork = Callable[[Sequence], list[Sequence]]


@dataclass(slots=True, kw_only=True)
class _Head:
    """A sequence that decodes: where its rows are among the logits, in each of its contexts."""

    sequence: Sequence
    draft: Draft | None
    starts: list[int]

    @property
    def rows(self) -> int:
        """Rows of one context."""
        return 1 if self.draft is None else 1 + len(self.draft.tokens)


class Decoder:
    """Chooses tokens for all rows of a step at once."""

    def __init__(self, kernels: Kernels, numerics: Numerics = AS_THEY_ARE) -> None:
        self.sampler = Sampler(kernels)
        self._numerics = numerics

    def decode(self, step: Step, logits: Tensor, fork: Fork) -> list[Decoded]:
        """The next tokens of every sequence that decodes; `logits` may be overwritten.

        `fork`: gives the choices that are born where a sequence decodes for the first time.
        """
        with self._numerics():
            return self._decode(step, logits, fork)

    def choose(self, logits: Tensor, rows: List[Row]) -> Tensor:
        """The next token of each row, int64 `[R]`, on the device: nobody waits for it."""
        with self._numerics():
            return self.sampler.sample(logits, rows)

    def _decode(self, step: Step, logits: Tensor, fork: Fork) -> list[Decoded]:
        heads = self._heads(step, logits)
        if not heads:
            return []
        at: list[int] = []
        rows: list[Row] = []
        family_of: list[list[Sequence]] = []
        for head in heads:
            family = [head.sequence, *fork(head.sequence)]
            family_of.append(family)
            for sequence in family:
                rows += [sequence] if head.draft is None else drafted_rows(sequence, head.draft)
                at += range(head.starts[0], head.starts[0] + head.rows)
        if any(head.sequence.target is not None for head in heads):
            logits = _combined(logits, heads)
        picked = logits
        if at != list(range(logits.shape[0])):
            picked = logits[to_device(at, np.int64, logits.device)]
        wants = any(f[0].request.logprobs is not None for f in family_of)
        raw = picked.clone() if wants else None
        # The step's one synchronisation with the device:
        predictions: list[int] = self.sampler.sample(picked, rows).tolist()
        decoded: list[Decoded] = []
        where: list[list[int]] = []
        row = 0
        for head, family in zip(heads, family_of, strict=True):
            for sequence in family:
                decoded.append(_verified(sequence, head.draft, predictions[row : row + head.rows]))
                where.append([row, *(row + 1 + i for i in decoded[-1].accepted)])
                row += head.rows
        if raw is not None:
            _add_logprobs(raw, decoded, where)
        return decoded

    def _heads(self, step: Step, logits: Tensor) -> list[_Head]:
        heads: list[_Head] = []
        row = 0
        for chunk in step.chunks:
            sequence = chunk.sequence
            count = wanted_of(chunk)
            if sequence.request.prompt_logprobs is not None and chunk.branch is sequence:
                _collect_prompt_logprobs(chunk, logits[row : row + count])
            row += count
            if not chunk.decodes or sequence.request.max_tokens == 0:
                continue
            start = row - 1 - chunk.drafted
            if chunk.branch is sequence:
                heads.append(_Head(sequence=sequence, draft=chunk.draft, starts=[start]))
            else:
                heads[-1].starts.append(start)
        return heads


def _verified(sequence: Sequence, draft: Draft | None, predictions: list[int]) -> Decoded:
    """Accept what the predictions confirm."""
    accepted = [] if draft is None else draft.right(predictions)
    tokens = [predictions[0], *(predictions[1 + i] for i in accepted)]
    return Decoded(
        sequence=sequence, tokens=tokens, draft=draft, accepted=accepted, predictions=predictions
    )


def _combined(logits: Tensor, heads: List[_Head]) -> Tensor:
    """The logits with every target's distribution in the rows of its own context."""
    logits = logits.float()
    groups: dict[tuple[int, int], list[_Head]] = {}
    for head in heads:
        if head.sequence.target is not None:
            key = (id(head.sequence.target.method), len(head.starts))
            groups.setdefault(key, []).append(head)
    for (_, contexts), members in groups.items():
        rows = to_device(
            [
                [at for head in members for at in range(head.starts[c], head.starts[c] + head.rows)]
                for c in range(contexts)
            ],
            np.int64,
            logits.device,
        )
        choices = [head.sequence.target for head in members for _ in range(head.rows)]
        target = members[0].sequence.target
        assert target is not None
        method: Target[Any] = target.method
        parameters = [choice.parameters for choice in choices if choice is not None]
        logits[rows[0]] = method.combine(logits[rows], parameters)
    return logits


def _add_logprobs(raw: Tensor, decoded: List[Decoded], where: List[list[int]]) -> None:
    """Logprobs of the tokens that were accepted, under the distribution before sampling's rules."""
    wanting = [
        (item, rows)
        for item, rows in zip(decoded, where, strict=True)
        if item.sequence.request.logprobs is not None
    ]
    tokens = [token for item, _ in wanting for token in item.tokens]
    counts = [item.sequence.request.logprobs or 0 for item, _ in wanting for _ in item.tokens]
    found = _token_logprobs(raw[[row for _, rows in wanting for row in rows]], tokens, counts)
    first = 0
    for item, _ in wanting:
        item.logprobs = tuple(found[first : first + len(item.tokens)])
        first += len(item.tokens)


def _collect_prompt_logprobs(chunk: Chunk, logits: Tensor) -> None:
    """Row i predicts prompt token i + 1; rows computed again after preemption are skipped."""
    sequence = chunk.sequence
    begin = sequence.computed + chunk.count - logits.shape[0]
    first = max(begin, sequence.request.scored_from - 1 + len(sequence.prompt_logprobs))
    last = min(sequence.computed + chunk.count, sequence.prompt_length - 1)
    if first >= last:
        return
    rows = logits[first - begin : last - begin]
    targets = sequence.tokens[first + 1 : last + 1]
    counts = [sequence.request.prompt_logprobs or 0] * len(targets)
    sequence.prompt_logprobs += _token_logprobs(rows, targets, counts)


def _token_logprobs(logits: Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprobs]:
    targets = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    found = gather_logprobs(logits, targets, max(counts))
    return [
        TokenLogprobs(
            token_id=token,
            logprob=found.chosen[i],
            rank=found.ranks[i],
            top=tuple(zip(found.top_ids[i][:count], found.top_values[i][:count], strict=True)),
        )
        for i, (token, count) in enumerate(zip(token_ids, counts, strict=True))
    ]
