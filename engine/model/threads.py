"""How many CPU threads a model should use, of the cores that this process may use."""

import math
import os
from pathlib import Path
from typing import Final

import psutil
import torch
from torch import nn

from ...kernels.linear.native import NativeLinear
from .fused.experts import CompiledExperts

_WEIGHTS_PER_THREAD_BYTES: Final = 8 << 20
"""A thread with fewer bytes of weights to read would mostly wait for the others; an estimate."""
_ALONE_UP_TO: Final = 3
"""With more cores than this, one core is left for HTTP, tokenizers and the system."""
_SMALL_VOCABULARY: Final = 1 << 16
"""With 49,152 tokens, one thread is never slower up to 16 rows, and up to a quarter faster."""
_FEW_THREADS: Final = 4
_LITTLE: Final = 0.05
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def torch_threads(weights_bytes: int, cores: int) -> int:
    """Threads for the model: as many as its weights keep busy, minus a core if there are enough."""
    most = cores if cores <= _ALONE_UP_TO else cores - 1
    return max(1, min(most, math.ceil(weights_bytes / _WEIGHTS_PER_THREAD_BYTES)))


def torch_gets_one(vocab_size: int) -> bool:
    """Whether torch should use one thread, where compiled code has threads of its own.

    torch's threads fall asleep between two steps, and waking them takes longer than the work left
    to torch: rules, filters and logprobs over some rows of logits.
    """
    return vocab_size <= _SMALL_VOCABULARY


def multiplies_little(model: nn.Module) -> bool:
    """Whether a model's layers leave torch little to multiply, and there are few threads.

    torch's threads and those of the compiled kernels wake each other up then: on two cores a prompt
    of a hybrid is read in two thirds of the time if torch has one. With many threads the layers'
    other operations gain more than that costs.
    """
    stacked = sum(p.numel() for p in model.parameters() if p.ndim > 2)
    plain = sum(m.weight.numel() for m in model.modules() if type(m) is nn.Linear)
    compiled = sum(
        m.numbers if isinstance(m, CompiledExperts) else m.in_features * m.out_features
        for m in model.modules()
        if isinstance(m, NativeLinear | CompiledExperts)
    )
    few = torch.get_num_threads() <= _FEW_THREADS
    return few and stacked + plain <= _LITTLE * compiled


def usable_cores(quota: Path = _QUOTA) -> int:
    """Physical cores that this process may use: CPU affinity and a container's quota count."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    physical = psutil.cpu_count(logical=False)
    bounds = [allowed, physical, _quota_cores(quota)]
    return max(1, min(bound for bound in bounds if bound))


def _quota_cores(path: Path) -> int | None:
    """Whole cores of the control group's quota ("200000 100000": two); None without one."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))
