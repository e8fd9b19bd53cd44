"""`evict` in plain torch: the slot of each head that the next token takes.

Shape suffixes: B contexts, K KV heads, S slots, W pages.
"""

import torch
from torch import Tensor


def evict(
    mass_BKS: Tensor,
    positions_BKS: Tensor,
    lengths_B: Tensor,
    recent_B: Tensor,
    sink_B: Tensor,
    tables_BW: Tensor,
    slots_BK: Tensor,
    *,
    page_size: int,
) -> None:
    """Choose each head's victim and hand its slot to the token at position `lengths_B`.

    mass_BKS: float32, not negative; positions_BKS: int32, -1 where a slot is empty. Both change.
    recent_B, sink_B: int32, how many of the newest and of the first tokens stay.
    slots_BK: int64, is written: page x page_size + offset of the victims.
    """
    lengths = lengths_B[:, None, None]
    stays = positions_BKS >= lengths - recent_B[:, None, None]
    stays |= (positions_BKS < sink_B[:, None, None]) & (positions_BKS >= 0)
    scores = mass_BKS.masked_fill(stays, torch.inf).masked_fill(positions_BKS < 0, -1.0)
    lowest = scores == scores.amin(dim=-1, keepdim=True)
    # Of equal scores the oldest position, and of empty slots, which have all the same, the first.
    chosen = torch.where(lowest, positions_BKS, 2**31 - 1).argmin(dim=-1, keepdim=True)
    positions_BKS.scatter_(-1, chosen, lengths.expand_as(chosen).to(positions_BKS.dtype))
    mass_BKS.scatter_(-1, chosen, 0.0)
    chosen = chosen[..., 0]
    slots_BK.copy_(tables_BW.long().gather(1, chosen // page_size) * page_size + chosen % page_size)
