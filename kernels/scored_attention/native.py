"""`paged_scored_attention` compiled for CPUs (../paged_attention/native.h)."""

from collections.abc import Callable
from ctypes import byref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch import PagedBatch
from ..native.library import Library
from ..paged_attention.native import Geometry, prepared
from . import reference


def launcher(library: Library) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    """`paged_scored_attention` of this build, with as many threads as torch has now."""
    run: Any = library.call.scored_attention
    threads = torch.get_num_threads()
    most_group = library.call.most_group()

    def paged_scored_attention(
        q_THD: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: PagedBatch,
        *,
        votes_T: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """See the reference; q is float32."""
        kv_heads = k_cache.shape[1]
        if q_THD.shape[1] > most_group * kv_heads:
            return reference.paged_scored_attention(
                q_THD, k_cache, v_cache, batch, votes_T=votes_T, **options
            )
        q_THD, out, how, _kept = prepared(q_THD, k_cache, v_cache, **options)
        sizes = np.diff(batch.query_starts).tolist()
        weights = [
            torch.zeros((kv_heads, length) if votes_T is not None else (kv_heads, rows, length))
            for rows, length in zip(sizes, batch.kv_lengths, strict=True)
        ]
        where = np.array([each.data_ptr() for each in weights], dtype=np.uintp)
        votes = None
        if votes_T is not None:
            votes_T = votes_T.contiguous()
            starts = np.array(batch.query_starts[:-1], dtype=np.uintp)
            votes = votes_T.data_ptr() + starts * votes_T.element_size()
        run(
            byref(Geometry.of(batch).struct),
            byref(how),
            q_THD.data_ptr(),
            q_THD.stride(0),
            out.data_ptr(),
            out.stride(0),
            where.ctypes.data,
            None if votes is None else votes.ctypes.data,
            threads,
        )
        return out, [each for each, rows in zip(weights, sizes, strict=True) if rows]

    return paged_scored_attention
