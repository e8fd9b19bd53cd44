"""Edits of the logits that depend on a row's own history: masks, bias, penalties.

Each function changes `logits [R, V]` (float32) in place for the rows that ask for it. They are
functions of the row's prefix alone, so a row gives the same result in any batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .drafting.draft import Continued
from .sampling import Row, Sampling


def has_rules(sampling: Sampling) -> bool:
    """Whether any rule of this file applies to a row with these parameters."""
    return bool(
        sampling.allowed_token_ids is not None
        or sampling.bad_words
        or sampling.logit_bias
        or sampling.suppressed_until_min
        or sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )


def apply_rules(logits: Tensor, rows: Sequence[Row], indices: Sequence[int]) -> None:
    """Apply all rules to `logits[indices]`: masks first, then bias, then penalties."""
    _mask_allowed(logits, rows, indices)
    _forbid(logits, rows, indices)
    _add_bias(logits, rows, indices)
    penalised = [i for i in indices if _is_penalised(rows[i].sampling)]
    if penalised:
        _penalise(logits, rows, penalised)


def _mask_allowed(logits: Tensor, rows: Sequence[Row], indices: Sequence[int]) -> None:
    for i in indices:
        allowed = rows[i].sampling.allowed_token_ids
        if allowed is not None:
            keep = torch.tensor(allowed, device=logits.device)
            kept = logits[i, keep]
            logits[i].fill_(float("-inf"))
            logits[i, keep] = kept


def _forbid(logits: Tensor, rows: Sequence[Row], indices: Sequence[int]) -> None:
    """Stop tokens before min_tokens, and last tokens of bad words whose beginning is there."""
    at_row: list[int] = []
    at_token: list[int] = []
    for i in indices:
        row, sampling = rows[i], rows[i].sampling
        banned: list[int] = []
        if len(row.tokens) - row.prompt_length < sampling.min_tokens:
            banned += sampling.suppressed_until_min
        for word in sampling.bad_words:
            head = word[:-1]
            if not head or tuple(row.tokens[-len(head) :]) == head:
                banned.append(word[-1])
        at_row += [i] * len(banned)
        at_token += banned
    if at_row:
        logits[_index(at_row, logits), _index(at_token, logits)] = float("-inf")


def _add_bias(logits: Tensor, rows: Sequence[Row], indices: Sequence[int]) -> None:
    pairs = [(i, token, bias) for i in indices for token, bias in rows[i].sampling.logit_bias]
    if pairs:
        at_row, at_token, bias = zip(*pairs, strict=True)
        where = (_index(at_row, logits), _index(at_token, logits))
        values = torch.tensor(bias, dtype=logits.dtype, device=logits.device)
        logits.index_put_(where, values, accumulate=True)


def _is_penalised(sampling: Sampling) -> bool:
    return bool(
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )


def _penalise(logits: Tensor, rows: Sequence[Row], indices: Sequence[int]) -> None:
    """Repetition (Keskar et al. 2019; prompt and answer), presence and frequency (answer only)."""
    vocab = logits.shape[1]
    penalised = [rows[i] for i in indices]
    counts = _counts(penalised, vocab, logits.device, in_prompt=False)
    chosen = _index(indices, logits)
    picked = logits[chosen]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device)[:, None]

    samplings = [rows[i].sampling for i in indices]
    if any(s.repetition_penalty != 1.0 for s in samplings):
        seen = (counts + _counts(penalised, vocab, logits.device, in_prompt=True)) > 0
        factor = column([s.repetition_penalty for s in samplings])
        scaled = torch.where(picked > 0, picked / factor, picked * factor)
        picked = torch.where(seen, scaled, picked)
    picked -= column([s.frequency_penalty for s in samplings]) * counts
    picked -= column([s.presence_penalty for s in samplings]) * (counts > 0)
    logits[chosen] = picked


def _counts(rows: Sequence[Row], vocab: int, device: torch.device, *, in_prompt: bool) -> Tensor:
    """How often each token occurs in each row's prompt, or in its answer: float32 `[R, V]`.

    What the rows of one draft share is counted once.
    """
    shared: dict[int, Tensor] = {}
    found: list[Tensor] = []
    for row in rows:
        tokens, path = row.tokens, ()
        if isinstance(tokens, Continued):
            tokens, path = tokens.tokens, tokens.path
        counts = shared.get(id(tokens))
        if counts is None:
            start, stop = (0, row.prompt_length) if in_prompt else (row.prompt_length, len(tokens))
            index = torch.tensor(tokens[start:stop], dtype=torch.int64, device=device)
            counts = shared[id(tokens)] = torch.bincount(index, minlength=vocab).float()
        if path and not in_prompt:
            index = torch.tensor(path, dtype=torch.int64, device=device)
            counts = counts + torch.bincount(index, minlength=vocab)
        found.append(counts)
    return torch.stack(found)


def _index(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)
