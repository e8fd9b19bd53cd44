"""`scored_attention` in plain torch: attention that also says how much each key received.

    s_j = scale * q . k_j;   s_j <- softcap * tanh(s_j / softcap)
    p_j = exp(s_j) / (sum_i exp(s_i) + exp(sink))
    out = sum_j p_j v_j;     weight_j = sum of p_j over the query heads of the KV head

Shape suffixes: R rows, H query heads, K KV heads, G = H / K, L keys, D head size.
"""

import torch
from torch import Tensor


def scored_attention(
    q_RHD: Tensor,
    k_KLD: Tensor,
    v_KLD: Tensor,
    seen: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of one sequence's rows over keys that need not be in order.

    seen: boolean `[K or 1, R, L]`; every row sees at least one key. Returns `[R, H, Dv]` in q's
    dtype, and weights, float32 `[K, R, L]`: each row's add up to G, less what sinks take.
    """
    rows, heads, _ = q_RHD.shape
    kv_heads, keys, _ = k_KLD.shape
    group = heads // kv_heads
    q_KND = q_RHD.view(rows, kv_heads, group, -1).transpose(0, 1).flatten(1, 2).float()
    scores = (q_KND @ k_KLD.transpose(1, 2).float()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores_KRGL = scores.view(kv_heads, rows, group, keys)
    scores_KRGL.masked_fill_(~seen[:, :, None], float("-inf"))
    if sinks_H is not None:
        sink = sinks_H.float().view(kv_heads, 1, group, 1).expand(-1, rows, -1, -1)
        probs_KRGL = torch.cat([scores_KRGL, sink], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        probs_KRGL = scores_KRGL.softmax(dim=-1)
    out = probs_KRGL.flatten(1, 2) @ v_KLD.float()
    out_RHD = out.view(kv_heads, rows, group, -1).transpose(0, 1).flatten(1, 2)
    return out_RHD.to(q_RHD.dtype), probs_KRGL.sum(dim=2)
