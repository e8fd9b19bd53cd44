"""Where a context's keys and values are: the interface, and the page table of one without eviction.

tokens   |<------------------ length -------------->|
pages    [ 4 ][ 5 ][ 9 ][ 10, partly filled . . . . ]
         `--- published ---'
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from .pages import PagePool
from .prefix import Chain, PrefixCache, Salt


class PageCopy(NamedTuple):
    """A page whose contents must be copied before the next write (copy-on-write)."""

    source: int
    target: int


class KVTable(ABC):
    """Pages of the keys and values of one context; it owns one reference to each of them.

    A slot is a place for one key and value: page x page_size + offset. `length`: tokens whose keys
    are, or in the current step will be, in the pages.
    """

    def __init__(self, pool: PagePool, page_size: int, pages: list[int]) -> None:
        self._pool = pool
        self.page_size = page_size
        self.pages = pages
        self.length = 0

    def num_keys(self, length: int) -> int:
        """How many keys the first `length` tokens have, if none is in slots."""
        return length

    def slot(self, at: int) -> int:
        """The slot of its place `at`; in a `PageTable`, that of this token."""
        return self.pages[at // self.page_size] * self.page_size + at % self.page_size

    def slots(self, begin: int, end: int) -> list[int]:
        """The slots of its places `begin` to `end` - 1."""
        size, pages = self.page_size, self.pages
        return [pages[at // size] * size + at % size for at in range(begin, end)]

    @abstractmethod
    def pages_missing(self, length: int) -> int:
        """Pages that `extend(length)` would take from the pool."""

    @abstractmethod
    def reserve(self, count: int) -> None:
        """Hold `count` further pages for the slots of a context under eviction.

        Raises:
            OutOfPages: nothing has changed.
        """

    @abstractmethod
    def extend(self, length: int) -> PageCopy | None:
        """Make room for `length` tokens; returns the copy to perform before writing, if any.

        Raises:
            OutOfPages: nothing has changed.
        """

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on and release the pages that only they needed."""

    @abstractmethod
    def compact(self, root: int, accepted: Sequence[int]) -> list[tuple[int, int]]:
        """Moves (from slot, to slot) that put the keys of accepted draft tokens in line.

        `root`: position of the token before the draft. `accepted`: indices of draft tokens.
        """

    @abstractmethod
    def publish(self, tokens: Sequence[Hashable], length: int) -> None:
        """Offer the full pages among the first `length` tokens to the prefix cache.

        Only final tokens may be counted: none evicted, no draft token that may yet be rejected.
        """

    def chain(self, length: int) -> Chain | None:
        """Identifies the first `length` tokens, whole pages, in the prefix cache; None: they are
        not in it."""
        return None

    @abstractmethod
    def free(self) -> None:
        """Release all pages; the table is then empty and can be used again."""


