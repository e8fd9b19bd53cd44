"""Fused attention: one matrix for queries, keys and values, and one product for rotation.

Rotary embeddings rotate pairs of elements by an angle: a product of complex numbers. Most models
pair element i with i + n/2; here the rows of the weights are permuted so that pairs are neighbours.
Queries and keys are permuted alike, so their dot products do not change.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from ...adapters.sites import Origin
from .bound import BoundModule
from .linears import merged
from .norms import FusedRMSNorm, fused_norm
from .observe import AttentionShape, Call, DenseStep, ObservedPass, matches

_KNOWN_PARAMETERS = {"hidden_states", "position_embeddings", "use_cache", "output_attentions"}

_FOLLOWING: Final = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles depend only on the position."""
_TABLED: Final = 1024

Rotation = Literal["none", "halves", "neighbours"]
"""Which elements of a head form a pair: i and i + n/2 (Llama), or 2i and 2i + 1 (Cohere)."""


class FusedRotary(nn.Module):
    """The model's own rotary embedding, as complex factors `[T, 1, n/2]`.

    Where they depend only on positions, on a CPU, they are computed once and then looked up.
    `example`: one of its outputs, which shows in which order it holds each angle twice.
    """

    def __init__(self, inner: nn.Module, example: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self._in_halves = _in_halves(*example)
        self._follows = getattr(inner, "rope_type", None) in _FOLLOWING
        self._table = torch.empty(0)

    def forward(
        self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The factors, twice, in place of cosine and sine."""
        # Models of pictures have several positions for a token, which are equal in text.
        several = position_ids.reshape(-1, position_ids.shape[-1])
        positions = several[0]
        follows = self._follows and (len(several) == 1 or bool((several == positions).all()))
        if follows and not args and not kwargs and x.device.type == "cpu":
            last = int(positions.max())
            if last >= len(self._table):
                known = torch.arange(max(_TABLED, 1 << last.bit_length()))
                self._table = self._computed(x, known.expand(*position_ids.shape[:-1], -1))
            factors = self._table.index_select(0, positions)
        else:
            factors = self._computed(x, position_ids, *args, **kwargs)
        return factors, factors

    def _computed(self, *args: Any, **kwargs: Any) -> Tensor:
        cos, sin = self.inner(*args, **kwargs)
        return _factors(cos, sin, in_halves=self._in_halves)


def rotary_factors(cos: Tensor, sin: Tensor) -> Tensor:
    """Complex factors `[T, 1, n/2]` of cosine and sine `[..., 1, T, n]`.

    These hold each angle twice. Of several positions for a token the first counts.
    """
    return _factors(cos, sin, in_halves=_in_halves(cos, sin))


def _factors(cos: Tensor, sin: Tensor, *, in_halves: bool) -> Tensor:
    once = slice(cos.shape[-1] // 2) if in_halves else slice(None, None, 2)
    cos, sin = (each.reshape(-1, *each.shape[-2:])[0, :, once] for each in (cos, sin))
    return torch.complex(cos, sin)[:, None]


def _in_halves(cos: Tensor, sin: Tensor) -> bool:
    """Whether each angle stands once in each half; else in two neighbouring elements."""
    half = cos.shape[-1] // 2
    return all(torch.equal(x[..., :half], x[..., half:]) for x in (cos, sin))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Parts of an attention module, found by the names that transformers gives them.

    `names`: of the layers that hold `weights`, one or three; `out_name`: of `out`.
    """

    names: tuple[str, ...]
    weights: list[Tensor]
    biases: list[Tensor | None]
    out_name: str
    out: nn.Linear
    norms: tuple[FusedRMSNorm, FusedRMSNorm] | None


class FusedAttention(BoundModule):
    """Attention of a step's rows: project, rotate, attend, project back."""

    def __init__(
        self, parts: _Parts, shape: AttentionShape, layer: int, rotation: Rotation, rotary_size: int
    ) -> None:
        super().__init__()
        order = _order(shape.key_size, rotary_size, rotation)
        orders = (order, order, None)
        heads = (shape.heads, shape.kv_heads, shape.kv_heads)
        self.qkv = merged(
            [_permuted(*each) for each in zip(parts.weights, heads, orders, strict=True)],
            [
                bias if bias is None else _permuted(bias, count, by)
                for bias, count, by in zip(parts.biases, heads, orders, strict=True)
            ],
        )
        self.out = parts.out
        self.original_names = {"out": parts.out_name}
        sources = [
            _permuted(torch.arange(weight.shape[0]), count, order)
            for weight, count, order in zip(parts.weights, heads, orders, strict=True)
        ]
        self.merged = {"qkv": _origins(parts.names, sources)}
        self.norms = tuple(_reordered(norm, order, shape.key_size) for norm in parts.norms or ())
        self.layer_idx = layer
        self.shape = shape
        self.rotary_size = rotary_size
        self.options = shape.options
        self.bind()

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        *_: Any,
        penstock_step: Any,
        **__: Any,
    ) -> tuple[Tensor, None]:
        """`hidden_states`: `[1, T, width]`; `position_embeddings`: see `FusedRotary`."""
        shape = self.shape
        qkv = self.calls["qkv"](hidden_states[0])
        q_size, k_size = shape.heads * shape.key_size, shape.kv_heads * shape.key_size
        heads = shape.heads + shape.kv_heads
        v = qkv[:, q_size + k_size :].view(-1, shape.kv_heads, shape.value_size)
        if self.norms:
            q, k = qkv[:, :q_size], qkv[:, q_size : q_size + k_size]
            q, k = (
                _normed(norm, x, shape.key_size) for norm, x in zip(self.norms, (q, k), strict=True)
            )
            qk = torch.cat((q, k), dim=1)
        else:
            qk = qkv[:, : q_size + k_size].view(-1, heads, shape.key_size)
        if self.rotary_size and position_embeddings is not None:
            rotated = qk if self.rotary_size == shape.key_size else qk[..., : self.rotary_size]
            torch.view_as_complex(rotated.unflatten(-1, (-1, 2))).mul_(position_embeddings[0])
        out = penstock_step(
            self.layer_idx, qk[:, : shape.heads], qk[:, shape.heads :], v, **self.options
        )
        return self.calls["out"](out.flatten(1))[None], None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """How an attention module rotates: enough to build its fused version."""

    rotation: Rotation
    rotary_size: int


def recognise(module: nn.Module, seen: ObservedPass) -> Recognised | None:
    """How `module` rotates, found by trying; None if no candidate gives the recorded output."""
    call = seen.calls.get(module)
    parts = _parts(module, seen)
    if call is None or parts is None:
        return None
    cos_sin: Any = call.kwargs.get("position_embeddings")
    if _needs_more(module, call):
        return None
    for candidate in _candidates(cos_sin):

        def translate(kwargs: dict[str, Any], candidate: Recognised = candidate) -> dict[str, Any]:
            embeddings = None
            if candidate.rotation != "none":
                factors = rotary_factors(*cos_sin)
                embeddings = (factors, factors)
            return kwargs | {"position_embeddings": embeddings, "penstock_step": DenseStep()}

        lean = _build(module, parts, candidate, seen)
        if matches(lean, module, call, translate=translate):
            return candidate
    return None


def _needs_more(module: nn.Module, call: Call) -> bool:
    """Whether the module was given a named argument that the fused version would ignore."""
    named = set(inspect.signature(module.forward).parameters) - _KNOWN_PARAMETERS
    return any(call.kwargs.get(name) is not None for name in named)


def fused_attention(module: nn.Module, known: Recognised, seen: ObservedPass) -> FusedAttention:
    """The fused version of a module that was recognised."""
    parts = _parts(module, seen)
    assert parts is not None, "recognised"
    return _build(module, parts, known, seen)


def _candidates(cos_sin: Any) -> Iterator[Recognised]:
    if isinstance(cos_sin, tuple) and len(cos_sin) == 2 and cos_sin[0].dtype == torch.float32:
        size = cos_sin[0].shape[-1]
        yield Recognised(rotation="halves", rotary_size=size)
        yield Recognised(rotation="neighbours", rotary_size=size)
    yield Recognised(rotation="none", rotary_size=0)


def _build(module: Any, parts: _Parts, known: Recognised, seen: ObservedPass) -> FusedAttention:
    layer = module.layer_idx
    return FusedAttention(parts, seen.shapes[layer], layer, known.rotation, known.rotary_size)


def _parts(module: Any, seen: ObservedPass) -> _Parts | None:
    layer = getattr(module, "layer_idx", None)
    shape = seen.shapes.get(layer) if isinstance(layer, int) else None
    if shape is None:
        return None
    sizes = [
        shape.heads * shape.key_size,
        shape.kv_heads * shape.key_size,
        shape.kv_heads * shape.value_size,
    ]
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    projections: list[Any] = [getattr(module, name, None) for name in names]
    together = getattr(module, "qkv_proj", None)
    weights: list[Tensor]
    biases: list[Tensor | None]
    if all(type(p) is nn.Linear for p in projections):
        weights = [p.weight for p in projections]
        biases = [p.bias for p in projections]
    elif type(together) is nn.Linear and together.out_features == sum(sizes):
        names = ("qkv_proj",)
        weights = list(together.weight.split(sizes))
        bias: Any = together.bias  # torch's type says that it is never None
        biases = [None] * 3 if bias is None else list(bias.split(sizes))
    else:
        return None
    if [weight.shape[0] for weight in weights] != sizes:
        return None
    outs = {name: getattr(module, name, None) for name in ("o_proj", "dense", "out_proj")}
    out_name = next((name for name, each in outs.items() if type(each) is nn.Linear), None)
    if out_name is None:
        return None
    norms = _norms(module, seen)
    if norms is None:
        return None
    return _Parts(
        names=names,
        weights=weights,
        biases=biases,
        out_name=out_name,
        out=getattr(module, out_name),
        norms=norms or None,
    )


def _norms(module: nn.Module, seen: ObservedPass) -> Any:
    """The fused norms of queries and keys; empty: none; None: they are of an unknown kind."""
    found: list[FusedRMSNorm] = []
    for q_name, k_name in (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm")):
        for name in (q_name, k_name):
            norm = getattr(module, name, None)
            if norm is None:
                continue
            lean = fused_norm(norm, seen.calls.get(norm))
            if lean is None:
                return None
            found.append(lean)
    return tuple(found) if len(found) in (0, 2) else None


def _origins(names: tuple[str, ...], sources: list[Tensor]) -> tuple[Origin, ...]:
    """Where the outputs of the layers of these names are; `sources`: whose each part's are."""
    sizes = [len(each) for each in sources]
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    now = torch.cat([each.argsort() + at for each, at in zip(sources, begins, strict=True)])
    if len(names) == 1:
        return (Origin(name=names[0], at=now),)
    return tuple(Origin(name=name, at=at) for name, at in zip(names, now.split(sizes), strict=True))


def _order(size: int, rotary_size: int, rotation: Rotation) -> Tensor | None:
    """The order of a head's elements that makes pairs neighbours; None: they are already."""
    if rotation != "halves":
        return None
    order = torch.arange(size)
    order[:rotary_size] = order[:rotary_size].view(2, -1).t().reshape(-1)
    return order


def _permuted(rows: Tensor, heads: int, order: Tensor | None) -> Tensor:
    """Reorder the rows of each head."""
    if order is None:
        return rows
    return rows[_in_heads(order, heads, rows.shape[0] // heads).to(rows.device)]


def _reordered(norm: FusedRMSNorm, order: Tensor | None, size: int) -> FusedRMSNorm:
    if order is None:
        return norm
    weight = norm.scaled_weight
    return norm.reordered(_in_heads(order, weight.shape[0] // size, size).to(weight.device))


def _in_heads(order: Tensor, heads: int, size: int) -> Tensor:
    """Where the elements of all heads come from, if each head of `size` has this order."""
    return (torch.arange(heads)[:, None] * size + order).flatten()


def _normed(norm: FusedRMSNorm, x: Tensor, size: int) -> Tensor:
    """Normalise `[T, heads x size]` by head, or whole, as the norm's weights say."""
    own = norm.scaled_weight.shape[0]
    return norm(x.unflatten(1, (-1, own))).view(x.shape[0], -1, size)
