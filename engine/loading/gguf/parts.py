"""A GGUF model of one file, or of several: `name-00001-of-00003.gguf` and its further parts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ....errors import ConfigurationError
from ..stages import printable
from .header import Header, TensorEntry, read_header

SUFFIX: Final = ".gguf"
_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_COUNT: Final = "split.count"
_TENSORS: Final = "split.tensors.count"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """`file`: the only one or the first. `tensors`: by name, with the header of their file."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[Header, TensorEntry]]

    @property
    def name(self) -> str:
        """The file's name without its suffix and the number of its part."""
        part = _PART.fullmatch(self.file.name)
        return self.file.name.removesuffix(SUFFIX) if part is None else part["stem"]


def part_names(name: str) -> list[str]:
    """The names of all parts of the model whose first part is `name`; [name] if it has no others.

    Raises:
        ConfigurationError: it is another part than the first.
    """
    part = _PART.fullmatch(name)
    if part is None:
        return [name]
    stem, number, count = part["stem"], int(part["number"]), int(part["count"])
    if number != 1:
        first = f"{stem}-00001-of-{count:05}{SUFFIX}"
        raise ConfigurationError(
            f"{printable(name)}: part {number} of {count}; name the first: {printable(first)}"
        )
    return [f"{stem}-{i:05}-of-{count:05}{SUFFIX}" for i in range(1, count + 1)]


def read_model(path: Path) -> GgufModel:
    """The headers of a file and its further parts.

    Raises:
        ConfigurationError: a part is missing or damaged, or parts do not belong together.
    """
    files = [path.with_name(name) for name in part_names(path.name)]
    for each in files:
        if not each.is_file():
            beside = "" if each == path else f"; {path.name} is part 1 of {len(files)}"
            raise ConfigurationError(f"{each}: no such file{beside}")
    found: dict[str, tuple[Header, TensorEntry]] = {}
    headers = [read_header(each) for each in files]
    for number, header in enumerate(headers):
        _check_part(header, number, len(files))
        for name, entry in header.tensors.items():
            if name in found:
                other = found[name][0].file.name
                raise ConfigurationError(f"{header.file}: {printable(name)} is in {other} too")
            found[name] = (header, entry)
    first = headers[0]
    expected = first.metadata.get(_TENSORS, len(found)) if len(files) > 1 else len(found)
    if expected != len(found):
        raise ConfigurationError(
            f"{path}: {_TENSORS} is {printable(repr(expected))}, and its {len(files)} parts have "
            f"{len(found)}"
        )
    if not found:
        raise ConfigurationError(f"{path}: it holds no tensor")
    return GgufModel(file=path, metadata=first.metadata, tensors=found)


def _check_part(header: Header, number: int, count: int) -> None:
    for name, expected in ((_COUNT, count), ("split.no", number)):
        told = header.metadata.get(name, 1 if name == _COUNT else 0)
        if told != expected and (told, expected) != (0, 1):
            raise ConfigurationError(
                f"{header.file}: {name} is {printable(repr(told))}, and by its name it is part "
                f"{number + 1} of {count}"
            )
