"""Readers of answers: what each convention makes of text, however it is cut, broken or hostile."""

import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.server.conventions.parts import Arguments, Call, Part, Said, Thought, joined
from penstock.server.conventions.reader import AnswerReader, PlainReader, Reader
from penstock.server.conventions.reading import ChoiceReading, Fields, Reading
from penstock.server.conventions.thinking.format import ThoughtFormat
from penstock.server.conventions.thinking.mistral import MISTRAL as MISTRAL_THINK
from penstock.server.conventions.thinking.think import THINK
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


@pytest.mark.parametrize(("name", "answer", "parts"), cases([WELL_FORMED, BROKEN]))
def test_parts_of_an_answer(name: str, answer: str, parts: list[Part]) -> None:
    for size in (len(answer), 1, 2, 3, 7, 16):
        assert read(reader_of(name), pieces_of(answer, size)) == parts


@pytest.mark.parametrize(("name", "answer", "parts"), cases([WELL_FORMED]))
def test_an_answer_that_is_cut_off_anywhere(name: str, answer: str, parts: list[Part]) -> None:
    calls, said = calls_of(parts), text_of(parts, Said)
    for size in range(len(answer)):
        cut = answer[:size]
        found = read(reader_of(name), [cut])
        assert found == read(reader_of(name), cut)
        found_calls, found_said = calls_of(found), text_of(found, Said)
        # The same calls, of which the last one may have less of its arguments ...
        assert len(found_calls) <= len(calls)
        for (name_cut, arguments_cut), (name_whole, arguments_whole) in zip(
            found_calls, calls, strict=False
        ):
            assert name_cut == name_whole
            assert arguments_whole.startswith(arguments_cut)
        assert all(cut == whole for cut, whole in zip(found_calls[:-1], calls, strict=False))
        # ... the same text, and behind it at most what the answer ends with.
        common = sum(1 for _ in itertools.takewhile(bool, map(str.__eq__, said, found_said)))
        rest = found_said[common:]
        assert cut.rstrip().endswith(rest.rstrip())
        if not found_calls and name != "harmony":
            assert found_said == cut


def test_a_name_comes_first_and_arguments_as_they_come() -> None:
    beginnings = {
        "hermes": '<tool_call>{"name": "f"',
        "llama3": '{"name": "f"',
        "mistral": f"{HERE}f{ARGS}{{",
        "deepseek": f"{CALLS}{CALL}f{SEP}{{",
        "harmony": f"{CHANNEL}commentary to=functions.f{MESSAGE}",
        "json": '{"name": "f"',
    }
    for name, beginning in beginnings.items():
        reader = reader_of(name)
        assert [reader.push(character) for character in beginning[:-1]] == [[]] * (
            len(beginning) - 1
        )
        assert Call("f") in reader.push(beginning[-1])
        if beginning.endswith('"'):
            assert reader.push(', "arguments": {') == [Arguments("{")]
        for character in '"a": "x}" ':
            assert reader.push(character) == [Arguments(character)]


def test_text_is_said_as_it_comes() -> None:
    for name in FORMATS:
        reader = reader_of(name)
        assert [reader.push(character) for character in "Hello!"] == [
            [Said(character)] for character in "Hello!"
        ]


def test_names_of_no_tool() -> None:
    """Where markup tells calls apart, the caller gets to know of a name that does not exist."""
    for name in ("llama3", "json", "pythonic"):
        assert isinstance(read(FORMATS[name].reader({"g"}), WELL_FORMED[name][1][0])[0], Said)
    for name in ("hermes", "mistral", "deepseek", "harmony"):
        answers = [answer for answer, parts in WELL_FORMED[name] if parts == F]
        assert all(read(FORMATS[name].reader(()), answer) == F for answer in answers)


