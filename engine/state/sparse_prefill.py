"""Sparse prefill: how one prompt under a `prefill` method is read, while its sequence lives."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...decoding.prefill import Labeller, Prefill
from ...kvcache.prefix import Salt
from ...registry import Choice
from .request import Request


@dataclass(slots=True, kw_only=True, eq=False)
class SparsePrefillState:
    """How one context's prompt is read: rows at positions `[first, until)` see part of the keys.

    `labellers`: by layer, once a sparse row was computed; they depend only on the keys before
    `first`, so they are the same whenever they are made. `rows`: sparse rows computed. `seen`,
    `causal`: pairs of a query and a key over their layers and heads, those that were seen and those
    that full causal attention would see; `seen` is summed on the device, so that it is read once.
    """

    choice: Choice[Prefill[Any]]
    first: int
    until: int
    labellers: dict[int, Labeller | None] = field(default_factory=dict)
    rows: int = 0
    causal: int = 0
    seen: Tensor | int = 0

    @classmethod
    def of(cls, request: Request, prompt: tuple[int, ...]) -> "SparsePrefillState | None":
        """The state of one of the request's contexts; None: all its rows see every key."""
        choice = request.methods.prefill
        if choice is None:
            return None
        first, until = choice.method.first(choice.parameters), len(prompt) - request.answered
        return (
            None
            if first is None or until <= first
            else cls(choice=choice, first=first, until=until)
        )

    @property
    def salt(self) -> str:
        """Separates pages of sparse prefills from all others in the prefix cache."""
        return f"{self.choice.method.name} {self.choice.parameters.model_dump_json()}"

    def covers(self, begin: int, count: int) -> bool:
        """Whether any of `count` rows from position `begin` on sees only part of the keys."""
        return begin < self.until and begin + count > self.first

    def labeller(self, layer: int, k_KLD: Tensor) -> Labeller | None:
        """What chooses the keys in a layer; None: in this layer rows see all of them."""
        if layer not in self.labellers:
            choice, beginning_KPD = self.choice, k_KLD[:, : self.first]
            found = choice.method.labeller(choice.parameters, layer, beginning_KPD)
            self.labellers[layer] = found
        return self.labellers[layer]

    def restart(self) -> None:
        """Reset the counts, since all rows will be computed again."""
        self.rows = self.causal = self.seen = 0

    def counted(self) -> tuple[int, int, int]:
        """`rows`, `seen`, `causal`. Waits for the device."""
        return self.rows, int(self.seen), self.causal


def salt_of(request: Request, sparse_prefill: SparsePrefillState | None) -> Salt:
    """Prefixes are shared within a salt; adapters and ways of sparse prefill have their own."""
    way = "" if sparse_prefill is None else sparse_prefill.salt
    if request.adapter:
        return request.cache_salt, way, request.adapter
    return (request.cache_salt, way) if way else request.cache_salt
