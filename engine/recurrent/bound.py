"""transformers' modules with other recurrences: kernels of ours in place of functions by name.

A module's file defines its recurrence as a function, which the module's forward pass finds by name.
So the forward pass is bound to a copy of its globals in which some names stand for our kernels. The
file itself, and other models that use it, stay as they are.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.recurrence.reference import selective_scan


class States(Protocol):
    """The states of the sequences whose rows a module computes."""

    def recurrent(self) -> Tensor | None:
        """The recurrence's state that the module has asked for; None: nothing has been read."""
        ...


class Bound:
    """A module's forward pass with our kernels. `states`: of the call that is made."""

    def __init__(self, module: nn.Module) -> None:
        self.states: States | None = None
        forward: Any = inspect.unwrap(type(module).forward)
        ours = {
            name: partial(kernel, self)
            for name, kernel in KERNELS.items()
            if name in forward.__code__.co_names and name in forward.__globals__
        }
        self.forward: Callable[..., Any] = module.forward
        if ours:
            bound = FunctionType(
                forward.__code__,
                forward.__globals__ | ours,
                forward.__name__,
                forward.__defaults__,
                forward.__closure__,
            )
            bound.__kwdefaults__ = forward.__kwdefaults__
            self.forward = MethodType(bound, module)


def children_read(module: nn.Module) -> Iterator[nn.Module]:
    """Children whose weights a module's forward pass reads itself, so that they have to stay."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(module).forward)))
    for name in sorted(set(_weights_read(ast.parse(source)))):
        child = getattr(module, name, None)
        if isinstance(child, nn.Module):
            yield child


def _weights_read(node: ast.AST) -> Iterator[str]:
    """Names X of `self.X.weight` and `self.X.bias`, but for training."""
    match node:
        case ast.If(test=test, orelse=orelse) if "self.training" in ast.unparse(test):
            for each in orelse:
                yield from _weights_read(each)
            return
        case ast.Attribute(
            value=ast.Attribute(value=ast.Name(id="self"), attr=name), attr="weight" | "bias"
        ):
            yield name
        case _:
            pass
    for child in ast.iter_child_nodes(node):
        yield from _weights_read(child)


def _selective_scan(
    bound: Bound,
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
    """transformers' `mamba_selective_scan`, which always begins without a state."""
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    state = None if bound.states is None else bound.states.recurrent()
    y, last = selective_scan(
        hidden_states,
        F.softplus(dt) if delta_softplus else dt,
        A,
        B,
        C,
        state_BCN=state,
        d_C=D,
        gate_BCT=z,
    )
    return (y, last) if return_last_state else y


KERNELS: Final[dict[str, Callable[..., Any]]] = {"mamba_selective_scan": _selective_scan}
"""Kernels by the names of the functions that they stand for."""
