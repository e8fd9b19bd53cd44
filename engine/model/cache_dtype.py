"""The dtype of keys and values in the cache: `--kv-cache-dtype`."""

from typing import Final

import torch

from ...errors import ConfigurationError
from ...kernels.quantise import LARGEST, dequantise, quantise

NAMED: Final = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}


def cache_dtype(name: str, model: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype for `name`: `auto` or one of `NAMED`. `model`: what the model computes in.

    Raises:
        ConfigurationError: this torch cannot convert to that dtype on the device.
    """
    if name == "auto":
        return model
    dtype = NAMED[name]
    if not works(dtype, device):
        raise ConfigurationError(
            f"--kv-cache-dtype is {name}, which torch {torch.__version__} cannot convert to on "
            f"{device}; choose auto, or another of {', '.join(n for n in NAMED if n != name)}"
        )
    return dtype


def works(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether numbers survive a round trip through that dtype, found by trying."""
    try:
        rows = torch.tensor([[1.0, -0.5, 0.0]], device=device)
        stored = quantise(rows, dtype) if dtype in LARGEST else (rows.to(dtype), None)
        return torch.allclose(dequantise(*stored, rows.dtype), rows, rtol=2**-4)
    except RuntimeError:  # includes NotImplementedError, for a missing operation
        return False
