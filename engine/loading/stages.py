"""Stages of loading: whatever one raises becomes a refusal of one line that names it."""

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
    """Name the stage in what it raises; the traceback is in the log at level debug.

    Libraries read files of strangers here, and compiled ones raise what is no Exception when they
    panic; only what ends the process passes.
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
    """What transformers logs about a model becomes ours to say, except at level debug."""
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
    """What an exception says, with its kind where the text alone would not tell."""
    said = printable(str(error))
    name = type(error).__name__
    if not said:
        return name
    return said if isinstance(error, OSError) or type(error) is ValueError else f"{name}: {said}"


def printable(text: str) -> str:
    """`text` on one line, cut where it is long: files of strangers may say anything."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 3] + "..."
