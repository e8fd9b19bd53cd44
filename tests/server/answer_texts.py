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
from penstock.server.conventions.tools.harmony import HARMONY
from penstock.server.conventions.tools.hermes import HERMES
from penstock.server.conventions.tools.llama3 import LLAMA3
from penstock.server.conventions.tools.mistral import MISTRAL
from penstock.server.conventions.tools.plain_json import JSON
from penstock.server.conventions.tools.pythonic import PYTHONIC

FORMATS: dict[str, ToolFormat] = {
    form.name: form for form in (HERMES, LLAMA3, MISTRAL, DEEPSEEK, HARMONY, JSON, PYTHONIC)
}
TOOLS = {"f", "g", "get-weather", "maps.find:v2"}
CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
CHANNEL, MESSAGE, END = "<|channel|>", "<|message|>", "<|end|>"
START = "<|start|>assistant"
TAG, HERE, ARGS = "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"
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
        (f"{CHANNEL}analysis", [Said(f"{CHANNEL}analysis")]),
        (f"{CHANNEL}analysis{MESSAGE}Hm.{END}{START[:12]}", [Thought("Hm."), Said(START[:12])]),
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
