"""GGUF files with damaged or lying headers."""

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock.engine.config import EngineConfig
from penstock.engine.loading.open_checkpoint import open_checkpoint
from penstock.errors import ConfigurationError
from penstock.server import cli
from tests.engine.loading.gguf_files import merging_tokenizer, save_gguf
from tests.engine.loading.refused import refused
from tests.tiny import save_tiny

HUGE = 2**63
U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10

Entry = tuple[str, int, bytes]
Tensor = tuple[str, list[int], int, int]


def text(value: str, length: int | None = None) -> bytes:
    """A string as files have it; `length`: one that it lies about."""
    return struct.pack("<Q", len(value.encode()) if length is None else length) + value.encode()


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


ARCHITECTURE: Entry = ("general.architecture", STRING, text("llama"))


def raw(
    entries: list[Entry],
    tensors: list[Tensor],
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    behind: int = 4096,
) -> bytes:
    """The bytes of a file. `counts`: of tensors and metadata, instead of the true ones.

    `behind`: bytes of tensors.
    """
    counts = (len(tensors), len(entries)) if counts is None else counts
    made = b"GGUF" + struct.pack("<IQQ", version, *counts)
    for name, kind, value in entries:
        made += text(name) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        made += text(name) + struct.pack("<I", len(shape))
        made += b"".join(struct.pack("<Q", size) for size in shape)
        made += struct.pack("<IQ", kind, offset)
    return made + bytes(-len(made) % 32) + bytes(behind)


def written(place: Path, content: bytes) -> Path:
    file = place / "m.gguf"
    file.write_bytes(content)
    return file


def norm(
    name: str = "output_norm.weight",
    *,
    shape: Sequence[int] = (64,),
    kind: int = 0,
    offset: int = 0,
) -> Tensor:
    """A tensor of 64 numbers in F32."""
    return (name, list(shape), kind, offset)


