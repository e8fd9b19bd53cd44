"""The parameters of `sparse_prefill` and their bounds. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from ..registry import STRICT

MAX_TOKENS = 2**24
LEAST_TOKENS = 128
LEAST_RECENT = 64
MAX_RECENT = 2**16
MAX_BUCKETS = 64
"""Without a GPU each bucket of each head is a matrix product of its own."""
MAX_SINK = 1024
KEEP, BUCKETS, SINK, RECENT, MIN_TOKENS = 0.25, 16, 4, 512, 16_384

Form = Literal["qk", "hash", "off"]


class SparsePrefillParameters(BaseModel):
    """`method`: qk keeps keys of small norm, hash those in a query's bucket; off keeps every key.

    `min_tokens`: rows before this position see every key. `recent`: newest keys that all rows see.
    `keep`: with qk, the share of the older keys that is kept; 0.25. `sink`: with qk, first keys
    that are always kept; 4. `buckets`: with hash, their number, which is even; 16.
    """

    model_config = STRICT

    method: Form = "qk"
    min_tokens: int = Field(default=MIN_TOKENS, ge=LEAST_TOKENS, le=MAX_TOKENS)
    recent: int = Field(default=RECENT, ge=LEAST_RECENT, le=MAX_RECENT)
    keep: float | None = Field(default=None, gt=0, le=0.5, allow_inf_nan=False)
    sink: int | None = Field(default=None, ge=0, le=MAX_SINK)
    buckets: int | None = Field(default=None, ge=4, le=MAX_BUCKETS, multiple_of=2)

    @model_validator(mode="after")
    def _agrees(self) -> "SparsePrefillParameters":
        for name, form in (("keep", "qk"), ("sink", "qk"), ("buckets", "hash")):
            value = getattr(self, name)
            if value is not None and self.method != form:
                raise ValueError(
                    f"{name} is {value:g}, which is for the method {form}, but method is "
                    f"{self.method}; leave one of them out"
                )
        return self
