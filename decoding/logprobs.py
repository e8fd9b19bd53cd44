"""Log-probabilities of chosen tokens and their best alternatives, from raw logits."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """Per row: natural logarithms of the raw model distribution, on the host.

    `chosen`, `ranks`: `[R]`; rank 1 is the most probable token.
    `top_ids`, `top_values`: `[R][count]`, most probable first.
    """

    chosen: list[float]
    ranks: list[int]
    top_ids: list[list[int]]
    top_values: list[list[float]]


def gather_logprobs(
    logits: Tensor, token_ids: Tensor, count: int, *, normalised: bool = False
) -> Logprobs:
    """Logprobs of `token_ids [R]` under `logits [R, V]`, and of the `count` best tokens.

    `normalised`: the logits are logprobs already.
    """
    logits = logits.float()
    total = 0.0 if normalised else log_total(logits)
    chosen = logits.gather(1, token_ids[:, None])
    ranks = (logits > chosen).sum(dim=-1) + 1
    top = logits.topk(min(count, logits.shape[1]), dim=-1)
    return Logprobs(
        chosen=(chosen - total)[:, 0].tolist(),
        ranks=ranks.tolist(),
        top_ids=top.indices.tolist(),
        top_values=(top.values - total).tolist(),
    )


def log_total(scores: Tensor) -> Tensor:
    """`log sum_v exp(scores_v)` of float32 `[R, V]`, as `[R, 1]`.

    Summed in float64. torch's log_softmax sums in float32, one element after the other, which
    shifts all logprobs of 49,152 tokens by 2e-5; a single long row it sums in one part a thread.
    """
    most = scores.amax(dim=-1, keepdim=True)
    total = (scores - most).exp_().sum(dim=-1, keepdim=True, dtype=torch.float64)
    return total.log_().add_(most).to(scores.dtype)
