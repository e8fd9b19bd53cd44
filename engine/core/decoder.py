"""From a step's logits to each sequence's next tokens: targets, sampler, verification, logprobs."""

import logging
import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...decoding.constraint.constraint import Bits
from ...decoding.constraint.masks import Masks
from ...decoding.drafting.draft import Draft, drafted_rows
from ...decoding.logprobs import gather_logprobs
from ...decoding.pieces import Pieces
from ...decoding.sampler import NOTHING, Drawn, Sampler
from ...decoding.sampling import Row
from ...decoding.target import Target
from ...kernels.backend import Kernels
from ...kernels.transfer import to_device
from ..model.numerics import AS_THEY_ARE, Numerics
from ..state.request import BROKEN, NO_ALLOWED_TOKEN, NOT_FINITE, Failure, TokenLogprobs
from ..state.sequence import Sequence
from ..state.step import Chunk, Decoded, Step

logger = logging.getLogger(__name__)


Fork = Callable[[Sequence], list[Sequence]]


@dataclass(slots=True, kw_only=True)
class _Head:
    """A decoding sequence; `starts`: the first of its rows among the logits, for each context."""

    sequence: Sequence
    draft: Draft | None
    starts: list[int]

    @property
    def rows(self) -> int:
        """Rows of one context."""
        return 1 if self.draft is None else 1 + len(self.draft.tokens)


class Decoder:
    """Chooses tokens for all rows of a step at once."""

    def __init__(
        self, kernels: Kernels, numerics: Numerics = AS_THEY_ARE, pieces: Pieces | None = None
    ) -> None:
        self.sampler = Sampler(kernels, pieces)
        self._numerics = numerics

    def decode(self, step: Step, logits: Tensor, fork: Fork) -> list[Decoded]:
        """The next tokens of every sequence that decodes; `logits` may be overwritten.

        `fork`: called for each sequence; returns the choices that fork off it at its first token.
        """
        with self._numerics():
            return self._decode(step, logits, fork)

    def choose(self, logits: Tensor, rows: List[Row]) -> Tensor:
        """The next token of each row, int64 `[R]`, on the device; does not wait for it."""
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
        failures: dict[int, Failure] = {}
        if any(head.sequence.target is not None for head in heads):
            logits = _combined(logits, heads, failures)
        picked = logits
        if at != list(range(logits.shape[0])):
            picked = logits[to_device(at, np.int64, logits.device)]
        wanting = [f for f in family_of if f[0].request.logprobs is not None]
        raw = None
        if wanting:
            if any(f[0].request.ruled for f in wanting):
                picked = _as_log_probs(picked.float(), rows, family_of, heads)
            # Masks and rules are applied in place, filters and noise are not.
            limited = any(f[0].limited for f in wanting)
            raw = picked.clone() if limited else picked
        drawn = self.sampler.draw(picked, rows, _masks(heads, family_of))
        # The step's one synchronisation with the device:
        predictions: list[int] = drawn.ids.tolist()
        decoded: list[Decoded] = []
        where: list[list[int]] = []
        row = 0
        for head, family in zip(heads, family_of, strict=True):
            for sequence in family:
                decoded.append(_verified(sequence, head.draft, predictions[row : row + head.rows]))
                where.append([row, *(row + 1 + i for i in decoded[-1].accepted)])
                row += head.rows
        if NOTHING in predictions:
            _explain(decoded, where, drawn, failures)
        if raw is not None:
            self._add_logprobs(raw, drawn, rows, decoded, where)
        return decoded

    def _add_logprobs(
        self,
        raw: Tensor,
        drawn: Drawn,
        rows: List[Row],
        decoded: List[Decoded],
        where: List[list[int]],
    ) -> None:
        """Set logprobs of accepted tokens: before the rules, or the scores after them (`ruled`)."""
        for ruled in (False, True):
            wanting = [
                (item, places[: len(item.tokens)])
                for item, places in zip(decoded, where, strict=True)
                if item.sequence.request.logprobs is not None
                and item.sequence.request.ruled == ruled
                and item.tokens
            ]
            if not wanting:
                continue
            at = [place for _, places in wanting for place in places]
            tokens = [token for item, _ in wanting for token in item.tokens]
            counts = [
                item.sequence.request.logprobs or 0 for item, _ in wanting for _ in item.tokens
            ]
            if ruled:
                left = self.sampler.drop_filtered(drawn.logits[at], [rows[place] for place in at])
                found = _token_logprobs(left, tokens, counts, normalised=True)
            else:
                found = _token_logprobs(raw[at], tokens, counts)
            first = 0
            for item, places in wanting:
                item.logprobs = tuple(found[first : first + len(places)])
                first += len(places)

    def _heads(self, step: Step, logits: Tensor) -> list[_Head]:
        heads: list[_Head] = []
        row = 0
        for chunk in step.chunks:
            sequence = chunk.sequence
            count = chunk.wanted
            if sequence.request.prompt_logprobs is not None and chunk.context is sequence:
                _collect_prompt_logprobs(chunk, logits[row : row + count])
            row += count
            if not chunk.decodes or sequence.request.max_tokens == 0:
                continue
            start = row - 1 - chunk.drafted
            if chunk.context is sequence:
                heads.append(_Head(sequence=sequence, draft=chunk.draft, starts=[start]))
            else:
                heads[-1].starts.append(start)
        return heads


