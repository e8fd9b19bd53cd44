"""Finds a GGUF file, locally or on the Hub: `file.gguf`, or `owner/name:file.gguf`."""

import re
from pathlib import Path
from typing import Final

from huggingface_hub import hf_hub_download

from ....errors import ConfigurationError
from ..stages import printable, stage
from .parts import SUFFIX, part_names

_ON_HUB: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+):(?P<folder>(?:(?!\.+/)[\w.-]+/)*)(?P<file>[^/\\]+\.gguf)",
    re.ASCII,
)


def find_gguf(name: str | None) -> Path | None:
    """The file, or its first part, once all parts are here; None: no GGUF file is named.

    Raises:
        ConfigurationError: there is no such file, or it cannot be had from the Hub.
    """
    if name is None or not name.endswith(SUFFIX) or Path(name).is_dir():
        return None
    if Path(name).is_file():
        return Path(name)
    on_hub = _ON_HUB.fullmatch(name)
    if on_hub is None:
        raise ConfigurationError(
            f"{printable(name)}: no such file; of a model on the Hub, name owner/name:file{SUFFIX}"
        )
    repo, folder, file = on_hub["repo"], on_hub["folder"], on_hub["file"]
    parts = [folder + part for part in part_names(file)]
    with stage(f"{printable(name)}: neither a file nor to be had from the Hub"):
        files = [Path(hf_hub_download(repo, part)) for part in parts]
    return files[0]
