"""Logprobs of large vocabularies."""

from collections.abc import Iterator

import pytest
import torch

from penstock.decoding.logprobs import gather_logprobs, log_total


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1, 320, 49_153, 151_936])
def test_rounded_once_or_twice(size: int) -> None:
    """Kind: errors that grow with a length which tests keep short; here the vocabulary's.

    Added up in float32 one after the other, exponentials of 49,152 logits were off by 2e-5.
    """
    logits = torch.randn(24, size) * 3 + 10
    tokens = torch.randint(size, (24,))
    exact = logits.double().log_softmax(-1)
    found = gather_logprobs(logits, tokens, 4)
    of_chosen = exact.gather(1, tokens[:, None])[:, 0]
    most = 3e-6  # two units in the last place of 8 to 16
    assert (torch.tensor(found.chosen).double() - of_chosen).abs().max() <= most
    assert (
        torch.tensor(found.top_values).double() - exact.topk(min(4, size)).values
    ).abs().max() <= most
    assert found.ranks == ((exact > of_chosen[:, None]).sum(-1) + 1).tolist()


@pytest.mark.parametrize("size", [49_153, 151_936])
def test_a_row_has_the_same_bits_alone(size: int) -> None:
    """Of a single long row torch adds up a part in each thread."""
    logits = torch.randn(40, size) * 3
    together = log_total(logits)
    for count in (1, 3):
        assert torch.equal(log_total(logits[:count]), together[:count])
        assert torch.equal(log_total(logits[-count:]), together[-count:])


def test_what_is_ruled_out_counts_nothing() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 1.0], [float("-inf"), -900.0, float("-inf")]])
    torch.testing.assert_close(log_total(logits)[:, 0], logits.logsumexp(-1))
