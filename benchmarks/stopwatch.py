"""Times of functions that were not written to be timed: they are wrapped for a while, from outside.

The code under test holds no timers, so the plain path costs nothing. What the wrapping itself costs
shows in the results: they hold the whole step with and without it.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch


class Stopwatch:
    """Adds up the time spent in wrapped functions, by name.

    `synchronise` waits until the device has done what was asked of it; without it, a device's
    time is charged to whoever waits first.
    """

    def __init__(self, synchronise: Callable[[], None]) -> None:
        self._synchronise = synchronise
        self._spent_s: dict[str, float] = defaultdict(float)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed; nested ones are counted in both."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun_s = time.perf_counter()
            result = function(*args, **kwargs)
            self._synchronise()
            self._spent_s[name] += time.perf_counter() - begun_s
            return result

        return timed

    @contextmanager
    def watching(self, name: str, owner: object, attribute: str) -> Generator[None]:
        """Time a method of one object inside the block.

        Raises:
            AttributeError: there is no such method any more; the benchmark must follow the code.
        """
        with patch.object(owner, attribute, self.wrap(name, getattr(owner, attribute))):
            yield

    def lap(self) -> dict[str, float]:
        """Seconds by name since the last lap."""
        spent_s = dict(self._spent_s)
        self._spent_s.clear()
        return spent_s
