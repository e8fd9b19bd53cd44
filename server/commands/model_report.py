"""What `penstock doctor --model` says of a model: its weights, what runs it, how fast it may be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import nn

    from ...engine.loading.loader import LoadedModel

Row = tuple[str, str]
_STREAMS: Final = 16
_MATRIX: Final = 2048
_REPEATS: Final = 5
_INT4_BITS: Final = 5


def model_rows(name: str, quantization: str) -> Iterator[Row]:
    """The rows of a model that is loaded as `penstock serve` would.

    Raises:
        ConfigurationError: it cannot be served.
    """
    from ...engine.config import EngineConfig
    from ...engine.loading.loader import load_model
    from ...engine.model.fused.compiled import CompiledDecoder
    from ...engine.model.memory import weights_bytes

    loaded = load_model(EngineConfig(model=name, quantization=quantization))
    info, size = loaded.info, weights_bytes(loaded.model)
    bits = 8 * size / info.parameters
    yield "model", f"{info.architecture}, up to {info.max_length_tokens} tokens"
    yield (
        "weights",
        f"{info.parameters / 1e6:.1f}M in the format {loaded.weights.name}, {size >> 20} MiB "
        f"({bits:.1f} bits each)",
    )
    yield "model runs", _runs(loaded.model)
    if loaded.device.type == "cpu":
        of_a_step = loaded.model.step_bytes if isinstance(loaded.model, CompiledDecoder) else size
        yield from _speed(loaded, of_a_step)


def _runs(model: nn.Module) -> str:
    from ...engine.model.fused.compiled import CompiledDecoder
    from ...kernels.linear.native import NativeLinear

    if isinstance(model, CompiledDecoder):
        return "all layers in one call of compiled code"
    layers = sum(isinstance(module, NativeLinear) for module in model.modules())
    if layers:
        return f"layer by layer: {layers} linear layers compiled, the rest in torch"
    return "in torch, as transformers has it"


def _speed(loaded: LoadedModel, size: int) -> Iterator[Row]:
    """Bounds from this machine's memory and products, measured now; and what would raise them.

    `size`: bytes of weights that a step reads.
    """
    read, products = _read_bytes_s(size), _products_s()
    one = read / size
    many = min(_STREAMS * one, products / (2 * loaded.info.parameters))
    yield "memory is read at", f"{read / 1e9:.1f} GB/s"
    yield "float32 products", f"{products / 1e9:.0f} GFLOP/s"
    yield (
        "expected at most",
        f"{one:.0f} tokens/s in one stream, some {many:.0f} in {_STREAMS} (weights and products "
        "alone; with rows in 8 bits products are faster)",
    )
    small = loaded.info.parameters * _INT4_BITS // 8
    if loaded.weights.lossless:
        yield (
            "would be faster",
            f"--quantization int4: {small >> 20} MiB, up to {read / small:.0f} tokens/s in one "
            "stream, with some loss of quality; int8 loses less",
        )


def _read_bytes_s(size: int) -> float:
    """Bytes a second of a sum over as many bytes as the weights have."""
    import torch

    matrix = torch.ones(max(1, size // 4))
    return matrix.nbytes / _best_s(matrix.sum)


def _products_s() -> float:
    """Operations a second of a product of float32 matrices."""
    import torch

    a = torch.ones(_MATRIX, _MATRIX)
    return 2 * _MATRIX**3 / _best_s(lambda: a @ a)


def _best_s(act: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(_REPEATS):
        begun_s = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun_s)
    return min(times)
