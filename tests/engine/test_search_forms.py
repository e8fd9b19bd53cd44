"""Forms of a search's own texts: proposals, judgements and votes that can always be read."""

from typing import Any

import pytest

from penstock import LLM, SamplingParams
from penstock.decoding.search.parameters import Forms
from penstock.errors import RequestError

STEPS = ["walk to the sea", "eat some bread", "Answer: sleep"]
PROPOSE = {"json": {"type": "array", "items": {"enum": STEPS}, "minItems": 2, "maxItems": 3}}
VERDICT = {
    "type": "object",
    "properties": {"verdict": {"enum": ["sure", "likely", "impossible"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
VOTE = {
    "type": "object",
    "properties": {"best": {"type": "integer", "minimum": 1, "maximum": 2}},
    "required": ["best"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def nano() -> LLM:
    return LLM(kv_cache_memory=0.01)


def search(nano: LLM, **tot: Any) -> Any:
    (answer,) = nano.generate(
        ["Plan a day."],
        SamplingParams(seed=3, temperature=1.5),
        decoding={"tot": {"trace": "full", "breadth": 2, "depth": 2, **tot}},
        use_tqdm=False,
    )
    assert answer.error is None
    assert answer.trace is not None
    return answer


def test_proposals_and_judgements_have_their_forms(nano: LLM) -> None:
    for value in ({"json": VERDICT}, {"choice": ["sure", "likely", "impossible"]}):
        answer = search(nano, forms={"propose": PROPOSE, "value": value})
        assert answer.trace.nodes
        assert {node.text for node in answer.trace.nodes} <= set(STEPS)
        assert all(line in STEPS for line in answer.text.splitlines())
        # Every judgement is a label: three of them are worth 0.003 at least.
        values = [node.value for node in answer.trace.nodes if node.value]
        assert len(values) >= 2
        assert min(values) > 0.0029


def test_without_forms_the_same_search_reads_less(nano: LLM) -> None:
    """What the test above would see if a form were not held."""
    answer = search(nano)
    assert not {node.text for node in answer.trace.nodes} <= set(STEPS)


def test_votes_have_their_form(nano: LLM) -> None:
    forms = {"propose": PROPOSE, "vote": {"json": VOTE}}
    answer = search(nano, evaluate="vote", evaluate_samples=5, forms=forms)
    first = [node.value for node in answer.trace.nodes if node.depth == 1 and node.value]
    assert sum(first) == 5


def test_what_json_says_is_read_in_lines() -> None:
    forms = Forms.model_validate({"propose": {"json": {}}, "vote": {"regex": "[0-9]"}})
    assert forms.read("propose", '["a", "b c"]') == "a\nb c"
    assert forms.read("propose", '{"steps": [{"text": "a", "n": 2}, true, null], "x": "b"}') == (
        "a\n2\nb"
    )
    assert forms.read("propose", '["a", "b') == '["a", "b'
    assert forms.read("vote", "7") == "7"
    assert forms.read("value", '["a"]') == '["a"]'


@pytest.mark.parametrize(
    ("forms", "param"),
    [
        ({"propose": {"json": {"not": {}}}}, "decoding.tot.forms.propose.json"),
        ({"value": {"regex": "(?=a)"}}, "decoding.tot.forms.value.regex"),
        ({"vote": {"choice": []}}, "decoding.tot.forms.vote.choice"),
        ({"answer": {"choice": ["a"]}}, "decoding.tot.forms.answer"),
    ],
)
def test_a_wrong_form_is_named(nano: LLM, forms: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        search(nano, forms=forms)
    assert refused.value.param == param
