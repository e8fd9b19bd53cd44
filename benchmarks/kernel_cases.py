"""What `kernels.py` measures: launches in the shapes of an 8B Llama, and what each has to move.

Bytes are what must be read and written once, inputs and results; partial results and logits that a
kernel leaves for the next one are its own affair. Operations are those on keys that rows see.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernel_plan import Case, Launch, Plan
from benchmarks.kernel_products import LIBRARY, MULTIPLY, copy, matrix, product
from penstock.kernels.batch import PagedBatch
from penstock.kernels.evict.triton import evict
from penstock.kernels.kv_write.triton import kv_write
from penstock.kernels.paged_attention.ragged import SPLIT_TOKENS, Ragged, ragged
from penstock.kernels.paged_attention.triton import Workspace, launch, put_together
from penstock.kernels.quantise import LARGEST, quantise
from penstock.kernels.scored_attention.triton import mass_of_rows, weights_of_rows

ATTENTION: Final = "paged_attention"
FLASH: Final = "torch SDPA, flash"


def cases(plan: Plan) -> Iterator[Case]:
    """All of them; the limits first, and what others are held against before those."""
    yield copy(plan)
    yield matrix(plan)
    for sequences, keys in plan.decode:
        yield _flash(plan, "decode", sequences, 1, keys)
        for stored in plan.stored:
            yield _attention(plan, "decode", sequences, 1, keys, stored)
        yield _merge(plan, "decode", sequences, 1, keys)
        yield _scored(plan, "decode", sequences, 1, keys)
    for sequences, keys in plan.windows:
        of = "draft", sequences, plan.window_rows, keys
        yield _attention(plan, *of, plan.dtype)
        yield _merge(plan, *of)
        yield _scored(plan, *of)
    for keys in plan.prompts:
        yield _flash(plan, "prompt", 1, keys, keys)
        yield _attention(plan, "prompt", 1, keys, keys, plan.dtype)
        yield _prompt_mass(plan, keys)
    for rows in plan.written_rows:
        for stored in plan.stored:
            yield _write(plan, rows, stored)
    yield _evict(plan)
    for rows in plan.multiplied_rows:
        yield product(plan, LIBRARY, rows)
        yield product(plan, MULTIPLY, rows)


def attention_bytes(plan: Plan, sequences: int, rows: int, keys: int, stored: torch.dtype) -> int:
    """Keys and values with their scales, queries and results, each once."""
    results = 2 * sequences * rows * plan.heads * plan.size * plan.dtype.itemsize
    return sequences * keys * plan.layer.bytes_per_token(stored) + results


def attention_operations(plan: Plan, sequences: int, rows: int, keys: int) -> int:
    """Two products over the keys that causal rows see; an addition and a multiplication are two."""
    seen = rows * (keys - rows) + rows * (rows + 1) // 2
    return 4 * sequences * plan.heads * plan.size * seen


def _attention(
    plan: Plan, shape: str, sequences: int, rows: int, keys: int, stored: torch.dtype
) -> Case:
    def prepare(device: torch.device) -> Launch:
        step = _Step.of(plan, sequences, rows, keys, stored, device)
        return lambda: launch(*step.arguments, **step.how)

    return Case(
        kernel=ATTENTION,
        shape=shape,
        dtype=stored,
        sequences=sequences,
        rows=rows,
        keys=keys,
        bytes_moved=attention_bytes(plan, sequences, rows, keys, stored),
        operations=attention_operations(plan, sequences, rows, keys),
        limit="matrix" if shape == "prompt" else "copy",
        prepare=prepare,
        beside=None if shape == "draft" else FLASH,
    )


def _flash(plan: Plan, shape: str, sequences: int, rows: int, keys: int) -> Case:
    """Keys in one piece, in the order of sequences: nothing to look up."""

    def prepare(device: torch.device) -> Launch:
        def new(heads: int, tokens: int) -> Tensor:
            return torch.randn(sequences, heads, tokens, plan.size, device=device).to(plan.dtype)

        q, k, v = new(plan.heads, rows), new(plan.kv_heads, keys), new(plan.kv_heads, keys)
        causal = rows == keys

        def run() -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

        return run

    return Case(
        kernel=FLASH,
        shape=shape,
        dtype=plan.dtype,
        sequences=sequences,
        rows=rows,
        keys=keys,
        bytes_moved=attention_bytes(plan, sequences, rows, keys, plan.dtype),
        operations=attention_operations(plan, sequences, rows, keys),
        limit="matrix" if shape == "prompt" else "copy",
        prepare=prepare,
    )


def _merge(plan: Plan, shape: str, sequences: int, rows: int, keys: int) -> Case:
    parts = sequences * rows * -(-keys // SPLIT_TOKENS)
    result = sequences * rows * plan.heads * plan.size * plan.dtype.itemsize

    def prepare(device: torch.device) -> Launch:
        step = _Step.of(plan, sequences, rows, keys, plan.dtype, device)
        launch(*step.arguments, **step.how)
        return lambda: put_together(step.workspace, step.of_class, step.out)

    return Case(
        kernel="merge_splits",
        shape=shape,
        dtype=plan.dtype,
        sequences=sequences,
        rows=rows,
        keys=keys,
        bytes_moved=4 * parts * plan.heads * (plan.size + 1) + result,
        operations=0,
        limit="copy",
        prepare=prepare,
        beside=ATTENTION,
    )


def _scored(plan: Plan, shape: str, sequences: int, rows: int, keys: int) -> Case:
    weights_bytes = 4 * sequences * plan.kv_heads * rows * keys

    def prepare(device: torch.device) -> Launch:
        step = _Step.of(plan, sequences, rows, keys, plan.dtype, device)
        lse = torch.empty(sequences * rows, plan.heads, device=device)
        scores = torch.empty(step.of_class.cell_count * plan.heads, device=device)
        weights = torch.empty(step.of_class.cell_count * plan.kv_heads, device=device)
        return lambda: weights_of_rows(*step.arguments, lse, scores, weights, **step.how)

    return Case(
        kernel="scored_attention",
        shape=shape,
        dtype=plan.dtype,
        sequences=sequences,
        rows=rows,
        keys=keys,
        bytes_moved=attention_bytes(plan, sequences, rows, keys, plan.dtype) + weights_bytes,
        operations=attention_operations(plan, sequences, rows, keys),
        limit="copy",
        prepare=prepare,
        beside=ATTENTION,
    )


def _prompt_mass(plan: Plan, keys: int) -> Case:
    def prepare(device: torch.device) -> Launch:
        step = _Step.of(plan, 1, keys, keys, plan.dtype, device)
        lse = torch.empty(keys, plan.heads, device=device)
        mass = torch.empty(keys * plan.kv_heads, device=device)
        votes = torch.ones(keys, device=device)
        launch(*step.arguments, lse_TH=lse, **step.how)
        q, k_cache, _, of, *_ = step.arguments
        return lambda: mass_of_rows(q, k_cache, of, lse, mass, votes_T=votes, **step.how)

    queries_and_keys = keys * (plan.heads + plan.kv_heads) * plan.size * plan.dtype.itemsize
    return Case(
        kernel="prompt_mass",
        shape="prompt",
        dtype=plan.dtype,
        sequences=1,
        rows=keys,
        keys=keys,
        bytes_moved=queries_and_keys + 4 * keys * (plan.heads + plan.kv_heads + 1),
        operations=attention_operations(plan, 1, keys, keys) // 2,
        limit="matrix",
        prepare=prepare,
        beside=ATTENTION,
    )


def _write(plan: Plan, rows: int, stored: torch.dtype) -> Case:
    def prepare(device: torch.device) -> Launch:
        k_cache, v_cache, scales = _caches(plan, plan.pool_tokens, stored, device)
        shape = rows, plan.kv_heads, plan.size
        k, v = (torch.randn(shape, device=device).to(plan.dtype) for _ in range(2))
        slots = torch.randperm(plan.pool_tokens, device=device)[:rows]
        return lambda: kv_write(k, v, k_cache, v_cache, slots, **scales)

    given = plan.layer.bytes_per_token(plan.dtype) + torch.int64.itemsize
    return Case(
        kernel="kv_write",
        shape="append",
        dtype=stored,
        sequences=1,
        rows=rows,
        keys=0,
        bytes_moved=rows * (given + plan.layer.bytes_per_token(stored)),
        operations=0,
        limit="copy",
        prepare=prepare,
    )


def _evict(plan: Plan) -> Case:
    contexts, slots = plan.contexts
    heads = plan.kv_heads

    def prepare(device: torch.device) -> Launch:
        def of_each(number: int) -> Tensor:
            return torch.full((contexts,), number, dtype=torch.int32, device=device)

        mass = torch.rand(contexts, heads, slots, device=device)
        positions = torch.rand(contexts, heads, slots, device=device).argsort().to(torch.int32)
        pages = -(-slots // plan.page)
        tables = torch.arange(contexts * pages, dtype=torch.int32, device=device)
        places = torch.empty(contexts, heads, dtype=torch.int64, device=device)
        state = mass, positions, of_each(slots), of_each(slots // 2), of_each(4)
        return lambda: evict(*state, tables.view(contexts, -1), places, page_size=plan.page)

    # Masses and positions are read; of each head a position, a mass and a place are written.
    return Case(
        kernel="evict",
        shape="one victim",
        dtype=torch.float32,
        sequences=contexts,
        rows=1,
        keys=slots,
        bytes_moved=contexts * heads * (8 * slots + 16),
        operations=0,
        limit="copy",
        prepare=prepare,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Tensors of one launch of attention: sequences of equal size, pages in any order."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    of_class: Ragged
    out: Tensor
    workspace: Workspace
    how: dict[str, Any]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Ragged, Tensor, Workspace]:
        """As the launchers take them."""
        return self.q, self.k_cache, self.v_cache, self.of_class, self.out, self.workspace

    @classmethod
    def of(
        cls,
        plan: Plan,
        sequences: int,
        rows: int,
        keys: int,
        stored: torch.dtype,
        device: torch.device,
    ) -> "_Step":
        pages = -(-keys // plan.page)
        order = list(range(sequences * pages))
        random.Random(0).shuffle(order)
        batch = PagedBatch(
            page_size=plan.page,
            query_starts=[i * rows for i in range(sequences + 1)],
            kv_lengths=[keys] * sequences,
            tables=[order[i * pages : (i + 1) * pages] for i in range(sequences)],
            slots=torch.zeros(sequences * rows, dtype=torch.int64, device=device),
        )
        k_cache, v_cache, scales = _caches(plan, len(order) * plan.page, stored, device)
        (one,) = ragged(batch)
        q = torch.randn(sequences * rows, plan.heads, plan.size, device=device).to(plan.dtype)
        return cls(
            q=q,
            k_cache=k_cache,
            v_cache=v_cache,
            of_class=one,
            out=torch.empty_like(q),
            workspace=Workspace.of(one, plan.heads, plan.size, device),
            how={"scale": plan.size**-0.5, **scales},
        )


def _caches(
    plan: Plan, tokens: int, stored: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Keys and values, stored head by head, and their scales."""
    made: list[Tensor] = []
    scales: dict[str, Tensor] = {}
    for name in ("k_scales", "v_scales"):
        rows = torch.randn(plan.kv_heads, tokens // plan.page, plan.page, plan.size, device=device)
        if stored in LARGEST:
            elements, of_rows = quantise(rows, stored)
            scales[name] = of_rows.transpose(0, 1)
        else:
            elements = rows.to(stored)
        made.append(elements.transpose(0, 1))
    return made[0], made[1], scales
