"""Strings with marks behave as strings do, and lose no mark."""

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.requests.chat.environment import TracingEnvironment
from penstock.engine.requests.chat.traced import Traced, concatenate, said, spans_of, traced

ARGUMENTS: dict[str, list[tuple[Any, ...]]] = {
    "center": [(9,), (9, "x")],
    "expandtabs": [(), (3,)],
    "format": [()],
    "format_map": [({},)],
    "join": [(["x", "y"],)],
    "ljust": [(9,)],
    "lstrip": [(), ("a",)],
    "partition": [("b",), (" ",), ("zz",)],
    "removeprefix": [("a",), ("z",)],
    "removesuffix": [("b",)],
    "replace": [("a", "xyz"), ("a", "", 1), ("", "-"), ("ab", "a")],
    "rjust": [(9,)],
    "rpartition": [("b",), (" ",), ("zz",)],
    "rsplit": [(), (None, 1), ("b",), ("b", 1)],
    "rstrip": [(), ("b",)],
    "split": [(), (None, 1), ("b",), ("ab", 1)],
    "splitlines": [(), (True,)],
    "strip": [(), ("ab",)],
    "translate": [({97: "xx", 98: None},)],
    "zfill": [(9,)],
}
PLAIN = {
    "encode",
    "maketrans",
    "count",
    "endswith",
    "find",
    "index",
    "rfind",
    "rindex",
    "startswith",
}
METHODS = [
    name
    for name, _ in inspect.getmembers(str, inspect.isroutine)
    if not name.startswith(("_", "is")) and name not in PLAIN
]
texts = st.text("ab \t\nß", max_size=9)


