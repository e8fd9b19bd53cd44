"""A naive model with sparse prefill: dense attention with a mask, all computed anew each token."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface

FIRST, RECENT = 128, 64
"""Position of the first row that sees part of the keys; newest keys that every row sees."""


def naive(folder: Path, spec: dict[str, Any], prompt: list[int], count: int) -> list[int]:
    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **how: Any
    ) -> tuple[Tensor, None]:
        out = _masked(module.layer_idx, query[0], key[0], value[0], spec, len(prompt), how)
        return out[None], None

    AttentionInterface.register("naive_sparse", attend)
    AttentionMaskInterface.register("naive_sparse", _no_mask)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="naive_sparse", dtype=torch.float32
    ).eval()
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


def _no_mask(*args: Any, **how: Any) -> None:
    pass


def _masked(
    layer: int,
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    spec: dict[str, Any],
    until: int,
    how: dict[str, Any],
) -> Tensor:
    heads, length, _ = q_HTD.shape
    group = heads // k_KTD.shape[0]
    outs: list[Tensor] = []
    for head in range(heads):
        q, k, v = q_HTD[head], k_KTD[head // group], v_KTD[head // group]
        allowed = _allowed(layer, head // group, q, k, spec)
        for row in range(length):
            for key in range(row + 1, length):
                allowed[row, key] = False
            if not FIRST <= row < until:
                allowed[row, : row + 1] = True
            allowed[row, max(0, row - RECENT + 1) : row + 1] = True
        s = (q @ k.T * how["scaling"]).masked_fill(~allowed, -torch.inf)
        outs.append(s.softmax(-1) @ v)
    return torch.stack(outs, dim=1)


def _allowed(layer: int, kv_head: int, q: Tensor, k: Tensor, spec: dict[str, Any]) -> Tensor:
    """Which keys rows see behind the newest: `[T, T]`."""
    length, size = k.shape
    if spec["method"] == "qk":
        keep = set(range(4))
        for begin in range(0, length - 63, 64):
            block = sorted(range(begin, begin + 64), key=lambda j: float(k[j].norm()))
            keep |= set(block[:7])
        return torch.tensor([j in keep for j in range(length)]).repeat(length, 1)
    generator = torch.Generator().manual_seed(layer)
    rotation = torch.randn(2, size, 4, generator=generator)[kv_head]
    centre = k[:FIRST].mean(0)
    of_q = [_bucket(each @ rotation) for each in q]
    of_k = [_bucket((each - centre) @ rotation) for each in k]
    return torch.tensor([[a == b for b in of_k] for a in of_q])


def _bucket(rotated: Tensor) -> tuple[int, bool]:
    nearest = int(rotated.abs().argmax())
    return nearest, bool(rotated[nearest] < 0)
