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
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .stand_ins import KERNELS


class States(Protocol):
    """The states of one call of a module."""

    def recurrent(self) -> Tensor | None:
        """The recurrence's state that the module has asked for; None: nothing has been read."""
        ...


class Bound:
    """A module's forward pass with our kernels. `states`: of the call that is made. `threads`: of
    the kernels, as many as torch has when it is made."""

    def __init__(self, module: nn.Module) -> None:
        self.threads = torch.get_num_threads()
        self.states: States | None = None
        forward: Any = inspect.unwrap(type(module).forward)
        names = set(forward.__code__.co_names) & forward.__globals__.keys()
        ours = {
            name: partial(kernel, self, forward.__globals__[name])
            for name, kernel in KERNELS.items()
            if name in names
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

    @property
    def state(self) -> Tensor | None:
        """The recurrence's state in the call that is made; None: there is none yet."""
        return None if self.states is None else self.states.recurrent()


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
