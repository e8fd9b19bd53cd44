"""Pages of a context whose heads hold keys of different tokens: private, all of them at once."""

from collections.abc import Sequence

from .pages import PagePool


class SlotTable:
    """Has `PageTable`'s face, and nothing to do: no page comes, goes, is shared or is published."""

    def __init__(self, pool: PagePool, pages: list[int], page_size: int) -> None:
        self._pool = pool
        self.pages = pages
        self.page_size = page_size
        self.length = 0

    def pages_missing(self, length: int) -> int:
        """None: they were reserved in full."""
        return 0

    def reserve(self, count: int) -> None:
        """Take pages again, after they were given back.

        Raises:
            OutOfPages: nothing has changed.
        """
        self.pages = self._pool.allocate(count)

    def extend(self, length: int) -> None:
        """Nothing to make room for."""

    def truncate(self, length: int) -> None:
        """Nothing to forget: what is not accepted was never written."""

    def publish(self, tokens: Sequence[int], length: int) -> None:
        """Nothing that others could use."""

    def free(self) -> None:
        """Release all pages."""
        self._pool.release(reversed(self.pages))
        self.pages = []

    def slots(self, count: int) -> list[int]:
        """Where slots 0 to count - 1 of every head are: page x page_size + offset."""
        size = self.page_size
        return [self.pages[i // size] * size + i % size for i in range(count)]