def flat(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def characters(text: str) -> str:
    """Those that a caller wrote."""
    return "".join(str.__getitem__(text, slice(*span)) for span in spans_of(text))


@pytest.mark.parametrize("method", METHODS)
@given(text=texts)
def test_every_method_gives_what_a_string_gives_and_keeps_marks(method: str, text: str) -> None:
    value = Traced(text, ((0, len(text)),) if text else ())
    for arguments in ARGUMENTS.get(method, [()]):
        result = flat(getattr(value, method)(*arguments))
        assert result == flat(getattr(text, method)(*arguments))
        template = {"join": "xy", "replace": "axyz-"}.get(method, "")
        by_caller = "".join(map(characters, result))
        assert by_caller.translate(_without(template)) == "".join(result).translate(
            _without(template)
        )


def _without(characters: str) -> dict[int, None]:
    return dict.fromkeys(map(ord, characters))


@given(first=texts, second=texts, third=texts, at=st.integers(-12, 12), to=st.integers(-12, 12))
def test_cutting_and_joining_is_exact(
    first: str, second: str, third: str, at: int, to: int
) -> None:
    mixed = concatenate([first, said(second), third])
    assert characters(mixed) == second
    begin, end, _ = slice(at, to).indices(len(mixed))
    expected = "".join(
        c
        for i, c in enumerate(str.__str__(mixed))
        if begin <= i < end and len(first) <= i < len(first) + len(second)
    )
    assert characters(mixed[at:to]) == expected
    assert "".join(characters(c) for c in mixed) == second
    assert characters(mixed + "x" + said("y")) == second + "y"
    assert characters("x" + mixed) == second
    assert traced("x", ()) == "x"


@pytest.mark.parametrize(
    ("source", "text", "by_caller"),
    [
        ("<a>{{ x }}<b>", "<a>  Hi <b>", "  Hi "),
        ("{{ '<a>' + x | trim + '<b>' }}", "<a>Hi<b>", "Hi"),
        ("{{ '<a>' ~ x.strip() ~ 1 ~ none ~ '<b>' }}", "<a>Hi1None<b>", "Hi"),
        ("{{ ['<a>', x, '<b>'] | join('|') }}", "<a>|  Hi |<b>", "  Hi "),
        ("{{ '|'.join(['<a>', x]) }}", "<a>|  Hi ", "  Hi "),
        ("{{ '<a>@<b>'.replace('@', x) }}", "<a>  Hi <b>", "  Hi "),
        ("{{ '<a>@' | replace('@', x) }}", "<a>  Hi ", "  Hi "),
        ("{{ '<a>%s%%<b>' % x }}", "<a>  Hi %<b>", "  Hi "),
        ("{{ '<a>%s-%s' | format(x, 'y') }}", "<a>  Hi -y", "  Hi "),
        ("{{ '<a>%(n)s' % {'n': x} }}", "<a>  Hi ", "  Hi "),
        ("{{ '<a>{}<b>{n}'.format(x, n='z') }}", "<a>  Hi <b>z", "  Hi "),
        ("{{ '<a>{n}'.format_map({'n': x}) }}", "<a>  Hi ", "  Hi "),
        ("{{ x.split('H')[-1] }}<b>", "i <b>", "i "),
        ("{{ x[2:4] }}{{ x[2] }}{{ x | first }}{{ x | last }}", "HiH  ", "HiH  "),
        ("{% for c in x %}{{ c }},{% endfor %}", " , ,H,i, ,", "  Hi "),
        ("{% macro m(c) %}<a>{{ c }}{% endmacro %}{{ m(x) }}", "<a>  Hi ", "  Hi "),
        ("{% macro m() %}<a>{{ caller() }}{% endmacro %}{% call m() %}{{ x }}{% endcall %}",
         "<a>  Hi ", "  Hi "),
        ("{% set y %}<a>{{ x }}{% endset %}{{ y }}", "<a>  Hi ", "  Hi "),
        ("{% set n = namespace(y='<a>') %}{% set n.y = n.y + x %}{{ n.y }}", "<a>  Hi ", "  Hi "),
        ("{% filter upper %}<a>{{ x }}{% endfilter %}", "<A>  HI ", "  HI "),
        ("{{ x | upper }}{{ x | title }}{{ x | length }}", "  HI   Hi 5", "  HI   Hi "),
        ("{{ x | safe }}{{ x | string }}", "  Hi   Hi ", "  Hi   Hi "),
        ("{{ x | default('') }}{{ y | default('<a>') }}", "  Hi <a>", "  Hi "),
        ("{{ x | tojson }}", '"  Hi "', '"  Hi "'),
        ("{{ {'k': [x]} | tojson }}", '{"k": ["  Hi "]}', '{"k": ["  Hi "]}'),
        ("{{ [x] }}", "['  Hi ']", "['  Hi ']"),
        ("{{ [x] ~ '' }}", "['  Hi ']", "['  Hi ']"),
        ("{{ x * 2 }}{{ 2 * x }}", "  Hi   Hi   Hi   Hi ", "  Hi   Hi   Hi   Hi "),
        ("{{ x | reverse }}", " iH  ", " iH  "),
        ("{{ x | list | join }}", "  Hi ", "  Hi "),
        ("{{ x.center(7) }}", "   Hi  ", "   Hi  "),
        ("{{ [x, 'a'] | map('upper') | join }}", "  HI A", "  HI "),
        ("{{ x | indent(1) }}{{ x | escape }}", "  Hi   Hi ", "  Hi   Hi "),
        ("{{ 'y' if x == '  Hi ' and 'Hi' in x and x.startswith(' ') }}", "y", ""),
        ("{{ {'  Hi ': '<a>'}[x] }}{{ {'  Hi ': '<b>'}.get(x) }}", "<a><b>", ""),
        ("{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}", "kv", "kv"),
        ("{{ x.encode }}", "", ""),
    ],
)  # fmt: skip
def test_templates_lose_no_mark(source: str, text: str, by_caller: str) -> None:
    template = TracingEnvironment().from_string(source)
    rendered = template.render(x=said("  Hi "), d=said({"k": "v"}))
    assert rendered == text
    assert characters(rendered) == by_caller
