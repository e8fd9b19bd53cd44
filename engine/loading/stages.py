"""Stages of loading: any exception in one becomes a one-line error that names it."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from transformers.utils import logging as transformers_logging

from ...errors import ConfigurationError, PenstockError

logger = logging.getLogger(__name__)

_LONGEST: Final = 400


@contextmanager
def stage(what: str) -> Generator[None]:
    """Turn exceptions into a ConfigurationError that names the stage; debug logs the traceback.

    Libraries read untrusted files here, and compiled ones may panic, which is not an `Exception`.
    Only exceptions that end the process, and our own errors, pass unchanged.
    """
    try:
        yield
    except (PenstockError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        logger.debug("%s", what, exc_info=True)
        raise ConfigurationError(f"{what}: {one_line(error)}") from error


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Silence transformers' logging, except at level debug: our own messages replace it."""
    if logger.isEnabledFor(logging.DEBUG):
        yield
        return
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def one_line(error: BaseException) -> str:
    """An exception's message, with its type where the text alone is not clear."""
    said = printable(str(error))
    name = type(error).__name__
    if not said:
        return name
    return said if isinstance(error, OSError) or type(error) is ValueError else f"{name}: {said}"


def printable(text: str) -> str:
    """`text` on one line, cut where it is long: untrusted files may hold anything."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 3] + "..."
