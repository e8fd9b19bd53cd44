"""The prefill method of a request: its own, or the server's default where that is possible."""

from dataclasses import replace
from typing import Any

from ...decoding.methods import Methods
from ...decoding.prefill import Prefill
from ...errors import RequestError
from ...kvcache.base import CachePolicy, Retention
from ...registry import Choice


def settled(
    methods: Methods,
    default: Choice[Prefill[Any]] | None,
    *,
    unsupported_reason: str | None,
    policy: Choice[CachePolicy[Any]],
    retention: Retention | None,
) -> Methods:
    """The methods, with the default in the `prefill` slot where the request names none.

    `unsupported_reason`: why no prefill method can serve this model. The default is dropped where
    it cannot be combined with the rest; a method that changes nothing is dropped too.

    Raises:
        RequestError: the request's own choice cannot be served.
    """
    choice = methods.prefill or default
    if choice is None or choice.method.first(choice.parameters) is None:
        return replace(methods, prefill=None)
    field = f"decoding.{choice.method.name}"
    reason = (
        None
        if unsupported_reason is None
        else f"{field} cannot serve this model: {unsupported_reason}"
    )
    if reason is None and (policy.method.scores or (retention and retention.score is not None)):
        reason = (
            f"{field} cannot be combined with kv_cache.{policy.method.name}, which counts the "
            "attention that each key receives, from every row"
        )
    if reason is None:
        return replace(methods, prefill=choice)
    if methods.prefill is not None:
        code = (
            "unsupported_parameter" if unsupported_reason is not None else "unsupported_combination"
        )
        raise RequestError(f"{reason}; leave it out", param=field, code=code)
    return methods
