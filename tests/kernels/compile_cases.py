"""Launches of every kernel in the shapes of models, for the compile gate."""

from collections.abc import Callable
from typing import Any

import torch

from penstock.kernels.batch import PagedBatch
from penstock.kernels.evict import triton as evicting
from penstock.kernels.kv_write import triton as writing
from penstock.kernels.linear import triton as plane_products
from penstock.kernels.linear.blocks import BLOCK_TYPES
from penstock.kernels.linear.planes import planes_of
from penstock.kernels.native.library import Library, library
from penstock.kernels.paged_attention import triton as attention
from penstock.kernels.quantise import LARGEST
from penstock.kernels.row_invariant import triton as invariant
from penstock.kernels.scored_attention import triton as scoring
from penstock.kernels.sparse_prefill import triton as sparse
from penstock.kernels.sparse_prefill.labels import Labels

Stand = Callable[[Any], Any]
"""Puts a recorder in a kernel's place."""
PAGE = 16


def _attention(
    rows: int,
    *,
    group: int,
    size: int,
    dtype: torch.dtype = torch.bfloat16,
    stored: torch.dtype | None = None,
    tree: bool = False,
    sinks: bool = False,
    **options: Any,
) -> Callable[[Stand], None]:
    def call(stand: Stand) -> None:
        keys = 4096
        pages = keys // PAGE
        shape = (2, pages, PAGE)
        cache = torch.empty(*shape, size, dtype=stored or dtype).transpose(0, 1)
        if stored in LARGEST:
            scales = torch.empty(*shape, 1).transpose(0, 1)
            options.update(k_scales=scales, v_scales=scales)
        if sinks:
            options.update(sinks_H=torch.empty(2 * group, dtype=dtype))
        batch = PagedBatch(
            page_size=PAGE,
            query_starts=[0, rows],
            kv_lengths=[keys],
            tables=[list(range(pages))],
            slots=torch.zeros(rows, dtype=torch.int64),
            trees={0: list(range(-1, rows - 2))} if tree else {},
        )
        kernels = attention.attend, attention.merge
        attention.attend, attention.merge = (stand(kernel) for kernel in kernels)
        try:
            q = torch.empty(rows, 2 * group, size, dtype=dtype)
            attention.paged_attention(q, cache, cache, batch, scale=0.1, **options)
        finally:
            attention.attend, attention.merge = kernels

    return call


