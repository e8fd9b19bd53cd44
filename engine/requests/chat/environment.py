"""The Jinja environment of chat templates: transformers' dialect, in a sandbox that traces text.

Templates come with model folders and are untrusted. They see plain data only, and operations on a
caller's strings keep the marks of `traced.py`. The rendering process bounds time and memory
(`worker.py`). Neither torch nor transformers is imported here, so that it starts fast.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import datetime
from types import CodeType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.meta
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .formatting import fill, percent
from .traced import Traced, all_said, as_text, concatenate, holds_said

_PRECISE = frozenset({"join", "replace"})
"""Methods of a template's own strings whose results may contain a caller's text."""


class GenerationTag(jinja2.ext.Extension):
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


class TracedTemplate(jinja2.Template):
    """A template whose `~` keeps marks."""

    @classmethod
    def from_code(
        cls,
        environment: jinja2.Environment,
        code: CodeType,
        globals: MutableMapping[str, Any],  # noqa: A002 - Jinja's name
        uptodate: Callable[[], bool] | None = None,
    ) -> "TracedTemplate":
        """See Jinja. Replaces the function with which compiled code joins strings."""
        template = super().from_code(environment, code, globals, uptodate)
        template.root_render_func.__globals__["str_join"] = _join_all
        return template  # pyright: ignore[reportReturnType] - Jinja makes it of `cls`


class TracingEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates."""

    template_class = TracedTemplate
    concat = staticmethod(concatenate)  # pyright: ignore[reportAssignmentType]
    intercepted_binops = frozenset({"%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, jinja2.ext.loopcontrols],
            finalize=as_text,
        )
        filters: dict[str, Any] = self.filters
        filters |= {"tojson": _to_json, "safe": as_text}
        filters |= {name: _tracing(function) for name, function in filters.items()}
        filters |= {"join": _join, "replace": _replace, "format": _format, "string": as_text}
        known: dict[str, Any] = self.globals
        known |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": Namespace,
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        """See Jinja."""
        if type(obj) is str and attribute in _PRECISE:
            obj = Traced(obj, ())
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Also refuses `str.encode`: bytes would lose the marks."""
        if isinstance(obj, str) and attr == "encode":
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """See Jinja."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None
        form: str = value.__self__
        by_mapping = value.__name__ == "format_map"

        def traced_format(*values: Any, **named: Any) -> str:
            result = str.__str__(formatted(*values, **named))
            return fill(
                form, result, () if by_mapping else values, values[0] if by_mapping else named
            )

        return traced_format

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See Jinja."""
        if operator == "%" and isinstance(left, str):
            return percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See Jinja. A string made by a function from a caller's text counts as the caller's."""
        result = super().call(context, obj, *args, **kwargs)
        if not isinstance(result, str) or isinstance(result, Traced) or isinstance(obj, Macro):
            return result
        # Methods of `Traced` set marks themselves; a mapping returns what was put in.
        if isinstance(getattr(obj, "__self__", None), Traced | Mapping):
            return result
        return all_said(result) if holds_said((args, kwargs)) else result


def template_variables(source: str) -> frozenset[str]:
    """Names that a template reads and does not set; empty where it cannot be parsed."""
    made = TracingEnvironment()
    try:
        parsed = made.parse(source)
    except jinja2.TemplateSyntaxError:
        return frozenset()
    return frozenset(jinja2.meta.find_undeclared_variables(parsed) - made.globals.keys())


def _tracing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result counts as a caller's if any of its arguments is."""

    @functools.wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, str) and not isinstance(result, Traced):
            result = str.__str__(result)
            return all_said(result) if holds_said((args, kwargs)) else result
        return result

    return filtered


def _join_all(values: Iterable[Any]) -> str:
    return concatenate(map(as_text, values))


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment, value: Any, d: str = "", attribute: str | int | None = None
) -> str:
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return Traced(as_text(d), getattr(d, "said", ())).join(map(as_text, value))


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text = as_text(s)
    return Traced(text, getattr(text, "said", ())).replace(
        as_text(old), as_text(new), -1 if count is None else count
    )


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise jinja2.exceptions.FilterArgumentError("positional and keyword arguments together")
    return percent(as_text(value), kwargs or args)


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