BITS: dict[str, list[str]] = {
    "hermes": ["<tool_call>", "</tool_call>", "<tool_", "</"],
    "llama3": [TAG, "<|", ";", '{"name": "f", "parameters": '],
    "mistral": [HERE, HERE + "[", ARGS, f"{HERE}f{ARGS}", "[TOOL_", "], ", "]"],
    "deepseek": [
        CALLS, CALLS_END, CALL, CALL_END, SEP, "<｜tool▁", "```json", "```", f"{CALL}f{SEP}",
    ],
    "harmony": [
        CHANNEL, MESSAGE, END, "<|call|>", "<|start|>", "<|", " to=", f"{START}{CHANNEL}final",
        f"{CHANNEL}commentary to=f{MESSAGE}", "analysis", "assistant",
    ],
    "json": ['{"name": "f", "arguments": '],
    "pythonic": ["[f(", "[g()", "f(", "a=", ")]", "b='", "True", '"""', "), g(", "r'", "1, "],
}  # fmt: skip
COMMON = [
    *'{}[]()":,.\\/\'<>|=- \n\tabfg1é\u3000',
    '{"', '"}', '": ', '", "', '{"name": "f"', '"arguments": {', "null", "\\u00e9", "\\ud83d", "{}",
    ONE,
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_any_text(name: str) -> None:
    """No error, no text lost or invented, and the same parts however the text is cut."""
    bits = st.one_of(st.sampled_from(BITS[name]), st.sampled_from(COMMON))

    @settings(max_examples=400, deadline=None, database=None)
    @given(text=st.lists(bits, max_size=24).map("".join), data=st.data())
    def holds(text: str, data: st.DataObject) -> None:
        parts = read(reader_of(name), [text])
        assert parts == read(reader_of(name), text)
        places = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
        cuts = itertools.pairwise([0, *places, len(text)])
        assert parts == read(reader_of(name), [text[begin:end] for begin, end in cuts])
        for part in parts:
            (part.name if isinstance(part, Call) else part.text).encode()
        said = text_of(parts, Said)
        if name == "harmony":
            if "<|" not in text and not text.startswith(" to="):
                assert parts == ([Said(text)] if text else [])
        elif not calls_of(parts):
            assert parts == ([Said(text)] if text else [])
        # What is said stands in the text, in its order.
        if name == "harmony":
            rest = iter(text)
            assert all(character in rest for character in said if character != "\n")
            return
        place = 0
        for part in parts:
            if isinstance(part, Said):
                place = text.find(part.text, place)
                assert place >= 0
                place += len(part.text)

    holds()


SIZE = 50_000
LIMIT_S = 2
"""What is quadratic takes longer by far."""
JSON_CALL = '{"name": "f", "arguments": {}}'
JSON_FLOODS = {
    "text": '{"name": "f", "arguments": {"a": "§x',
    "escapes": '{"name": "f", "arguments": {"a": "§\\"',
    "space": '{"name": "f", "arguments":§ ',
    "nested": '{"name": "f", "arguments": §[',
    "closed": '{"name": "f"}§}',
    "keys": '{§"a": 1, ',
    "long keys": '{§"' + "k" * 240 + '": 1, ',
    "endless key": '{"§k',
    "endless name": '{"name": "§n',
    "arguments before the name": '{"arguments": {"a": "§é',
    "space behind": '{"name": "f"}§ ',
}
"""Each a beginning, what goes on, and perhaps an end; between them §."""
FLOODS: dict[str, dict[str, str]] = {
    "hermes": {
        **{kind: f"<tool_call>{flood}" for kind, flood in JSON_FLOODS.items()},
        "calls": f"§<tool_call>{JSON_CALL}</tool_call>",
        "beginnings": "§<tool_call>",
        "half beginnings": "§<tool_call",
        "signs": "§<",
        "calls inside of no call": '§<tool_call>{"a": [',
        "half ends": f"<tool_call>{JSON_CALL}§</tool_call",
        "broken": '<tool_call>{"name": "f", x§</tool_call',
    },
    "llama3": {
        "calls": f"§{JSON_CALL}; ",
        "space": "§ \n",
        "tags": f"§{TAG}",
    },
    "mistral": {
        "list of calls": f"{HERE}[§{JSON_CALL}, ",
        "calls": f"§{HERE}f{ARGS}{{}}",
        "beginnings": f"§{HERE}",
        "lists": f"§{HERE}[",
        "half beginnings": "§[TOOL_CALLS",
        "names": f"§{HERE}{'n' * 100}",
        "endless name": f"{HERE}§n",
        "space": f"{HERE}§ ",
        "text": f'{HERE}f{ARGS}{{"a": "§x',
    },
    "deepseek": {
        "calls": "§" + named("f", "{}"),
        "fenced calls": "§" + fenced("f", "{}"),
        "beginnings": f"§{CALLS}",
        "names": f"§{CALL}{'n' * 400}",
        "spaced names": f"§{CALL}{' ' * 400}{{",
        "half beginnings": f"§{CALLS[:-1]}",
        "endless name": f"{CALL}§n",
        "fences": f"{CALL}f{SEP}{{}}§```",
        "space": f"{CALL}f{SEP}{{}}§ ",
        "text": f'{CALL}f{SEP}{{"a": "§\\',
    },
    "harmony": {
        "calls": f"§{CHANNEL}commentary to=functions.f{MESSAGE}{{}}<|call|><|start|>assistant",
        "headers": f"§{CHANNEL}",
        "endless header": f"{CHANNEL}§n",
        "starts": "§<|start|>",
        "messages": f"§{START}{CHANNEL}final{MESSAGE}x{END}",
        "half ends": f"{CHANNEL}final{MESSAGE}§<|end|",
        "signs": "§<",
        "recipients": f"{CHANNEL}§ to=",
        "text": f"{CHANNEL}analysis{MESSAGE}§x",
        "space": "§ ",
    },
    "json": {**JSON_FLOODS, "calls": f"§{JSON_CALL}\n", "space before": "§ \n", "lines": "{§\n"},
    "pythonic": {
        "calls": "[§f(a=1), ",
        "open": "[f(a=§(",
        "open lists": "[f(§[[[[[(",
        "closed": "[f(a=1§)",
        "nested": f"[f(a={'[' * (SIZE // 2)}§]§)]",
        "text": "[f(a='§x§')]",
        "quotes": '[f(a=§"',
        "escaped quotes": "[f(a=§\\'",
        "texts": "[f(a=§'' §)]",
        "space": "[§ ",
        "endless name": "[§f",
        "names": "[f(§a=1, §)]",
        "keys": "[f(a={§1: 1, §})]",
        "words": "[f(§a§)]",
        "spaced words": "[f(a§ §)]",
        "sums": "[f(a=§1+§1)]",
        "signs": "[f(a=§-§1)]",
        "digits": "[f(a=§9§)]",
        "attributes": "[f(a=§a.§a)]",
        "brackets": "§[",
        "space behind": "[f()§ ",
    },
}


@pytest.mark.parametrize(
    ("name", "flood"),
    [
        pytest.param(name, flood, id=f"{name}-{kind}")
        for name, floods in FLOODS.items()
        for kind, flood in floods.items()
    ],
)
def test_time_is_linear_in_the_text(name: str, flood: str) -> None:
    """In processor time of this thread, which other processes do not add to."""
    beginning, unit, end = [*flood.split("§"), ""][:3]
    text = beginning + unit * (SIZE // len(unit)) + end
    assert seconds(reader_of(name), text) < LIMIT_S
    assert seconds(reader_of(name), [text]) < LIMIT_S


def seconds(reader: Reader | AnswerReader, pieces: Iterable[str]) -> float:
    began_s = time.thread_time()
    for piece in pieces:
        reader.push(piece)
    reader.finish()
    return time.thread_time() - began_s


HERMES_CALL = f"<tool_call>\n{ONE}\n</tool_call>"
HERMES_OTHER = f"<tool_call>\n{OTHER}\n</tool_call>"
THOUGHTS: list[tuple[bool, str, list[Part]]] = [
    (False, "Hello.", [Said("Hello.")]),
    (False, "  Hello <think> so </think>", [Said("  Hello <think> so </think>")]),
    (False, "<think>\nAh,\n\n so.\n</think>\n\nHello. ", [Thought("Ah,\n\n so."), Said("Hello. ")]),
    (False, " \n<think>Ah</think>", [Thought("Ah")]),
    (False, "<think></think>Hello", [Said("Hello")]),
    (False, "<think>\n\n</think>\n\n", []),
    (False, "<think>Ah </thin", [Thought("Ah </thin")]),
    (False, "<thin", [Said("<thin")]),
    (False, " \n", [Said(" \n")]),
    (False, "<think>a</think>b<think>c</think>", [Thought("a"), Said("b<think>c</think>")]),
    (True, "Ah.</think>Hello", [Thought("Ah."), Said("Hello")]),
    (True, "\n <think>\nAh.\n</think>\nHello", [Thought("Ah."), Said("Hello")]),
    (True, "Ah, <think>.</think>Hello", [Thought("Ah, <think>."), Said("Hello")]),
    (True, "</think>\n\nHello", [Said("Hello")]),
    (True, "I never end. ", [Thought("I never end. ")]),
    (True, " \n", []),
    (True, f"I do. </think>\n{HERMES_CALL}\n", [Thought("I do."), *F]),
    (True, f"No {HERMES_CALL} yet</think>So:\n{HERMES_CALL}\n{HERMES_OTHER}",
     [Thought(f"No {HERMES_CALL} yet"), Said("So:"), *F, *G]),
]  # fmt: skip


def thinking_reader(form: ThoughtFormat, opened: bool, calls: Reader | None = None) -> AnswerReader:
    return AnswerReader(form.reader(opened=opened), calls or reader_of("hermes"))


@pytest.mark.parametrize(("opened", "answer", "parts"), THOUGHTS)
def test_thoughts_before_an_answer(opened: bool, answer: str, parts: list[Part]) -> None:
    for size in (max(len(answer), 1), 1, 2, 3, 7):
        assert read(thinking_reader(THINK, opened), pieces_of(answer, size)) == parts


def test_thoughts_in_other_brackets() -> None:
    answer = f"[THINK]Hm [/THINK]Hi. {HERE}f{ARGS}{{}}"
    for pieces in ([answer], list(answer)):
        reader = thinking_reader(MISTRAL_THINK, False, reader_of("mistral"))
        assert read(reader, pieces) == [Thought("Hm"), Said("Hi."), *call("f")]


def test_thoughts_are_told_as_they_come() -> None:
    reader = thinking_reader(THINK, True)
    told = [reader.push(character) for character in "\nA b\n\n</think>\n\nHi"]
    assert [part for parts in told for part in parts] == [
        Thought("A"), Thought(" b"), Said("H"), Said("i"),
    ]  # fmt: skip
    assert told[1] == [Thought("A")]
    assert told[-2:] == [[Said("H")], [Said("i")]]


def split_thought(opened: bool, text: str) -> tuple[str, str]:
    """The thought and the rest of a whole text."""
    rest = text.lstrip()
    if not opened and not rest.startswith("<think>"):
        return "", text
    thought, closed, said = rest.removeprefix("<think>").partition("</think>")
    return (thought.strip() if closed else thought.lstrip()), said.lstrip()


@pytest.mark.parametrize("opened", [False, True])
def test_any_thought(opened: bool) -> None:
    bits = st.sampled_from([*"<>/ \n\tath", "<think>", "</think>", "<thin", "</th", "ink>"])

    @settings(max_examples=400, deadline=None, database=None)
    @given(pieces=st.lists(st.lists(bits, max_size=6).map("".join), max_size=8))
    def holds(pieces: list[str]) -> None:
        text = "".join(pieces)
        parts = read(thinking_reader(THINK, opened, PlainReader()), [text])
        assert (text_of(parts, Thought), text_of(parts, Said)) == split_thought(opened, text)
        assert parts == read(thinking_reader(THINK, opened, PlainReader()), pieces)
        assert parts == read(thinking_reader(THINK, opened, PlainReader()), text)

    holds()


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(
    "flood",
    [
        "| \n",
        "|<",
        "|x",
        "<think>| ",
        "<think>|x ",
        "<think>|</think",
        "|<think",
        "<think></think>| ",
    ],
)
def test_time_of_thoughts_is_linear(opened: bool, flood: str) -> None:
    beginning, unit = flood.split("|")
    text = beginning + unit * (SIZE // len(unit))
    assert seconds(thinking_reader(THINK, opened), text) < LIMIT_S


BEGIN_ID, END_ID = 1, 2


def tokens_of(text: str) -> list[tuple[str, int]]:
    """Texts and ids of tokens: one for each tag of thoughts, and for each other character."""
    ids = {"<think>": BEGIN_ID, "</think>": END_ID}
    pieces = re.findall("</?think>|.", text, re.DOTALL)
    return [(piece, ids.get(piece, 3)) for piece in pieces]


def reading(opened: bool, **fields: Any) -> Reading:
    ids = (f"call_{number}" for number in itertools.count())
    fields = {"begin": BEGIN_ID, "end": END_ID, **fields}
    return Reading(
        reader=lambda: thinking_reader(THINK, opened),
        new_id=lambda: next(ids),
        opened=opened,
        **fields,
    )


def message_of(deltas: Iterable[Fields]) -> Fields:
    """A message put together from what a stream adds to it, as OpenAI's library does it."""
    message: Fields = {}
    for delta in deltas:
        for name, value in delta.items():
            if name != "tool_calls":
                message[name] = message.get(name, "") + value
                continue
            calls: list[Fields] = message.setdefault("tool_calls", [])
            for added in value:
                if added["index"] == len(calls):
                    calls.append({"function": {"arguments": ""}})
                known = calls[added["index"]]
                function = {**known["function"], **added["function"]}
                function["arguments"] = (
                    known["function"]["arguments"] + added["function"]["arguments"]
                )
                known |= {**added, "function": function}
    return message


@pytest.mark.parametrize(("opened", "answer", "parts"), THOUGHTS)
@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_stream_adds_up_to_the_whole_message(
    opened: bool, answer: str, parts: list[Part], size: int
) -> None:
    tokens = tokens_of(answer)
    whole = reading(opened).choice()
    message = whole.message(answer, [token for _, token in tokens])

    choice = reading(opened).choice()
    streamed = message_of(events(choice, tokens, size))
    for added in streamed.get("tool_calls", []):
        del added["index"]
    assert streamed.get("content") == (message["content"] or None)
    assert {**streamed, "content": ""} == {**message, "content": ""}

    assert message["content"] == (text_of(parts, Said) or (None if calls_of(parts) else ""))
    assert message.get("reasoning_content", "") == text_of(parts, Thought)
    assert message.get("reasoning") == message.get("reasoning_content")
    assert [
        (each["id"], each["type"], each["function"]) for each in message.get("tool_calls", [])
    ] == [
        (f"call_{number}", "function", {"name": name, "arguments": arguments})
        for number, (name, arguments) in enumerate(calls_of(parts))
    ]
    assert choice.calls == whole.calls == len(calls_of(parts))
    assert choice.thought_tokens == whole.thought_tokens


def events(choice: ChoiceReading, tokens: Sequence[tuple[str, int]], size: int) -> Iterator[Fields]:
    """What events of so many tokens add; the last one has none."""
    for at in range(0, len(tokens), size):
        pushed = tokens[at : at + size]
        yield choice.push(
            "".join(text for text, _ in pushed), [each for _, each in pushed], last=False
        )
    yield choice.push("", [], last=True)


@pytest.mark.parametrize(
    ("opened", "answer", "expected"),
    [
        (False, "Hello", 0),
        (False, "<think>ab</think>Hello", 4),
        (False, "<think>ab", 3),
        (False, "Hello <think>ab</think>", 0),
        (True, "ab</think>Hello", 3),
        (True, "ab</think>Hello</think>", 3),
        (True, "<think>ab</think>Hello", 4),
        (True, "ab", 2),
        (True, "</think>", 1),
        (True, "", 0),
    ],
)
def test_tokens_of_thoughts_are_counted(opened: bool, answer: str, expected: int) -> None:
    tokens = tokens_of(answer)
    for size in (1, 2, 100):
        choice = reading(opened).choice()
        list(events(choice, tokens, size))
        assert choice.thought_tokens == expected


def test_tokens_of_thoughts_that_no_token_ends_are_not_counted() -> None:
    choice = reading(True, end=None).choice()
    list(events(choice, tokens_of("ab</think>Hello"), 1))
    assert choice.thought_tokens == 0


def test_thoughts_that_nobody_wants_are_left_out() -> None:
    choice = reading(True, shows_thoughts=False).choice()
    assert choice.message("ab</think>Hello", [3, 3, END_ID, 3]) == {"content": "Hello"}
    assert choice.thought_tokens == 3
