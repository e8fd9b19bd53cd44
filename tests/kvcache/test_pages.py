"""The pool, the tables and the prefix cache against plain bookkeeping."""

import random

import pytest
import torch

from penstock.kvcache.pages import OutOfPages, PagePool
from penstock.kvcache.prefix import PrefixCache
from penstock.kvcache.store import KVStore, LayerShape
from penstock.kvcache.table import PageCopy, PageTable

PAGE = 4


def house(count: int) -> tuple[PagePool, PrefixCache]:
    pool = PagePool(count)
    return pool, PrefixCache(pool, PAGE)


def test_allocation_is_consecutive_where_possible() -> None:
    pool = PagePool(64)
    first = pool.allocate(3)
    second = pool.allocate(2)
    grown = pool.allocate(4, after=first[-1])
    assert first + grown == list(range(first[0], first[0] + 7))
    assert second == list(range(second[0], second[0] + 2))
    assert not set(first + grown) & set(second)
    pool.release(first + grown + second)


def test_exhaustion_takes_nothing() -> None:
    pool = PagePool(4)
    held = pool.allocate(3)
    with pytest.raises(OutOfPages):
        pool.allocate(2)
    assert pool.available == 1
    pool.release(held)
    assert pool.available == 4
    pool.release(pool.allocate(4))


def test_a_run_goes_where_it_fits_best() -> None:
    pool = PagePool(20)
    everything = pool.allocate_run(20)
    assert everything == list(range(20))
    pool.release([2, 3, 4, 7, 8, 9, 10, 11, 12, 15])
    assert pool.allocate_run(3) == [2, 3, 4]
    assert pool.allocate_run(1) == [15]
    assert pool.allocate_run(5) == [7, 8, 9, 10, 11]
    with pytest.raises(OutOfPages):
        pool.allocate_run(2)
    pool.release([0, 5])
    assert sorted(pool.allocate_run(3)) == [0, 5, 12], "not in a row, but there"
    pool.release(everything)
    assert pool.available == 20


def test_a_run_may_take_what_only_the_prefix_cache_holds() -> None:
    pool, prefix = house(8)
    table = PageTable(pool, prefix, PAGE)
    table.extend(8 * PAGE)
    table.publish(list(range(4 * PAGE)), 4 * PAGE)
    kept = list(table.pages)
    table.free()
    assert pool.cached == 4
    free = pool.allocate_run(4)
    assert free == kept[4:], "free pages first"
    pool.release(free[::2])
    assert pool.allocate_run(3) == kept[:3]
    assert len(prefix) == 1
    assert PageTable(pool, prefix, PAGE).adopt_prefix(list(range(4 * PAGE))) == 0
    pool.release([*kept[:3], *free[1::2]])
    assert pool.in_use == 0


def test_prefix_is_shared_and_survives_its_sequence() -> None:
    pool, prefix = house(16)
    tokens = list(range(11))
    a = PageTable(pool, prefix, PAGE)
    a.extend(11)
    a.publish(tokens, 11)
    b = PageTable(pool, prefix, PAGE)
    assert b.adopt_prefix(tokens[:10]) == 8
    assert b.pages == a.pages[:2]
    a.free()
    b.free()
    assert pool.in_use == 0
    assert pool.cached == 2
    c = PageTable(pool, prefix, PAGE)
    assert c.adopt_prefix(tokens) == 8
    c.free()


def test_salt_and_history_separate_prefixes() -> None:
    pool, prefix = house(16)
    a = PageTable(pool, prefix, PAGE, salt="one")
    a.extend(8)
    a.publish([1, 2, 3, 4, 5, 6, 7, 8], 8)
    a.free()
    for salt, tokens, found in (
        ("one", [1, 2, 3, 4, 5, 6, 7, 8], 8),
        ("one", [1, 2, 3, 4, 0, 6, 7, 8], 4),
        ("one", [5, 6, 7, 8], 0),
        ("two", [1, 2, 3, 4, 5, 6, 7, 8], 0),
    ):
        table = PageTable(pool, prefix, PAGE, salt=salt)
        assert table.adopt_prefix(tokens) == found
        table.free()


def test_equal_hashes_are_not_equal_prefixes() -> None:
    """hash(-1) == hash(-2) in CPython: real ids are compared, not their hashes."""
    assert hash((-1, 0, 0, 0)) == hash((-2, 0, 0, 0))
    pool, prefix = house(4)
    table = PageTable(pool, prefix, PAGE)
    table.extend(4)
    table.publish([-1, 0, 0, 0], 4)
    assert prefix.match([-2, 0, 0, 0], "")[0] == []
    assert prefix.match([-1, 0, 0, 0], "")[0] == table.pages
    table.free()


