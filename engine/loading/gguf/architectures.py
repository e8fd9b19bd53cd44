"""The architectures that are served from GGUF files: names, and what llama.cpp changes in tensors.

One entry each, by `general.architecture`. Tensors that an entry does not name are refused, so that
a file either has every weight of the model or ends start-up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from . import config

_ATTENTION: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_NORMED_HEADS: Final = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MLP: Final = {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_EXPERTS: Final = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_up_proj",
    "ffn_up_exps": "mlp.experts.gate_up_proj",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_FOUR_NORMS: Final = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_DENSE: Final = {**_ATTENTION, **_MLP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """`layers`: the names of a block's tensors -> those of a layer's parameters.

    `more`: fields of its config. `interleaved`: rows of queries and keys stand in llama.cpp's order
    for rotation, pair by pair. `shifted_norms`: norms are stored with 1 added.
    """

    model_type: str
    layers: Mapping[str, str]
    more: config.More = config.plain
    interleaved: bool = False
    shifted_norms: bool = False


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "llama": Architecture(
        model_type="llama", layers={**_DENSE, **_EXPERTS}, more=config.mixture, interleaved=True
    ),
    "qwen2": Architecture(model_type="qwen2", layers=_DENSE, more=config.qwen),
    "qwen3": Architecture(model_type="qwen3", layers={**_DENSE, **_NORMED_HEADS}, more=config.qwen),
    "qwen3moe": Architecture(
        model_type="qwen3_moe",
        layers={**_DENSE, **_NORMED_HEADS, **_EXPERTS},
        more=config.qwen3_moe,
    ),
    "gemma": Architecture(model_type="gemma", layers=_DENSE, shifted_norms=True),
    "gemma2": Architecture(
        model_type="gemma2",
        layers={**_DENSE, **_FOUR_NORMS},
        more=config.gemma2,
        shifted_norms=True,
    ),
    "gemma3": Architecture(
        model_type="gemma3_text",
        layers={**_DENSE, **_FOUR_NORMS, **_NORMED_HEADS},
        more=config.gemma3,
        shifted_norms=True,
    ),
    "phi3": Architecture(
        model_type="phi3",
        layers={**_DENSE, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
        more=config.phi3,
    ),
    "granite": Architecture(
        model_type="granite", layers=_DENSE, more=config.granite, interleaved=True
    ),
    "smollm3": Architecture(model_type="smollm3", layers=_DENSE, interleaved=True),
    "olmo2": Architecture(
        model_type="olmo2",
        layers={
            **_DENSE,
            **_NORMED_HEADS,
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        more=config.olmo2,
    ),
}
