"""Constrained answers: equal to a plain loop of mask and sample, whatever else takes part.

The kind: a constraint that is lost, or read twice, where a sequence is copied, begun again, drafted
for, searched over or cut. So each of these ways is held against the same loop.
"""

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock import LLM, SamplingParams
from penstock.decoding.rule_state import RuleState
from penstock.decoding.sampler import Sampler
from penstock.decoding.sampling import Sampling
from penstock.engine.build import Built
from penstock.engine.loading.folder import EMBEDDED_MODEL
from penstock.errors import RequestError
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, prepare, run

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["cats", "dogs", "tea"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
STRUCTURES: dict[str, dict[str, Any]] = {
    "json": {"json": PERSON},
    "regex": {"regex": "[0-9]{3}-(cat|dog){1,3}"},
    "choice": {"choice": ["yes, of course", "yes, perhaps", "no"]},
    "grammar": {"grammar": 'start: "<" ("a" | "b")+ ">" tail\ntail: "no" | "none at all"'},
}
DRAFTERS: list[Any] = [
    None,
    {"ngram": {}},
    {"jacobi": {"window": 4}},
    {"lookahead": {}},
]
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def nano() -> Built:
    return build(None)


def sampling(**fields: Any) -> SamplingParams:
    return SamplingParams(**fields)


@dataclass
class Row:
    sampling: Sampling
    tokens: list[int]
    prompt_length: int
    answer_start: int
    rule_state: RuleState | None = None


def naive(built: Built, folder: Path, job: Job) -> list[int]:
    """Transformers' logits, the mask of a matcher that reads the answer anew, one token a pass."""
    request = prepare(built, "naive", job)
    assert request.grammar is not None
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    row = Row(request.sampling, list(request.prompt_ids), len(request.prompt_ids), 0)
    row.answer_start = row.prompt_length
    sampler = Sampler(pieces=built.loaded.tokenizer.pieces(built.info.vocab_size))
    answer: list[int] = []
    while len(answer) < request.max_tokens:
        constraint = request.grammar.start()
        constraint.read(answer)
        if constraint.complete:
            break
        with torch.no_grad():
            logits = model(torch.tensor([row.tokens])).logits[:, -1].float().clone()
        bits = constraint.masks()[0]
        for token in range(logits.shape[1]):
            if not bits[token // 32] >> (token % 32) & 1:
                logits[0, token] = -np.inf
        (token,) = sampler.sample(logits, [row]).tolist()
        answer.append(token)
        row.tokens.append(token)
        if token in request.stop_token_ids:
            break
    return answer


def job(built: Built, structure: Any, seed: int = 1, decoding: Any = None, **fields: Any) -> Job:
    ids = built.input_processor.tokenizer.encode(PROMPT)
    values = {"max_tokens": 40, "temperature": 1.0, "seed": seed, **fields}
    return Job(
        prompt=list(ids),
        params=sampling(structured_outputs=structure, **values),
        decoding=decoding,
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", STRUCTURES)
def test_equals_the_plain_loop_with_every_drafter(
    nano: Built, name: str, temperature: float
) -> None:
    fields: dict[str, Any] = {"temperature": temperature, "frequency_penalty": 0.3}
    wanted = naive(nano, EMBEDDED_MODEL, job(nano, STRUCTURES[name], **fields))
    jobs = [job(nano, STRUCTURES[name], decoding=each, **fields) for each in DRAFTERS]
    for each in jobs:
        assert run(nano, [each])[0].tokens == [wanted]
    for answer in run(nano, jobs):  # and all of them in one batch
        assert answer.tokens == [wanted]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_equals_the_plain_loop_on_other_models(kind: str, tiny_model: TinyModel) -> None:
    built = build(tiny_model(kind))
    for seed in (1, 2):
        one = job(built, STRUCTURES["json"], seed, max_tokens=90)
        wanted = naive(built, tiny_model(kind), one)
        assert run(built, [one])[0].tokens == [wanted]


def test_mixed_batches_choices_and_preemption_change_nothing(tiny_model: TinyModel) -> None:
    folder = str(tiny_model("llama"))
    params = [
        sampling(structured_outputs=structure, max_tokens=60, seed=seed, n=n)
        for (seed, structure), n in zip(
            enumerate(STRUCTURES.values()), itertools.cycle((1, 3)), strict=False
        )
    ]
    params += [sampling(max_tokens=30, seed=9, ignore_eos=True)] * 2
    prompts = [[random.Random(i).randrange(256) for _ in range(5 + 7 * i)] for i in range(6)]
    alone = LLM(folder, prefix_cache=False, kv_cache_memory=0.01)
    wanted = [
        [choice.token_ids for choice in alone.generate([prompt], one)[0].outputs]
        for prompt, one in zip(prompts, params, strict=True)
    ]
    size = alone.kv_cache_bytes_per_token * 16 * 14
    small = LLM(folder, max_model_len=112, kv_cache_memory=size)
    together = small.generate(prompts, params)
    assert [[choice.token_ids for choice in one.outputs] for one in together] == wanted
    assert small.stats().preemptions > 0


@pytest.mark.parametrize("text", ["naïve", "日本", "😀 x", 'a "q" \\ \n\t', "b\x01"])
def test_a_choice_may_be_any_text(nano: Built, text: str) -> None:
    (answer,) = run(nano, [job(nano, {"choice": [text]})])
    assert answer.texts == [text]


def test_an_answer_may_end_by_a_token_that_its_tokenizer_does_not_know(
    tiny_model: TinyModel,
) -> None:
    built = build(tiny_model("llama"))
    for ignore_eos in (False, True):
        one = job(
            built, {"regex": "a+"}, ignore_eos=ignore_eos, logit_bias={"300": 100}, max_tokens=9
        )
        (answer,) = run(built, [one])
        assert answer.texts == ["a"]
        assert answer.reasons == [("stop", None)]


def test_what_is_forced_is_drafted(nano: Built) -> None:
    (answer,) = run(nano, [job(nano, STRUCTURES["json"])])
    jsonschema.validate(json.loads(answer.texts[0]), PERSON)
    assert answer.reasons == [("stop", None)]
    tokens = len(answer.tokens[0])
    assert answer.usage.counters.accepted > tokens / 2
    assert answer.usage.steps < tokens / 2


def test_an_answer_that_is_cut_is_the_beginning_of_a_right_one(nano: Built) -> None:
    whole = run(nano, [job(nano, STRUCTURES["json"])])[0]
    for most in (1, 3, 8):
        (cut,) = run(nano, [job(nano, STRUCTURES["json"], max_tokens=most)])
        assert cut.tokens[0] == whole.tokens[0][:most]
        assert cut.reasons == [("length", None)]


def test_a_stop_string_inside_of_forced_text_ends_the_answer(nano: Built) -> None:
    (answer,) = run(nano, [job(nano, STRUCTURES["json"], stop=['"age'])])
    assert answer.texts[0].startswith('{"name":"')
    assert '"age' not in answer.texts[0]
    assert answer.reasons == [("stop", '"age')]


def test_rules_that_leave_nothing_of_the_grammar_end_the_answer(nano: Built) -> None:
    one = job(nano, {"choice": ["cat"]}, bad_words=["cat"])
    (answer,) = run(nano, [one])
    assert answer.reasons == [("stop", "no_allowed_token")]


@pytest.mark.parametrize(
    "decoding",
    [
        {"cfg": {"scale": 1.5}},
        {"cfg": {"scale": 1.5}, "ngram": {}},
        {"best_of": {"n": 3}},
        {"beam": {"width": 3}},
    ],
    ids=str,
)
def test_other_methods_keep_to_the_grammar(decoding: dict[str, Any]) -> None:
    llm = LLM()
    params = sampling(max_tokens=60, seed=3, structured_outputs={"json": PERSON})
    (result,) = llm.generate(PROMPT, params, decoding=decoding)
    jsonschema.validate(json.loads(result.outputs[0].text), PERSON)


def test_logprobs_are_the_models_own(nano: Built) -> None:
    free = run(nano, [Job(prompt=job(nano, {}).prompt, params=sampling(max_tokens=1), logprobs=5)])
    one = job(nano, STRUCTURES["json"])
    bound = run(nano, [Job(prompt=one.prompt, params=one.params, logprobs=5)])
    assert bound[0].logprobs[0][0].top == free[0].logprobs[0][0].top
    assert len(bound[0].logprobs[0]) == len(bound[0].tokens[0])


def test_an_evicting_cache_keeps_to_the_grammar() -> None:
    llm = LLM()
    params = sampling(max_tokens=80, seed=3, structured_outputs={"json": PERSON})
    (result,) = llm.generate(
        "Once upon a time there was a cat. " * 8,
        params,
        kv_cache={"h2o": {"heavy": 8, "recent": 8}},
    )
    jsonschema.validate(json.loads(result.outputs[0].text), PERSON)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"json": {"type": "object", "not": {}}}, "not"),
    ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json": {"if": {}, "then": {}}}, "if"),
    ({"json": {"type": "string", "x-guidance": {"lenient": True}}}, "x-guidance"),
    ({"json": {"enum": []}}, ""),
    ({"json": False}, ""),
    ({"json": "{"}, ""),
    ({"json": "[]"}, "no JSON object"),
    ({"json": '{"a":' * 50_000}, ""),
    ({"json": "[" * 200_000}, ""),
    ({"grammar": "root ::= " + "(" * 20_000}, "GBNF"),
    ({"grammar": 'start: %json {"type": "string", "x-guidance": {"lenient": true}}'}, "x-guidance"),
    ({"json": {"properties": {f"k{i}": {"type": "string"} for i in range(2600)}}}, "parts"),
    ({"json": {"$ref": "#/nowhere"}}, ""),
    ({"json": {"type": "string", "pattern": "("}}, ""),
    ({"json": {"type": "string", "minLength": 3, "maxLength": 2}}, ""),
    ({"regex": "(?=a)b"}, ""),
    ({"regex": "("}, ""),
    ({"grammar": "start: nobody"}, ""),
    ({"grammar": "root ::= ("}, ""),
    ({"structural_tag": "{"}, ""),
    ({"json": {"a": [[[[1] * 30_000]]]}}, "parts"),
]


