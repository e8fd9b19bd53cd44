"""The header of a GGUF file, checked before anything is allocated or looped over for it.

    4 bytes   "GGUF"
    4         version, 2 or 3, little endian as all numbers
    8, 8      counts of tensors and of metadata
    ...       metadata: name, type, value
    ...       tensors: name, dimensions (columns first), type, offset behind the header
    padding   to a multiple of general.alignment, as before every tensor
    the rest  the tensors

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Final

from ....errors import ConfigurationError
from ..safetensors_files import LFS
from ..stages import printable
from .kinds import NAMES, SERVED

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_FORMATS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_FLOATS: Final = (6, 12)

_ALIGNMENT: Final = "general.alignment"
_USUAL_ALIGNMENT: Final = 32
_ALIGNMENTS: Final = tuple(2**power for power in range(3, 17))

_MOST_ENTRIES: Final = 1 << 16
_MOST_TENSORS: Final = 1 << 17
_MOST_VALUES: Final = 1 << 22
"""Values of all arrays together: several times those of the largest vocabularies."""
_LONGEST_NAME: Final = 1 << 10
_LONGEST_TEXT: Final = 1 << 24
_MOST_DIMENSIONS: Final = 4
_LARGEST: Final = 1 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A tensor as the header describes it. `start`: its first byte in the file.

    `shape`: rows first, as torch has it. `kind`: the type of its blocks, such as Q4_K.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A file's metadata and tensors by name. `memory`: the file, mapped and never written to."""

    file: Path
    memory: mmap.mmap
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]


def read_header(path: Path) -> Header:
    """Map a file and check its header.

    Raises:
        ConfigurationError: it cannot be read, is no GGUF file, is damaged, or holds types of blocks
            that are not served.
    """
    memory = _mapped(path)
    reader = _Reader(path, memory)
    _check_version(reader)
    tensors, entries = reader.number("Q", "tensor_count"), reader.number("Q", "metadata_kv_count")
    _check_count(path, "tensors", tensors, _MOST_TENSORS)
    _check_count(path, "metadata", entries, _MOST_ENTRIES)
    metadata = _metadata(reader, entries)
    alignment = metadata.get(_ALIGNMENT, _USUAL_ALIGNMENT)
    if type(alignment) is not int or alignment not in _ALIGNMENTS:
        raise ConfigurationError(
            f"{path}: {_ALIGNMENT} is {printable(repr(alignment))}, and a power of 2 from 8 to "
            f"{_ALIGNMENTS[-1]} is expected"
        )
    found = _tensors(reader, tensors, alignment)
    return Header(file=path, memory=memory, metadata=metadata, tensors=found)


def _mapped(path: Path) -> mmap.mmap:
    try:
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such file")
        with path.open("rb") as file:
            begin = file.read(len(LFS))
            if begin[:4] != MAGIC:
                raise ConfigurationError(_no_gguf(path, begin))
            # Private, so that torch may take it for memory of its own; nobody writes to it.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error


def _no_gguf(path: Path, begin: bytes) -> str:
    if begin == LFS:
        return f"{path}: a pointer of Git LFS, not the weights; run git lfs pull"
    if begin[:4] == MAGIC[::-1]:
        return f"{path}: a GGUF file of big-endian numbers; only little-endian ones are read"
    return f"{path}: no GGUF file: it begins with {printable(repr(begin[:4]))}"


def _check_version(reader: "_Reader") -> None:
    version = reader.number("I", "version")
    if version in _VERSIONS:
        return
    if version % 2**16 == 0 and version:
        raise ConfigurationError(
            f"{reader.path}: a GGUF file of big-endian numbers; only little-endian ones are read"
        )
    raise ConfigurationError(
        f"{reader.path}: version {version} of GGUF, and only versions 2 and 3 are read"
    )


def _check_count(path: Path, what: str, count: int, most: int) -> None:
    if count > most:
        raise ConfigurationError(
            f"{path}: it counts {count} {what}, and at most {most} are read; it is damaged"
        )


