"""Readers of answers take time linear in the text, however hostile it is."""

import time
from collections.abc import Iterable

import pytest

from penstock.server.conventions.reader import AnswerReader, Reader
from penstock.server.conventions.thinking.think import THINK
from tests.server.answer_texts import (
    ARGS,
    CALL,
    CALLS,
    CHANNEL,
    END,
    HERE,
    MESSAGE,
    SEP,
    START,
    TAG,
    fenced,
    named,
    reader_of,
    thinking_reader,
)

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
    "qwen_xml": {
        "calls": "§<tool_call><function=f></function></tool_call>",
        "bare calls": "§<function=f></function>",
        "beginnings": "§<tool_call>",
        "functions": "§<function=",
        "unknown functions": "§<function=unknown>",
        "endless name": "<function=§n",
        "space": "<function=f>§ ",
        "parameters": "<function=f>§<parameter=s>1</parameter>",
        "parameter tags": "<function=f>§<parameter=",
        "endless key": "<function=f><parameter=§k",
        "text": "<function=typed><parameter=s>§x",
        "lines": "<function=typed><parameter=s>§\n",
        "ends in text": "<function=typed><parameter=s>§</parameter>",
        "spaced ends in text": "<function=typed><parameter=s>§</parameter>" + " " * 15,
        "other ends in text": "<function=typed><parameter=s>§</function>",
        "half ends": "<function=typed><parameter=s>§</para",
        "space behind an end": "<function=typed><parameter=s></parameter>§ ",
        "number": "<function=typed><parameter=i>§1",
        "brackets": "<function=typed><parameter=o>§[",
        "brackets of a value": "<function=typed><parameter=o>§[§</parameter></function>",
        "signs": "<function=typed><parameter=i>§-§</parameter></function>",
        "digits": "<function=typed><parameter=i>§9§</parameter></function>",
        "braces": "<function=typed><parameter=o>§{§</parameter></function>",
    },
    "glm": {
        "calls": "§<tool_call>f</tool_call>",
        "beginnings": "§<tool_call>",
        "endless name": "<tool_call>§n",
        "space": "<tool_call>§ ",
        "arguments": "<tool_call>f§<arg_key>s</arg_key><arg_value>1</arg_value>",
        "endless key": "<tool_call>f<arg_key>§k",
        "text": "<tool_call>typed<arg_key>s</arg_key><arg_value>§x",
        "ends in text": "<tool_call>typed<arg_key>s</arg_key><arg_value>§</arg_value>",
        "half ends": "<tool_call>typed<arg_key>s</arg_key><arg_value>§</arg_valu",
        "number": "<tool_call>typed<arg_key>i</arg_key><arg_value>§1",
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
