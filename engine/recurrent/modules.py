"""Which modules of a model have states beside keys and values, and what shape these have.

transformers' modules ask the cache that they are given for their states, by layer. So a cache that
notes who asks finds them in any model, whatever they are called.
"""

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...kvcache.state_store import StateKey, StateShape, StateStore
from .bound import Bound, children_read
from .parts import KeysElsewhere, Part, StepStates

AttentionStep = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stateful:
    """States of a model. `argument`: its forward pass takes the cache under this name.

    `modules`: names of those that ask for states; `shapes`: what one sequence has of them.
    `numbers`: of layers that have keys and values, by index: their places among these.
    """

    argument: str
    modules: tuple[str, ...]
    shapes: tuple[StateShape, ...]
    numbers: dict[int, int]

    def as_reported(self, step: AttentionStep, states: StepStates) -> AttentionStep:
        """An attention step as the model calls it, from one by the layer's index."""

        def attend(layer: int, *args: Any, **how: Any) -> Tensor:
            return step(states.layer_of(layer), *args, **how)

        return attend

    def numbered(self, step: AttentionStep, states: StepStates) -> AttentionStep:
        """An attention step as the model calls it, from one by the layer's place."""

        def attend(layer: int, *args: Any, **how: Any) -> Tensor:
            return step(self.numbers[states.layer_of(layer)], *args, **how)

        return attend


@dataclass
class _Finder(KeysElsewhere):
    """Stands in for a cache: notes which module asks for states, and what it leaves.

    `entered`: the modules whose forward passes have begun and not ended, by name.
    """

    entered: list[str] = field(default_factory=list[str])
    modules: dict[str, None] = field(default_factory=dict[str, None])
    shapes: dict[StateKey, StateShape] = field(default_factory=dict[StateKey, StateShape])

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        self._note()

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        self._note()

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> Tensor:
        shape = (*conv_states.shape[1:-1], conv_kernel_size or conv_states.shape[-1])
        self._keep(StateKey(layer_idx, "conv", state_idx), shape, conv_states.dtype)
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0
    ) -> Tensor:
        shape = tuple(recurrent_states.shape[1:])
        self._keep(StateKey(layer_idx, "recurrent", state_idx), shape, recurrent_states.dtype)
        return recurrent_states

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def _note(self) -> None:
        self.modules[self.entered[-1]] = None

    def _keep(self, key: StateKey, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._note()
        self.shapes[key] = StateShape(key=key, shape=shape, dtype=dtype)


def find_states(model: Any, run: Callable[[str, Any], Any]) -> Stateful | None:
    """Find the states of a model; None: it has none, or asks for them in a way of its own.

    `run`: makes a forward pass, with the second argument under the name of the first. The model's
    modules are changed, so that they take steps with `StepStates`.
    """
    argument = (
        "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else ""
    )
    argument = argument or "past_key_values"
    finder = _Finder()
    with _entering(model, finder.entered):
        run(argument, finder)
    if not finder.shapes:
        return None
    return Stateful(
        argument=argument,
        modules=tuple(finder.modules),
        shapes=tuple(finder.shapes.values()),
        numbers={},
    )


def take_in_parts(model: nn.Module, names: Sequence[str]) -> None:
    """Let these modules take the rows of a step in the parts of its `StepStates`."""
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module.forward, _InParts):
            module.forward = _InParts(module)
            for child in children_read(module):
                vars(child)["penstock_keeps_weight"] = True


def fresh_rows(shapes: Sequence[StateShape], rows: int, device: torch.device) -> StepStates:
    """States of a step whose rows belong to a sequence each."""
    store = StateStore(shapes, slots=rows, device=device)
    part = Part(rows=slice(0, rows), count=1, slots=range(rows), fresh=True)
    return StepStates(store, [part], rows)


class OneSequence:
    """The states of a single sequence, which is read in steps of one part each."""

    def __init__(self, stateful: Stateful, device: torch.device) -> None:
        self._stateful = stateful
        self._store = StateStore(stateful.shapes, slots=1, device=device)
        self._fresh = True

    def step(self, step: AttentionStep, rows: int) -> tuple[AttentionStep, dict[str, StepStates]]:
        """The attention step of the next rows, from one by the layer's place, and the cache."""
        part = Part(rows=slice(0, rows), count=rows, slots=[0], fresh=self._fresh)
        self._fresh = False
        states = StepStates(self._store, [part], rows)
        return self._stateful.numbered(step, states), {self._stateful.argument: states}


class _InParts:
    """The forward pass of a module with states, which takes the rows of a step in parts."""

    def __init__(self, module: nn.Module) -> None:
        self._forward = module.forward
        self._bound = Bound(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = (each for each in (*args, *kwargs.values()) if isinstance(each, StepStates))
        states = next(given, None)
        if states is None:
            return self._forward(*args, **kwargs)
        kwargs.pop("penstock_step", None)  # its rows are those of all parts
        return states.call(self._bound, args, kwargs)


@contextmanager
def _entering(model: nn.Module, entered: list[str]) -> Generator[None]:
    """Keep the names of the modules whose forward passes have begun in `entered`."""
    hooks: list[Any] = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            entered.append(name)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            entered.pop()

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
