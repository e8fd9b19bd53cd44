"""How a command's settings are read: flags > PENSTOCK_* environment > --config YAML > defaults."""

import re
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from penstock.errors import ConfigurationError
from penstock.settings import Settings, heading
from penstock.validation import sentence, show

ENVIRONMENT_PREFIX = "PENSTOCK_"


class YamlFile(PydanticBaseSettingsSource):
    """The file that `--config` or PENSTOCK_CONFIG names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Unused: the file is read as a whole."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """The file's settings.

        Raises:
            ConfigurationError: it cannot be read, or is not a mapping.
        """
        path = self.current_state.get("config")
        if path is None:
            return {}
        try:
            content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"--config {path} cannot be read: {type(error).__name__}"
            ) from error
        except yaml.YAMLError as error:
            mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
            where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise ConfigurationError(f"--config {path} is not valid YAML{where}") from error
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise ConfigurationError(f"--config {path} must hold `name: value` lines")
        named = {
            str(name).replace("-", "_"): value
            for name, value in cast("dict[Any, Any]", content).items()
        }
        own = self.settings_cls.model_fields
        others: set[str] = set()
        if issubclass(self.settings_cls, CommandSettings):
            others = {
                name for other in self.settings_cls.file_neighbours for name in other.model_fields
            }
        return {name: value for name, value in named.items() if name in own or name not in others}


class CommandSettings(Settings, BaseSettings):
    """Base of every command's settings.

    `config`: YAML file with settings, `name: value` a line, named as the flags.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_parse_none_str="none",
        hide_input_in_errors=True,
    )

    config: Path | None = None

    file_neighbours: ClassVar[tuple[type[BaseModel], ...]] = ()
    """Settings of other commands that may stand in the same file; skipped here."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags come first by themselves; no .env files and no secret folders are read."""
        return init_settings, env_settings, YamlFile(settings_cls)


S = TypeVar("S", bound=BaseModel)


def read_settings(model: type[S], arguments: Sequence[str], *, program: str) -> S:
    """Settings from flags, environment, file and defaults, in that order of precedence.

    `model` may be any pydantic model. `program` is its name in messages, as in "penstock serve".

    Raises:
        ConfigurationError: a value is wrong; names the setting, not a secret's value.
        SystemExit: help was asked for, or a flag is unknown (2).
    """
    bases = (model,) if issubclass(model, CommandSettings) else (model, CommandSettings)
    summary = (model.__doc__ or "").partition("\n\n")[0]
    settings_class: type[Any] = type(
        model.__name__,
        bases,
        {
            "__doc__": summary,
            "__module__": model.__module__,
            "model_config": SettingsConfigDict(cli_prog_name=program),
        },
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        settings_class, add_argument_method=_under_headings(settings_class)
    )
    try:
        return CliApp.run(settings_class, cli_args=list(arguments), cli_settings_source=source)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, settings_class)) from None
    except SettingsError as error:
        named = re.search(r'field "(\w+)"', str(error))
        name = "a setting" if named is None else f"--{named[1].replace('_', '-')}"
        raise ConfigurationError(f"{name} cannot be read; see --help for its form") from None


def _under_headings(settings: type[BaseModel]) -> Callable[..., Any]:
    """argparse's `add_argument`, with each flag in `--help` under the heading of its group."""
    groups: dict[str, Any] = {}

    def add(parser: ArgumentParser, *flags: str, **options: Any) -> Any:
        title = heading(settings, options.get("dest", ""))
        if title is None:
            return parser.add_argument(*flags, **options)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        return groups[title].add_argument(*flags, **options)

    return add


def _holds_secrets(annotation: Any) -> bool:
    """Whether a value of that type may hold a secret, however deep."""
    if annotation is SecretStr:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(_holds_secrets(field.annotation) for field in annotation.model_fields.values())
    return any(map(_holds_secrets, get_args(annotation)))


def _hidden(_value: object) -> str:
    return "not shown here"


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines: list[str] = []
    for details in error.errors(include_url=False):
        name = str(details["loc"][0]) if details["loc"] else "settings"
        inside = "".join(f".{str(part)[:64]}" for part in details["loc"][1:])
        flag = f"--{name.replace('_', '-')}{inside}"
        if details["type"] == "extra_forbidden" and not inside:
            lines.append(f"{name}: there is no such setting; see --help")
            continue
        secret = name in model.model_fields and _holds_secrets(model.model_fields[name].annotation)
        lines.append(sentence(flag, details, _hidden if secret else show))
    return "; ".join(dict.fromkeys(lines))
