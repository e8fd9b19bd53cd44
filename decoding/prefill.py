"""The interface of prefill methods: which keys the rows of a prompt see."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

from .base import DecodingMethod, P, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.sparse_prefill.labels import Labels


class Labeller(Protocol):
    """Labels which keys each row sees, in one layer of one context."""

    def __call__(self, q_THD: Tensor, k_KLD: Tensor) -> Labels:
        """Labels of query rows `[T, H, D]` and keys `[K, L, D]`; the last T keys are the rows' own.

        Every row sees the newest `recent` keys. What else it sees depends on its query and on keys
        and positions up to its own, never on the number of rows or on later keys.
        """
        ...


class Prefill(DecodingMethod[P]):
    """Sparse prefill: a prompt's rows see some of its keys; rows of answers and drafts see all.

    Keys and values of later layers differ from exact ones. So a request shares cached prefixes
    only with requests of the same method and parameters.
    """

    slot: Slot = "prefill"

    @abstractmethod
    def first(self, parameters: P) -> int | None:
        """Position of the first row that sees only a part of the keys; None: there is none."""

    @abstractmethod
    def labeller(self, parameters: P, layer: int, beginning_KPD: Tensor) -> Labeller | None:
        """The labeller of one layer of a context whose keys before that row are `[K, P, D]`.

        None: it does not pay in this layer, and rows see every key. A function of the arguments
        alone, because it may be called again. May wait for the device.
        """
