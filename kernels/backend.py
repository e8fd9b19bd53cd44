"""Which kernels serve: one explicit choice, with its reason."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal

import torch
from torch import Tensor

from ..errors import ConfigurationError
from .evict import reference as evict
from .kv_write import reference as kv_write
from .paged_attention import reference as paged_attention
from .scored_attention import reference as scored_attention
from .sparse_prefill import reference as sparse_prefill

Backend = Literal["triton", "torch"]
LARGEST_HEAD: Final = 256
"""The largest head size whose tiles have been compiled."""
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_CAPABILITY: Final = (8, 0)
"""Asynchronous copies and bfloat16 products begin with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen, and why, in words that follow a colon."""

    backend: Backend
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Kernels of one backend, with the signatures of the references."""

    backend: Backend
    kv_write: Callable[..., None]
    paged_attention: Callable[..., Tensor]
    scored_attention: Callable[..., tuple[Tensor, list[Tensor]]]
    """`paged_scored_attention`, over pages as the one before it."""
    evict: Callable[..., None]
    sparse_prefill: Callable[..., Tensor] = sparse_prefill.paged_sparse_prefill


TORCH: Final = Kernels(
    backend="torch",
    kv_write=kv_write.kv_write,
    paged_attention=paged_attention.paged_attention,
    scored_attention=scored_attention.paged_scored_attention,
    evict=evict.evict,
)


def choose(
    wanted: Backend | Literal["auto"], *, device: torch.device, dtype: torch.dtype, head_size: int
) -> Choice:
    """The backend of attention. `dtype`: of the model; `head_size`: its largest.

    Raises:
        ConfigurationError: triton is wanted and cannot be had.
    """
    if wanted == "torch":
        return Choice(backend="torch", reason="asked for")
    hindrance = hindrance_to_triton(device=device, dtype=dtype, head_size=head_size)
    if wanted == "triton":
        if hindrance is not None:
            raise ConfigurationError(
                f"--attention-backend is triton, but {hindrance}; choose auto or torch"
            )
        return Choice(backend="triton", reason="asked for")
    if hindrance is None and _interpreting():
        hindrance = "Triton only interprets here, which is for tests"
    if hindrance is not None:
        return Choice(backend="torch", reason=hindrance)
    return Choice(backend="triton", reason=f"compiled for {torch.cuda.get_device_name(device)}")


def hindrance_to_triton(*, device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Why the Triton kernels cannot run; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda":
        if not _interpreting():
            return f"the device is {device.type} and TRITON_INTERPRET is not 1"
    elif torch.cuda.get_device_capability(device) < _CAPABILITY:
        major, minor = torch.cuda.get_device_capability(device)
        return f"the device has compute capability {major}.{minor}, below {_CAPABILITY[0]}.0"
    if dtype not in _DTYPES:
        return f"the model computes in {str(dtype).removeprefix('torch.')}"
    if head_size > LARGEST_HEAD:
        return f"the model's heads have {head_size} elements, more than {LARGEST_HEAD}"
    return None


def load(choice: Choice) -> Kernels:
    """The kernels that were chosen; nothing of Triton is imported before."""
    if choice.backend == "torch":
        return TORCH
    from .evict import triton as evicting
    from .kv_write import triton as write
    from .paged_attention import triton as attend
    from .scored_attention import triton as scoring
    from .sparse_prefill import triton as sparse

    return Kernels(
        backend="triton",
        kv_write=write.kv_write,
        paged_attention=attend.paged_attention,
        scored_attention=scoring.paged_scored_attention,
        evict=evicting.evict,
        sparse_prefill=sparse.paged_sparse_prefill,
    )


def _interpreting() -> bool:
    from .common.triton import INTERPRETING

    return bool(INTERPRETING)