OTHER = norm(name="blk.0.attn_norm.weight", offset=256)
HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no GGUF file: it begins with b''"),
    "another format": (b"PK\x03\x04" + bytes(64), "no GGUF file"),
    "the magic alone": (b"GGUF", "cut off in version"),
    "a pointer of git": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "version 1": (raw([], [], version=1), "version 1 of GGUF"),
    "version 4": (raw([], [], version=4), "version 4 of GGUF"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^63 tensors": (raw([], [], counts=(HUGE, 0)), f"counts {HUGE} tensors"),
    "2^63 metadata": (raw([], [], counts=(0, HUGE)), f"counts {HUGE} metadata"),
    "more metadata than there is": (raw([], [], counts=(0, 9000), behind=0), "cut off"),
    "more tensors than there are": (
        raw([ARCHITECTURE], [norm()], counts=(9000, 1), behind=0),
        "cut off",
    ),
    "a name of gigabytes": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**33),
        f"the name of metadata 0 is {2**33} bytes long",
    ),
    "a string of gigabytes": (
        raw([("general.name", STRING, text("x", 2**33))], []),
        f"general.name is {2**33} bytes long",
    ),
    "a string behind the end": (
        raw([("general.name", STRING, text("x", 2**20))], []),
        "cut off in general.name",
    ),
    "a string that is none": (
        raw([("general.name", STRING, struct.pack("<Q", 2) + b"\xff\xfe")], []),
        "general.name is not UTF-8",
    ),
    "an array of 2^63": (
        raw([("a.b", ARRAY, array(U64, HUGE))], []),
        f"a.b counts {HUGE} values",
    ),
    "an array behind the end": (
        raw([("a.b", ARRAY, array(U64, 2**20))], []),
        f"cut off in a.b: {2**23} bytes are expected",
    ),
    "strings behind the end": (
        raw([("a.b", ARRAY, array(STRING, 2**20))], [], behind=64),
        "cut off in a.b",
    ),
    "arrays in arrays": (
        raw([("a.b", ARRAY, array(ARRAY, 1, array(ARRAY, 1)))], []),
        "a.b is an array of arrays",
    ),
    "an unknown type of value": (raw([("a.b", 13, b"")], []), "a.b has the type 13"),
    "an unknown type of values": (
        raw([("a.b", ARRAY, array(77, 1))], []),
        "a.b is an array of the type 77",
    ),
    "metadata twice": (
        raw([ARCHITECTURE, ARCHITECTURE], []),
        "general.architecture is in the metadata twice",
    ),
    "a tensor twice": (raw([ARCHITECTURE], [norm(), norm()]), "output_norm.weight is in it twice"),
    "tensors that overlap": (
        raw([ARCHITECTURE], [norm(), norm(name="a", offset=224)]),
        "a overlaps output_norm.weight",
    ),
    "a tensor behind the end": (
        raw([ARCHITECTURE], [norm(offset=2**40)]),
        "output_norm.weight ends at byte",
    ),
    "an offset beyond all": (
        raw([ARCHITECTURE], [norm(offset=HUGE)]),
        "output_norm.weight ends at byte",
    ),
    "a tensor between": (
        raw([ARCHITECTURE], [norm(offset=36)]),
        "output_norm.weight is at byte 36, which is no multiple of 32",
    ),
    "no dimension": (raw([ARCHITECTURE], [norm(shape=[])]), "has 0 dimensions"),
    "five dimensions": (raw([ARCHITECTURE], [norm(shape=[1] * 5)]), "has 5 dimensions"),
    "a dimension of 0": (raw([ARCHITECTURE], [norm(shape=[0])]), "has the shape [0]"),
    "dimensions of 2^63": (
        raw([ARCHITECTURE], [norm(shape=[HUGE, HUGE])]),
        f"has the shape [{HUGE}, {HUGE}]",
    ),
    "a type that is not served": (
        raw([ARCHITECTURE], [norm(name="blk.0.attn_q.weight", kind=16, shape=[256, 2])]),
        "blk.0.attn_q.weight has the type IQ2_XXS, which is not served; served: F32, F16",
    ),
    "integers": (raw([ARCHITECTURE], [norm(kind=26)]), "has the type I32, which is not served"),
    "an unknown type": (raw([ARCHITECTURE], [norm(kind=999)]), "type number 999, which is none"),
    "half a block": (
        raw([ARCHITECTURE], [norm(kind=12, shape=[128, 2])]),
        "has rows of 128, which are not whole blocks of Q4_K (256)",
    ),
    "alignment 0": (
        raw([("general.alignment", U32, struct.pack("<I", 0))], []),
        "general.alignment is 0",
    ),
    "alignment 33": (
        raw([("general.alignment", U32, struct.pack("<I", 33))], []),
        "general.alignment is 33",
    ),
    "alignment in words": (
        raw([("general.alignment", STRING, text("no"))], []),
        "general.alignment is 'no'",
    ),
    "no tensor": (raw([ARCHITECTURE], []), "it holds no tensor"),
    "no architecture": (raw([], [norm(), OTHER]), "general.architecture is None"),
    "an unknown architecture": (
        raw([("general.architecture", STRING, text("mamba"))], [norm()]),
        "general.architecture is 'mamba'; served: llama, qwen2",
    ),
    "an adapter": (
        raw([ARCHITECTURE, ("general.type", STRING, text("adapter"))], [norm()]),
        "general.type is 'adapter'",
    ),
    "control characters": (
        raw([("a\x1b[31m\n", 13, b"")], []),
        "a [31m has the type 13",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, tmp_path: Path) -> None:
    content, expected = HEADERS[name]
    assert expected in refused(written(tmp_path, content))


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("gguf") / "m"
    save_tiny("llama", folder, tokenizer=merging_tokenizer())
    return save_gguf(folder, tmp_path_factory.mktemp("good") / "m.gguf").read_bytes()


def test_a_file_cut_off_anywhere(good: bytes, tmp_path: Path) -> None:
    header_bytes = 8192
    cuts = [*range(0, header_bytes, 8), *range(header_bytes, len(good) - 32, 8192)]
    file = tmp_path / "m.gguf"
    file.write_bytes(good)
    with open_checkpoint(EngineConfig(model=str(file))) as whole:
        assert len(whole.stored()) == 30
    for cut in cuts:
        file.write_bytes(good[:cut])
        with (
            pytest.raises(ConfigurationError) as found,
            open_checkpoint(EngineConfig(model=str(file))),
        ):
            pass
        assert str(found.value).startswith(f"{file}: ")
        assert str(found.value).isprintable()


def test_the_command_line_says_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_THREADS", "1")
    file = written(tmp_path, HEADERS["2^63 tensors"][0])
    assert cli.main(["generate", "Hello", "--model", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(file) in said
