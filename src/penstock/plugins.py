"""What installed packages add, under entry points: every group is loaded by the same function.

Built-in objects are registered the same way, in pyproject.toml.
"""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from .errors import ConfigurationError

Group = Literal[
    "penstock.decoding",
    "penstock.kv_cache",
    "penstock.weight_formats",
    "penstock.evaluators",
    "penstock.endpoints",
    "penstock.tool_parsers",
    "penstock.reasoning_parsers",
]
"""The groups that the server loads; docs/architecture.md, "Touch points", says what is in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """An object that an installed package registers under a name. `package`: as pip names it."""

    name: str
    package: str
    value: Any


def plugins(group: Group) -> list[Plugin]:
    """All objects of a group, by name.

    Raises:
        ConfigurationError: one cannot be imported, or two packages register the same name.
    """
    found: dict[str, Plugin] = {}
    for point in sorted(entry_points(group=group)):
        package = point.dist.name if point.dist is not None else "an unnamed package"
        if point.name in found:
            raise ConfigurationError(
                f"two installed packages, {found[point.name].package} and {package}, register "
                f"{point.name!r} under {group}; uninstall one of them"
            )
        found[point.name] = Plugin(name=point.name, package=package, value=_load(point, package))
    return list(found.values())


def plugin_names(group: Group) -> list[str]:
    """The names that a group registers, without importing anything."""
    return sorted(entry_points(group=group).names)


def _load(point: EntryPoint, package: str) -> Any:
    try:
        return point.load()
    except Exception as error:
        said = " ".join(str(error).split())
        raise ConfigurationError(
            f"the package {package} registers {point.name!r} under {point.group}, but "
            f"{point.value} cannot be imported ({type(error).__name__}: {said}); "
            "update or uninstall it"
        ) from error
