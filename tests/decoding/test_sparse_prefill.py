"""What `sparse_prefill` chooses, from parameters and keys."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from penstock.decoding.sparse_parameters import SparsePrefillParameters
from penstock.decoding.sparse_prefill import SPARSE_PREFILL


def parameters(**fields: Any) -> SparsePrefillParameters:
    return SparsePrefillParameters(**fields)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ({"min_tokens": 128}, {"min_tokens": 127}),
        ({"min_tokens": 2**24}, {"min_tokens": 2**24 + 1}),
        ({"recent": 64}, {"recent": 63}),
        ({"recent": 2**16}, {"recent": 2**16 + 1}),
        ({"keep": 0.5}, {"keep": 0.51}),
        ({"keep": 1e-9}, {"keep": 0.0}),
        ({"keep": 0.1}, {"keep": float("nan")}),
        ({"sink": 0}, {"sink": -1}),
        ({"sink": 1024}, {"sink": 1025}),
        ({"method": "hash", "buckets": 4}, {"method": "hash", "buckets": 2}),
        ({"method": "hash", "buckets": 64}, {"method": "hash", "buckets": 66}),
        ({"method": "hash", "buckets": 6}, {"method": "hash", "buckets": 7}),
        ({"method": "off"}, {"method": "no"}),
        ({}, {"min_tokens": 128.0}),
        ({}, {"minimum": 128}),
    ],
    ids=str,
)
def test_bounds(inside: dict[str, Any], outside: dict[str, Any]) -> None:
    parameters(**inside)
    with pytest.raises(ValidationError):
        parameters(**outside)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "hash", "keep": 0.25}, "keep is 0.25, which is for the method qk"),
        ({"method": "off", "sink": 4}, "sink is 4, which is for the method qk"),
        ({"buckets": 8}, "buckets is 8, which is for the method hash, but method is qk"),
    ],
)
def test_what_the_method_does_not_have_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        parameters(**fields)


def test_off_sees_every_key() -> None:
    assert SPARSE_PREFILL.first(parameters(method="off")) is None
    assert SPARSE_PREFILL.first(parameters(min_tokens=300)) == 300


@pytest.mark.parametrize("method", ["qk", "hash"])
def test_labels_of_a_row_do_not_depend_on_others(method: str) -> None:
    k_KLD, q_THD = torch.randn(2, 640, 16), torch.randn(320, 4, 16)
    chosen = parameters(method=method, recent=64)
    labeller = SPARSE_PREFILL.labeller(chosen, 3, k_KLD[:, :256])
    assert labeller is not None
    whole = labeller(q_THD, k_KLD)
    again = SPARSE_PREFILL.labeller(chosen, 3, k_KLD[:, :256])
    assert again is not None
    part = again(q_THD[:100], k_KLD[:, :420])
    assert torch.equal(part.queries_TH, whole.queries_TH[:100])
    # Of the last 64 keys nobody asks.
    assert torch.equal(part.keys_KL[:, :356], whole.keys_KL[:, :356])


def test_layers_have_rotations_of_their_own() -> None:
    k_KLD = torch.randn(1, 300, 16)
    chosen = parameters(method="hash")
    one, other = (SPARSE_PREFILL.labeller(chosen, layer, k_KLD) for layer in (0, 1))
    assert one is not None
    assert other is not None
    q_THD = torch.zeros(0, 1, 16)
    assert not torch.equal(one(q_THD, k_KLD).keys_KL, other(q_THD, k_KLD).keys_KL)


def test_uneven_buckets_are_not_worth_it() -> None:
    """Two keys in turns, far from each other: half of all is seen, whatever the buckets."""
    even = torch.randn(1, 512, 16)
    apart = torch.randn(16) * torch.tensor([1.0, -1.0]).repeat(256)[:, None]
    chosen = parameters(method="hash")
    assert SPARSE_PREFILL.labeller(chosen, 0, even) is not None
    assert SPARSE_PREFILL.labeller(chosen, 0, apart[None]) is None
