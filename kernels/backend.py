"""Which kernels serve: one explicit choice, with its reason."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Final, Literal

import torch
from torch import Tensor

from ..errors import ConfigurationError
from .evict import reference as evict
from .gumbel_argmax import native as compiled_sampling
from .gumbel_argmax import reference as gumbel_argmax
from .kv_write import reference as kv_write
from .native.library import Unavailable, library
from .paged_attention import native as compiled_attention
from .paged_attention import reference as paged_attention
from .scored_attention import native as compiled_scores
from .scored_attention import reference as scored_attention
from .sparse_prefill import reference as sparse_prefill

Backend = Literal["triton", "native", "torch"]
LARGEST_HEAD: Final = 256
"""The largest head size whose tiles have been compiled."""
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_CAPABILITY: Final = (8, 0)
"""Asynchronous copies and bfloat16 products begin with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """What was chosen, and why, in words that follow a colon."""

    backend: Backend
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Kernels of one backend, with the signatures of the references; TORCH where it has none."""

    backend: Backend
    kv_write: Callable[..., None]
    paged_attention: Callable[..., Tensor]
    scored_attention: Callable[..., tuple[Tensor, list[Tensor]]]
    """`paged_scored_attention`, over pages as the one before it."""
    evict: Callable[..., None]
    argmax: Callable[[Tensor], Tensor]
    gumbel_argmax: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    sparse_prefill: Callable[..., Tensor] = sparse_prefill.paged_sparse_prefill
    splits_keys: bool = True
    """Triton: programs share the keys of rows in decoding, and not those of rows in prompts."""


TORCH: Final = Kernels(
    backend="torch",
    kv_write=kv_write.kv_write,
    paged_attention=paged_attention.paged_attention,
    scored_attention=scored_attention.paged_scored_attention,
    evict=evict.evict,
    argmax=gumbel_argmax.argmax,
    gumbel_argmax=gumbel_argmax.gumbel_argmax,
)


def choose(
    wanted: Backend | Literal["auto"], *, device: torch.device, dtype: torch.dtype, head_size: int
) -> BackendChoice:
    """The backend of attention. `dtype`: of the model; `head_size`: its largest.

    Raises:
        ConfigurationError: what is wanted cannot be had.
    """
    if wanted == "torch":
        return BackendChoice(backend="torch", reason="asked for")
    if wanted == "native" or (wanted == "auto" and device.type == "cpu"):
        unsupported_reason = native_unsupported_reason(device=device, dtype=dtype)
        found = BackendChoice(backend="native", reason="compiled C++")
    else:
        unsupported_reason = triton_unsupported_reason(
            device=device, dtype=dtype, head_size=head_size
        )
        if unsupported_reason is None and wanted == "auto" and _interpreting():
            unsupported_reason = "Triton only interprets here, which is for tests"
        found = BackendChoice(backend="triton", reason=f"compiled for {device}")
    if unsupported_reason is None:
        return found if wanted == "auto" else replace(found, reason="asked for")
    if wanted != "auto":
        raise ConfigurationError(
            f"--attention-backend is {wanted}, but {unsupported_reason}; choose auto or torch"
        )
    return BackendChoice(backend="torch", reason=unsupported_reason)


def native_unsupported_reason(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels compiled for CPUs cannot run; None where they can."""
    if device.type != "cpu":
        return f"the device is {device.type}, and the compiled kernels are for CPUs"
    if dtype != torch.float32:
        return f"the model computes in {str(dtype).removeprefix('torch.')}, not in float32"
    found = library()
    return f"of the compiled kernels, {found.reason}" if isinstance(found, Unavailable) else None


def triton_unsupported_reason(
    *, device: torch.device, dtype: torch.dtype, head_size: int
) -> str | None:
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


def load(choice: BackendChoice, *, splits_keys: bool = True) -> Kernels:
    """The kernels that were chosen; nothing of Triton is imported before."""
    if choice.backend == "torch":
        return TORCH
    if choice.backend == "native":
        build = library()
        assert not isinstance(build, Unavailable), "chosen"
        best, drawn = compiled_sampling.launchers(build)
        return replace(
            TORCH,
            backend="native",
            paged_attention=compiled_attention.launcher(build),
            scored_attention=compiled_scores.launcher(build),
            argmax=best,
            gumbel_argmax=drawn,
        )
    from .evict import triton as evicting
    from .kv_write import triton as write
    from .paged_attention import triton as attend
    from .scored_attention import triton as scoring
    from .sparse_prefill import triton as sparse

    return replace(
        TORCH,
        backend="triton",
        kv_write=write.kv_write,
        paged_attention=partial(attend.paged_attention, split=splits_keys),
        scored_attention=partial(scoring.paged_scored_attention, split=splits_keys),
        evict=evicting.evict,
        sparse_prefill=partial(sparse.paged_sparse_prefill, split=splits_keys),
        splits_keys=splits_keys,
    )


def _interpreting() -> bool:
    from .common.triton import INTERPRETING

    return bool(INTERPRETING)
