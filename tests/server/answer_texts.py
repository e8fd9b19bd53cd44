"""Answers in every convention, whole and broken, with the parts they have; and how to read them."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from penstock.server.conventions.parts import Arguments, Call, Part, Said, Thought, joined
from penstock.server.conventions.reader import AnswerReader, Reader
from penstock.server.conventions.thinking.format import ThoughtFormat
from penstock.server.conventions.tools.deepseek import DEEPSEEK
from penstock.server.conventions.tools.format import ToolFormat
from penstock.server.conventions.tools.glm import GLM
from penstock.server.conventions.tools.harmony import HARMONY
from penstock.server.conventions.tools.hermes import HERMES
from penstock.server.conventions.tools.llama3 import LLAMA3
from penstock.server.conventions.tools.mistral import MISTRAL
from penstock.server.conventions.tools.plain_json import JSON
from penstock.server.conventions.tools.pythonic import PYTHONIC
from penstock.server.conventions.tools.qwen_xml import QWEN_XML

FORMATS: dict[str, ToolFormat] = {
    form.name: form
    for form in (
        HERMES, LLAMA3, MISTRAL, DEEPSEEK, HARMONY, JSON, PYTHONIC, QWEN_XML, GLM
    )
}  # fmt: skip
TYPED: dict[str, Any] = {
    "properties": {
        "s": {"type": "string"},
        "e": {"enum": ["C", "F"]},
        "i": {"type": "integer"},
        "n": {"type": "number"},
        "b": {"type": "boolean"},
        "o": {"type": "object"},
        "null": {"type": ["string", "null"]},
        "r": {"$ref": "#/$defs/text"},
        "any": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/text"}]},
    },
    "$defs": {"text": {"type": "string"}},
}
TOOLS: dict[str, dict[str, Any]] = {
    "f": {}, "g": {}, "get-weather": {}, "maps.find:v2": {}, "typed": TYPED,
}  # fmt: skip
CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
CHANNEL, MESSAGE, END = "<|channel|>", "<|message|>", "<|end|>"
START = "<|start|>assistant"
TAG, HERE, ARGS, ID = "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
TRICKY = json.dumps(
    {"a": '"}]) </tool_call> [TOOL_CALLS] ``` \\" {[(', "é": "日本 😀"}, ensure_ascii=False
)
"""Arguments with what looks like the end of them."""


def call(name: str, arguments: str = "{}") -> list[Part]:
    return [Call(name), Arguments(arguments)]


def fenced(name: str, arguments: str) -> str:
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


def named(name: str, arguments: str) -> str:
    return f"{CALL}{name}{SEP}{arguments}{CALL_END}"


def tagged(name: str, **values: str) -> str:
    """A call in Qwen's tags."""
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


def glm(name: str, line: str = "\n", **values: str) -> str:
    """A call in GLM's tags, with line breaks or without."""
    inside = "".join(
        f"<arg_key>{key}</arg_key>{line}<arg_value>{value}</arg_value>{line}"
        for key, value in values.items()
    )
    return f"<tool_call>{name}{line}{inside}</tool_call>"


def typed(**values: Any) -> list[Part]:
    return call("typed", json.dumps(values, ensure_ascii=False))


ONE = '{"name": "f", "arguments": {"a": 1}}'
OTHER = '{"name": "g", "arguments": {}}'
A1 = '{"a": 1}'
F, G = call("f", A1), call("g")
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}Let me think.{END}{START}"
JSON_TYPE = "<|constrain|>json"
THOUGHT = Thought("Let me think.")

