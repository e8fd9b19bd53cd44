import ast
import re
from random import Random
from typing import cast

import pytest

from penstock.models.nano.abilities.example import Example, Split, is_held_out
from penstock.models.nano.abilities.materials import combination
from penstock.models.nano.abilities.rewriting import example

_RENAME = re.compile(r"^Rename (?:the variable )?(\w+) to (\w+)\.$", re.MULTILINE)
_SWAP = re.compile(r"^Swap the two arguments in each call of (\w+)\.$", re.MULTILINE)
_DICT = re.compile(r"^(?:Turn these assignments into|Write this code as) a dict\.$", re.MULTILINE)
_GETTERS = re.compile(r"^Write (?:getters for these fields|a getter for each field): (.*)$")


def _examples(split: Split, tag: str) -> list[Example]:
    random = Random(0)
    return [shown for _ in range(1500) if (shown := example(random, split)).tags == (tag,)]


def _code(shown: Example, request: re.Pattern[str]) -> str:
    code = request.sub("", shown.turns[0].text).strip()
    assert 3 <= len(code.splitlines()) <= 8
    return code


def _found(shown: Example, request: re.Pattern[str]) -> re.Match[str]:
    match = request.search(shown.turns[0].text)
    assert match
    return match


def _check_split(split: Split, *names: str) -> None:
    assert is_held_out(combination("rewriting", *names)) == (split == "held_out")


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_renaming_changes_whole_names_only(split: Split) -> None:
    for shown in _examples(split, "rename"):
        old, new = _found(shown, _RENAME).groups()
        code = _code(shown, _RENAME)
        assert not re.search(rf"\b{new}\b", code)
        assert len(re.findall(rf"\b{old}\b", code)) >= 2
        assert re.sub(rf"\b{old}\b", new, code) == shown.answer
        compile(ast.parse(shown.answer), "answer", "exec")
        _check_split(split, old, new)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_dict_holds_what_was_assigned(split: Split) -> None:
    for shown in _examples(split, "dict"):
        statements = ast.parse(_code(shown, _DICT)).body
        assigned: dict[str, object] = {}
        for statement in statements:
            assert isinstance(statement, ast.Assign)
            assigned[ast.unparse(statement.targets[0])] = ast.literal_eval(statement.value)
        answer = cast("dict[str, object]", ast.literal_eval(shown.answer))
        assert list(answer.items()) == list(assigned.items())
        _check_split(split, *list(assigned)[:2])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_each_getter_returns_its_field(split: Split) -> None:
    for shown in _examples(split, "getters"):
        names = _found(shown, _GETTERS)[1].split(", ")
        functions = ast.parse(shown.answer).body
        assert [ast.unparse(function) for function in functions] == [
            f"def get_{name}(self):\n    return self.{name}" for name in names
        ]
        _check_split(split, *names[:2])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_swapping_back_gives_the_code_again(split: Split) -> None:
    for shown in _examples(split, "swap"):
        function = _found(shown, _SWAP)[1]
        code = _code(shown, _SWAP)
        calls = re.findall(r"(\w+) = (\w+)\((\w+), (\w+)\)", shown.answer)
        assert "\n".join(f"{r} = {f}({b}, {a})" for r, f, a, b in calls) == code
        _check_split(split, function, calls[0][3])
