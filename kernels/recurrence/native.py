"""Recurrences and short convolutions compiled for CPUs: float32, from a given state."""

from ctypes import byref

import torch
from torch import Tensor

from ..native.library import (
    ConvolutionStruct,
    DeltaStruct,
    Library,
    ScanStruct,
    StateSpaceStruct,
    StridedStruct,
    address,
)


def gated_delta(
    library: Library,
    q_BTHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    decay_BTHD: Tensor,
    beta_BTH: Tensor,
    state_BHKV: Tensor,
    *,
    normalise: bool,
    threads: int,
) -> Tensor:
    """The gated delta rule; `state_BHKV` is overwritten. Returns `[B, T, H, Dv]`.

    S = decay S + k (beta (v - decay S k)), o = S q / sqrt(Dk), per token. q and k may have fewer
    heads than v. `decay_BTHD`: logarithms, one for each key element, or D = 1 for all. `normalise`:
    q and k are divided by their lengths first.
    """
    sequences, tokens, heads, value_size = v_BTHD.shape
    key_heads, key_size = k_BTHD.shape[2:]
    taken = [_even(each) for each in (q_BTHD, k_BTHD, v_BTHD, decay_BTHD, beta_BTH[..., None])]
    out = torch.empty(sequences, tokens, heads, value_size)
    how = DeltaStruct(
        *map(_strided, taken),
        _own(state_BHKV),
        out.data_ptr(),
        *(sequences, tokens, key_heads, heads, key_size, value_size),
        *(decay_BTHD.shape[3] > 1, normalise),
        key_size**-0.5,
    )
    library.call.delta(byref(how), threads)
    return out


def state_space(
    library: Library,
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    d_H: Tensor | None,
    state_BHPN: Tensor,
    *,
    threads: int,
) -> Tensor:
    """Mamba 2's recurrence; `state_BHPN` is overwritten. Returns `[B, T, H, P]`.

    h = exp(dt a) h + dt x B, y = h C + d x, per token. `dt_BTH`: after softplus.
    """
    sequences, tokens, heads, head_size = x_BTHP.shape
    groups, state_size = b_BTGN.shape[2:]
    taken = [_even(each) for each in (x_BTHP, dt_BTH[..., None], b_BTGN, c_BTGN)]
    a_H, d_H = a_H.contiguous(), None if d_H is None else d_H.contiguous()
    out = torch.empty(sequences, tokens, heads, head_size)
    how = StateSpaceStruct(
        *map(_strided, taken),
        *(a_H.data_ptr(), address(d_H), _own(state_BHPN), out.data_ptr()),
        *(sequences, tokens, groups, heads, head_size, state_size),
    )
    library.call.state_space(byref(how), threads)
    return out


def selective_scan(
    library: Library,
    x_BTC: Tensor,
    dt_BTC: Tensor,
    a_CN: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    d_C: Tensor | None,
    state_BCN: Tensor,
    *,
    threads: int,
) -> Tensor:
    """Mamba's selective scan; `state_BCN` is overwritten. Returns `[B, T, C]`.

    h = exp(dt a) h + dt x B, y = h C + d x, per token and channel. `dt_BTC`: after softplus.
    """
    sequences, tokens, channels = x_BTC.shape
    taken = [_even(each[:, :, None]) for each in (x_BTC, dt_BTC, b_BTN, c_BTN)]
    a_CN, d_C = a_CN.contiguous(), None if d_C is None else d_C.contiguous()
    out = torch.empty(sequences, tokens, channels)
    how = ScanStruct(
        *map(_strided, taken),
        *(a_CN.data_ptr(), address(d_C), _own(state_BCN), out.data_ptr()),
        *(sequences, tokens, channels, a_CN.shape[1]),
    )
    library.call.scan(byref(how), threads)
    return out


def convolve(
    library: Library,
    x_BCT: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor | None,
    state_BCL: Tensor | None,
    *,
    silu: bool,
    threads: int,
) -> Tensor:
    """A causal convolution of each channel, then silu if asked for. Returns `[B, C, T]`.

    `state_BCL`: the inputs before the first, overwritten by the last ones; None: zeros.
    """
    sequences, channels, tokens = x_BCT.shape
    weight_CK = weight_CK.contiguous()
    out = torch.empty(sequences, tokens, channels)
    how = ConvolutionStruct(
        x_BCT.data_ptr(),
        *x_BCT.stride(),
        *(None if state_BCL is None else _own(state_BCL), weight_CK.data_ptr()),
        *(address(bias_C), out.data_ptr()),
        *(sequences, tokens, channels, weight_CK.shape[1]),
        *(0 if state_BCL is None else state_BCL.shape[2], silu),
    )
    library.call.convolve(byref(how), threads)
    return out.transpose(1, 2)


def _even(rows_BTHD: Tensor) -> Tensor:
    """The same in float32, with the elements of the last dimension side by side."""
    rows = rows_BTHD.float()
    return rows if rows.stride(3) == 1 or rows.shape[3] == 1 else rows.contiguous()


def _strided(rows_BTHD: Tensor) -> StridedStruct:
    return StridedStruct(rows_BTHD.data_ptr(), *rows_BTHD.stride()[:3])


def _own(state: Tensor) -> int:
    """Where a state is; it must lie in a row."""
    if state.dtype != torch.float32 or not state.is_contiguous():
        raise TypeError(f"states are float32 and contiguous, not {state.dtype} {state.stride()}")
    return state.data_ptr()
