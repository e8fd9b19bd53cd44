"""`--deterministic`: a row's results have the same bits whatever else is computed beside it.

Compiled CPU kernels are batch-invariant already; on a GPU the model runs in `RowInvariant`. Draft
trees are off: a path's keys lie in other places of the cache and are summed in another order.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from ...errors import ConfigurationError
from ...kernels.backend import BackendChoice
from ..weights.base import WeightFormat
from .fused.compiled import CompiledDecoder
from .fused.experts import CompiledExperts

Numerics = Callable[[], AbstractContextManager[Any]]
"""Makes the context manager in which operations on a step's rows run."""
AS_THEY_ARE: Numerics = nullcontext


class _InMode(nn.Module):
    """A model whose forward passes run in a context manager."""

    def __init__(self, model: nn.Module, numerics: Numerics) -> None:
        super().__init__()
        self.model = model
        self._numerics = numerics

    def forward(self, **inputs: Any) -> Any:
        """One forward pass."""
        with self._numerics():
            return self.model(**inputs)


def _multiplies_otherwise(model: nn.Module) -> bool:
    """Whether a model has weights that torch multiplies: plain linear layers or experts."""
    return any(
        isinstance(module, nn.Linear | CompiledExperts) or type(module).__name__ == "Conv1D"
        for module in model.modules()
    ) or any(parameter.ndim > 2 for parameter in model.parameters())


def deterministic(
    model: nn.Module, backend: BackendChoice, weights: WeightFormat
) -> tuple[nn.Module, Numerics]:
    """The model and the context of its steps, so that sums have a fixed order.

    Raises:
        ConfigurationError: the backend's kernels cannot do that, or not for this model.
    """
    if backend.backend == "native":
        others = not weights.row_invariant or _multiplies_otherwise(model)
        if not isinstance(model, CompiledDecoder) and others:
            raise ConfigurationError(
                "--deterministic is not to be had with this model on a CPU: some of its products "
                "are torch's, which add up in another order where there are more rows"
            )
        return model, AS_THEY_ARE
    if backend.backend == "torch":
        raise ConfigurationError(
            "--deterministic needs kernels that add up in one order: triton on a GPU, or native on "
            f"a CPU, in float32; but attention runs on torch ({backend.reason})"
        )
    from ...kernels.row_invariant.mode import RowInvariant

    return _InMode(model, RowInvariant), RowInvariant
