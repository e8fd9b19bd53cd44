"""Self-check: compares a model's logits through our attention with transformers' own attention.

It finds what a probe cannot see: a mask of the model's own, bidirectional attention, two attentions
in one layer, keys that are compressed or selected once there are enough of them. So the prompt is
longer than the numbers in the model's config that may matter: windows, blocks, compression rates,
how many keys are selected.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, cast

import torch
from torch import Tensor

from ...kernels.batch import PagedBatch
from ...kvcache.store import KVStore
from ..attention.interface import NAME, Findings, PagedStep, Probe
from ..recurrent.modules import AttentionStep, OneSequence
from .stages import printable

logger = logging.getLogger(__name__)

_LEAST: Final = 40
_BEYOND: Final = 9
_LONGEST: Final = 4096
_WORK: Final = {"cpu": 2e11, "cuda": 2e13}
"""Limit of weights times tokens: takes seconds at most."""
_SCORES: Final = 2**28
"""Limit of heads times tokens squared, which eager attention holds: 1 GiB in float32."""
_LENGTHS: Final = ("window", "chunk", "block", "stride", "compress", "topk", "index", "sparse")
_NO_LENGTHS: Final = (
    "feed_forward",
    "head",
    "dim",
    "group",
    "norm",
    "ffn",
    "theta",
    "layers",
    "step",
)
_PAGE: Final = 16
_TOLERANCE: Final = 1e-4
_HALF_TOLERANCE: Final = 0.2
_MOST: Final = 0.75
_INDEX: Final = ("index_topk", "index_topk_blocks", "indexer_budget")
KNOWN_LAYERS: Final = frozenset(
    {
        *("full_attention", "sliding_attention", "chunked_attention"),
        *("linear_attention", "conv", "hybrid", "hybrid_sliding"),
        *("moe", "mlp"),
    }
)


def unknown_layers(text_config: Any) -> list[str]:
    """Kinds of layers that the model names and our caches do not support."""
    kinds = getattr(text_config, "layer_types", None) or ()
    return sorted({str(kind) for kind in kinds} - KNOWN_LAYERS)


def chooses_keys(text_config: Any) -> bool:
    """Whether rows attend to keys that an index chooses, of which our caches have none."""
    return any(getattr(text_config, name, None) for name in _INDEX)


def prompt_tokens(model: Any, text_config: Any, context: int) -> int:
    """Length of the prompt to check: beyond the config's lengths, in bounded time and memory."""
    lengths = [n for n in _lengths(text_config.to_dict()) if n + _BEYOND > _LEAST]
    parameters = sum(p.numel() for p in model.parameters())
    device = next(model.parameters()).device.type
    heads = max(1, int(getattr(text_config, "num_attention_heads", 1) or 1))
    most = int(
        min(_LONGEST, context, (_SCORES / heads) ** 0.5, _WORK.get(device, 2e11) / parameters)
    )
    return min(context, max(_LEAST, *(n + _BEYOND for n in lengths if n + _BEYOND <= most), 0))


def _lengths(fields: Mapping[str, Any]) -> Iterator[int]:
    for name, value in fields.items():
        if any(part in name for part in _LENGTHS) and not any(part in name for part in _NO_LENGTHS):
            yield from _integers(value)


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        value = list(cast(dict[str, Any], value).values())
    for each in cast(list[Any], value) if isinstance(value, list) else [value]:
        if type(each) is int:
            yield each


def reaches(model: Any, token: int, position: int) -> bool:
    """Whether the model computes a row at this position, which its tables may not have."""
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            model(
                input_ids=torch.tensor([[token]], device=device),
                position_ids=torch.tensor([[position]], device=device),
                use_cache=False,
                penstock_step=Probe(),
            )
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


def difference(model: Any, found: Findings, tokens: Sequence[int], length: int) -> str | None:
    """Why the logits of a prompt are not those of `eager` attention; None: they are.

    Also None, with a warning, where the model's eager attention fails, so that there is no
    reference. `tokens`: those to build the prompt from.

    Raises:
        OverflowError: transformers' own logits are not finite in any row.
    """
    parameter = next(model.parameters())
    device = parameter.device
    ids = torch.tensor([[tokens[37 * i % len(tokens)] for i in range(length)]], device=device)
    positions = torch.arange(length, device=device)[None]
    with torch.inference_mode():
        try:
            ours = _in_chunks(model, found, ids, positions, parameter.dtype)
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            return f"a prompt of {length} tokens fails ({printable(str(error))[:120]})"
        model.set_attn_implementation("eager")
        try:
            theirs = model(**_as_generate(model, ids, positions)).logits[0]
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            logger.warning("no reference to check the attention against: %s", type(error).__name__)
            return None
        finally:
            model.set_attn_implementation(NAME)
    return _disagreement(ours, theirs)


def _as_generate(model: Any, ids: Tensor, positions: Tensor) -> dict[str, Any]:
    """The arguments with which `generate` calls the model.

    It numbers tokens from 0, unless the model's own method takes the positions away, since there
    they begin elsewhere.
    """
    given = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    try:
        prepared = model.prepare_inputs_for_generation(
            ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False
        )
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError):
        return given
    if prepared.get("position_ids") is None:
        del given["position_ids"]
    return given


def _in_chunks(
    model: Any, found: Findings, ids: Tensor, positions: Tensor, dtype: torch.dtype
) -> Tensor:
    """Logits of all rows, computed in chunks, so that keys and states of earlier ones are read."""
    device, length = ids.device, ids.shape[1]
    pages = -(-length // _PAGE)
    table = [*range(1, pages), 0]
    one = None if found.stateful is None else OneSequence(found.stateful, device)
    store = KVStore(found.in_order, pages=pages, page_size=_PAGE, dtype=dtype, device=device)
    slots = torch.tensor(
        [table[i // _PAGE] * _PAGE + i % _PAGE for i in range(length)], device=device
    )
    cuts = sorted({0, length // 3, max(0, length - 2), max(0, length - 1), length})
    logits: list[Tensor] = []
    for first, last in pairwise(cuts):
        batch = PagedBatch(
            page_size=_PAGE,
            query_starts=[0, last - first],
            kv_lengths=[last],
            tables=[table],
            slots=slots[first:last],
        )
        step: AttentionStep = PagedStep(store=store, batch=batch)
        cache = {}
        if one is not None:
            step, cache = one.step(step, last - first)
        output = model(
            input_ids=ids[:, first:last],
            position_ids=positions[:, first:last],
            use_cache=False,
            penstock_step=step,
            **cache,
        )
        logits.append(output.logits[0])
    return torch.cat(logits)


def _disagreement(ours: Tensor, theirs: Tensor) -> str | None:
    """How the rows disagree, in the relative Euclidean norm; None: they do not.

    In 16 bits only most rows must agree: rounding grows over the layers, and a tiny difference may
    select other experts. A different attention changes most rows.
    """
    exact = ours.dtype == torch.float32
    ours, theirs = ours.float(), theirs.float()
    told = torch.isfinite(theirs).all(dim=-1)
    if not bool(told.any()):
        raise OverflowError
    error = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-9)
    error = error.nan_to_num(nan=torch.inf)[told]
    worst = float(error.max()) if exact else float(error.quantile(_MOST))
    if worst <= (_TOLERANCE if exact else _HALF_TOLERANCE):
        return None
    row = int(torch.nonzero(told)[int(error.argmax()), 0])
    return (
        f"through it, its logits differ from those of its own attention (by {worst:.2g} of their "
        f"size, most at token {row} of {len(ours)})"
    )
