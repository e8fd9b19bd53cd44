"""How a GGUF file is named: a path, or a file of a repository on the Hub."""

from pathlib import Path

import pytest

from penstock.engine.loading.gguf import locate
from penstock.engine.loading.gguf.locate import find_gguf
from penstock.engine.loading.gguf.parts import part_names
from penstock.errors import ConfigurationError


@pytest.mark.parametrize("name", [None, "folder", "owner/name", "owner/name:file", "m.safetensors"])
def test_other_names_are_folders(name: str | None) -> None:
    assert find_gguf(name) is None


def test_a_folder_that_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").mkdir()
    assert find_gguf(str(tmp_path / "m.gguf")) is None


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    assert find_gguf(str(file)) == file


@pytest.mark.parametrize(
    "name",
    [
        "m.gguf",
        "/nothing/m.gguf",
        "owner/name/m.gguf",
        "name:m.gguf",
        "a/b/c:m.gguf",
        "a/b:../m.gguf",
    ],
)
def test_what_is_neither(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no such file; .* name owner/name:file\.gguf"):
        find_gguf(name)


def test_parts() -> None:
    assert part_names("m.gguf") == ["m.gguf"]
    assert part_names("m-00001-of-00003.gguf") == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with pytest.raises(ConfigurationError, match=r"part 2 of 3; name the first: m-00001-of-00003"):
        part_names("m-00002-of-00003.gguf")


def test_all_parts_are_had_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is not here: this stands for its client."""
    asked: list[tuple[str, str]] = []

    def download(repo: str, name: str) -> str:
        asked.append((repo, name))
        return f"/cache/{name}"

    monkeypatch.setattr(locate, "hf_hub_download", download)
    found = find_gguf("owner/some.name:Q4_K_M/m-00001-of-00002.gguf")
    assert found == Path("/cache/Q4_K_M/m-00001-of-00002.gguf")
    assert asked == [
        ("owner/some.name", "Q4_K_M/m-00001-of-00002.gguf"),
        ("owner/some.name", "Q4_K_M/m-00002-of-00002.gguf"),
    ]


def test_what_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, name: str) -> str:
        raise FileNotFoundError(2, "not\nthere", name)

    monkeypatch.setattr(locate, "hf_hub_download", download)
    with pytest.raises(ConfigurationError, match="neither a file nor to be had from the Hub") as e:
        find_gguf("owner/name:m.gguf")
    assert str(e.value).startswith("owner/name:m.gguf: ")
    assert str(e.value).isprintable()
