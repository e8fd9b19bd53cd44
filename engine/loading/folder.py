"""Finds a model's folder, locally or on the Hub, and reads its small JSON files."""

import json
import logging
import stat
from pathlib import Path
from typing import Any, Final

from huggingface_hub import snapshot_download

from ...errors import ConfigurationError
from .settings import ModelSettings
from .stages import printable, stage

logger = logging.getLogger(__name__)

EMBEDDED_MODEL: Final = Path(__file__).parents[2] / "models" / "nano" / "weights"
CONFIG: Final = "config.json"
GENERATION: Final = "generation_config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_SMALL_FILES: Final = ["*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken"]
_ELSEWHERE: Final = ["*/*", "consolidated*"]
"""Files in subfolders, and other formats of the same weights."""
_MOST_BYTES: Final = 64 << 20


def model_folder(settings: ModelSettings) -> Path:
    """The folder that holds the model; a model on the Hub is downloaded, or found in the cache.

    Raises:
        ConfigurationError: there is no such folder, or it cannot be had from the Hub.
    """
    if settings.model is None:
        if not (EMBEDDED_MODEL / CONFIG).is_file():
            raise ConfigurationError(
                "the embedded model is missing from this installation; name a model folder"
            )
        return EMBEDDED_MODEL
    name = settings.model
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ConfigurationError(f"{printable(name)}: no such model folder")
    with stage(f"{printable(name)}: neither a folder nor to be had from the Hub"):
        return _from_hub(name)


def _from_hub(name: str) -> Path:
    """Download the small files first: they tell which large files are the weights."""
    folder = Path(snapshot_download(name, allow_patterns=_SMALL_FILES, ignore_patterns=_ELSEWHERE))
    wanted = [WEIGHTS]
    if (folder / INDEX).is_file():
        shards = read_object(folder / INDEX).get("weight_map")
        if isinstance(shards, dict):
            wanted = sorted({str(shard) for shard in shards.values()})  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, *wanted]))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        ConfigurationError: it cannot be read, or is not a JSON object.
    """
    try:
        size = size_of(path)
        if size > _MOST_BYTES:
            raise ConfigurationError(f"{path}: {size} bytes, and at most {_MOST_BYTES} are read")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 at byte {error.start}") from error
    found = parse(text, path)
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"{path}: a JSON {type(found).__name__}, and an object is expected"
        )
    return found  # pyright: ignore[reportUnknownVariableType]


def size_of(path: Path) -> int:
    """Bytes of a file that can be read to its end: no pipe, which may never have one.

    Raises:
        ConfigurationError: it is a pipe, a socket or a device.
        OSError: there is no such file.
    """
    found = path.stat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ConfigurationError(f"{path}: not a regular file")
    return found.st_size


def parse(text: str, path: Path) -> Any:
    """Parse JSON without duplicate keys, on which parsers would disagree.

    Raises:
        ConfigurationError: it is not JSON, or a key is duplicated.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigurationError(f"{path}: not JSON: {error.msg} ({where})") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path}: not read: it is nested too deeply") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON: {printable(str(error))}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found