class PageTable(KVTable):
    """Token i of the context is at place i, for every head; pages may be shared with others.

    Once some tokens have been dropped, those behind them are so many places further in front.
    """

    def __init__(
        self, pool: PagePool, prefix: PrefixCache, page_size: int, salt: Salt = ""
    ) -> None:
        super().__init__(pool, page_size, [])
        self._prefix = prefix
        self._salt = salt
        self._published = 0
        self._chains: list[Chain] = [salt]
        self._reserve: list[int] = []
        self._gap = 0, 0

    def num_keys(self, length: int) -> int:
        """See `KVTable`."""
        begin, end = self._gap
        return length if length <= begin else max(begin, length - (end - begin))

    def slot(self, at: int) -> int:
        """See `KVTable`."""
        return super().slot(self.num_keys(at))

    def slots(self, begin: int, end: int) -> list[int]:
        """The slots of the tokens `begin` to `end` - 1, without those that were dropped."""
        return super().slots(self.num_keys(begin), self.num_keys(end))

    @property
    def reserved(self) -> int:
        """Pages held back by `reserve`."""
        return len(self._reserve)

    def adopt_prefix(self, tokens: Sequence[Hashable]) -> int:
        """Start an empty table with the cached prefix of `tokens`; returns its length in tokens."""
        assert not self.pages
        pages, _ = self._prefix.match(tokens, self._salt)
        self._pool.retain(pages)
        self.pages = pages
        self.length = len(pages) * self.page_size
        for index, page in enumerate(pages):
            self._publish_page(index, page, tokens)
        return self.length

    def pages_missing(self, length: int) -> int:
        """See `KVTable`."""
        keys = self.num_keys(length)
        return max(0, -(-keys // self.page_size) - len(self.pages)) + self._must_copy_last()

    def extend(self, length: int) -> PageCopy | None:
        """See `KVTable`."""
        copy_last = self._must_copy_last()
        growth = max(0, -(-self.num_keys(length) // self.page_size) - len(self.pages))
        if growth or copy_last:
            after = self.pages[-1] if self.pages else None
            fresh = self._pool.allocate(growth + copy_last, after)
            copy = None
            if copy_last:
                copy = PageCopy(self.pages[-1], fresh[0])
                self._pool.release([self.pages[-1]])
                self.pages[-1] = fresh.pop(0)
            self.pages += fresh
            self.length = length
            return copy
        self.length = length
        return None

    def publish(self, tokens: Sequence[Hashable], length: int) -> None:
        """See `KVTable`."""
        for index in range(self._published, length // self.page_size):
            self._publish_page(index, self.pages[index], tokens)

    def chain(self, length: int) -> Chain | None:
        """See `KVTable`."""
        pages = length // self.page_size
        # Where the cache is off, a page has the chain of the page before it.
        return self._chains[pages] if 0 < pages <= self._published else None

    def fork(self, reserve: int = 0) -> "PageTable":
        """A second table over the same pages; the first to write the last partial page copies it.

        `reserve`: how many of the pages held back move to it.
        """
        fork = PageTable(self._pool, self._prefix, self.page_size, self._salt)
        self._pool.retain(self.pages)
        fork.pages = list(self.pages)
        fork.length = self.length
        fork._published = self._published
        fork._chains = list(self._chains)
        fork._gap = self._gap
        fork._reserve = self.take_reserve(reserve)
        return fork

    def reserve(self, count: int) -> None:
        """See `KVTable`; they are held back until the context moves to slots."""
        self._reserve += self._pool.allocate_run(count)

    def take_reserve(self, count: int) -> list[int]:
        """Give `count` of the pages held back to the caller, which then owns them."""
        assert count <= len(self._reserve), "what is taken was reserved"
        taken, self._reserve = self._reserve[:count], self._reserve[count:]
        return taken

    def truncate(self, length: int) -> None:
        """See `KVTable`."""
        assert length <= self.length
        keep = -(-self.num_keys(length) // self.page_size)
        self._pool.release(reversed(self.pages[keep:]))
        del self.pages[keep:]
        self.length = length
        self._published = min(self._published, length // self.page_size)
        del self._chains[self._published + 1 :]
        if length <= self._gap[0]:
            self._gap = 0, 0

    def drop(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Forget the tokens `begin` to `end` - 1; those behind them keep their numbers.

        Returns moves (from slot, to slot) that close the gap, to be made at once. They are in the
        last pages, which are the table's own: no page may be published from token `begin` on.
        """
        assert self._gap == (0, 0), "tokens are dropped once"
        if begin == end:
            return []
        size = self.page_size
        first = begin // size
        staying = [*range(first * size, begin), *range(end, self.length)]
        sources = [self.slot(at) for at in staying]
        last = len(self.pages) - -(-len(staying) // size)
        freed = self.pages[first:last]
        del self.pages[first:last]
        assert not any(map(self._is_shared, self.pages[first:])), "the last pages are its own"
        self._pool.release(reversed(freed))
        self._gap = begin, end
        targets = [self.slot(at) for at in staying]
        return [move for move in zip(sources, targets, strict=True) if move[0] != move[1]]

    def compact(self, root: int, accepted: Sequence[int]) -> list[tuple[int, int]]:
        """See `KVTable`: the accepted path of a tree is scattered over the draft's slots."""
        if list(accepted) == list(range(len(accepted))):
            return []
        slots = self.slots(root + 1, root + 2 + max(accepted))
        return [
            (slots[drafted], slots[target])
            for target, drafted in enumerate(accepted)
            if drafted != target
        ]

    def free(self) -> None:
        """See `KVTable`."""
        self.truncate(0)
        self._pool.release(self.take_reserve(len(self._reserve)))

    def _must_copy_last(self) -> int:
        """1 if the next write would hit a page that is shared or published, else 0."""
        if self.num_keys(self.length) % self.page_size == 0:
            return 0
        return int(self._is_shared(self.pages[-1]))

    def _is_shared(self, page: int) -> bool:
        return self._pool.references(page) > 1 or self._pool.is_kept(page)

    def _publish_page(self, index: int, page: int, tokens: Sequence[Hashable]) -> None:
        start = index * self.page_size
        chain = self._prefix.publish(page, tokens[start : start + self.page_size], self._chains[-1])
        self._chains.append(chain)
        self._published += 1
