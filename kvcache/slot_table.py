"""The pages of a context under eviction, whose heads hold keys of different tokens.

They are private, and all are reserved at once.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from .pages import PagePool
from .table import KVTable


class SlotTable(KVTable):
    """A fixed set of pages: none is added, shared or published."""

    def __init__(self, pool: PagePool, pages: list[int], page_size: int) -> None:
        super().__init__(pool, page_size, pages)
        self._index: Tensor | None = None
        self._page_ids: Tensor | None = None

    def pages_missing(self, length: int) -> int:
        """0: all pages are reserved."""
        return 0

    def reserve(self, count: int) -> None:
        """See `KVTable`: take pages again, after they were given back."""
        self.pages = self._pool.allocate_run(count)
        self._index = self._page_ids = None

    def extend(self, length: int) -> None:
        """Does nothing: all pages are reserved."""

    def truncate(self, length: int) -> None:
        """Does nothing: keys of rejected draft tokens were never written."""

    def compact(self, root: int, accepted: Sequence[int]) -> list[tuple[int, int]]:
        """None: keys of draft tokens are written once they are accepted."""
        return []

    def publish(self, tokens: Sequence[Hashable], length: int) -> None:
        """Does nothing: other sequences could not use these pages."""

    def free(self) -> None:
        """Release all pages."""
        self._pool.release(reversed(self.pages))
        self.pages = []
        self._index = self._page_ids = None

    def index(self, count: int, device: torch.device) -> Tensor:
        """Where slots 0 to count - 1 of every head are: int64, page x page_size + offset."""
        if self._index is None or self._index.shape[0] != count:
            self._index = torch.tensor(self.slots(0, count), device=device)
        return self._index

    def page_ids(self, device: torch.device) -> Tensor:
        """The pages' numbers: int32 `[1, W]`."""
        if self._page_ids is None:
            self._page_ids = torch.tensor([self.pages], dtype=torch.int32, device=device)
        return self._page_ids
