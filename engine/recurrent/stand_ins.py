"""What stands in for the recurrences of transformers' modules, with their names and arguments.

Each is called with the function that it stands for, and with where the states of the call are. That
function does what the compiled kernels do not: other devices, dtypes and activations.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.native.library import Library, library
from ...kernels.recurrence import native, reference

Original = Callable[..., Any]


class Call(Protocol):
    """A call of a module. `threads`: of the compiled kernels."""

    threads: int

    @property
    def state(self) -> Tensor | None:
        """The recurrence's state, once the module has asked for it; None: there is none yet."""
        ...


def _compiled(*given: Tensor | None) -> Library | None:
    """The compiled kernels, if they take these tensors."""
    found = library()
    fits = all(x is None or (x.device.type == "cpu" and x.dtype == torch.float32) for x in given)
    return found if fits and isinstance(found, Library) else None


def _conv_update(
    call: Call,
    original: Original,
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    found = _compiled(hidden_states, conv_state, weight, bias)
    if found is None or activation not in _SILU:
        return original(hidden_states, conv_state, weight, bias, activation)
    silu = activation is not None
    return native.convolve(
        found, hidden_states, weight, bias, conv_state, silu=silu, threads=call.threads
    )


def _conv(
    call: Call,
    original: Original,
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **how: Any,
) -> Tensor:
    found = _compiled(hidden_states, weight, bias)
    if found is None or activation not in _SILU:
        return original(hidden_states, weight, bias, activation, **how)
    silu = activation is not None
    return native.convolve(
        found, hidden_states, weight, bias, None, silu=silu, threads=call.threads
    )


def _delta_rule(
    call: Call,
    original: Original,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **how: Any,
) -> tuple[Tensor, Tensor | None]:
    found = _compiled(query, key, value, initial_state)
    if found is None:
        return original(
            query,
            key,
            value,
            g=g,
            beta=beta,
            initial_state=initial_state,
            output_final_state=output_final_state,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            **how,
        )
    state = initial_state
    if state is None:
        state = value.new_zeros(value.shape[0], value.shape[2], key.shape[3], value.shape[3])
    decay = g if g.ndim == 4 else g[..., None]
    out = native.gated_delta(
        *(found, query, key, value, decay, beta, state),
        normalise=use_qk_l2norm_in_kernel,
        threads=call.threads,
    )
    return out, state


def _state_space_update(
    call: Call,
    original: Original,
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **how: Any,
) -> Tensor:
    """One token; what Mamba 2 has for a head, the arguments repeat for its elements."""
    found = _compiled(state, hidden_states, dt, A, B, C)
    if found is None or z is not None or A.ndim != 3:
        how |= {"dt_bias": dt_bias, "dt_softplus": dt_softplus, "z": z}
        return original(state, hidden_states, dt, A, B, C, D, **how)
    bias = None if dt_bias is None else dt_bias[:, 0]
    out = native.state_space(
        found,
        hidden_states[:, None],
        _time_steps(dt[:, None, :, 0], bias, softplus=dt_softplus),
        A[:, 0, 0],
        B[:, None],
        C[:, None],
        None if D is None else D[:, 0],
        state,
        threads=call.threads,
    )
    return out[:, 0]


def _state_space(
    call: Call,
    original: Original,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **how: Any,
) -> Any:
    found = _compiled(hidden_states, dt, A, B, C, initial_states)
    if found is None or how.get("z") is not None or A.ndim != 1 or (D is not None and D.ndim != 1):
        return original(
            *(hidden_states, dt, A, B, C, chunk_size),
            D=D,
            dt_bias=dt_bias,
            initial_states=initial_states,
            dt_softplus=dt_softplus,
            dt_limit=dt_limit,
            return_final_states=return_final_states,
            **how,
        )
    state = initial_states
    if state is None:
        sequences, _, heads, size = hidden_states.shape
        state = hidden_states.new_zeros(sequences, heads, size, B.shape[-1])
    steps = _time_steps(dt, dt_bias, softplus=dt_softplus).clamp(*dt_limit)
    out = native.state_space(found, hidden_states, steps, A, B, C, D, state, threads=call.threads)
    return (out, state) if return_final_states else out


def _scan(
    call: Call,
    original: Original,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """The original always begins without a state; this goes on from the one that there is."""
    bias = None if delta_bias is None else delta_bias[:, None]
    steps = _time_steps(dt, bias, softplus=delta_softplus)
    found = _compiled(hidden_states, steps, A, B, C, call.state)
    if found is None:
        y, state = reference.selective_scan(
            hidden_states, steps, A, B, C, state_BCN=call.state, d_C=D
        )
    else:
        state = call.state
        if state is None:
            state = hidden_states.new_zeros(*hidden_states.shape[:2], A.shape[1])
        x_BTC, dt_BTC = hidden_states.transpose(1, 2), steps.transpose(1, 2)
        b_BTN, c_BTN = B.transpose(1, 2), C.transpose(1, 2)
        y = native.selective_scan(
            found, x_BTC, dt_BTC, A, b_BTN, c_BTN, D, state, threads=call.threads
        ).transpose(1, 2)
    if z is not None:
        y = y * F.silu(z)
    return (y, state) if return_last_state else y


def _scan_update(
    call: Call,
    original: Original,
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **how: Any,
) -> Tensor:
    """One token."""
    found = _compiled(state, hidden_states, dt, A, B, C)
    if found is None:
        how |= {"dt_bias": dt_bias, "dt_softplus": dt_softplus, "z": z}
        return original(state, hidden_states, dt, A, B, C, D, **how)
    steps = _time_steps(dt, dt_bias, softplus=dt_softplus)
    x_BTC, dt_BTC = hidden_states[:, None], steps[:, None]
    y = native.selective_scan(
        found, x_BTC, dt_BTC, A, B[:, None], C[:, None], D, state, threads=call.threads
    )[:, 0]
    return y if z is None else y * F.silu(z)


def _time_steps(dt: Tensor, bias: Tensor | None, *, softplus: bool) -> Tensor:
    if bias is not None:
        dt = dt + bias.to(dt.dtype)
    return F.softplus(dt) if softplus else dt


_SILU: Final = (None, "silu", "swish")
KERNELS: Final[dict[str, Callable[..., Any]]] = {
    "causal_conv1d_update": _conv_update,
    "causal_conv1d_fn": _conv,
    "torch_recurrent_gated_delta_rule": _delta_rule,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "recurrent_kimi_delta_attention": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_selective_state_update": _state_space_update,
    "mamba2_chunk_scan": _state_space,
    "mamba_selective_state_update": _scan_update,
    "mamba_selective_scan": _scan,
}
"""Stand-ins by the names of the functions in transformers' files."""