def _scored(
    votes: bool,
    *,
    size: int,
    dtype: torch.dtype = torch.bfloat16,
    stored: torch.dtype | None = None,
    **how: Any,
) -> Callable[[Stand], None]:
    def call(stand: Stand) -> None:
        rows, keys, group = 512 if votes else 1, 4096, 4
        shape = 2, keys // PAGE, PAGE, size
        cache = torch.empty(*shape, dtype=stored or dtype).transpose(0, 1)
        if stored in LARGEST:
            scales = torch.empty(2, keys // PAGE, PAGE, 1).transpose(0, 1)
            how.update(k_scales=scales, v_scales=scales)
        batch = PagedBatch(
            page_size=PAGE,
            query_starts=[0, rows],
            kv_lengths=[keys],
            tables=[list(range(keys // PAGE))],
            slots=torch.zeros(rows, dtype=torch.int64),
        )
        kernels = attention.attend, attention.merge, scoring.masses, scoring.prompt_mass
        attention.attend, attention.merge = stand(kernels[0]), stand(kernels[1])
        scoring.masses, scoring.prompt_mass = stand(kernels[2]), stand(kernels[3])
        try:
            q = torch.empty(rows, 2 * group, size, dtype=dtype)
            votes_T = torch.empty(rows) if votes else None
            how["scale"] = 0.1
            scoring.paged_scored_attention(q, cache, cache, batch, votes_T=votes_T, **how)
        finally:
            attention.attend, attention.merge, scoring.masses, scoring.prompt_mass = kernels

    return call


def _sparse(
    own: bool,
    *,
    group: int,
    size: int,
    dtype: torch.dtype = torch.bfloat16,
    recent: int = 0,
) -> Callable[[Stand], None]:
    def call(stand: Stand) -> None:
        rows = 512
        kernel = sparse.attend_lists
        sparse.attend_lists = stand(kernel)
        try:
            labels = Labels(
                queries_TH=torch.zeros(rows, 2 * group, dtype=torch.int32),
                keys_KL=torch.zeros(2, rows, dtype=torch.int32),
                own=own,
                recent=recent,
            )
            q = torch.empty(rows, 2 * group, size, dtype=dtype)
            keys = torch.empty(2, rows, size, dtype=dtype)
            lse = torch.empty(rows, 2 * group) if recent else None
            sparse.sparse_prefill(q, keys, keys, labels, scale=0.1, lse_TH=lse)
        finally:
            sparse.attend_lists = kernel

    return call


def _write(stored: torch.dtype = torch.bfloat16) -> Callable[[Stand], None]:
    def call(stand: Stand) -> None:
        cache = torch.empty(2, 64, PAGE, 128, dtype=stored).transpose(0, 1)
        scales = torch.empty(2, 64, PAGE, 1).transpose(0, 1) if stored in LARGEST else None
        kernel = writing.write
        writing.write = stand(kernel)
        try:
            rows = torch.empty(48, 2, 128, dtype=torch.bfloat16)
            slots = torch.zeros(48, dtype=torch.int64)
            writing.kv_write(rows, rows, cache, cache, slots, k_scales=scales, v_scales=scales)
        finally:
            writing.write = kernel

    return call


def _evict(stand: Stand) -> None:
    kernel = evicting.choose
    evicting.choose = stand(kernel)
    try:
        one = torch.zeros(4, dtype=torch.int32)
        evicting.evict(
            torch.zeros(4, 2, 4096),
            torch.zeros(4, 2, 4096, dtype=torch.int32),
            *(one, one, one),
            torch.zeros(4, 4096 // PAGE, dtype=torch.int32),
            torch.zeros(4, 2, dtype=torch.int64),
            page_size=PAGE,
        )
    finally:
        evicting.choose = kernel


def _multiply(dtype: torch.dtype = torch.bfloat16) -> Callable[[Stand], None]:
    def call(stand: Stand) -> None:
        kernel = invariant.multiply
        invariant.multiply = stand(kernel)
        try:
            x, w, bias = (torch.empty(*s, dtype=dtype) for s in ((3, 2048), (8192, 2048), (8192,)))
            invariant.matmul(x, w.t(), bias)
        finally:
            invariant.multiply = kernel

    return call


def _planes(kind: str, rows: int) -> Callable[[Stand], None]:
    def call(stand: Stand) -> None:
        found = library()
        assert isinstance(found, Library), "compiled kernels take blocks apart"
        kernel = plane_products.multiply
        plane_products.multiply = stand(kernel)
        try:
            of = BLOCK_TYPES[kind]
            raw = torch.arange(64 * 2048 // of.inputs * of.bytes).to(torch.uint8).view(64, -1)
            x = torch.empty(rows, 2048, dtype=torch.bfloat16)
            plane_products.plane_linear(x, planes_of(found, raw, kind), None)
        finally:
            plane_products.multiply = kernel

    return call


def _sums(stand: Stand) -> None:
    kernels = invariant.add_up, invariant.add_along
    invariant.add_up, invariant.add_along = (stand(kernel) for kernel in kernels)
    try:
        x = torch.empty(4, 32_000)
        invariant.row_sum(x)
        invariant.row_cumsum(x)
    finally:
        invariant.add_up, invariant.add_along = kernels


CASES: dict[str, Callable[[Stand], None]] = {
    "decode-128": _attention(1, group=4, size=128),
    "decode-64-group-7": _attention(1, group=7, size=64),
    "decode-256": _attention(1, group=2, size=256, softcap=50.0, window=4096),
    "decode-float32": _attention(1, group=4, size=128, dtype=torch.float32),
    "decode-fp8": _attention(1, group=8, size=128, stored=torch.float8_e4m3fn),
    "decode-int8": _attention(1, group=8, size=128, stored=torch.int8),
    "decode-sinks": _attention(1, group=8, size=64, sinks=True, window=128),
    "tree": _attention(16, group=4, size=128, tree=True),
    "prompt-128": _attention(512, group=4, size=128),
    "prompt-64": _attention(512, group=7, size=64),
    "prompt-256": _attention(512, group=2, size=256, softcap=50.0, window=4096),
    "prompt-float32": _attention(512, group=4, size=128, dtype=torch.float32),
    "decode-float32-group-8": _attention(1, group=8, size=128, dtype=torch.float32),
    "decode-float32-256": _attention(1, group=2, size=256, dtype=torch.float32),
    "prompt-float32-256": _attention(512, group=2, size=256, dtype=torch.float32),
    "prompt-float32-64": _attention(512, group=7, size=64, dtype=torch.float32),
    "decode-fp8-256": _attention(1, group=8, size=256, stored=torch.float8_e4m3fn),
    "prompt-fp8-256": _attention(512, group=2, size=256, stored=torch.float8_e4m3fn),
    "decode-group-16": _attention(1, group=16, size=128),
    "decode-group-71": _attention(1, group=71, size=64),
    "tree-float32": _attention(16, group=4, size=128, dtype=torch.float32, tree=True),
    "tree-group-8": _attention(16, group=8, size=128, tree=True, window=4096),
    "prompt-fp8": _attention(512, group=8, size=128, stored=torch.float8_e4m3fn),
    "prompt-int8": _attention(512, group=4, size=128, stored=torch.int8),
    "scores-128": _scored(False, size=128),
    "scores-fp8": _scored(False, size=128, stored=torch.float8_e4m3fn),
    "mass-128": _scored(True, size=128),
    "mass-256": _scored(True, size=256, softcap=50.0, window=4096),
    "mass-float32": _scored(True, size=128, dtype=torch.float32),
    "mass-float32-256": _scored(True, size=256, dtype=torch.float32),
    "mass-fp8": _scored(True, size=128, stored=torch.float8_e4m3fn),
    "sparse-kept-128": _sparse(False, group=4, size=128),
    "sparse-recent-128": _sparse(False, group=4, size=128, recent=512),
    "sparse-recent-float32": _sparse(False, group=4, size=128, dtype=torch.float32, recent=512),
    "sparse-kept-64": _sparse(False, group=7, size=64),
    "sparse-kept-float32": _sparse(False, group=4, size=128, dtype=torch.float32),
    "sparse-hashed-128": _sparse(True, group=4, size=128),
    "sparse-hashed-80": _sparse(True, group=1, size=80, dtype=torch.float16),
    "sparse-hashed-256": _sparse(True, group=2, size=256),
    "sparse-hashed-float32": _sparse(True, group=4, size=128, dtype=torch.float32),
    "sparse-hashed-float32-256": _sparse(True, group=2, size=256, dtype=torch.float32),
    "multiply": _multiply(),
    "multiply-float32": _multiply(torch.float32),
    "planes-q4_0": _planes("Q4_0", 4),
    "planes-q4_k-prompt": _planes("Q4_K", 512),
    "planes-q6_k": _planes("Q6_K", 4),
    "planes-u4": _planes("U4_F16", 4),
    "planes-nf4": _planes("NF4_64", 4),
    "planes-e4m3": _planes("E4M3_128", 4),
    "sums": _sums,
    "evict": _evict,
    "write": _write(),
    "write-int8": _write(torch.int8),
    "write-fp8": _write(torch.float8_e4m3fn),
}