def test_oldest_cached_page_is_reclaimed_first_and_leaves_before_roots() -> None:
    pool, prefix = house(4)
    for base in (0, 100):
        table = PageTable(pool, prefix, PAGE)
        table.extend(8)
        table.publish([base + i for i in range(8)], 8)
        table.free()
    taken = pool.allocate(1)
    assert len(prefix.match([0, 1, 2, 3, 4, 5, 6, 7], "")[0]) == 1, "the leaf went, the root stays"
    assert len(prefix.match([100, 101, 102, 103, 104, 105, 106, 107], "")[0]) == 2
    pool.release(taken)
    prefix.clear()
    assert pool.cached == 0
    assert pool.available == 4


def test_fork_copies_only_the_partial_page_and_only_once() -> None:
    pool, prefix = house(8)
    a = PageTable(pool, prefix, PAGE)
    a.extend(6)
    b = a.fork()
    assert pool.in_use == 2
    copy = b.extend(7)
    assert copy is not None
    assert copy.source == a.pages[1]
    assert copy.target == b.pages[1]
    assert a.pages[0] == b.pages[0]
    assert a.extend(7) is None, "the last holder writes in place"
    a.free()
    b.free()


def test_truncated_into_a_published_page_it_is_copied_before_writing() -> None:
    pool, prefix = house(8)
    a = PageTable(pool, prefix, PAGE)
    a.extend(8)
    a.publish(list(range(8)), 8)
    a.truncate(6)
    copy = a.extend(7)
    assert copy is not None, "the published page must keep its contents"
    a.free()


def test_copied_pages_are_equal_in_every_layer() -> None:
    layers = [
        LayerShape(kv_heads=2, key_size=3, value_size=5),
        LayerShape(kv_heads=1, key_size=4, value_size=4),
    ]
    store = KVStore(
        layers, pages=4, page_size=PAGE, dtype=torch.float32, device=torch.device("cpu")
    )
    for cache in (*store.keys, *store.values):
        cache.normal_()
    before = [c.clone() for c in (*store.keys, *store.values)]
    store.copy_pages([PageCopy(0, 2), PageCopy(3, 1)])
    for cache, old in zip((*store.keys, *store.values), before, strict=True):
        assert torch.equal(cache[2], old[0])
        assert torch.equal(cache[1], old[3])
        assert torch.equal(cache[[0, 3]], old[[0, 3]])
    assert store.bytes == 4 * PAGE * (2 * 8 + 8) * 4


def test_random_life_matches_a_plain_model() -> None:
    """Forks, growth, truncation, publishing and frees at random; a dict of contents is the oracle.

    Each table's tokens are written to a model of the pages exactly when the table says so, so
    that a wrong share or a missed copy shows as a wrong token. Deterministic by its seed.
    """
    chooser = random.Random(11)
    pool, prefix = house(24)
    contents: dict[int, list[int | None]] = {p: [None] * PAGE for p in range(24)}
    live: list[tuple[PageTable, list[int]]] = []

    def write(table: PageTable, tokens: list[int], start: int) -> None:
        for i in range(start, len(tokens)):
            contents[table.pages[i // PAGE]][i % PAGE] = tokens[i]

    def check() -> None:
        for table, tokens in live:
            assert table.length == len(tokens)
            read = [contents[table.pages[i // PAGE]][i % PAGE] for i in range(len(tokens))]
            assert read == tokens
        held = {page for table, _ in live for page in table.pages}
        assert pool.in_use == len(held)

    for _ in range(3000):
        action = chooser.random()
        if action < 0.25 or not live:
            tokens = [chooser.randrange(2) for _ in range(chooser.randrange(1, 14))]
            table = PageTable(pool, prefix, PAGE)
            cached = table.adopt_prefix(tokens[:-1])
            try:
                table.extend(len(tokens))
            except OutOfPages:
                table.free()
                continue
            write(table, tokens, cached)
            live.append((table, tokens))
        elif action < 0.6:
            table, tokens = chooser.choice(live)
            more = [chooser.randrange(2) for _ in range(chooser.randrange(1, 4))]
            try:
                copy = table.extend(len(tokens) + len(more))
            except OutOfPages:
                continue
            if copy is not None:
                contents[copy.target] = list(contents[copy.source])
            start = len(tokens)
            tokens += more
            write(table, tokens, start)
        elif action < 0.7:
            table, tokens = chooser.choice(live)
            live.append((table.fork(), list(tokens)))
        elif action < 0.8:
            table, tokens = chooser.choice(live)
            keep = chooser.randrange(len(tokens) + 1)
            table.truncate(keep)
            del tokens[keep:]
        elif action < 0.9:
            table, tokens = chooser.choice(live)
            table.publish(tokens, len(tokens))
        else:
            table, _ = live.pop(chooser.randrange(len(live)))
            table.free()
        check()
    for table, _ in live:
        table.free()
    assert pool.available == 24