@pytest.mark.parametrize(("structure", "word"), REFUSED, ids=lambda case: str(case)[:40])
def test_what_cannot_be_held_is_refused(nano: Built, structure: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError) as refused:
        prepare(nano, "x", job(nano, structure))
    (kind,) = structure
    assert refused.value.param == f"structured_outputs.{kind}"
    assert refused.value.code == "invalid_grammar"
    assert word in refused.value.message
    assert len(refused.value.message) < 400


def test_a_schema_that_is_too_deep_is_refused(nano: Built) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="levels"):
        prepare(nano, "x", job(nano, {"json": schema}))


def test_two_forms_contradict_each_other(nano: Built) -> None:
    with pytest.raises(ValueError, match="contradict"):
        sampling(structured_outputs={"json": {}, "regex": "x"})
    with pytest.raises(RequestError, match="both say"):
        prepare(
            nano,
            "x",
            job(nano, {"regex": "x"}, response_format={"type": "json_object"}),
        )


def test_a_composed_answer_cannot_be_held(nano: Built) -> None:
    with pytest.raises(RequestError, match="puts together"):
        prepare(nano, "x", job(nano, {"regex": "x+"}, decoding={"tot": {"task": "game24"}}))


def test_a_grammar_that_becomes_too_complex_fails_alone() -> None:
    llm = LLM()
    endless = {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 3}
    schema = {"$ref": "#/$defs/a", "$defs": {"a": endless}}
    failing = sampling(max_tokens=40, seed=1, structured_outputs={"json": schema})
    fine = sampling(max_tokens=40, seed=1)
    alone = llm.generate(PROMPT, fine)[0].outputs[0].token_ids
    first, second = llm.generate([PROMPT, PROMPT], [failing, fine])
    assert first.error is not None
    assert "too complex" in str(first.error)
    assert second.outputs[0].token_ids == alone
