"""`penstock doctor`: what this machine offers, and whether the kernels compute what they should."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from penstock import __version__

from ...engine.weights.settings import AS_STORED, FormatName
from ...kernels.selfcheck import CHECKS, TRITON_CHECKS, triton_unsupported_reason, usual_device
from ..log import configure_logging
from .command_settings import CommandSettings
from .model_report import model_rows

Row = tuple[str, str]
_PACKAGES = ("torch", "triton", "transformers", "tokenizers", "fastapi", "uvicorn", "pydantic")
_EMBEDDED = Path(__file__).parent.parent.parent / "models" / "nano" / "weights"


class DoctorSettings(CommandSettings):
    """Show device, kernels, memory and versions, and check the kernels, and a model where named.

    `model`: a model to load as `penstock serve` would, and to say what of it is fast or slow here.
    `quantization`: the format to keep its weights in.
    """

    model: str | None = None
    quantization: FormatName = AS_STORED


def run_doctor(settings: DoctorSettings) -> int:
    """Print the report; 0 where every check passed, 1 otherwise.

    Raises:
        ConfigurationError: the model cannot be served.
    """
    write = sys.stdout.write
    for name, value in _report():
        write(f"{name:<24} {value}\n")
    failed = 0
    unsupported_reason = triton_unsupported_reason()
    checks = CHECKS if unsupported_reason is not None else CHECKS | TRITON_CHECKS
    for name, check in checks.items():
        problem = check()
        failed += problem is not None
        write(f"{'check ' + name:<24} {'ok' if problem is None else 'FAILED: ' + problem}\n")
    if unsupported_reason is not None:
        write(f"{'check triton':<24} not run: {unsupported_reason}\n")
    if settings.model is not None:
        configure_logging("warning")
        for name, value in model_rows(settings.model, settings.quantization):
            write(f"{name:<24} {value}\n")
    return 1 if failed else 0


def _report() -> Iterator[Row]:
    yield "penstock", __version__
    yield "python", platform.python_version()
    yield "machine", f"{platform.system()} {platform.machine()}"
    for package in _PACKAGES:
        yield package, _version(package)
    yield from _hardware()
    yield "compiled kernels", _compiled()
    yield "attention backend", _backend()
    yield "embedded model", _embedded()


def _backend() -> str:
    """What `--attention-backend auto` takes for a model of the usual kind."""
    import torch

    from ...kernels.backend import choose

    device = usual_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    choice = choose("auto", device=device, dtype=dtype, head_size=128)
    return f"{choice.backend} ({choice.reason})"


def _compiled() -> str:
    """Which build of the kernels for CPUs serves here, or why none does."""
    from ...kernels.native.library import Unavailable, library

    found = library()
    return f"none: {found.reason}" if isinstance(found, Unavailable) else f"for {found.name}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hardware() -> Iterator[Row]:
    import psutil
    import torch

    from ...engine.model.cache_dtype import NAMED, works

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield f"device cuda:{index}", f"{name}, {free >> 20} of {total >> 20} MiB free"
    else:
        yield "device", "cpu (torch sees no CUDA device)"
    works_here = (name for name, dtype in NAMED.items() if works(dtype, usual_device()))
    yield "KV cache dtypes", ", ".join(("auto", *works_here))
    yield "threads", f"{torch.get_num_threads()} of {psutil.cpu_count() or 1} processors"
    memory = psutil.virtual_memory()
    yield "memory", f"{memory.available >> 20} of {memory.total >> 20} MiB free"


def _embedded() -> str:
    files = list(_EMBEDDED.glob("*.safetensors")) if _EMBEDDED.is_dir() else []
    if not files:
        return "missing: serve needs a MODEL"
    return f"nano, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
