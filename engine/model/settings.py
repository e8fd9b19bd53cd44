"""Settings of how the model runs: its kernels and its KV cache."""

from typing import Annotated, Literal

from pydantic import Field

from penstock.settings import Settings


class KernelSettings(Settings):
    """Kernels.

    `attention_backend`: kernels of attention and KV cache writes; auto is triton on CUDA, native
    (compiled C++) on a CPU in float32, and torch where those cannot run.
    `deterministic`: a request's tokens and logprobs do not depend on what else is served. Slower on
    a GPU; draft trees are off. Requires the triton or the native backend.
    `cuda_graphs`: run decoding steps as CUDA graphs, on CUDA with the triton backend.
    """

    attention_backend: Literal["auto", "triton", "native", "torch"] = "auto"
    deterministic: bool = False
    cuda_graphs: bool = True


class CacheSettings(Settings):
    """KV cache.

    `kv_cache_memory`: size of the cache, as a fraction of the free memory (up to 1) or in bytes
    (above 1); default: 0.5 on a CPU, and 0.9 on CUDA of what the largest step leaves free. States
    beside keys and values, which some models have, take at most half of it.
    `kv_cache_dtype`: dtype of keys and values; auto is the dtype of the model; int8 and fp8 add a
    scale for each token and head.
    `page_size`: tokens of one page.
    `prefix_cache`: reuse keys and values among prompts with the same beginning.
    """

    kv_cache_memory: Annotated[float, Field(gt=0, le=2**50)] | None = None
    kv_cache_dtype: Literal["auto", "bf16", "fp8", "int8"] = "auto"
    page_size: Annotated[int, Field(ge=1, le=512)] = 16
    prefix_cache: bool = True
