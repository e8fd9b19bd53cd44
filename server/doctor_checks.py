"""Self-checks of the kernels: small, with a known answer, seconds at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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


def check_triton() -> str | None:
    """Each Triton kernel once against the reference, in the model's usual dtype of the device.

    Call it only where `triton_hindrance` finds none.
    """
    import torch

    from ..kernels.backend import TORCH, Choice, load
    from ..kernels.batch import PagedBatch

    device = usual_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tolerance = 2e-2 if dtype == torch.bfloat16 else TOLERANCE
    triton = load(Choice(backend="triton", reason="checked"))
    torch.manual_seed(0)
    page, pages, size = 16, 40, 64
    tables = [list(range(21)), [30, 22, 25, 24, 23]]
    lengths, rows = [330, 70], [2, 66]
    places = [
        tables[i][at // page] * page + at % page
        for i in range(2)
        for at in range(lengths[i] - rows[i], lengths[i])
    ]
    slots = torch.tensor(places, device=device)
    q, k, v = (torch.randn(sum(rows), heads, size).to(device, dtype) for heads in (4, 2, 2))
    held = torch.randn(2, 2, pages, page, size).to(device, dtype)
    found: list[torch.Tensor] = []
    for kernels in (TORCH, triton):
        k_cache, v_cache = (cache.transpose(0, 1) for cache in held.clone())
        batch = PagedBatch(
            page_size=page,
            query_starts=[0, rows[0], sum(rows)],
            kv_lengths=lengths,
            tables=tables,
            slots=slots,
        )
        kernels.kv_write(k, v, k_cache, v_cache, slots)
        out = kernels.paged_attention(q, k_cache, v_cache, batch, scale=size**-0.5)
        found.append(torch.cat([out.flatten(), k_cache.flatten(), v_cache.flatten()]).float())
    worst = (found[0] - found[1]).abs().max().item()
    return None if worst <= tolerance else f"off by {worst:.2g}, allowed {tolerance:.2g}"


def usual_device() -> torch.device:
    """Where a model would run by default."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def triton_hindrance() -> str | None:
    """Why the Triton kernels cannot run here."""
    import torch

    from ..kernels.backend import hindrance_to_triton

    device = usual_device()
    return hindrance_to_triton(device=device, dtype=torch.float32, head_size=64)


CHECKS: dict[str, Callable[[], str | None]] = {
    "paged_attention": check_paged_attention,
    "quantised cache": check_quantised_cache,
}
