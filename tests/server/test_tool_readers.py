"""Readers of calls: what each convention makes of text, however it is cut or broken."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.server.conventions.parts import Arguments, Call, Part, Said
from tests.server.answer_texts import (
    ARGS,
    BROKEN,
    CALL,
    CALL_END,
    CALLS,
    CALLS_END,
    CHANNEL,
    END,
    FORMATS,
    HERE,
    MESSAGE,
    ONE,
    SEP,
    START,
    TAG,
    WELL_FORMED,
    F,
    call,
    calls_of,
    cases,
    pieces_of,
    read,
    reader_of,
    text_of,
)


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
        assert isinstance(read(FORMATS[name].reader({"g": {}}), WELL_FORMED[name][1][0])[0], Said)
    for name in ("hermes", "mistral", "deepseek", "harmony", "qwen_xml", "glm"):
        answers = [answer for answer, parts in WELL_FORMED[name] if parts in (F, call("f"))]
        assert answers
        assert all(read(FORMATS[name].reader({}), answer)[0] == F[0] for answer in answers)


@pytest.mark.parametrize(
    ("name", "beginning", "end"),
    [
        ("qwen_xml", "<function=typed>\n<parameter=s>\n", "\n</parameter>\n<parameter="),
        ("glm", "<tool_call>typed\n<arg_key>s</arg_key>\n<arg_value>", "</arg_value>\n<arg_key>"),
    ],
)
def test_text_between_tags_comes_as_it_is_written(name: str, beginning: str, end: str) -> None:
    reader = reader_of(name)
    found = [part for character in beginning for part in reader.push(character)]
    assert found[0] == Call("typed")
    found += reader.push("R")
    assert text_of_arguments(found) == '{"s": "R'
    for character in "ome ":
        assert reader.push(character) == [Arguments(character)]
    assert reader.push("<") == []
    assert reader.push("b") == [Arguments("<b")]
    assert text_of_arguments(reader.push(end)) == '"'
    assert reader.finish() == []


def text_of_arguments(parts: list[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Arguments))


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
    "qwen_xml": [
        "<tool_call>", "</tool_call>", "<function=", "<function=f>", "<function=typed>",
        "</function>", "<parameter=", "<parameter=s>", "<parameter=i>", "</parameter>", "</",
        "<par",
    ],
    "glm": [
        "<tool_call>", "</tool_call>", "<tool_call>f", "<tool_call>typed", "<arg_key>",
        "</arg_key>", "<arg_value>", "</arg_value>", "<arg_key>s</arg_key>",
        "<arg_key>i</arg_key>", "</", "<arg",
    ],
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
