"""The pages of a context under eviction, whose heads hold keys of different tokens.

They are private, and all are reserved at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .pages import PagePool


class SlotTable:
    """Has `PageTable`'s interface, but a fixed set of pages: none is added, shared or published."""

    def __init__(self, pool: PagePool, pages: list[int], page_size: int) -> None:
        self._pool = pool
        self.pages = pages
        self.page_size = page_size
        self.length = 0
        self._index: Tensor | None = None
        self._page_ids: Tensor | None = None

    def pages_missing(self, length: int) -> int:
        """0: all pages are reserved."""
        return 0

    def reserve(self, count: int) -> None:
        """Take pages again, after they were given back.

        Raises:
            OutOfPages: nothing has changed.
        """
        self.pages = self._pool.allocate_run(count)
        self._index = self._page_ids = None

    def extend(self, length: int) -> None:
        """Does nothing: all pages are reserved."""

    def truncate(self, length: int) -> None:
        """Does nothing: keys of rejected draft tokens were never written."""

    def publish(self, tokens: Sequence[int], length: int) -> None:
        """Does nothing: other sequences could not use these pages."""

    def free(self) -> None:
        """Release all pages."""
        self._pool.release(reversed(self.pages))
        self.pages = []
        self._index = self._page_ids = None

    def index(self, count: int, device: torch.device) -> Tensor:
        """Where slots 0 to count - 1 of every head are: int64, page x page_size + offset."""
        if self._index is None or self._index.shape[0] != count:
            first = torch.tensor(self.pages, device=device)[:, None] * self.page_size
            within = torch.arange(self.page_size, device=device)
            self._index = (first + within).flatten()[:count]
        return self._index

    def page_ids(self, device: torch.device) -> Tensor:
        """The pages' numbers: int32 `[1, W]`."""
        if self._page_ids is None:
            self._page_ids = torch.tensor([self.pages], dtype=torch.int32, device=device)
        return self._page_ids
