"""What a request's `kv_cache` may say besides a policy."""

from collections.abc import Mapping
from typing import Final

from ...errors import RequestError
from ...registry import Spec
from ...validation import show

DROP_THINKING: Final = "kv_cache.drop_thinking"
_KEY: Final = "drop_thinking"


def split_kv_cache(spec: Spec) -> tuple[Spec, bool]:
    """The cache policy, and whether a thought is dropped when it has ended.

    Raises:
        RequestError: `drop_thinking` is neither true nor false.
    """
    if isinstance(spec, str):
        return (None, True) if spec == _KEY else (spec, False)
    if isinstance(spec, Mapping):
        dropped = spec.get(_KEY, False)
        if not isinstance(dropped, bool):
            raise RequestError(
                f"{DROP_THINKING} is {show(dropped)}; it must be true or false",
                param=DROP_THINKING,
                code="invalid_parameter",
            )
        return {name: raw for name, raw in spec.items() if name != _KEY}, dropped
    if spec is None:
        return None, False
    return [name for name in spec if name != _KEY], _KEY in spec
