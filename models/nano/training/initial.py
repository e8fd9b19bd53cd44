"""The weights before the first step: attention that already looks at its like and copies it.

A small model on a small budget spends most of its training in front of one obstacle: to repeat a
name from earlier in the text, attention must find it and the value path must copy it, and neither
helps without the other. Following Trockman & Kolter, "Mimetic Initialization of Self-Attention
Layers" (2023, arXiv:2305.09828), both start near the identity: the output projection as the
transposed value projection, and the query projection near the key projection. The word vectors are
tied, so what attention copies is thereby made more likely.
"""

import math
from collections.abc import Iterable
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

_EMBEDDING_STD: Final = 0.06
_COPY: Final = 0.4  # how much of what attention sees is added to the stream
_LIKENESS: Final = 0.5  # how much of the query projection is the key projection


@torch.no_grad()
def set_initial_weights(model: LlamaForCausalLM) -> None:
    """Overwrite all matrices of `model` in place; the random ones come from torch's generator."""
    config = model.config
    head_dim, hidden_size = config.head_dim, config.hidden_size
    assert head_dim is not None
    groups = config.num_attention_heads // (config.num_key_value_heads or 1)

    def for_each_query_head(weight_KH: Tensor) -> Tensor:
        """Repeat the rows of each key/value head for the query heads that share it."""
        heads = weight_KH.view(-1, head_dim, hidden_size)
        return heads.repeat_interleave(groups, 0).flatten(0, 1)

    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            nn.init.normal_(parameter, std=_EMBEDDING_STD)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
    for layer in cast("Iterable[Any]", model.model.layers):
        attention = layer.self_attn
        attention.o_proj.weight.copy_(_COPY * for_each_query_head(attention.v_proj.weight).T)
        likeness = _LIKENESS * for_each_query_head(attention.k_proj.weight)
        attention.q_proj.weight.mul_(1 - _LIKENESS).add_(likeness)
        nn.init.zeros_(layer.mlp.down_proj.weight)