def _masks(heads: List[_Head], family_of: List[list[Sequence]]) -> Masks | None:
    """The masks of constrained rows; None: there are none. A family is at the same place.

    Made while a GPU still computes the logits.
    """
    rows: list[int] = []
    bits: list[Bits] = []
    row = 0
    for head, family in zip(heads, family_of, strict=True):
        count = head.rows * len(family)
        constraint = head.sequence.constraint
        if constraint is not None:
            bits += [constraint.masks(head.draft)] * len(family)
            rows += range(row, row + count)
        row += count
    return Masks(rows=rows, bits=np.concatenate(bits)) if rows else None


def _verified(sequence: Sequence, draft: Draft | None, predictions: list[int]) -> Decoded:
    """Accept draft tokens that the predictions confirm; a missing prediction confirms none."""
    accepted = [] if draft is None else draft.accepted(predictions)
    if draft is not None and sequence.thought is not None:
        # What comes behind the end of a thought must not see it.
        accepted = accepted[: sequence.thought.ends_within([draft.tokens[i] for i in accepted])]
    tokens = [predictions[0], *(predictions[1 + i] for i in accepted)]
    ending = None
    if tokens[-1] == NOTHING:
        tokens.pop()
        ending = NOT_FINITE
    if draft is not None:
        predictions = [max(0, token) for token in predictions]  # drafters expect token ids
    return Decoded(
        sequence=sequence,
        tokens=tokens,
        draft=draft,
        accepted=accepted,
        predictions=predictions,
        ending=ending,
    )


def _explain(
    decoded: List[Decoded], where: List[list[int]], drawn: Drawn, failures: Mapping[int, Failure]
) -> None:
    """Set why rows have no next token: none allowed, a failed target, or numbers not finite."""
    ended = [(item, rows[-1]) for item, rows in zip(decoded, where, strict=True) if item.ending]
    forbidden = set(drawn.forbidden([row for _, row in ended]))
    for item, row in ended:
        if item.sequence.target is not None:
            item.ending = failures.get(item.sequence.arrival, NOT_FINITE)
        if row in forbidden:
            item.ending = item.sequence.constraint_failure or NO_ALLOWED_TOKEN


def _as_log_probs(
    logits: Tensor, rows: List[Row], family_of: List[list[Sequence]], heads: List[_Head]
) -> Tensor:
    """The logits, with log-probabilities in the rows of `ruled` requests, for rules to change."""
    at: list[int] = []
    row = 0
    for head, family in zip(heads, family_of, strict=True):
        count = head.rows * len(family)
        if family[0].request.ruled:
            at += range(row, row + count)
        row += count
    assert row == len(rows)
    logits = logits.clone()
    logits[at] = torch.log_softmax(logits[at], dim=-1)
    return logits


def _combined(logits: Tensor, heads: List[_Head], failures: dict[int, Failure]) -> Tensor:
    """The logits, with each target's distribution in the rows of its sequence's own context.

    If a target raises, these rows are NaN and `failures` has an entry by the sequence's arrival.
    """
    logits = logits.float()
    groups: dict[tuple[int, int], list[_Head]] = {}
    for head in heads:
        if head.sequence.target is not None:
            key = (id(head.sequence.target.method), len(head.starts))
            groups.setdefault(key, []).append(head)
    for members in groups.values():
        try:
            _combine(logits, members)
        except Exception:  # noqa: BLE001, RUF100 - a plug-in may raise anything; find whose rows it was
            for head in members:
                try:
                    _combine(logits, [head])
                except Exception:
                    sequence = head.sequence
                    logger.exception("the target of request %s has failed", sequence.request.id)
                    logits[head.starts[0] : head.starts[0] + head.rows] = float("nan")
                    failures[sequence.arrival] = BROKEN
    return logits


def _combine(logits: Tensor, members: List[_Head]) -> None:
    """Call a target once, for sequences with the same number of contexts."""
    rows = to_device(
        [
            [at for head in members for at in range(head.starts[c], head.starts[c] + head.rows)]
            for c in range(len(members[0].starts))
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


def _collect_prompt_logprobs(chunk: Chunk, logits: Tensor) -> None:
    """Add prompt logprobs: row i predicts prompt token i + 1; rows computed again are skipped."""
    sequence = chunk.sequence
    begin = sequence.computed + chunk.count - logits.shape[0]
    first = max(begin, sequence.request.scored_from - 1 + len(sequence.prompt_logprobs))
    last = min(sequence.computed + chunk.count, sequence.prompt_length - 1)
    if first >= last:
        return
    rows = logits[first - begin : last - begin]
    targets = sequence.tokens[first + 1 : last + 1]
    counts = [sequence.request.prompt_logprobs or 0] * len(targets)
    found = _token_logprobs(rows, targets, counts)
    if any(math.isnan(one.logprob) for one in found):
        chunk.finite = False
    sequence.prompt_logprobs += found


def _token_logprobs(
    logits: Tensor, token_ids: list[int], counts: list[int], *, normalised: bool = False
) -> list[TokenLogprobs]:
    targets = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    found = gather_logprobs(logits, targets, max(counts), normalised=normalised)
    return [
        TokenLogprobs(
            token_id=token,
            logprob=found.chosen[i],
            rank=found.ranks[i],
            top=tuple(zip(found.top_ids[i][:count], found.top_values[i][:count], strict=True)),
        )
        for i, (token, count) in enumerate(zip(token_ids, counts, strict=True))
    ]
