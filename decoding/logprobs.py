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
    table = logits.float() if normalised else torch.log_softmax(logits.float(), dim=-1)
    chosen = table.gather(1, token_ids[:, None])
    ranks = (table > chosen).sum(dim=-1) + 1
    top = table.topk(min(count, table.shape[1]), dim=-1)
    return Logprobs(
        chosen=chosen[:, 0].tolist(),
        ranks=ranks.tolist(),
        top_ids=top.indices.tolist(),
        top_values=top.values.tolist(),
    )
