"""Thoughts in answers: read apart, streamed, put together and counted."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.server.conventions.parts import Part, Said, Thought
from penstock.server.conventions.reader import PlainReader
from penstock.server.conventions.reading import ChoiceReading, Fields, Reading
from penstock.server.conventions.thinking.mistral import MISTRAL as MISTRAL_THINK
from penstock.server.conventions.thinking.think import THINK
from tests.server.answer_texts import (
    ARGS,
    HERE,
    ONE,
    OTHER,
    F,
    G,
    call,
    calls_of,
    pieces_of,
    read,
    reader_of,
    text_of,
    thinking_reader,
)

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
