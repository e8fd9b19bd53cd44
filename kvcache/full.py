"""The default policy: every key and value stays until the sequence ends."""

from .base import CachePolicy, NoParameters

FULL = CachePolicy(
    name="full",
    parameters=NoParameters,
    summary="Keep every key and value until the sequence ends.",
)
