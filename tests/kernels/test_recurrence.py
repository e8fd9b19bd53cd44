"""Compiled recurrences and convolutions, every build that runs here: against formulas in float64.

Cut anywhere, they give what the whole gives; sequences of a batch do not see each other.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.kernels.native.library import Library, builds
from penstock.kernels.recurrence import native, reference

BUILDS = builds()[0]
each_build = pytest.mark.parametrize("build", BUILDS, ids=[build.name for build in BUILDS])
SEQUENCES, TOKENS = 3, 11


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=2e-4, atol=2e-5)


def delta_in_float64(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, normalise: bool
) -> tuple[Tensor, Tensor]:
    q, k, v, decay, beta, s = (each.double() for each in (q, k, v, decay, beta, state))
    repeats = v.shape[2] // k.shape[2]
    q, k = (each.repeat_interleave(repeats, dim=2) for each in (q, k))
    if normalise:
        q, k = (each / (each.square().sum(-1, keepdim=True) + 1e-6).sqrt() for each in (q, k))
    out = torch.empty_like(v)
    for t in range(v.shape[1]):
        s = s * decay[:, t].exp()[..., None]
        answer = torch.einsum("bhkv,bhk->bhv", s, k[:, t])
        change = (v[:, t] - answer) * beta[:, t, :, None]
        s = s + k[:, t, :, :, None] * change[:, :, None]
        out[:, t] = torch.einsum("bhkv,bhk->bhv", s, q[:, t]) / k.shape[-1] ** 0.5
    return out, s


@each_build
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("by_key", [False, True], ids=["a decay", "decays by key"])
@pytest.mark.parametrize(("key_size", "value_size"), [(16, 64), (64, 128), (24, 37), (5, 3)])
def test_gated_delta(
    build: Library, threads: int, by_key: bool, key_size: int, value_size: int
) -> None:
    key_heads, heads = 2, 4
    wide = torch.randn(SEQUENCES, TOKENS, key_heads, 2 * key_size) / key_size**0.5
    q, k = wide[..., :key_size], wide[..., key_size:]  # not in a row, as split projections are
    v = torch.randn(SEQUENCES, heads, TOKENS, value_size).transpose(1, 2)
    decay = -torch.rand(SEQUENCES, TOKENS, heads, key_size if by_key else 1)
    beta = torch.rand(SEQUENCES, TOKENS, heads)
    state = torch.randn(SEQUENCES, heads, key_size, value_size)
    if by_key:
        q, k = (each.repeat_interleave(2, dim=2) for each in (q, k))
    expected, last = delta_in_float64(q, k, v, decay, beta, state, normalise=not by_key)
    run = partial(native.gated_delta, build, normalise=not by_key, threads=threads)

    def cut(pieces: list[slice]) -> tuple[Tensor, Tensor]:
        kept = state.clone()
        outs = [run(q[:, p], k[:, p], v[:, p], decay[:, p], beta[:, p], kept) for p in pieces]
        return torch.cat(outs, dim=1), kept

    whole, kept = cut([slice(None)])
    close(whole, expected)
    close(kept, last)
    pieces, kept_of_pieces = cut([slice(0, 1), slice(1, 8), slice(8, None)])
    assert torch.equal(pieces, whole)
    assert torch.equal(kept_of_pieces, kept)
    one = slice(1, 2)
    alone = run(q[one], k[one], v[one], decay[one], beta[one], state[one].clone())
    assert torch.equal(alone, whole[1:2])


def state_space_in_float64(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    x, dt, a, b, c, d, h = (each.double() for each in (x, dt, a, b, c, d, state))
    b, c = (each.repeat_interleave(x.shape[2] // b.shape[2], dim=2) for each in (b, c))
    out = torch.empty_like(x)
    for t in range(x.shape[1]):
        h = h * (dt[:, t] * a).exp()[..., None, None]
        h = h + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        out[:, t] = (h * c[:, t, :, None]).sum(-1) + d[:, None] * x[:, t]
    return out, h


@each_build
@pytest.mark.parametrize("size", [16, 128, 19])
def test_state_space(build: Library, size: int) -> None:
    heads, groups, head_size = 4, 2, 6
    x = torch.randn(SEQUENCES, TOKENS, heads, head_size)
    dt = torch.rand(SEQUENCES, TOKENS, heads)
    a, d = -torch.rand(heads), torch.randn(heads)
    b, c = torch.randn(2, SEQUENCES, TOKENS, groups, size).unbind()
    state = torch.randn(SEQUENCES, heads, head_size, size)
    expected, last = state_space_in_float64(x, dt, a, b, c, d, state)
    run = partial(native.state_space, build, threads=2)
    kept = state.clone()
    whole = run(x, dt, a, b, c, d, kept)
    close(whole, expected)
    close(kept, last)
    again = state.clone()
    pieces = [
        run(x[:, p], dt[:, p], a, b[:, p], c[:, p], d, again) for p in (slice(0, 4), slice(4, None))
    ]
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert torch.equal(again, kept)


@each_build
@pytest.mark.parametrize("size", [16, 5])
def test_selective_scan(build: Library, size: int) -> None:
    channels = 37
    x = torch.randn(SEQUENCES, channels, TOKENS).transpose(1, 2)
    dt = torch.rand(SEQUENCES, TOKENS, channels)
    a, d = -torch.rand(channels, size), torch.randn(channels)
    b, c = torch.randn(2, SEQUENCES, TOKENS, size).unbind()
    state = torch.randn(SEQUENCES, channels, size)
    turned = {
        name: each.double().transpose(1, 2)
        for name, each in (("x_BCT", x), ("dt_BCT", dt), ("b_BNT", b), ("c_BNT", c))
    }
    expected, last = reference.selective_scan(
        a_CN=a.double(), state_BCN=state.double(), d_C=d.double(), **turned
    )
    run = partial(native.selective_scan, build, threads=2)
    kept = state.clone()
    whole = run(x, dt, a, b, c, d, kept)
    close(whole, expected.transpose(1, 2))
    close(kept, last)
    again = state.clone()
    pieces = [
        run(x[:, p], dt[:, p], a, b[:, p], c[:, p], d, again) for p in (slice(0, 4), slice(4, None))
    ]
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert torch.equal(again, kept)


@each_build
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("turned", [False, True], ids=["channels apart", "channels side by side"])
@pytest.mark.parametrize("held", [4, 7])
def test_convolve(build: Library, silu: bool, turned: bool, held: int) -> None:
    channels, width = 70, 4
    x = torch.randn(SEQUENCES, channels, TOKENS)
    if turned:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    weight, bias = torch.randn(channels, width), torch.randn(channels)
    state = torch.randn(SEQUENCES, channels, held)
    inputs = torch.cat([state, x], dim=-1).double()
    expected = F.conv1d(inputs, weight.double()[:, None], bias.double(), groups=channels)
    expected = expected[..., -TOKENS:]
    act: Callable[[Tensor], Tensor] = F.silu if silu else torch.Tensor.clone
    run = partial(native.convolve, build, silu=silu, threads=2)
    kept = state.clone()
    whole = run(x, weight, bias, kept)
    close(whole, act(expected))
    assert torch.equal(kept, inputs[..., -held:].float())
    again = state.clone()
    pieces = [
        run(x[..., p], weight, bias, again) for p in (slice(0, 1), slice(1, 3), slice(3, None))
    ]
    assert torch.equal(torch.cat(pieces, dim=-1), whole)
    assert torch.equal(again, kept)
    from_zeros = F.conv1d(F.pad(x.double(), (3, 0)), weight.double()[:, None], groups=channels)
    close(run(x, weight, None, None), act(from_zeros))
