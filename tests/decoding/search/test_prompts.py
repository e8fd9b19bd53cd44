"""Prompts are data: what a caller sends is filled in, or refused."""

import pytest

from penstock.decoding.search.prompts import MAX_FIELDS, MAX_PROMPT, Prompts, fill


def test_fields_are_filled_in_once() -> None:
    fields = {"problem": "{state} {{", "thoughts": "x\\1", "state": "s"}
    assert fill("{problem}|{thoughts}|{{state}}|}}{{", fields) == "{state} {{|x\\1|{state}|}{"


@pytest.mark.parametrize(
    "prompt",
    [
        "{problem.__class__}",
        "{problem[0]}",
        "{problem!r}",
        "{problem:>9999999}",
        "{0}",
        "{}",
        "{",
        "}",
        "{ problem }",
        "{secret}",
        "{problem",
        "{{problem}",
        "{candidates}",
        "{problem.__init__.__globals__[os]}",
        "{" * 10_001,
        "{problem}" * (MAX_FIELDS + 1),
        "x" * (MAX_PROMPT + 1),
        "",
    ],
)
@pytest.mark.parametrize("name", ["propose", "sample", "value"])
def test_all_else_in_braces_is_refused(name: str, prompt: str) -> None:
    with pytest.raises(ValueError, match=name):
        Prompts.model_validate({name: prompt})


def test_a_vote_has_its_own_fields() -> None:
    Prompts(vote="{problem} {candidates} {{thoughts}}")
    with pytest.raises(ValueError, match="thoughts"):
        Prompts(vote="{candidates} {thoughts}")


def test_what_is_left_out_is_the_tasks() -> None:
    both = Prompts(value="mine").over(Prompts(value="theirs", propose="theirs"))
    assert both == Prompts(value="mine", propose="theirs")