WELL_FORMED: dict[str, list[tuple[str, list[Part]]]] = {
    "hermes": [
        ("Plain text.", [Said("Plain text.")]),
        ("  a < b, a <tool b\n", [Said("  a < b, a <tool b\n")]),
        (f"<tool_call>\n{ONE}\n</tool_call>", F),
        (f"Hi.\n\n<tool_call>\n{ONE}\n</tool_call>\n", [Said("Hi."), *F]),
        (f"<tool_call>{ONE}</tool_call>\n<tool_call>{OTHER}</tool_call>", [*F, *G]),
        (f"<tool_call>{ONE}</tool_call>\nDone. ", [*F, Said("\nDone.")]),
        ('<tool_call>{"arguments": {"a": [1, {}]}, "name": "f"}</tool_call>',
         call("f", '{"a": [1, {}]}')),
        ('<tool_call>{"id": [{"}": "]"}, null], "name": "f"}</tool_call>', call("f")),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', call("f")),
        ('<tool_call>{"name": "f", "arguments": ""}</tool_call>', call("f")),
        ('<tool_call>{"name": "f", "arguments":   \n {"a":  1 } }</tool_call>',
         call("f", '{"a":  1 }')),
        (f'<tool_call>{{"name": "f", "arguments": {json.dumps(TRICKY)}}}</tool_call>',
         call("f", TRICKY)),
        (f'<tool_call>{{"arguments": {json.dumps(TRICKY)}, "name": "f"}}</tool_call>',
         call("f", TRICKY)),
        (f'<tool_call>{{"name": "f", "arguments": {TRICKY}}}</tool_call>', call("f", TRICKY)),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}, "parameters": {"b": 2}}</tool_call>', F),
        ('<tool_call>{"n\\u0061me": "\\u0066", "arguments": [1]}</tool_call>', call("f", "[1]")),
        ('<tool_call>{"name": "any other", "parameters": {}}</tool_call>', call("any other")),
    ],
    "llama3": [
        ("Plain {text}.", [Said("Plain {text}.")]),
        ('{"name": "f", "parameters": {"a": 1}}', F),
        (f" \n{TAG}\n" + '{"name": "f", "parameters": {"a": 1}} \n', F),
        (f'{TAG}{{"name": "f", "parameters": {{"a": 1}}}}; {OTHER}', [*F, *G]),
        (f'{{"type": "function", "name": "f", "parameters": {TRICKY}}}', call("f", TRICKY)),
        ('{"parameters": {"a": 1}, "name": "f"}', F),
        ('{"name": "f"}', call("f")),
        ('{"name": "f", "parameters": null}', call("f")),
        ('{"name": "f", "parameters": "{\\"a\\": 1}"}', F),
        ('{"name": "get-weather", "parameters": {}}', call("get-weather")),
        ('{"name": "unknown", "parameters": {}}',
         [Said('{"name": "unknown", "parameters": {}}')]),
        (f'{ONE}; {{"name": "unknown"}}', [*F, Said('; {"name": "unknown"}')]),
        (f"{ONE}\nDone.", [*F, Said("\nDone.")]),
        ('{"age": 3}', [Said('{"age": 3}')]),
        (f"{TAG}print({{}})", [Said(f"{TAG}print({{}})")]),
    ],
    "mistral": [
        ("no [calls] here \n", [Said("no [calls] here \n")]),
        (f"{HERE}[{ONE}]", F),
        (f"{HERE} [{ONE},{OTHER} , {ONE}]", [*F, *G, *F]),
        (f"Hi.\n{HERE}[{ONE}, {OTHER}]", [Said("Hi."), *F, *G]),
        (f'{HERE}[{{"name": "f", "arguments": {TRICKY}}}]', call("f", TRICKY)),
        (f'{HERE}[{{"arguments": {TRICKY}, "name": "f"}}]', call("f", TRICKY)),
        (f'{HERE}[{{"name": "f"}}, {{"name": "f", "arguments": null}}]', [*call("f"), *call("f")]),
        (f"{HERE}[{ONE}] and [{OTHER}]", [*F, Said(f" and [{OTHER}]")]),
        (f'{HERE}f{ARGS}{{"a": 1}}', F),
        (f'{HERE}f{{"a": 1}}', F),
        (f'Hi. {HERE}f{ARGS}{{"a": 1}}{HERE}g{ARGS}{{}}', [Said("Hi."), *F, *G]),
        (f"{HERE} f {ARGS} {TRICKY}\n{HERE}g{{}}\n", [*call("f", TRICKY), *G]),
        (f"{HERE}maps.find:v2{ARGS}{{}} there", [*call("maps.find:v2"), Said(" there")]),
        (f'{HERE}f{ID}aB3defghi{ARGS}{{"a": 1}}{HERE}g{ID}123456789{ARGS}{{}}',
         [Call("f", "aB3defghi"), F[1], Call("g", "123456789"), G[1]]),
        (f'{HERE}f{ID} call_1 {ARGS}{{"a": 1}}{HERE}g{ID}{{}}', [*F, *G]),
    ],
    "deepseek": [
        ("a ｜ b <｜", [Said("a ｜ b <｜")]),
        (f"{CALLS}{fenced('f', TRICKY)}{CALLS_END}", call("f", TRICKY)),
        (f"Hi. \n{CALLS}{fenced('f', A1)}\n{fenced('g', '{}')}{CALLS_END}",
         [Said("Hi."), *F, *G]),
        (f"{CALLS}{named('f', TRICKY)}{CALLS_END}", call("f", TRICKY)),
        (f"Hi.{CALLS}{named('f', A1)}{named('g', '{}')}{CALLS_END}",
         [Said("Hi."), *F, *G]),
        (f"{CALLS}\n{named('get-weather', '{}')}\n{CALLS_END}\nDone.",
         [*call("get-weather"), Said("\nDone.")]),
        (f"{fenced('f', A1)}", F),
    ],
    "harmony": [
        ("Plain text.", [Said("Plain text.")]),
        (f"{CHANNEL}final{MESSAGE}Hello!<|return|>", [Said("Hello!")]),
        (f"{ANALYSIS}{CHANNEL}final{MESSAGE}Hello!<|return|>", [THOUGHT, Said("Hello!")]),
        (f"{ANALYSIS}{CHANNEL}commentary to=functions.f {JSON_TYPE}{MESSAGE}{A1}<|call|>",
         [THOUGHT, *F]),
        (f"{ANALYSIS} to=functions.f{CHANNEL}commentary {JSON_TYPE}{MESSAGE}{A1}<|call|>",
         [THOUGHT, *F]),
        (f' to=functions.f{CHANNEL}commentary json{MESSAGE}{{"a": 1}}<|call|>', F),
        (f"{ANALYSIS}{CHANNEL}commentary{MESSAGE}I call two.{END}{START}{CHANNEL}commentary "
         f'to=functions.f{MESSAGE}{{"a": 1}}<|call|>{START}{CHANNEL}commentary to=g{MESSAGE}{{}}',
         [THOUGHT, Said("I call two."), *F, *G]),
        (f"{CHANNEL}commentary to=functions.maps.find:v2{MESSAGE}{TRICKY}<|call|>",
         call("maps.find:v2", TRICKY)),
        (f"{CHANNEL}commentary to=functions.f{MESSAGE}<|call|>", call("f")),
        (f"{ANALYSIS}{CHANNEL}analysis{MESSAGE}More.{START}{CHANNEL}final{MESSAGE}A{END}{START}"
         f"{CHANNEL}final{MESSAGE}B", [Thought("Let me think.\nMore."), Said("A\nB")]),
    ],
    "json": [
        ("Plain {text}.", [Said("Plain {text}.")]),
        (ONE, F),
        (f" \n{ONE}\n{OTHER}\n\n{ONE}\n", [*F, *G, *F]),
        (f'{{"arguments": {TRICKY}, "name": "f"}}', call("f", TRICKY)),
        (f'{{"name": "f", "arguments": {json.dumps(TRICKY)}}}', call("f", TRICKY)),
        ('{"name": "f"}', call("f")),
        ('{"name": "f", "arguments": null}', call("f")),
        (f"{ONE}\nDone.", [*F, Said("\nDone.")]),
        (f'{ONE}\n{{"name": "h"}}', [*F, Said('\n{"name": "h"}')]),
        ('{"name": "unknown", "arguments": {}} ', [Said('{"name": "unknown", "arguments": {}} ')]),
        ('  {"x": [1, 2]}', [Said('  {"x": [1, 2]}')]),
    ],
    "pythonic": [
        ("Plain [text](url).", [Said("Plain [text](url).")]),
        ("[1] is a source", [Said("[1] is a source")]),
        ("[f(a=1)]", F),
        (" [ f ( a = 1 ) , g() ] \n", [*F, *G]),
        ("[f(a=1), g(),]", [*F, *G]),
        ("[get-weather(), maps.find:v2(a=None)]",
         [*call("get-weather"), *call("maps.find:v2", '{"a": null}')]),
        ("[f(a=[1, {'k': (2, -3.5)}], b=True, c=false, d=None, e=null, f={})]",
         call("f", '{"a": [1, {"k": [2, -3.5]}], "b": true, "c": false, "d": null, "e": null, '
              '"f": {}}')),
        ("""[f(a="x) ]", b='it\\'s "(', c="\\u00e9 日本 \\ud83d\\ude00 \\/ \\n")]""",
         call("f", json.dumps({"a": "x) ]", "b": 'it\'s "(', "c": "é 日本 😀 / \n"},
                              ensure_ascii=False))),
        ("""[f(a="\\d+", b='\\\\ \\w', c=r'\\d', d="a=1", e="two\nlines")]""",
         call("f", json.dumps({"a": "\\d+", "b": "\\ \\w", "c": "\\d", "d": "a=1",
                               "e": "two\nlines"}))),
        ('[f(from="Rome", in=1, class = "x")]',
         call("f", '{"from": "Rome", "in": 1, "class": "x"}')),
        ("[f(\n  a='''b\"c''',\n)]", call("f", '{"a": "b\\"c"}')),
        ("[unknown(a=1)]", [Said("[unknown(a=1)]")]),
        ("[f(a=1), unknown()]", [*F, Said(", unknown()]")]),
        ("[f(a=1)] done", [*F, Said(" done")]),
        ("[f(1)]", [Said("[f(1)]")]),
        ("[f(a=open('x'))]", [Said("[f(a=open('x'))]")]),
        ("[f(**{'a': 1})]", [Said("[f(**{'a': 1})]")]),
    ],
    "qwen_xml": [
        ("Plain <text>.", [Said("Plain <text>.")]),
        (tagged("f"), call("f")),
        (tagged("typed", s="Rome"), typed(s="Rome")),
        (f"I look.\n\n{tagged('typed', s='a')}\n{tagged('g')}\n",
         [Said("I look."), *typed(s="a"), *G]),
        (tagged("typed", s="two\nlines", i="3", n="-1.5e3", b="true", o='{"a": [1, "</x>"]}',
                e="C"),
         call("typed", '{"s": "two\\nlines", "i": 3, "n": -1.5e3, "b": true, '
                       '"o": {"a": [1, "</x>"]}, "e": "C"}')),
        (tagged("typed", s="12", r="true", e="F"), typed(s="12", r="true", e="F")),
        (tagged("typed", s=""), typed(s="")),
        (tagged("typed", s="\n x \n"), typed(s="\n x \n")),
        (tagged("typed", s='"q" \\ é 日本 😀 \t <a href="x">'),
         typed(s='"q" \\ é 日本 😀 \t <a href="x">')),
        (tagged("typed", null="null", b="True"), typed(null=None, b=True)),
        (tagged("typed", null="none", b="False"), typed(null="none", b=False)),
        (tagged("typed", null="None", any="12"), typed(null=None, any=12)),
        (tagged("typed", any="twelve", o="{'a': (1, None)}"),
         typed(any="twelve", o={"a": [1, None]})),
        (tagged("f", x="12", y="text", z='["a"]'), call("f", '{"x": 12, "y": "text", "z": ["a"]}')),
        (tagged("any other", x="1").replace("any other", "other"), call("other", '{"x": 1}')),
        ("<tool_call><function=typed><parameter=s>x</parameter></function></tool_call>",
         typed(s="x")),
        (f"I look.\n{tagged('typed', s='a').removeprefix('<tool_call>')}",
         [Said("I look."), *typed(s="a")]),
        (f"{tagged('g')}\nDone.", [*G, Said("\nDone.")]),
    ],
    "glm": [
        ("Plain <text>.", [Said("Plain <text>.")]),
        (glm("f"), call("f")),
        (glm("f", ""), call("f")),
        (glm("typed", s="Rome"), typed(s="Rome")),
        (glm("typed", "", s="Rome", i="3"), typed(s="Rome", i=3)),
        (f"I look.\n{glm('typed', s='a')}\n{glm('g', '')}", [Said("I look."), *typed(s="a"), *G]),
        (glm("typed", s=" two\nlines\n", b="true", o='{"a": [1, "</x>"]}', e="C"),
         call("typed", '{"s": " two\\nlines\\n", "b": true, "o": {"a": [1, "</x>"]}, "e": "C"}')),
        (glm("typed", s="12", null="null", any="x"), typed(s="12", null=None, any="x")),
        ("<tool_call>f <arg_key>x</arg_key> <arg_value>1</arg_value> </tool_call>",
         call("f", '{"x": 1}')),
        (f"{glm('g')}\nDone.", [*G, Said("\nDone.")]),
    ],
}  # fmt: skip

