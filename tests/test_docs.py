"""Documents that can be checked are: links, versions, flags, architectures."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from docs import api, configuration
from penstock.decoding.base import DecodingMethod
from penstock.engine.loading.gguf.architectures import ARCHITECTURES as GGUF_ARCHITECTURES
from penstock.kvcache.base import CachePolicy
from penstock.plugins import plugin_names
from penstock.registry import Registry
from penstock.server.protocol.field_table import FIELDS
from tests.tiny import ARCHITECTURES

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "*/README.md", "*/*/README.md", "engine/*/*/README.md")
    for path in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def prose(document: Path) -> str:
    return FENCED.sub("", document.read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(document)):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_changelog_knows_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert released[0] == project["version"]


def test_the_table_of_flags_is_current() -> None:
    text = configuration.DOCUMENT.read_text(encoding="utf-8")
    assert configuration.document(text) == text, "run make docs"


def test_the_tables_of_fields_are_current() -> None:
    text = api.DOCUMENT.read_text(encoding="utf-8")
    assert api.document(text) == text, "run make docs"
    for name in FIELDS:
        assert f"`{name}`" in text


def test_the_tree_of_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = next(block for block in FENCED.findall(text) if "server/" in block)
    named = set(re.findall(r"^([\w.]+)/", tree, re.MULTILINE))
    assert all((ROOT / name).is_dir() for name in named)
    code = {path.name for path in (ROOT / "src" / "penstock").iterdir() if path.is_symlink()}
    assert code <= named


def test_the_table_of_models_is_what_is_tested() -> None:
    text = (ROOT / "docs" / "supported-models.md").read_text(encoding="utf-8")
    section = text.partition("## Architectures")[2]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert listed == sorted(ARCHITECTURES)


def test_files_that_documents_name_exist() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|toml|json|yaml))`", prose(document)):
            places = (ROOT, ROOT / "src" / "penstock", document.parent, document.parent.parent)
            assert any((place / name).exists() for place in places), f"{document.name}: {name}"


def test_methods_that_documents_name_exist() -> None:
    """`Class.method` in a document is in the code."""
    folders = ("server", "engine", "decoding", "kvcache", "kernels")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for document in DOCUMENTS:
        for owner, method in re.findall(r"`([A-Z]\w+)\.(\w+)`", prose(document)):
            found = re.search(rf"class {owner}\b", code) and re.search(rf"def {method}\b", code)
            assert found, f"{document.name}: {owner}.{method}"


def test_every_cache_policy_is_documented_with_its_parameters() -> None:
    text = (ROOT / "docs" / "kv-cache" / "README.md").read_text(encoding="utf-8")
    policies = Registry[CachePolicy[Any]].from_entry_points("kv_cache", "penstock.kv_cache").methods
    for name, policy in policies.items():
        assert f"| `{name}`" in text
        section = text.partition(f"## {name}:")[2].partition("\n## ")[0]
        listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert set(listed) == set(policy.parameters.model_json_schema().get("properties", {})), name


def test_every_gguf_architecture_is_documented() -> None:
    text = (ROOT / "docs" / "supported-models.md").read_text(encoding="utf-8")
    section = text.partition("## A GGUF file")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \| `(\w+)`", section, re.MULTILINE)
    assert dict(listed) == {name: each.model_type for name, each in GGUF_ARCHITECTURES.items()}


def test_every_weight_format_is_documented() -> None:
    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(listed) == plugin_names("penstock.weight_formats")


def test_every_decoding_method_has_a_page_with_its_parameters() -> None:
    methods = (
        Registry[DecodingMethod[Any]].from_entry_points("decoding", "penstock.decoding").methods
    )
    index = (ROOT / "docs" / "decoding" / "README.md").read_text(encoding="utf-8")
    for name, method in methods.items():
        assert f"`{name}`" in index
        parameters = method.parameters.model_json_schema().get("properties", {})
        page = ROOT / "docs" / "decoding" / f"{name}.md"
        assert page.exists() == bool(parameters)
        if parameters:
            listed = re.findall(r"^\| `(\w+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert set(listed) == set(parameters), name
