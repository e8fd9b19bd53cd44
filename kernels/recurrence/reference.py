"""Recurrences in torch, from a given state: what transformers' own versions do not take one for."""

import torch
from torch import Tensor


def selective_scan(
    x_BCT: Tensor,
    dt_BCT: Tensor,
    a_CN: Tensor,
    b_BNT: Tensor,
    c_BNT: Tensor,
    *,
    state_BCN: Tensor | None,
    d_C: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Mamba's selective scan (arXiv:2312.00752, algorithm 2), token after token.

    h = exp(dt a) h + dt b x, y = c h + d x. `dt_BCT`: after softplus.
    `state_BCN`: h before the first token; None: zero. Returns y `[B, C, T]` and h behind the last
    token.
    """
    decay = torch.exp(a_CN[None, :, None] * dt_BCT[..., None])
    added = (dt_BCT * x_BCT.float())[..., None] * b_BNT.transpose(1, 2)[:, None].float()
    h = torch.zeros_like(added[:, :, 0]) if state_BCN is None else state_BCN
    outputs: list[Tensor] = []
    for i in range(x_BCT.shape[2]):
        h = decay[:, :, i] * h + added[:, :, i]
        outputs.append((h.to(x_BCT.dtype) @ c_BNT[:, :, i, None].to(x_BCT.dtype))[..., 0])
    y = torch.stack(outputs, dim=-1)
    if d_C is not None:
        y = y + x_BCT * d_C[None, :, None]
    return y, h
