"""A decoder of pre-norm layers, without transformers' overhead in every call."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .attention import FusedAttention
from .bound import BoundModule
from .observe import Call, matches


class FusedLayer(BoundModule):
    """A pre-norm layer: x + attention(norm(x)), then x + feed_forward(after(x)) of the result."""

    def __init__(
        self, norm: nn.Module, attention: FusedAttention, after: nn.Module, feed_forward: nn.Module
    ) -> None:
        super().__init__()
        self.original_names = {"attention": "self_attn", "feed_forward": "mlp"}
        self.norm = norm
        self.attention = attention
        self.after = after
        self.feed_forward = feed_forward
        self.bind()

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        penstock_step: Any = None,
        **_: Any,
    ) -> Tensor:
        """`[1, T, width]` to the same."""
        calls = self.calls
        attended, _none = calls["attention"](
            calls["norm"](hidden_states), position_embeddings, penstock_step=penstock_step
        )
        hidden_states = hidden_states + attended
        return hidden_states + calls["feed_forward"](calls["after"](hidden_states))


def fused_layer(module: Any, call: Call | None) -> FusedLayer | None:
    """The fused version of a pre-norm layer whose attention is fused already; tried on a call."""
    names = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
    norm, attention, after, feed_forward = (getattr(module, name, None) for name in names)
    if call is None or not isinstance(attention, FusedAttention):
        return None
    if not isinstance(norm, nn.Module) or not isinstance(after, nn.Module):
        return None
    if not isinstance(feed_forward, nn.Module):
        return None
    candidate = FusedLayer(norm, attention, after, feed_forward)
    return candidate if matches(candidate, module, call) else None


@dataclass(frozen=True, slots=True)
class Output:
    """Logits `[1, R, V]` of the wanted rows, named as in transformers."""

    logits: Tensor


class FusedDecoder(BoundModule):
    """Embedding, layers, norm and head; the last two only for the wanted rows."""

    def __init__(
        self,
        embedding: nn.Module,
        rotary: nn.Module,
        layers: nn.ModuleList,
        norm: nn.Module,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.original_names = {"layers": "model.layers", "head": "lm_head"}
        self.embedding = embedding
        self.rotary = rotary
        self.layers = layers
        self.norm = norm
        self.head = head
        self.bind()

    def bind(self) -> None:
        """See `BoundModule`."""
        super().bind()
        self._layers = [layer.forward for layer in self.layers]

    def take(self, index: int) -> nn.Module:
        """Remove a layer and return it; the decoder cannot be called after that."""
        layer = self.layers[index]
        self.layers[index] = nn.Identity()
        self._layers = []
        return layer

    def forward(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        logits_to_keep: Tensor,
        penstock_step: Any,
        **_: Any,
    ) -> Output:
        """As the forward pass of the original model."""
        calls = self.calls
        hidden_states = calls["embedding"](input_ids)
        factors = calls["rotary"](hidden_states, position_ids=position_ids)
        for layer in self._layers:
            hidden_states = layer(hidden_states, factors, penstock_step)
        return Output(calls["head"](calls["norm"](hidden_states[:, logits_to_keep])))


def fused_decoder(model: Any) -> FusedDecoder | None:
    """A decoder of the model's parts, not yet tried; None: a part is missing."""
    base = getattr(model, "model", None)
    names = ("embed_tokens", "rotary_emb", "layers", "norm")
    embedding, rotary, layers, norm = (getattr(base, name, None) for name in names)
    head = getattr(model, "lm_head", None)
    if not isinstance(layers, nn.ModuleList):
        return None
    if not all(isinstance(layer, FusedLayer) for layer in layers):
        return None
    if embedding is None or rotary is None or norm is None or head is None:
        return None
    return FusedDecoder(embedding, rotary, layers, norm, head)
