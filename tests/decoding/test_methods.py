"""The methods of one request, by slot."""

from itertools import combinations
from typing import Any

import pytest

from penstock.decoding.base import SLOTS, DecodingMethod
from penstock.decoding.methods import NO_METHODS, Methods
from penstock.errors import RequestError
from penstock.registry import Registry

REGISTRY = Registry[DecodingMethod[Any]].from_entry_points("decoding", "penstock.decoding")
ONE_OF_EACH = ("sparse_prefill", "cfg", "ngram", "tot")


@pytest.mark.parametrize("count", range(5))
def test_every_slot_holds_its_method_and_no_other(count: int) -> None:
    for names in combinations(ONE_OF_EACH, count):
        methods = Methods.of(REGISTRY.resolve(list(names)))
        by_slot = dict(zip(SLOTS, ONE_OF_EACH, strict=True))
        for slot, name in by_slot.items():
            choice = getattr(methods, slot)
            assert (None if choice is None else choice.method.name) == (
                name if name in names else None
            )
        assert [choice.method.name for choice in methods.chosen] == list(names)


def test_no_methods() -> None:
    assert Methods.of(REGISTRY.resolve(None)) == NO_METHODS
    assert NO_METHODS.chosen == ()


def test_two_methods_of_one_slot_are_refused() -> None:
    with pytest.raises(RequestError, match="'jacobi' and 'ngram' both fill the drafter slot"):
        REGISTRY.resolve(["jacobi", "ngram"])
