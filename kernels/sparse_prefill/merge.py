"""Two parts of one attention put together by their log-sum-exps, on any device."""

import torch
from torch import Tensor


def merged(a_THV: Tensor, a_lse_TH: Tensor, b_THV: Tensor, b_lse_TH: Tensor) -> Tensor:
    """Attention over the keys of both, `[T, H, Dv]` in their dtype.

    The log-sum-exps are float32, to base 2; those of `b` are finite, so that no row sees nothing.
    """
    most_TH = torch.maximum(a_lse_TH, b_lse_TH)
    a_TH, b_TH = torch.exp2(a_lse_TH - most_TH), torch.exp2(b_lse_TH - most_TH)
    sums = a_THV.float() * a_TH[..., None] + b_THV.float() * b_TH[..., None]
    return (sums / (a_TH + b_TH)[..., None]).to(a_THV.dtype)
