"""The house's rules that an import or a file name can break (docs/architecture.md)."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "penstock"

BELOW: dict[str, set[str]] = {
    "server": {"engine", "decoding", "kvcache", "kernels", "bench"},
    "engine": {"decoding", "kvcache", "kernels"},
    "decoding": {"kernels"},
    "kvcache": {"kernels"},
    "kernels": set(),
    "models": {"decoding"},
}
"""Which floors each floor may import; `models` is data, which the engine reads by path: the code
that made it shares one module of `decoding`."""

DOORS = {"llm", "async_engine", "build", "config"}
ROOMS: dict[str, set[str]] = {
    "adapters": set(),
    "state": {"adapters"},
    "pictures": {"state"},
    "requests": {"pictures", "state"},
    "outputs": {"requests", "state"},
    "recurrent": set(),
    "attention": {"recurrent", "state"},
    "weights": set(),
    "model": {"adapters", "attention", "recurrent", "state", "weights"},
    "loading": {
        "adapters",
        "attention",
        "model",
        "pictures",
        "recurrent",
        "requests",
        "state",
        "weights",
    },
    "scheduling": {"state"},
    "speculation": {"state"},
    "core": {"adapters", "model", "scheduling", "speculation", "state"},
    "search": {"outputs", "requests", "state"},
    "transport": {"core", "loading", "requests", "state", "build", "config"},
}
"""Which rooms and doors of `engine` each of its rooms may import."""

EVERYWHERE = {"errors", "plugins", "registry", "settings", "validation"}
"""Modules of src/penstock that every floor but `models` may import."""

BESIDE = ("tests", "benchmarks", "loadtest", "docs", "deploy", "examples")


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path, package: str) -> Iterator[str]:
    """Absolute names that a module imports, wherever in it; `package` is the one it lies in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    below = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    return ".".join(["penstock", *path.relative_to(below).parent.parts])


def modules() -> dict[str, Path]:
    """Every module of the floors by its absolute name."""
    paths = [path for floor in BELOW for path in sources(ROOT / floor)]
    return {f"{package_of(path)}.{path.stem}": path for path in paths}


@pytest.mark.parametrize("floor", BELOW)
def test_imports_only_go_down(floor: str) -> None:
    common = EVERYWHERE if floor != "models" else set[str]()
    allowed = {floor} | BELOW[floor] | common
    for path in sources(ROOT / floor):
        for name in imports(path, package_of(path)):
            words = name.split(".")
            if words[0] == "penstock" and name != "penstock.__version__":
                assert words[1] in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_models_import_only_the_checker_of_puzzles() -> None:
    for path in sources(ROOT / "models"):
        for name in imports(path, package_of(path)):
            shared = name.startswith("penstock.decoding.search.arithmetic.")
            assert shared or not name.startswith("penstock.decoding"), path


def test_rooms_of_the_engine_import_what_their_table_says() -> None:
    rooms = {path.parent.name for path in (ROOT / "engine").glob("*/*.py")}
    assert rooms == set(ROOMS)
    assert {path.stem for path in (ROOT / "engine").glob("*.py")} == DOORS
    for room, others in ROOMS.items():
        for path in sources(ROOT / "engine" / room):
            for name in imports(path, package_of(path)):
                words = name.split(".")
                if words[:2] == ["penstock", "engine"]:
                    assert words[2] in {room, *others}, f"{path.relative_to(ROOT)} imports {name}"


def test_no_module_imports_itself_through_others() -> None:
    """Not for its types alone either: a circle is one module in two files."""
    known = modules()
    graph = {
        module: {
            target
            for name in imports(path, package_of(path))
            for target in (name, name.rpartition(".")[0])
            if target in known and target != module
        }
        for module, path in known.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_compiled_sources_include_only_kernels() -> None:
    for path in [*(ROOT / "kernels").rglob("*.h"), *(ROOT / "kernels").rglob("*.cpp")]:
        for name in re.findall(r'#include "(.+)"', path.read_text(encoding="utf-8")):
            included = (path.parent / name).resolve()
            assert included.is_file()
            assert included.is_relative_to(ROOT / "kernels"), f"{path} includes {name}"
    assert not [
        path for floor in BELOW for path in (ROOT / floor).rglob("*.h") if floor != "kernels"
    ]


def test_what_every_floor_needs_needs_no_floor() -> None:
    for name in EVERYWHERE:
        for imported in imports(PACKAGE / f"{name}.py", "penstock"):
            words = imported.split(".")
            assert words[0] != "penstock" or words[1] in EVERYWHERE


def test_clients_see_what_a_client_sees() -> None:
    """`penstock bench` and the load tests measure from outside; they share that client only."""
    client = ("penstock.bench.", "penstock.errors.")
    for path in [*sources(PACKAGE / "bench"), *sources(ROOT / "loadtest")]:
        for name in imports(path, package_of(path)):
            ours = name.startswith("penstock.") and not name.startswith("penstock.loadtest.")
            assert not ours or name.startswith(client), f"{path.relative_to(ROOT)} imports {name}"


def test_no_folder_is_imported_by_its_plain_name() -> None:
    folders = [*BELOW, *BESIDE, "src"]
    for path in (path for folder in folders for path in sources(ROOT / folder)):
        for name in imports(path, package_of(path)):
            assert name.split(".")[0] not in BELOW, f"{path.relative_to(ROOT)} imports {name}"


def test_links_and_no_packages_of_their_own() -> None:
    links = {link.name: link for link in PACKAGE.iterdir() if link.is_symlink()}
    assert set(links) == set(BELOW)
    assert all(link.readlink() == Path("../..") / name for name, link in links.items())
    # A plain `kernels` package would shadow the one of Hugging Face (docs/decisions/0001).
    assert not [path for floor in BELOW for path in (ROOT / floor).rglob("__init__.py")]


def test_every_folder_says_what_it_is_for() -> None:
    folders = [ROOT / name for name in (*BELOW, *BESIDE)]
    folders += [path.parent for path in (ROOT / "kernels").glob("*/reference.py")]
    folders += [ROOT / "engine" / room for room in ROOMS] + [PACKAGE / "bench"]
    assert not [str(folder) for folder in folders if not (folder / "README.md").is_file()]


@pytest.mark.parametrize("floor", BELOW)
def test_no_state_in_modules(floor: str) -> None:
    """Mutable values of a module are constants (in capitals), and nothing rebinds them."""
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for path in sources(ROOT / floor):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)], path
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, mutable):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
                assert all(name.isupper() or name == "__all__" for name in names), (path, names)
