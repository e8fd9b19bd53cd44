"""The Jinja environment of chat templates, as transformers has it.

Templates come with model folders and are untrusted: they are sandboxed, and see plain data only.
This module imports neither torch nor transformers, so that a process for templates starts fast.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Namespace(jinja2.utils.Namespace):
    """`namespace()` without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have a name like {name!r}")
        super().__setitem__(name, value)


def environment() -> ImmutableSandboxedEnvironment:
    """The environment in which chat templates are compiled."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    known: dict[str, Any] = made.globals
    known.update(raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=Namespace)
    return made


def template_variables(source: str) -> frozenset[str]:
    """Names that a template reads and does not set; empty where it cannot be parsed."""
    made = environment()
    try:
        parsed = made.parse(source)
    except jinja2.TemplateSyntaxError:
        return frozenset()
    return frozenset(jinja2.meta.find_undeclared_variables(parsed) - made.globals.keys())


def default_template(templates: str | Mapping[str, str] | None) -> str | None:
    """The template of chats without tools, of a tokenizer's one or several."""
    if templates is None or isinstance(templates, str):
        return templates
    return templates.get("default") or next(iter(templates.values()), None)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
