"""Self-checks of the kernels: small, with a known answer, seconds at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .backend import Kernels
    from .batch import PagedBatch

TOLERANCE = 1e-5
QUANTISED_TOLERANCE = 1 / 27
"""Of e4m3's three bits of mantissa half a step is 1/16 of the number at most, but where it is large
in its row (above 256 of 448) half a step is 16 of 448."""


def check_paged_attention() -> str | None:
    """Paged attention against plain causal attention; None where they agree."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from .batch import PagedBatch
    from .paged_attention.reference import paged_attention

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

    from .quantise import LARGEST, dequantise, quantise

    torch.manual_seed(0)
    rows = torch.randn(64, 32)
    for dtype in LARGEST:
        got = dequantise(*quantise(rows, dtype), rows.dtype)
        worst = ((got - rows).abs() / rows.abs().amax(dim=-1, keepdim=True)).max().item()
        if not worst <= QUANTISED_TOLERANCE:
            return f"{dtype} is off by {worst:.2g} of the largest element"
    return None


def check_compiled() -> str | None:
    """The compiled attention and linear layers against torch's; only where there are some."""
    import torch

    from .backend import TORCH
    from .linear.native import NativeLinear, pack
    from .native.library import Unavailable, library
    from .paged_attention.native import launcher

    build = library()
    if isinstance(build, Unavailable):
        return None
    step = _Step.new(torch.device("cpu"))
    k_cache, v_cache = (cache.transpose(0, 1) for cache in step.held)
    found: list[torch.Tensor] = []
    plain, x = torch.nn.Linear(64, 70), step.q[:, 0]
    compiled = NativeLinear(build, pack(build, plain.weight, plain.bias))
    for attend, multiply in ((TORCH.paged_attention, plain), (launcher(build), compiled)):
        out = attend(step.q, k_cache, v_cache, step.batch(), scale=step.scale)
        found.append(torch.cat([out.flatten(), multiply(x).detach().flatten()]))
    return _compared(found, TOLERANCE)


def check_triton() -> str | None:
    """Triton's attention and cache writes against the reference, in the device's usual dtype.

    Call this one and those below only where `triton_unsupported_reason` finds none.
    """
    import torch

    step = _Step.new()
    found: list[torch.Tensor] = []
    for kernels in _both():
        k_cache, v_cache = (cache.transpose(0, 1) for cache in step.held.clone())
        batch = step.batch()
        kernels.kv_write(step.k, step.v, k_cache, v_cache, batch.slots)
        out = kernels.paged_attention(step.q, k_cache, v_cache, batch, scale=step.scale)
        found.append(torch.cat([out.flatten(), k_cache.flatten(), v_cache.flatten()]).float())
    return _compared(found, step.tolerance)


def check_triton_scores() -> str | None:
    """Attention that says what keys receive: of each row, and of rows that count votes."""
    import torch

    step = _Step.new()
    k_cache, v_cache = (cache.transpose(0, 1) for cache in step.held)
    votes_T = torch.arange(step.q.shape[0], device=step.q.device).remainder(3).float()
    found: list[torch.Tensor] = []
    for kernels in _both():
        parts: list[torch.Tensor] = []
        for votes in (None, votes_T):
            caches = step.q, k_cache, v_cache, step.batch()
            out, weights = kernels.scored_attention(*caches, scale=step.scale, votes_T=votes)
            parts += [out.float(), *weights]
        found.append(torch.cat([part.flatten() for part in parts]))
    return _compared(found, step.tolerance)


def check_triton_evict() -> str | None:
    """Victims, where masses are equal and slots are empty too."""
    import torch

    device, page, contexts, heads, slots = usual_device(), 16, 3, 2, 40
    torch.manual_seed(0)
    mass = torch.randint(0, 5, (contexts, heads, slots)).float()
    positions = torch.rand(contexts, heads, slots).argsort().to(torch.int32)
    positions[0, 0, 7] = -1
    numbers = torch.tensor([[slots] * contexts, [5, 9, 1], [0, 2, 4]], dtype=torch.int32)
    tables = torch.randperm(contexts * 3).to(torch.int32).view(contexts, 3)
    found: list[torch.Tensor] = []
    for kernels in _both():
        taken = torch.empty(contexts, heads, dtype=torch.int64, device=device)
        state = [part.to(device, copy=True) for part in (mass, positions, *numbers, tables)]
        kernels.evict(*state, taken, page_size=page)
        found.append(torch.cat([part.flatten().double() for part in (*state[:2], taken)]))
    return _compared(found, 0.0)


