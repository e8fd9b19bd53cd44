"""The noise: a pure function of its coordinates, and Gumbel-distributed."""

import math

import numpy as np
import pytest
import torch

from penstock.decoding.gumbel import derive_seed, row_keys
from penstock.kernels.gumbel_argmax.reference import gumbel_noise

KNOWN = [
    [-1.148461, 1.536813, 0.708058, 2.439458],
    [0.668601, 1.800805, 0.525113, 0.107306],
    [0.137836, 0.067252, 0.300091, 2.359933],
]


def noise(seeds: list[int], positions: list[int], vocab: int) -> torch.Tensor:
    keys = row_keys(
        np.array([s & (2**64 - 1) for s in seeds], dtype=np.uint64),
        np.array(positions, dtype=np.uint64),
    )
    return gumbel_noise(torch.from_numpy(keys), torch.arange(vocab, dtype=torch.int32))


def test_known_values() -> None:
    """Frozen: a seed that a user wrote down must mean the same tokens in every release."""
    values = noise([0, 7, -1], [0, 5, 100_000], 4)
    expected = torch.tensor(KNOWN)
    assert torch.allclose(values, expected, atol=1e-5)


def test_rows_do_not_depend_on_each_other() -> None:
    together = noise([1, 2, 3], [10, 20, 30], 1000)
    for i, (seed, position) in enumerate(((1, 10), (2, 20), (3, 30))):
        assert torch.equal(noise([seed], [position], 1000)[0], together[i])
    assert torch.equal(noise([1], [10], 50)[0], together[0, :50])


@pytest.mark.parametrize("axis", ["token", "position", "seed"])
def test_uniform_along_every_coordinate(axis: str) -> None:
    """Chi-square over 64 cells of 100,000 draws; fails by chance once in 10^6 (and never by
    rerunning: the draws are fixed)."""
    count = 100_000
    if axis == "token":
        values = noise([5], [9], count)[0]
    elif axis == "position":
        values = noise([5] * count, list(range(count)), 1)[:, 0]
    else:
        values = noise(list(range(count)), [9] * count, 1)[:, 0]
    uniform = torch.exp(-torch.exp(-values.double()))
    cells = torch.histc(uniform, 64, 0, 1)
    chi_square = float(((cells - count / 64) ** 2 / (count / 64)).sum())
    assert chi_square < 63 + 5.5 * math.sqrt(2 * 63)
    assert torch.isfinite(values).all()


def test_noise_is_finite_at_both_ends() -> None:
    """Also where all 24 bits are set, which rounding would make a 1; found by trying all keys."""
    ids = torch.arange(2**20, dtype=torch.int32)
    highest, lowest = -math.inf, math.inf
    for key in range(40):
        values = gumbel_noise(torch.tensor([[key, 0]], dtype=torch.int32), ids)
        assert bool(torch.isfinite(values).all())
        highest, lowest = max(highest, float(values.max())), min(lowest, float(values.min()))
    assert highest > 15
    assert lowest < -2.7


def test_neighbouring_coordinates_are_uncorrelated() -> None:
    grid = noise([3] * 400, list(range(400)), 400).double()
    uniform = torch.exp(-torch.exp(-grid)) - 0.5
    for shifted in (torch.roll(uniform, 1, 0), torch.roll(uniform, 1, 1)):
        correlation = float((uniform * shifted).mean() / (uniform**2).mean())
        assert abs(correlation) < 5 / math.sqrt(400 * 400)


def test_choices_have_their_own_seeds() -> None:
    seeds = {derive_seed(42, i) for i in range(100)}
    assert len(seeds) == 100
    assert derive_seed(42, 0) == 42
    assert derive_seed(-1, 1) == derive_seed(2**64 - 1, 1)
