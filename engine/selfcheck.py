"""A model's logits through our attention, held against transformers' own attention.

What a probe cannot see (a mask of the model's own, attention to both sides, two attentions in one
layer) shows here, before anything is served.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..kernels.batch import PagedBatch
from ..kvcache.store import KVStore, LayerShape
from .attention import NAME, PagedStep

logger = logging.getLogger(__name__)

_TOKENS = 40
_CUTS = (0, 13, 38, 39, 40)
_PAGE = 16
_TABLE = [2, 0, 1]
_TOLERANCE = 1e-4
_HALF_TOLERANCE = 0.2
_MOST = 0.75


def computes_the_same(model: Any, layers: Sequence[LayerShape], vocab_size: int) -> bool:
    """Whether the logits of a short prompt agree with those of `eager` attention.

    True, with a warning, where the model has no reference to hold against.
    """
    parameter = next(model.parameters())
    device = parameter.device
    ids = torch.tensor([[7 + 37 * i % (vocab_size - 7) for i in range(_TOKENS)]], device=device)
    positions = torch.arange(_TOKENS, device=device)[None]
    with torch.inference_mode():
        ours = _in_chunks(model, layers, ids, positions, parameter.dtype)
        model.set_attn_implementation("eager")
        try:
            theirs = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            logger.warning("no reference to check the attention against: %s", type(error).__name__)
            return True
        finally:
            model.set_attn_implementation(NAME)
    return _agree(ours, theirs)


def _in_chunks(
    model: Any, layers: Sequence[LayerShape], ids: Tensor, positions: Tensor, dtype: torch.dtype
) -> Tensor:
    """Logits of all rows, read in pieces, so that what an earlier piece left is used."""
    device = ids.device
    store = KVStore(layers, pages=len(_TABLE), page_size=_PAGE, dtype=dtype, device=device)
    slots = torch.tensor(
        [_TABLE[i // _PAGE] * _PAGE + i % _PAGE for i in range(_TOKENS)], device=device
    )
    logits: list[Tensor] = []
    for first, last in pairwise(_CUTS):
        batch = PagedBatch(
            page_size=_PAGE,
            query_starts=[0, last - first],
            kv_lengths=[last],
            tables=[_TABLE],
            slots=slots[first:last],
        )
        output = model(
            input_ids=ids[:, first:last],
            position_ids=positions[:, first:last],
            use_cache=False,
            penstock_step=PagedStep(store=store, batch=batch),
        )
        logits.append(output.logits[0])
    return torch.cat(logits)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether the rows agree, in the relative Euclidean norm.

    In 16 bits most of them: rounding grows over the layers, and experts may be chosen differently
    after the smallest of it; another attention changes most of every row.
    """
    exact = ours.dtype == torch.float32
    ours, theirs = ours.float(), theirs.float()
    error = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-9)
    if exact:
        return float(error.max()) <= _TOLERANCE
    return float(error.quantile(_MOST)) <= _HALF_TOLERANCE