BROKEN: dict[str, list[tuple[str, list[Part]]]] = {
    "hermes": [
        ("<tool_call>\nnot JSON</tool_call> x", [Said("<tool_call>\nnot JSON</tool_call> x")]),
        (f"The <tool_call> tag: <tool_call>{ONE}</tool_call>",
         [Said("The <tool_call> tag:"), *F]),
        ('<tool_call>{"name": 3}</tool_call>', [Said('<tool_call>{"name": 3}</tool_call>')]),
        ('<tool_call>{"name": ""}</tool_call>', [Said('<tool_call>{"name": ""}</tool_call>')]),
        ('<tool_call>{"name": "\\ud800"}</tool_call>',
         [Said('<tool_call>{"name": "\\ud800"}</tool_call>')]),
        ('<tool_call>{"arguments": {"a": 1}}</tool_call>',
         [Said('<tool_call>{"arguments": {"a": 1}}</tool_call>')]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}, oops}</tool_call>x',
         [*call("f", '{"a": 1}oops}'), Said("x")]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>',
         call("f", '{"a": 1</tool_call>')),
        (f"<tool_call>{ONE} x", [*F, Said(" x")]),
        (f"<tool_call>{ONE}<tool_call>{OTHER}", [*F, *G]),
        ('<tool_call>{"name": "f", "arguments": "\\ud800"}', call("f", '"\\ud800"')),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\ud83d', call("f", '{"a": "')),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1', call("f", '{"a": 1')),
        (f'<tool_call>{{"{"k" * 300}": 1, "name": "f"}}',
         [Said(f'<tool_call>{{"{"k" * 300}": 1, "name": "f"}}')]),
    ],
    "llama3": [
        (f"{TAG}{TAG}{ONE}", [Said(f"{TAG}{TAG}{ONE}")]),
        (f"{ONE};", F),
        (f"{ONE}; and", [*F, Said("; and")]),
        (f"{ONE}}}", [*F, Said("}")]),
    ],
    "mistral": [
        (f"a {HERE}[oops]", [Said(f"a {HERE}[oops]")]),
        (f"a \n{HERE} not a call {{}}", [Said(f"a \n{HERE} not a call {{}}")]),
        (f"{HERE}[{ONE}, oops] x", [*F, Said(", oops] x")]),
        (f"{HERE}[{ONE},", F),
        (f"{HERE}[{ONE}{HERE}[{OTHER}]", [*F, *G]),
        (f"{HERE}{ARGS}{{}}", [Said(f"{HERE}{ARGS}{{}}")]),
        (f"{HERE}f{ARGS}1", [Said(f"{HERE}f{ARGS}1")]),
        (f"{HERE}oops, {{}} {HERE}f{{}}", [Said(f"{HERE}oops, {{}}"), *call("f")]),
    ],
    "deepseek": [
        (f"a {CALLS} b", [Said(f"a {CALLS} b")]),
        (f"a {CALLS_END} b", [Said(f"a {CALLS_END} b")]),
        (f"{CALL}f{CALL_END}", [Said(f"{CALL}f{CALL_END}")]),
        (f"{CALLS}{CALL}f{SEP}{CALL_END}{CALLS_END}",
         [Said(f"{CALLS}{CALL}f{SEP}{CALL_END}{CALLS_END}")]),
        (f"{CALL}two words{SEP}{{}}{named('f', '{}')}",
         [Said(f"{CALL}two words{SEP}{{}}"), Call("f"), Arguments("{}")]),
        (f"{CALL}f{SEP}{{}}``````{CALL_END}", [*call("f"), Said(f"```{CALL_END}")]),
        (f"{CALLS}{CALL}f{SEP}{{}}x{CALLS_END}", [*call("f"), Said(f"x{CALLS_END}")]),
    ],
    "harmony": [
        (f"{CHANNEL}analysis", []),
        (CHANNEL, []),
        (f"{CHANNEL}analysis{MESSAGE}Hm.{END}{START[:12]}", [Thought("Hm.")]),
        (f"{ANALYSIS}{CHANNEL}comm", [THOUGHT]),
        (f"{ANALYSIS}{CHANNEL}commentary to=functions.get_w", [THOUGHT]),
        (f"{ANALYSIS} to=functions.f{CHANNEL}commentary {JSON_TYPE}", [THOUGHT]),
        (f"{CHANNEL}final{MESSAGE}Hi.{END}{START}{CHANNEL}", [Said("Hi.")]),
        (" to= be", [Said(" to= be")]),
        (f"{CHANNEL}{'x' * 600}{MESSAGE}y", [Said(f"{CHANNEL}{'x' * 600}{MESSAGE}y")]),
        (f"{CHANNEL}final{MESSAGE}", []),
    ],
    "json": [
        (f"{ONE} x {OTHER}", [*F, Said(f" x {OTHER}")]),
        ('{"name": "f", "arguments": {"a": "x', call("f", '{"a": "x')),
        ('{"name": "f", 3}', call("f", "3}")),
    ],
    "pythonic": [
        ("[f(a=1", [Said("[f(a=1")]),
        ("[f(a=1),", F),
        ("[f(a=1), x", [*F, Said(", x")]),
        ("[f(a=1) x]", [*F, Said(" x]")]),
        ("[f(a=)]", [Said("[f(a=)]")]),
        ("[f(a=1e999)]", [Said("[f(a=1e999)]")]),
        ("[f(a='\\ud800')]", [Said("[f(a='\\ud800')]")]),
        ("[f(a={[]: 1})]", [Said("[f(a={[]: 1})]")]),
        ("[f", [Said("[f")]),
        ("[]", [Said("[]")]),
    ],
    "qwen_xml": [
        (f"<tool_call>\n{ONE}\n</tool_call>", [Said(f"<tool_call>\n{ONE}\n</tool_call>")]),
        ("Use <function=name> here.", [Said("Use <function=name> here.")]),
        ("<function=unknown>\n</function>", [Said("<function=unknown>\n</function>")]),
        (tagged("typed", s="<parameter=x>\n1\n</parameter> is one"),
         typed(s="<parameter=x>\n1\n</parameter> is one")),
        (tagged("typed", s="the tag </function> ends it"), typed(s="the tag </function> ends it")),
        ("<tool_call>\n<function=typed>\n<parameter=s>\nx\n</function>\n</tool_call>",
         typed(s="x")),
        ("<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</tool_call>",
         call("f", '{"x": 1}')),
        ("<tool_call>\n<function=f>\noops</function>", [*call("f"), Said("\noops</function>")]),
        (tagged("typed", s="a")[:-30], call("typed", '{"s": "a')),
        ("<function=typed>\n<parameter=s>\nabc</par", call("typed", '{"s": "abc')),
        ("<function=typed>\n<parameter=i>\n12", [Call("typed")]),
        (tagged("typed", i="twelve", o="{"), call("typed", '{"i": "twelve", "o": "{"}')),
        (f"<function={'f' * 600}>", [Said(f"<function={'f' * 600}>")]),
        (f"<function=f><parameter={'k' * 600}>", [*call("f"), Said(f"<parameter={'k' * 600}>")]),
    ],
    "glm": [
        ("<tool_call>" + ONE + "</tool_call>", [Said("<tool_call>" + ONE + "</tool_call>")]),
        ("<tool_call>two words</tool_call>", [Said("<tool_call>two words</tool_call>")]),
        (glm("typed", s="a </arg_value> b"), typed(s="a </arg_value> b")),
        ("<tool_call>f<arg_key>x</arg_key>oops", [*call("f"), Said("<arg_key>x</arg_key>oops")]),
        ("<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>1", [Call("f")]),
        ("<tool_call>typed<arg_key>s</arg_key><arg_value>abc</arg", call("typed", '{"s": "abc')),
    ],
}  # fmt: skip


