"""Brings the step to attention in models whose layers keep keyword arguments to themselves.

Most models hand the keyword arguments of their forward pass down to the attention function. Where
one does not (stablelm, nemotron), its attention modules hold what the pass was given.
"""

from typing import Any, Final

from torch import nn

_HELD: Final = "penstock_delivery"


class Delivery:
    """What attention modules hold. `step`: that of the pass which runs; None: none runs."""

    def __init__(self) -> None:
        self.step: Any = None


def deliver_steps(model: nn.Module) -> None:
    """Give the model's attention modules each step that its forward pass gets."""
    delivery = Delivery()
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            setattr(module, _HELD, delivery)
    setattr(model, _HELD, delivery)

    def before(_model: nn.Module, _args: Any, given: dict[str, Any]) -> None:
        delivery.step = given.get("penstock_step")

    def after(*_: Any) -> None:
        delivery.step = None

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, always_call=True)


def delivers(model: nn.Module) -> bool:
    """Whether `deliver_steps` was called with it."""
    return hasattr(model, _HELD)


def delivered(module: nn.Module) -> Any:
    """The step that this attention module holds; None: it was brought none."""
    return getattr(getattr(module, _HELD, None), "step", None)
