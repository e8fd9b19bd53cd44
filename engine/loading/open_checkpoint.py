"""Finds the checkpoint that settings name: a folder, a GGUF file, or either on the Hub."""

from collections.abc import Generator
from contextlib import contextmanager

from ...errors import ConfigurationError
from .checkpoint import Checkpoint, FolderCheckpoint
from .folder import CONFIG, model_folder
from .gguf.checkpoint import open_gguf
from .gguf.locate import find_gguf
from .gguf.parts import SUFFIX
from .settings import ModelSettings


@contextmanager
def open_checkpoint(settings: ModelSettings) -> Generator[Checkpoint]:
    """The checkpoint; files that were made for it are gone afterwards.

    Raises:
        ConfigurationError: there is none, or it cannot be had from the Hub.
    """
    file = find_gguf(settings.model)
    if file is not None:
        with open_gguf(file) as found:
            yield found
        return
    folder = model_folder(settings)
    if not (folder / CONFIG).exists() and (files := sorted(folder.glob(f"*{SUFFIX}"))):
        raise ConfigurationError(f"{folder}: no {CONFIG}; name a file of it, such as {files[0]}")
    yield FolderCheckpoint(folder, "nano" if settings.model is None else folder.name)