def cases(tables: Iterable[dict[str, list[tuple[str, list[Part]]]]]) -> list[Any]:
    return [
        pytest.param(name, answer, parts, id=f"{name}-{answer[:60]}")
        for table in tables
        for name, answers in table.items()
        for answer, parts in answers
    ]


def reader_of(name: str) -> Reader:
    return FORMATS[name].reader(TOOLS)


def read(reader: Reader | AnswerReader, pieces: Iterable[str]) -> list[Part]:
    parts = [part for piece in pieces for part in reader.push(piece)]
    return joined([*parts, *reader.finish()])


def pieces_of(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


def text_of(parts: Iterable[Part], kind: type[Said | Thought]) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))


def calls_of(parts: Iterable[Part]) -> list[tuple[str, str]]:
    """Names and arguments; arguments stand behind a call."""
    calls: list[tuple[str, str]] = []
    before: Part | None = None
    for part in parts:
        if isinstance(part, Call):
            calls.append((part.name, ""))
        elif isinstance(part, Arguments):
            assert isinstance(before, Call)
            calls[-1] = (calls[-1][0], part.text)
        before = part
    return calls


def thinking_reader(form: ThoughtFormat, opened: bool, calls: Reader | None = None) -> AnswerReader:
    return AnswerReader(form.reader(opened=opened), calls or reader_of("hermes"))
