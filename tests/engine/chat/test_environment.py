"""What a chat template says about itself before it is rendered."""

import pytest

from penstock.engine.requests.chat.environment import template_variables
from penstock.engine.requests.tokenizer import Tokenizer
from tests.tiny import byte_tokenizer


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{{ messages[0].content }}", {"messages"}),
        ("{% set effort = reasoning_effort | default('low') %}{{ effort }}", {"reasoning_effort"}),
        ("{% if enable_thinking is defined %}{% break %}{% endif %}", {"enable_thinking"}),
        ("{% generation %}{{ verbosity }}{% endgeneration %}", {"verbosity"}),
        ("{% set ns = namespace(a=1) %}{{ ns.a }}{{ raise_exception('x') }}", set[str]()),
        ("{% for m in messages %}{{ m.reasoning_effort }}{% endfor %}", {"messages"}),
        ("{{ unfinished", set[str]()),
    ],
)
def test_variables_are_those_a_caller_may_give(source: str, names: set[str]) -> None:
    assert template_variables(source) == names


def test_of_several_templates_the_one_without_tools_counts() -> None:
    hf = byte_tokenizer()
    hf.chat_template = {"tool_use": "{{ tools }}", "default": "{{ verbosity }}"}
    assert Tokenizer(hf).template_variables == {"verbosity"}
    hf.chat_template = {"only": "{{ x }}"}
    assert Tokenizer(hf).template_variables == {"x"}
    hf.chat_template = None
    assert Tokenizer(hf).template_variables == frozenset()
