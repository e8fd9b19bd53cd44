"""Settings of the engine; the server's settings extend them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..decoding.search.budget import MAX_SECONDS, MAX_SEQUENCES, MAX_THOUGHTS, MAX_TOKENS
from ..decoding.sparse_parameters import (
    LEAST_RECENT,
    LEAST_TOKENS,
    MAX_BUCKETS,
    MAX_RECENT,
    MIN_TOKENS,
    RECENT,
)


class EngineConfig(BaseModel):
    """How one engine runs one model.

    `model`: folder of a transformers model, or its name on the Hub; None is the embedded one.
    `served_model_name`: name that requests use; default: the folder's name.
    `device`: where the model runs; auto takes CUDA where there is some.
    `dtype`: of weights and cache; auto is bfloat16 on CUDA, float32 on a CPU.
    `quantization`: int8 keeps the weights of linear layers, and computes with them, in 8 bits.
    `trust_remote_code`: run Python code that comes with the model; only for models you trust.
    `max_model_len`: longest prompt plus answer in tokens; default: the model's own context.
    `kv_cache_memory`: fraction of the free memory (0 to 1], or bytes (above 1); default: 0.5, and
    0.9 of what the largest step leaves free on CUDA, where that is measured at start-up.
    `kv_cache_dtype`: what keys and values are kept in; auto is the model's own dtype, int8 and fp8
    come with a scale for each token and head.
    `attention_backend`: kernels of attention and cache writes; auto is triton on CUDA and native
    (compiled C++) on a CPU in float32, where they can run, torch elsewhere.
    `deterministic`: the same bits whatever else is served, which takes longer on a GPU; drafts are
    single lines then. With the triton and native backends.
    `cuda_graphs`: decoding steps are launched as a whole, on CUDA with the triton backend.
    `page_size`: tokens of one KV cache page.
    `prefix_cache`: reuse the keys and values of prompts that begin alike.
    `sparse_prefill`: how prompts are read where a request does not say; qk and hash let rows of
    long ones see a part of the keys only, as `decoding.sparse_prefill` does for one request.
    `sparse_prefill_min_tokens`: rows before this position see every key.
    `sparse_prefill_recent`: newest keys that every row sees.
    `sparse_prefill_keep`: share of the older keys, with qk (default: 0.25).
    `sparse_prefill_buckets`: how many there are, with hash (default: 16).
    `max_running`: sequences that run at once; also the largest n.
    `max_batch_tokens`: rows of one step, prompt chunks and decoding together; None fits the device.
    `chunk_tokens`: longest piece of one prompt in a step; None means the whole budget.
    `max_queued_requests`, `max_queued_tokens`: admission bounds on what waits; beyond them 429. Of
    several owners, one with less than an equal part gets in until there is twice as much.
    `search_thoughts`, `search_sequences`, `search_tokens`, `search_seconds`: what one search may
    use: nodes of its tree, sequences at once (default: a quarter of `max_running`), tokens of all
    its prompts and answers, time.
    `chat_control_tokens`: who may write control tokens into a chat: its template alone, so that
    what callers say is text, or anyone.
    `threads`: CPU threads of the model; default: OMP_NUM_THREADS, or by its size and the cores.
    `engine_in`: a thread of the server, or a process of its own, where HTTP does not hold it up;
    `LLM` needs neither and runs in the caller's thread.
    `stall_s`: a step that takes longer counts as a dead engine in /health.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    served_model_name: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "int8"] = "none"
    trust_remote_code: bool = False
    max_model_len: Annotated[int, Field(ge=16, le=2**24)] | None = None
    kv_cache_memory: Annotated[float, Field(gt=0, le=2**50)] | None = None
    kv_cache_dtype: Literal["auto", "bf16", "fp8", "int8"] = "auto"
    attention_backend: Literal["auto", "triton", "native", "torch"] = "auto"
    deterministic: bool = False
    cuda_graphs: bool = True
    page_size: Annotated[int, Field(ge=1, le=512)] = 16
    prefix_cache: bool = True
    sparse_prefill: Literal["off", "qk", "hash"] = "off"
    sparse_prefill_min_tokens: Annotated[int, Field(ge=LEAST_TOKENS, le=2**24)] = MIN_TOKENS
    sparse_prefill_recent: Annotated[int, Field(ge=LEAST_RECENT, le=MAX_RECENT)] = RECENT
    sparse_prefill_keep: Annotated[float, Field(gt=0, le=0.5)] | None = None
    sparse_prefill_buckets: Annotated[int, Field(ge=4, le=MAX_BUCKETS, multiple_of=2)] | None = None
    max_running: Annotated[int, Field(ge=1, le=4096)] = 64
    max_batch_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    chunk_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    max_queued_requests: Annotated[int, Field(ge=0, le=2**20)] = 512
    max_queued_tokens: Annotated[int, Field(ge=1, le=2**40)] = 1_000_000
    search_thoughts: Annotated[int, Field(ge=1, le=MAX_THOUGHTS)] = 2000
    search_sequences: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None
    search_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 1_000_000
    search_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 600.0
    chat_control_tokens: Literal["template", "anyone"] = "template"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    engine_in: Literal["thread", "process"] = "thread"
    stall_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
