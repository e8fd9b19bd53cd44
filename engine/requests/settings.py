"""Settings of requests: the prefill method of those that name none."""

from typing import Annotated, Literal

from pydantic import Field

from penstock.settings import Settings

from ...decoding.sparse_parameters import (
    LEAST_RECENT,
    LEAST_TOKENS,
    MAX_BUCKETS,
    MAX_RECENT,
    MIN_TOKENS,
    RECENT,
)


class SparsePrefillSettings(Settings):
    """Sparse prefill.

    `sparse_prefill`: method for the prompts of requests that name no prefill method. With qk and
    hash, rows of long prompts attend to a part of the keys, as with `decoding.sparse_prefill`.
    `sparse_prefill_min_tokens`: rows before this position attend to all keys.
    `sparse_prefill_recent`: number of newest keys that every row attends to.
    `sparse_prefill_keep`: share of the older keys that a row attends to, with qk; default: 0.25.
    `sparse_prefill_buckets`: number of hash buckets, with hash; default: 16.
    """

    sparse_prefill: Literal["off", "qk", "hash"] = "off"
    sparse_prefill_min_tokens: Annotated[int, Field(ge=LEAST_TOKENS, le=2**24)] = MIN_TOKENS
    sparse_prefill_recent: Annotated[int, Field(ge=LEAST_RECENT, le=MAX_RECENT)] = RECENT
    sparse_prefill_keep: Annotated[float, Field(gt=0, le=0.5)] | None = None
    sparse_prefill_buckets: Annotated[int, Field(ge=4, le=MAX_BUCKETS, multiple_of=2)] | None = None
