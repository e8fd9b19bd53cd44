"""How many CPU threads a model should use, of the cores that this process may use."""

import math
import os
from pathlib import Path
from typing import Final

import psutil

_WEIGHTS_PER_THREAD_BYTES: Final = 8 << 20
"""A thread with fewer bytes of weights to read would mostly wait for the others; an estimate."""
_ALONE_UP_TO: Final = 3
"""With more cores than this, one core is left for HTTP, tokenizers and the system."""
_SMALL_VOCABULARY: Final = 1 << 16
"""With 49,152 tokens, one thread is never slower up to 16 rows, and up to a quarter faster."""
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