def check_triton_sparse_prefill() -> str | None:
    """A prompt's rows over half of the older keys, and over those of a bucket."""
    import torch

    from .sparse_prefill.labels import hashed, kept

    step = _Step.new()
    k_cache, v_cache = (cache.transpose(0, 1) for cache in step.held)
    q, keys = step.q[2:], 330
    torch.manual_seed(1)
    rotations = torch.randn(2, q.shape[2], 4).to(q.device)
    half = (torch.rand(2, keys) < 0.5).to(q.device)
    k_KLD = step.held[0, :, :21].flatten(1, 2)[:, :keys]
    every = half.new_ones(q.shape[:2])
    found: list[torch.Tensor] = []
    for kernels in _both():
        parts = [
            kernels.sparse_prefill(
                q, k_cache, v_cache, step.prompt(keys), labels, scale=step.scale
            ).float()
            for labels in (kept(every, half, recent=9), hashed(q, k_KLD, rotations, recent=9))
        ]
        found.append(torch.cat(parts))
    return _compared(found, step.tolerance)


def check_triton_rows() -> str | None:
    """Products and sums whose rows depend on nothing beside them: right, and the same alone."""
    import torch

    from .row_invariant.triton import matmul, row_cumsum, row_sum

    device = usual_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    x, w = (torch.randn(rows, 100).to(device, dtype) for rows in (70, 40))
    whole, one = ([matmul(r, w.t()), row_sum(r), row_cumsum(r)] for r in (x, x[65:66]))
    both = zip(whole, one, strict=True)
    if not all(torch.equal(among[65:66], alone) for among, alone in both):
        return "a row has other bits alone"
    wide = x.double()
    expected = [wide @ w.t().double(), wide.sum(1), wide.cumsum(1)]
    want, got = (torch.cat([part.flatten().double() for part in p]) for p in (expected, whole))
    return _compared([want, got], 2e-2 if dtype == torch.bfloat16 else TOLERANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Rows of a draft and of a prompt's chunk, in the device's usual dtype.

    `held`: keys and values `[2, Hkv, pages, page, D]`.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    held: torch.Tensor
    scale: float
    tolerance: float

    @classmethod
    def new(cls, device: torch.device | None = None) -> _Step:
        import torch

        device = device or usual_device()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        rows, size = 68, 64
        q, k, v = (torch.randn(rows, heads, size).to(device, dtype) for heads in (4, 2, 2))
        return cls(
            q=q,
            k=k,
            v=v,
            held=torch.randn(2, 2, 40, 16, size).to(device, dtype),
            scale=size**-0.5,
            tolerance=2e-2 if dtype == torch.bfloat16 else TOLERANCE,
        )

    def batch(self) -> PagedBatch:
        """Their geometry, with nothing derived from it yet."""
        import torch

        from .batch import PagedBatch

        tables, lengths, rows = [list(range(21)), [30, 22, 25, 24, 23]], [330, 70], [2, 66]
        places = [
            tables[i][at // 16] * 16 + at % 16
            for i in range(2)
            for at in range(lengths[i] - rows[i], lengths[i])
        ]
        return PagedBatch(
            page_size=16,
            query_starts=[0, 2, 68],
            kv_lengths=lengths,
            tables=tables,
            slots=torch.tensor(places, device=self.q.device),
        )

    def prompt(self, keys: int) -> PagedBatch:
        """All but the draft's rows as the last ones of a prompt with so many keys."""
        import torch

        from .batch import PagedBatch

        rows = self.q.shape[0] - 2
        return PagedBatch(
            page_size=16,
            query_starts=[0, rows],
            kv_lengths=[keys],
            tables=[list(range(-(-keys // 16)))],
            slots=torch.arange(keys - rows, keys, device=self.q.device),
        )


def _both() -> tuple[Kernels, Kernels]:
    """The reference and Triton's."""
    from .backend import TORCH, BackendChoice, load

    return TORCH, load(BackendChoice(backend="triton", reason="checked"))


def _compared(found: list[torch.Tensor], tolerance: float) -> str | None:
    """How far two are apart, where that is too far; a NaN is."""
    want, got = found
    error = ((got - want).abs() / want.abs().clamp(min=1.0)).max().item()
    return None if error <= tolerance else f"off by {error:.2g}, allowed {tolerance:.2g}"


def usual_device() -> torch.device:
    """Where a model would run by default."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def triton_unsupported_reason() -> str | None:
    """Why the Triton kernels cannot run here."""
    import torch

    from .backend import triton_unsupported_reason

    device = usual_device()
    return triton_unsupported_reason(device=device, dtype=torch.float32, head_size=64)


CHECKS: dict[str, Callable[[], str | None]] = {
    "paged_attention": check_paged_attention,
    "quantised cache": check_quantised_cache,
    "compiled": check_compiled,
}
TRITON_CHECKS: dict[str, Callable[[], str | None]] = {
    "triton": check_triton,
    "triton scores": check_triton_scores,
    "triton evict": check_triton_evict,
    "triton sparse": check_triton_sparse_prefill,
    "triton rows": check_triton_rows,
}
