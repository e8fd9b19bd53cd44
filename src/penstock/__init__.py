"""Penstock: an OpenAI-compatible inference server with decoding and caching per request.

In Python:

>>> from penstock import LLM, SamplingParams
>>> LLM().generate("Once upon a time", SamplingParams(max_tokens=40))[0].outputs[0].text
"""

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decoding.constraint.fields import StructuredOutputs
    from .decoding.sampling_params import SamplingParams
    from .engine.llm import LLM
    from .engine.outputs.request_output import CompletionOutput, Logprob, RequestOutput

__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputs",
    "__version__",
]

__version__ = version("penstock")

# Before torch is loaded: its OpenMP threads would spin for milliseconds between operations and
# take the core that HTTP needs (docs/decisions/0009). Either variable, if set, is left as it is.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOMES = {
    "LLM": ".engine.llm",
    "CompletionOutput": ".engine.outputs.request_output",
    "Logprob": ".engine.outputs.request_output",
    "RequestOutput": ".engine.outputs.request_output",
    "SamplingParams": ".decoding.sampling_params",
    "StructuredOutputs": ".decoding.constraint.fields",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `penstock --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name], __name__), name)
