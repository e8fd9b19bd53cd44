"""The prefix cache: full pages by the tokens that lead to them.

A tree of pages. The key of a page is (key of the page before it, its own token ids); a dict
finds it by hash and then compares the ids themselves, so two prefixes never collide. The root's
key is the salt: prefixes are shared only within one salt. In place of its id, a token may be known
by anything hashable that determines its keys, such as the picture that it stands for.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from .pages import PagePool

Salt = str | tuple[str, ...]
"""Prefixes are shared within one salt: the caller's, or that and how the keys were computed."""
Chain = int | Salt
"""Identifies a prefix of whole pages: a node's number, or the salt for the empty prefix."""


@dataclass(frozen=True, slots=True)
class _Node:
    number: int
    page: int
    key: tuple[Chain, tuple[Hashable, ...]]


class PrefixCache:
    """Finds pages that already hold the keys and values of a prompt's beginning.

    Holds no references: a page without holders stays findable until the pool reclaims it.
    Leaves are reclaimed before the pages that lead to them, because tables release from the end.
    """

    def __init__(self, pool: PagePool, page_size: int, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._pool = pool
        self._page_size = page_size
        self._nodes: dict[tuple[Chain, tuple[Hashable, ...]], _Node] = {}
        self._by_page: dict[int, _Node] = {}
        self._next_number = 0
        self.queried_tokens = 0
        self.hit_tokens = 0
        pool.on_reclaim = self._forget

    def __len__(self) -> int:
        return len(self._nodes)

    def match(self, tokens: Sequence[Hashable], salt: Salt) -> tuple[list[int], Chain]:
        """The cached pages of the longest prefix of `tokens`, and its chain. Takes no reference."""
        nodes = self._match(tokens, salt)
        return [node.page for node in nodes], nodes[-1].number if nodes else salt

    def chains(self, tokens: Sequence[Hashable], salt: Salt) -> list[Chain]:
        """The chains of the cached prefixes of `tokens`, of one page, of two and so on."""
        return [node.number for node in self._match(tokens, salt)]

    def _match(self, tokens: Sequence[Hashable], salt: Salt) -> list[_Node]:
        nodes: list[_Node] = []
        chain: Chain = salt
        if not self.enabled:
            return nodes
        for start in range(0, len(tokens) - self._page_size + 1, self._page_size):
            node = self._nodes.get((chain, tuple(tokens[start : start + self._page_size])))
            if node is None:
                break
            nodes.append(node)
            chain = node.number
        return nodes

    def cached(self, tokens: Sequence[Hashable], salt: Salt) -> int:
        """How many of the first `tokens` are in cached pages."""
        return len(self.match(tokens, salt)[0]) * self._page_size

    def shared(self, some: Sequence[Hashable], others: Sequence[Hashable]) -> int:
        """Length of the common prefix of both, in tokens, in whole pages."""
        size = self._page_size
        for start in range(0, min(len(some), len(others)) - size + 1, size):
            if some[start : start + size] != others[start : start + size]:
                return start
        return min(len(some), len(others)) // size * size

    def publish(self, page: int, tokens: Sequence[Hashable], chain: Chain) -> Chain:
        """Make a full, final page findable after `chain`; returns the chain that ends with it.

        If an equal prefix is published already, that one stays and `page` remains private.
        """
        if not self.enabled:
            return chain
        key = (chain, tuple(tokens))
        node = self._nodes.get(key)
        if node is None:
            node = _Node(self._next_number, page, key)
            self._next_number += 1
            self._nodes[key] = node
            self._by_page[page] = node
            self._pool.keep(page)
        return node.number

    def count(self, *, queried: int, hit: int) -> None:
        """Add one admitted sequence to the statistics, in tokens."""
        if self.enabled:
            self.queried_tokens += queried
            self.hit_tokens += hit

    def clear(self) -> None:
        """Forget everything; pages without holders become free."""
        for page in list(self._by_page):
            self._forget(page)
            self._pool.forget(page)

    def _forget(self, page: int) -> None:
        node = self._by_page.pop(page)
        del self._nodes[node.key]
