"""What a request says about its tokens holds under every method that decides which come.

The kind: a method that takes its tokens from somewhere else than the sampler (beams from logprobs,
judges, drafts, a combined distribution) and so passes by what the caller asked for. Every field of
`SamplingFields` meets every registered controller, target and drafter, and is either seen in the
answer or refused by name. A field or a controller that this file does not know fails it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from penstock.decoding.sampling_params import SamplingFields
from tests.server.conftest import MODEL
from tests.tiny import EOS, byte_tokenizer

IDS = {letter: byte_tokenizer().encode(letter)[0] for letter in "abcdefgh"}
BODY: dict[str, Any] = {
    "model": MODEL,
    "prompt": "xyz, yzx",
    "max_tokens": 8,
    "seed": 3,
    "temperature": 1,
    "ignore_eos": True,
    "allowed_token_ids": list(IDS.values()),
    "return_token_ids": True,
}
# Methods as they are asked for; those that are not here are asked for without parameters.
SETTINGS: dict[str, dict[str, Any]] = {
    "cfg": {"scale": 1.1, "negative_prompt": "no"},
    "jacobi": {"window": 6, "adaptive": False},
    "best_of": {"n": 3},
    "beam": {"width": 3},
    "tot": {"generate": "sample", "generate_samples": 3, "breadth": 3, "depth": 1},
}
KNOWN = {"plain", "cfg", "jacobi", "ngram", "lookahead", "best_of", "beam", "tot", "sparse_prefill"}

Choices = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`fields` on top of `BODY` and `base`: `holds(with them, without them)` tells that they do."""

    fields: dict[str, Any]
    holds: Callable[[Choices, Choices], bool]
    base: dict[str, Any] | None = None


def texts(choices: Choices) -> list[str]:
    return [choice["text"] for choice in choices]


def lengths(choices: Choices) -> list[int]:
    return [len(choice["token_ids"]) for choice in choices]


def varied(given: Choices, without: Choices) -> bool:
    """Something else comes where the same would come again and again."""
    return "aaa" in texts(without)[0] != texts(given)[0]


def is_greedy(given: Choices, without: Choices) -> bool:
    """One candidate is left everywhere: whatever is drawn or scored, it is the same as below."""
    del without
    return texts(given) == texts(ALONE["greedy"])


