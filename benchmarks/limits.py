"""What the machine and plain transformers can do: the yardsticks of a decoding step."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def weight_bytes_per_step(model: nn.Module) -> int:
    """Bytes of weights that every decoding step must read once.

    The input embedding is not among them, since a step reads a few of its rows, unless the output
    layer shares it.
    """
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    tied = output is not None and output.weight.data_ptr() == embedding.weight.data_ptr()
    total = sum(parameter.nbytes for parameter in model.parameters())
    return total if tied else total - embedding.weight.nbytes


def read_bandwidth(size_bytes: int, device: torch.device, *, repeats: int = 5) -> float:
    """Bytes a second at which the device reads memory: the best of two ways of reading once.

    `size_bytes` should be that of the weights, so that caches help here as much as they do there.
    """
    columns = 4096
    matrix = torch.ones(max(1, size_bytes // (4 * columns)), columns, device=device)
    vector = torch.ones(columns, device=device)
    best_s = min(
        _best_of(repeats, device, lambda: matrix.sum()),
        _best_of(repeats, device, lambda: torch.mv(matrix, vector)),
    )
    return matrix.nbytes / best_s


@torch.inference_mode()
def transformers_decode_s(model: Any, prompt_ids: Tensor, steps: int) -> list[float]:
    """Times of `steps` forward passes of transformers with its own cache, one new token a row.

    `prompt_ids`: `[B, T]`; the prompts are read first, untimed. Greedy choice is in the times.
    """
    device = prompt_ids.device
    out = model(input_ids=prompt_ids, use_cache=True, logits_to_keep=1)
    times_s: list[float] = []
    for _ in range(steps):
        begun_s = time.perf_counter()
        chosen = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(input_ids=chosen, past_key_values=out.past_key_values, use_cache=True)
        synchroniser(device)()
        times_s.append(time.perf_counter() - begun_s)
    return times_s


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits for the device."""
    return torch.cuda.synchronize if device.type == "cuda" else _nothing


def _nothing() -> None:
    """A processor has done its work when the call returns."""


def _best_of(repeats: int, device: torch.device, work: Callable[[], Tensor]) -> float:
    times_s: list[float] = []
    for _ in range(repeats + 1):
        begun_s = time.perf_counter()
        work()
        synchroniser(device)()
        times_s.append(time.perf_counter() - begun_s)
    return min(times_s[1:])
