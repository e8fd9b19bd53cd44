"""The page pool: which pages are in use, by how many holders, and which may be reclaimed.

free       no holder, and the prefix cache does not know it
held       one or more page tables hold it (reference count > 0)
cached     no holder, but the prefix cache can still find it; reclaimed oldest first
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np


class OutOfPages(Exception):  # noqa: N818 - a condition that the scheduler handles, not an error
    """Fewer pages are free or reclaimable than were asked for; nothing was taken."""


class PagePool:
    """Hands out page numbers 0 to `count - 1`; owns the reference counts.

    Pages of one sequence are made consecutive where possible, because consecutive pages can be
    read without a gather; correctness never depends on it.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._references = [0] * count
        self._is_free = np.ones(count, dtype=np.bool_)
        self._free = count
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._kept: set[int] = set()
        self.on_reclaim: Callable[[int], None] = lambda page: None

    @property
    def available(self) -> int:
        """Pages that `allocate` can hand out: free and cached ones."""
        return self._free + len(self._cached)

    @property
    def in_use(self) -> int:
        """Pages that some table holds."""
        return self.count - self.available

    @property
    def cached(self) -> int:
        """Pages without a holder that the prefix cache can find."""
        return len(self._cached)

    def references(self, page: int) -> int:
        """How many tables hold `page`."""
        return self._references[page]

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` pages, each with one reference, if possible right after page `after`.

        Raises:
            OutOfPages: fewer are available; the pool is unchanged.
        """
        if count > self.available:
            raise OutOfPages(f"{count} pages wanted, {self.available} available")
        pages: list[int] = []
        last = after
        while len(pages) < count:
            page = self._next(last, count - len(pages))
            self._take(page)
            pages.append(page)
            last = page
        return pages

    def allocate_run(self, count: int) -> list[int]:
        """Take `count` pages for a table that will not grow, consecutive if possible.

        Takes the smallest run that fits: of free pages, or else of free and cached ones.

        Raises:
            OutOfPages: fewer are available; the pool is unchanged.
        """
        if count > self.available:
            raise OutOfPages(f"{count} pages wanted, {self.available} available")
        unheld = self._is_free.copy()
        unheld[list(self._cached)] = True
        for candidates in (self._is_free, unheld):
            starts, lengths = _holes(candidates)
            fits = lengths >= count
            if fits.any():
                start = int(starts[fits][lengths[fits].argmin()])
                break
        else:
            return self.allocate(count)
        pages = list(range(start, start + count))
        for page in pages:
            if page in self._cached:
                self._reclaim(page)
            self._take(page)
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """Add a reference to each page: to held ones, or to cached ones, which become held."""
        for page in pages:
            if self._references[page] == 0:
                del self._cached[page]
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop a reference to each page; those without holders become cached or free.

        Pages released first are reclaimed first: release a sequence's last page first.
        """
        for page in pages:
            left = self._references[page] - 1
            assert left >= 0, f"page {page} released twice"
            self._references[page] = left
            if left == 0:
                if page in self._kept:
                    self._cached[page] = None
                else:
                    self._make_free(page)

    def keep(self, page: int) -> None:
        """Mark this (held) page as one that the prefix cache can find."""
        self._kept.add(page)

    def is_kept(self, page: int) -> bool:
        """Whether the prefix cache can find `page`."""
        return page in self._kept

    def forget(self, page: int) -> None:
        """Note that the prefix cache has dropped `page`; without holders it becomes free."""
        self._kept.discard(page)
        if page in self._cached:
            del self._cached[page]
            self._make_free(page)

    def _next(self, last: int | None, wanted: int) -> int:
        if last is not None and last + 1 < self.count and self._is_free[last + 1]:
            page = last + 1
        elif self._free:
            page = self._start_of_run(wanted)
        else:
            page = next(iter(self._cached))
            self._reclaim(page)
        return page

    def _take(self, page: int) -> None:
        """Hold a free page."""
        self._is_free[page] = False
        self._free -= 1
        self._references[page] = 1

    def _reclaim(self, page: int) -> None:
        """Make a cached page free."""
        del self._cached[page]
        self._kept.discard(page)
        self.on_reclaim(page)
        self._make_free(page)

    def _start_of_run(self, wanted: int) -> int:
        """First page of a new run: the middle of the largest hole, so that both sides can grow."""
        starts, lengths = _holes(self._is_free)
        largest = int(lengths.argmax())
        start, length = int(starts[largest]), int(lengths[largest])
        if start == 0 or length < 2 * wanted:
            return start
        return start + length // 2

    def _make_free(self, page: int) -> None:
        self._is_free[page] = True
        self._free += 1


def _holes(pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of true entries start, and how long they are."""
    edges = np.flatnonzero(np.diff(pages.astype(np.int8), prepend=0, append=0))
    return edges[0::2], edges[1::2] - edges[0::2]