ALONE: dict[str, Choices] = {}
MOSTLY_A = {"temperature": 0, "logit_bias": {str(IDS["a"]): 60, str(IDS["b"]): 59.5}}
ONLY_A = {"logit_bias": {str(IDS["a"]): 100}}
TO_END = {
    "logit_bias": {str(EOS): 100},
    "allowed_token_ids": [*IDS.values(), EOS],
    "ignore_eos": False,
}
ONLY_SPECIAL = {"allowed_token_ids": [byte_tokenizer().eos_token_id]}
ANIMAL = {
    "type": "json_schema",
    "json_schema": {"name": "animal", "schema": {"enum": ["cat", "dog"]}},
}
CASES: dict[str, Case] = {
    "n": Case(fields={"n": 2}, holds=lambda given, _: len(given) == 2),
    "max_tokens": Case(fields={"max_tokens": 3}, holds=lambda given, _: lengths(given) == [3]),
    "min_tokens": Case(
        base=TO_END,
        fields={"min_tokens": 5},
        # A tree does not count the token that ends its answer.
        holds=lambda given, without: max(lengths(without)) <= 1 and min(lengths(given)) in (5, 6),
    ),
    "temperature": Case(
        fields={"temperature": 0, "seed": 5},
        base={"seed": 4},
        holds=lambda given, _: texts(given) == texts(ALONE["cold"]),
    ),
    "top_p": Case(fields={"top_p": 1e-6}, holds=is_greedy),
    "top_k": Case(fields={"top_k": 1}, holds=is_greedy),
    "min_p": Case(fields={"min_p": 1}, holds=is_greedy),
    "repetition_penalty": Case(base=MOSTLY_A, fields={"repetition_penalty": 10}, holds=varied),
    "presence_penalty": Case(base=MOSTLY_A, fields={"presence_penalty": 2}, holds=varied),
    "frequency_penalty": Case(base=MOSTLY_A, fields={"frequency_penalty": 2}, holds=varied),
    "logit_bias": Case(
        fields={"logit_bias": {str(IDS["b"]): 100}},
        holds=lambda given, without: texts(given) == ["b" * 8] != texts(without),
    ),
    "seed": Case(fields={"seed": 3}, holds=lambda given, without: given == without),
    "stop": Case(
        base=ONLY_A,
        fields={"stop": "aa"},
        holds=lambda given, without: (
            (texts(given), texts(without)) == ([""], ["a" * 8]) and given[0]["stop_reason"] == "aa"
        ),
    ),
    "stop_token_ids": Case(
        base=ONLY_A,
        fields={"stop_token_ids": [IDS["a"]]},
        holds=lambda given, without: (
            (texts(given), texts(without)) == ([""], ["a" * 8])
            and given[0]["stop_reason"] == IDS["a"]
            and given[0]["finish_reason"] == "stop"
        ),
    ),
    "ignore_eos": Case(
        base=TO_END,
        fields={"ignore_eos": True},
        holds=lambda given, without: lengths(given) == [8] and max(lengths(without)) <= 1,
    ),
    "bad_words": Case(
        base=ONLY_A,
        fields={"bad_words": ["aa", "xyz"]},
        holds=lambda given, without: "aa" in without[0]["text"] and "aa" not in given[0]["text"],
    ),
    "skip_special_tokens": Case(
        base=ONLY_SPECIAL,
        fields={"skip_special_tokens": False},
        holds=lambda given, without: texts(without) == [""] and texts(given)[0].startswith("<eos>"),
    ),
    "spaces_between_special_tokens": Case(
        base={**ONLY_SPECIAL, "skip_special_tokens": False},
        fields={"spaces_between_special_tokens": False},
        holds=lambda given, _: texts(given) == ["<eos>" * 8],
    ),
    "include_stop_str_in_output": Case(
        base={**ONLY_A, "stop": "aa"},
        fields={"include_stop_str_in_output": True},
        holds=lambda given, without: (texts(given), texts(without)) == (["aa"], [""]),
    ),
    "allowed_token_ids": Case(
        fields={"allowed_token_ids": [IDS["c"], IDS["c"], IDS["d"]]},
        holds=lambda given, without: (
            set("".join(texts(given))) <= {"c", "d"} and not set(texts(without)[0]) <= {"c", "d"}
        ),
    ),
    "structured_outputs": Case(
        fields={"structured_outputs": {"regex": "[ab]{2}[cd]{2}"}},
        holds=lambda given, _: re.fullmatch("[ab]{2}[cd]{2}", texts(given)[0]) is not None,
    ),
    "response_format": Case(
        base={"allowed_token_ids": None},
        fields={"response_format": ANIMAL},
        holds=lambda given, _: texts(given)[0] in ('"cat"', '"dog"'),
    ),
}


def ask(http: httpx.Client, method: str, **fields: Any) -> httpx.Response:
    spec = {"decoding": {method: SETTINGS.get(method, {})}} if method else {}
    return http.post("/v1/completions", json={**BODY, **spec, **fields})


def choices_of(answer: httpx.Response) -> Choices:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def test_no_field_and_no_method_is_missing_here(http: httpx.Client) -> None:
    assert set(CASES) == set(SamplingFields.model_fields)
    assert {method["name"] for method in http.get("/v1/decoding").json()["decoding"]} == KNOWN


@pytest.mark.parametrize("method", ["", *sorted(KNOWN)])
@pytest.mark.parametrize("field", CASES)
def test_every_field_holds_under_every_method_or_is_refused(
    http: httpx.Client, field: str, method: str
) -> None:
    case = CASES[field]
    ALONE["greedy"] = choices_of(ask(http, method if method == "cfg" else "", temperature=0))
    ALONE["cold"] = choices_of(ask(http, method, temperature=0, seed=9))
    base = case.base or {}
    without = choices_of(ask(http, method, **base))
    answer = ask(http, method, **{**base, **case.fields})
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert error["param"] == field
        assert method in error["message"]
        return
    assert case.holds(choices_of(answer), without), (answer.json()["choices"], without)


def test_what_is_put_together_refuses_what_it_cannot_keep(http: httpx.Client) -> None:
    """Of proposals a tree makes its answer itself: words could come in behind the model's back."""
    fields = {"bad_words": ["a"], "decoding": {"tot": {"generate": "propose"}}}
    answer = http.post("/v1/completions", json={**BODY, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "bad_words"
    assert "decoding.tot" in answer.json()["error"]["message"]
