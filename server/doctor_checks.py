"""Self-checks of the kernels: small, with a known answer, seconds at most."""

from __future__ import annotations

from collections.abc import Callable

TOLERANCE = 1e-5
QUANTISED_TOLERANCE = 1 / 27
"""Of e4m3's three bits of mantissa half a step is 1/16 of the number at most, but where it is large
in its row (above 256 of 448) half a step is 16 of 448."""


def check_paged_attention() -> str | None:
    """Paged attention against plain causal attention; None where they agree."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from ..kernels.batch import PagedBatch
    from ..kernels.paged_attention.reference import paged_attention

    torch.manual_seed(0)
    page, pages, size, length = 4, 8, 16, 11
    table = [5, 2, 7]
    batch = PagedBatch(
        page_size=page,
        query_starts=[0, length],
        kv_lengths=[length],
        tables=[table],
        slots=torch.tensor([table[i // page] * page + i % page for i in range(length)]),
    )
    q, k, v = (torch.randn(length, heads, size) for heads in (4, 2, 2))
    k_cache, v_cache = (torch.full((pages, 2, page, size), torch.nan) for _ in range(2))
    for position in range(length):
        place = (table[position // page], slice(None), position % page)
        k_cache[place], v_cache[place] = k[position], v[position]
    got = paged_attention(q, k_cache, v_cache, batch, scale=size**-0.5)
    query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
    want = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)[
        0
    ].transpose(0, 1)
    worst = (got - want).abs().max().item()
    # Written so that a NaN fails too.
    return None if worst <= TOLERANCE else f"off by {worst:.2g}, allowed {TOLERANCE:.2g}"


def check_quantised_cache() -> str | None:
    """What is read of an 8-bit cache against what was written; None where it is close enough."""
    import torch

    from ..kernels.quantise import LARGEST, dequantise, quantise

    torch.manual_seed(0)
    rows = torch.randn(64, 32)
    for dtype in LARGEST:
        got = dequantise(*quantise(rows, dtype), rows.dtype)
        worst = ((got - rows).abs() / rows.abs().amax(dim=-1, keepdim=True)).max().item()
        if not worst <= QUANTISED_TOLERANCE:
            return f"{dtype} is off by {worst:.2g} of the largest element"
    return None


CHECKS: dict[str, Callable[[], str | None]] = {
    "paged_attention": check_paged_attention,
    "quantised cache": check_quantised_cache,
}
