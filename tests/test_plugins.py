"""Loading what installed packages register: one that is broken is named."""

from pathlib import Path

import pytest

from penstock.errors import ConfigurationError
from penstock.plugins import plugin_names, plugins

GROUP = "penstock.evaluators"


def install(site: Path, package: str, **points: str) -> None:
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_package_adds_objects_by_name(site: Path) -> None:
    before = plugin_names(GROUP)
    install(site, "lengths", shortest="builtins:min", longest="builtins:max")
    assert plugin_names(GROUP) == sorted([*before, "longest", "shortest"])
    added = {plugin.name: plugin for plugin in plugins(GROUP) if plugin.package == "lengths"}
    assert {name: plugin.value for name, plugin in added.items()} == {
        "shortest": min,
        "longest": max,
    }


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no_such_module_here:f", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("math:no_such_function", "AttributeError: module 'math' has no attribute"),
        ("broken_on_import:f", "ZeroDivisionError: division by zero"),
    ],
    ids=["no module", "no object", "it raises"],
)
def test_one_that_cannot_be_imported_names_its_package(site: Path, value: str, why: str) -> None:
    (site / "broken_on_import.py").write_text("1 / 0\n")
    install(site, "broken", broken=value)
    with pytest.raises(ConfigurationError) as refusal:
        plugins(GROUP)
    said = str(refusal.value)
    assert said.startswith(f"the package broken registers 'broken' under {GROUP}, but {value} ")
    assert why in said
    assert "\n" not in said


def test_two_packages_of_one_name(site: Path) -> None:
    install(site, "one", same="builtins:max")
    install(site, "two", same="builtins:min")
    with pytest.raises(ConfigurationError, match="packages, one and two, register 'same'"):
        plugins(GROUP)