class _Reader:
    """Reads one value after the other; each is in the file before it is taken."""

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self.path = path
        self.memory = memory
        self.size = len(memory)
        self.at = len(MAGIC)
        self.values_left = _MOST_VALUES

    def take(self, count: int, what: str) -> int:
        """Pass over `count` bytes; returns where they begin."""
        if count > self.size - self.at:
            raise ConfigurationError(
                f"{self.path}: damaged or cut off in {printable(what)}: {count} bytes are expected "
                f"at byte {self.at}, and the file has {self.size}"
            )
        start = self.at
        self.at += count
        return start

    def number(self, kind: str, what: str) -> Any:
        """One number; `kind` is a format of `struct`."""
        start = self.take(struct.calcsize(f"<{kind}"), what)
        return struct.unpack_from(f"<{kind}", self.memory, start)[0]

    def text(self, what: str, longest: int) -> str:
        """One string.

        Raises:
            ConfigurationError: it is too long, cut off or not UTF-8.
        """
        length = self.number("Q", what)
        if length > longest:
            raise ConfigurationError(
                f"{self.path}: {printable(what)} is {length} bytes long, and at most {longest} are "
                "read; it is damaged"
            )
        start = self.take(length, what)
        try:
            return self.memory[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{self.path}: {printable(what)} is not UTF-8") from error

    def value(self, what: str) -> Any:
        """One value of the metadata, of whichever type."""
        kind = self.number("I", what)
        if kind == _ARRAY:
            return self._array(what)
        if kind == _STRING:
            return self.text(what, _LONGEST_TEXT)
        if kind in _FORMATS:
            found = self.number(_FORMATS[kind], what)
            return decimal(found) if kind == _FLOATS[0] else found
        raise ConfigurationError(
            f"{self.path}: {printable(what)} has the type {kind}, which is none"
        )

    def _array(self, what: str) -> list[Any]:
        kind, count = self.number("I", what), self.number("Q", what)
        if kind == _ARRAY:
            raise ConfigurationError(
                f"{self.path}: {printable(what)} is an array of arrays, which is not read"
            )
        if kind != _STRING and kind not in _FORMATS:
            raise ConfigurationError(
                f"{self.path}: {printable(what)} is an array of the type {kind}, which is none"
            )
        self.values_left -= count
        if self.values_left < 0:
            raise ConfigurationError(
                f"{self.path}: {printable(what)} counts {count} values, and all arrays together "
                f"may have {_MOST_VALUES}; it is damaged"
            )
        if kind == _STRING:
            return [self.text(f"{what}[{i}]", _LONGEST_TEXT) for i in range(count)]
        form = f"<{count}{_FORMATS[kind]}"
        start = self.take(struct.calcsize(form), what)
        return list(struct.unpack_from(form, self.memory, start))


def decimal(number: float) -> float:
    """The shortest decimal that is this number in float32: 1e-05 was meant, not 9.9999997e-06."""
    for digits in range(6, 10):
        found = float(f"{number:.{digits}g}")
        if struct.pack("<f", found) == struct.pack("<f", number):
            return found
    return number


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(count):
        name = reader.text(f"the name of metadata {i}", _LONGEST_NAME)
        if name in found:
            raise ConfigurationError(f"{reader.path}: {printable(name)} is in the metadata twice")
        found[name] = reader.value(name)
    return found


def _tensors(reader: _Reader, count: int, alignment: int) -> dict[str, TensorEntry]:
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for i in range(count):
        name = reader.text(f"the name of tensor {i}", _LONGEST_NAME)
        if name in entries:
            raise ConfigurationError(f"{reader.path}: {printable(name)} is in it twice")
        entries[name] = _entry(reader, name)
    if not entries:
        return {}
    first = -(-reader.at // alignment) * alignment
    found = {
        name: _placed(reader, name, *entry, first=first, alignment=alignment)
        for name, entry in entries.items()
    }
    in_order = sorted(found.values(), key=lambda entry: entry.start)
    for before, entry in pairwise(in_order):
        if before.start + before.bytes > entry.start:
            raise ConfigurationError(
                f"{reader.path}: {printable(entry.name)} overlaps {printable(before.name)}"
            )
    return found


def _entry(reader: _Reader, name: str) -> tuple[str, tuple[int, ...], int]:
    """The kind, shape and offset of a tensor."""
    told = printable(name)
    dimensions = reader.number("I", name)
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ConfigurationError(
            f"{reader.path}: {told} has {dimensions} dimensions, and 1 to {_MOST_DIMENSIONS} are "
            "expected"
        )
    shape = tuple(reader.number("Q", name) for _ in range(dimensions))[::-1]
    if not all(shape) or prod(shape) > _LARGEST:
        raise ConfigurationError(
            f"{reader.path}: {told} has the shape {list(shape)}, which is none"
        )
    number, offset = reader.number("I", name), reader.number("Q", name)
    kind = NAMES.get(number)
    if kind not in SERVED:
        said = f"number {number}, which is none" if kind is None else f"{kind}, which is not served"
        raise ConfigurationError(
            f"{reader.path}: {told} has the type {said}; served: {', '.join(SERVED)}"
        )
    return kind, shape, offset


def _placed(
    reader: _Reader,
    name: str,
    kind: str,
    shape: tuple[int, ...],
    offset: int,
    *,
    first: int,
    alignment: int,
) -> TensorEntry:
    """Check that the tensor is whole blocks inside the file. `first`: the first byte of tensors."""
    told = printable(name)
    block = SERVED[kind]
    if shape[-1] % block.inputs:
        raise ConfigurationError(
            f"{reader.path}: {told} has rows of {shape[-1]}, which are not whole blocks of {kind} "
            f"({block.inputs})"
        )
    if offset % alignment:
        raise ConfigurationError(
            f"{reader.path}: {told} is at byte {offset}, which is no multiple of {alignment} "
            f"({_ALIGNMENT})"
        )
    size = prod(shape) // block.inputs * block.bytes
    if first + offset + size > reader.size:
        raise ConfigurationError(
            f"{reader.path}: damaged or cut off: {told} ends at byte {first + offset + size}, and "
            f"the file has {reader.size}"
        )
    return TensorEntry(name=name, kind=kind, shape=shape, start=first + offset, bytes=size)
