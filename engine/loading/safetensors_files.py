"""Headers of safetensors files, checked before the tensors that they describe are mapped.

    8 bytes  length n of the header, little endian
    n bytes  {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    the rest the tensors, one after the other, without gaps

Format: https://huggingface.co/docs/safetensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, TypeGuard, cast

from ...errors import ConfigurationError
from .folder import INDEX, WEIGHTS, parse, read_object, size_of
from .stages import printable

_LONGEST_HEADER: Final = 100_000_000
LFS: Final = b"version https://git-lfs"
"""How a pointer of Git LFS begins, which stands in place of a file that was not fetched."""
_BITS: Final = {
    **dict.fromkeys(("F4", "F6_E2M3", "F6_E3M2"), 0),  # not whole bytes; left to the library
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor as a header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_floating(self) -> bool:
        """Whether it holds numbers with a fraction."""
        return "F" in self.dtype

    @property
    def bits(self) -> int:
        """Of a number."""
        return _BITS[self.dtype]

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by name.

    Raises:
        ConfigurationError: files are missing, damaged or contradict each other.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return file_tensors(folder / WEIGHTS)
    return _sharded(folder)


def _sharded(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX
    fields = read_object(index)
    listed = fields.get("weight_map")
    if not isinstance(fields.get("metadata"), dict):
        raise ConfigurationError(f"{index}: metadata is not an object")
    if not isinstance(listed, dict) or not listed:
        raise ConfigurationError(f"{index}: weight_map is not an object of tensor names to files")
    places = cast(dict[str, Any], listed)
    found: dict[str, StoredTensor] = {}
    for shard in sorted({_shard_name(index, name, shard) for name, shard in places.items()}):
        if not (folder / shard).is_file():
            raise ConfigurationError(f"{index}: names {shard}, which is not in the folder")
        for name, tensor in file_tensors(folder / shard).items():
            if name in found:
                raise ConfigurationError(
                    f"{folder / shard}: {name} is in {found[name].file.name} too"
                )
            found[name] = tensor
    for name, shard in places.items():
        if name not in found or found[name].file.name != shard:
            where = f", but in {found[name].file.name}" if name in found else ""
            raise ConfigurationError(f"{index}: {printable(name)} is not in {shard}{where}")
    return found


def _shard_name(index: Path, name: str, shard: object) -> str:
    if isinstance(shard, str) and shard.endswith(".safetensors") and Path(shard).name == shard:
        return shard
    raise ConfigurationError(
        f"{index}: {printable(name)} is in {printable(repr(shard))}, and a .safetensors file of "
        "this folder is expected"
    )


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file by name.

    Raises:
        ConfigurationError: the file is missing or damaged.
    """
    try:
        size = size_of(path)
        with path.open("rb") as file:
            begin = file.read(8)
            length = int.from_bytes(begin, "little")
            fits = length <= min(size - 8, _LONGEST_HEADER)
            header = file.read(length) if fits else b""
    except FileNotFoundError as error:
        raise ConfigurationError(_without_weights(path)) from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    if LFS.startswith(begin) and begin:
        raise ConfigurationError(f"{path}: a pointer of Git LFS, not the weights; run git lfs pull")
    if size < 8 or not fits:
        needed = "at least 8" if size < 8 else f"{length} of header and 8 before it"
        raise ConfigurationError(f"{path}: damaged or cut off: {size} bytes, expected {needed}")
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: its header is not UTF-8") from error
    described = parse(text, path)
    if not isinstance(described, dict):
        raise ConfigurationError(f"{path}: its header is not a JSON object")
    return _tensors(path, cast(dict[str, Any], described), size - 8 - length)


def _tensors(path: Path, described: Mapping[str, Any], room: int) -> dict[str, StoredTensor]:
    """Check that the described tensors fill `room` bytes without gaps or overlaps."""
    found: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in described.items():
        if name == "__metadata__":
            continue
        told = printable(name)
        if not isinstance(entry, dict):
            raise ConfigurationError(f"{path}: {told} is not described by an object")
        fields = cast(dict[str, Any], entry)
        dtype, shape, span = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _BITS:
            said = printable(repr(dtype))
            raise ConfigurationError(f"{path}: {told} has the dtype {said}, which is none")
        if not _naturals(shape):
            said = printable(repr(shape))
            raise ConfigurationError(f"{path}: {told} has the shape {said}, which is none")
        if not _naturals(span) or len(span) != 2 or not span[0] <= span[1] <= room:
            said = printable(repr(span))
            raise ConfigurationError(
                f"{path}: {told} is at bytes {said}, and the file has {room} bytes of tensors; it "
                "is damaged or cut off"
            )
        tensor = StoredTensor(file=path, dtype=dtype, shape=tuple(shape))
        taken, held = tensor.numel * _BITS[dtype] // 8, span[1] - span[0]
        if _BITS[dtype] and taken != held:
            raise ConfigurationError(
                f"{path}: {told} of {dtype} {list(shape)} takes {taken} bytes, and has {held}"
            )
        found[name] = tensor
        spans.append((span[0], span[1], name))
    at = 0
    for first, last, name in sorted(spans):
        if first != at:
            kind = (
                "overlaps the tensor before it" if first < at else "does not follow the one before"
            )
            raise ConfigurationError(f"{path}: {printable(name)} {kind}")
        at = last
    if at != room:
        raise ConfigurationError(f"{path}: {room - at} bytes behind the last tensor; it is damaged")
    if not found:
        raise ConfigurationError(f"{path}: it holds no tensor")
    return found


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(each) is int and 0 <= each < 2**63 for each in cast(list[Any], value)
    )


def _without_weights(path: Path) -> str:
    others = sorted(each.name for each in path.parent.glob("*.bin"))
    if others:
        return f"{path}: no such file; {others[0]} is a pickle, save the model as safetensors"
    return f"{path}: no such file, nor {INDEX}"
