"""Beam search and best-of-n on the engine, and what controllers refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock import SamplingParams
from penstock.engine.build import Built
from penstock.engine.requests.input import Input
from penstock.engine.requests.tokenizer import Tokenizer
from penstock.engine.search.subrequests import RequestContext
from penstock.engine.state.request import Conversation
from penstock.errors import RequestError
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, run
from tests.engine.searches import Run, search_request
from tests.engine.test_architectures import prompts as token_prompts

PROMPT = "The quick brown fox jumps over the lazy dog"


@pytest.fixture
def built(tiny_model: TinyModel) -> Built:
    return build(tiny_model("llama"))


def reference_beams(
    folder: Path, prompt: list[int], width: int, penalty: float, early: bool | str, **rules: Any
) -> list[list[int]]:
    """transformers' own."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        num_beams=width,
        num_return_sequences=width,
        length_penalty=penalty,
        early_stopping=early,
        do_sample=False,
        eos_token_id=list(EOS_IDS),
        pad_token_id=EOS_IDS[0],
        **rules,
    )
    answers: list[list[int]] = []
    for row in out[:, len(prompt) :].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in EOS_IDS), len(row))
        answers.append(row[:end])
    return answers


EOS_IDS = (300, 256, 17, 101, 230)
"""Several, so that beams of a random model end."""


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mixtral"])
@pytest.mark.parametrize(
    ("width", "penalty", "early"),
    [(1, 1.0, False), (2, 1.0, True), (4, 0.0, False), (4, 2.0, False), (3, 1.0, "never")],
)
def test_beams_equal_those_of_transformers(
    kind: str, width: int, penalty: float, early: bool | str, tiny_model: TinyModel
) -> None:
    if width == 1:  # transformers takes one beam for greedy decoding
        early = False
    folder = tiny_model(kind)
    built = build(folder)
    for prompt in token_prompts()[:4]:
        request = search_request(
            built,
            prompt,
            {"beam": {"width": width, "length_penalty": penalty, "early_stop": early}},
            n=width,
            max_tokens=12,
            stop_token_ids=list(EOS_IDS),
        )
        found = [list(delta.token_ids) for delta in Run(built, request).finish()]
        assert found == reference_beams(folder, prompt, width, penalty, early)


RULES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    ({"min_tokens": 5}, {"min_new_tokens": 5}),
    ({"logit_bias": {"40": 3, "41": -2.5}}, {"sequence_bias": [[[40], 3.0], [[41], -2.5]]}),
    (
        {"allowed_token_ids": [*range(30, 60), 17]},
        {"suppress_tokens": [i for i in range(320) if i != 17 and not 30 <= i < 60]},
    ),
]
"""The same to us and to transformers."""


@pytest.mark.parametrize(("ours", "theirs"), RULES, ids=lambda one: next(iter(one)))
def test_beams_under_rules_equal_those_of_transformers(
    ours: dict[str, Any], theirs: dict[str, Any], tiny_model: TinyModel
) -> None:
    """Rules change log-probabilities, and those that are left are not normalised again."""
    folder = tiny_model("llama")
    built = build(folder)
    changed = 0
    for prompt in token_prompts()[:4]:
        fields: dict[str, Any] = {"n": 4, "max_tokens": 12, "stop_token_ids": list(EOS_IDS)}
        # Short beams are favoured, so that some end before `min_tokens` where nothing forbids it.
        beams = {"beam": {"width": 4, "length_penalty": -2.0}}
        found, plain = (
            [list(d.token_ids) for d in Run(built, request).finish()]
            for request in (
                search_request(built, prompt, beams, **fields, **ours),
                search_request(built, prompt, beams, **fields),
            )
        )
        assert found == reference_beams(folder, prompt, 4, -2.0, False, **theirs)
        changed += found != plain
    assert changed


def test_best_of_gives_the_best(built: Built) -> None:
    request = search_request(built, PROMPT, {"best_of": {"n": 6}}, n=2, ignore_eos=True)
    run = Run(built, request)
    answers = run.finish()
    nodes = run.search.trace.nodes
    ranked = sorted(nodes, key=lambda node: -(node.value or 0))
    assert [delta.text for delta in answers] == [node.text for node in ranked[:2]]
    assert {node.status for node in ranked[:2]} == {"answer"}
    assert run.search.usage.thoughts == 6


@pytest.mark.parametrize(
    ("decoding", "fields", "param"),
    [
        ({"beam": {"width": 2}}, {"n": 3}, "n"),
        ({"best_of": {"n": 2}}, {"n": 3}, "n"),
        ({"beam": {}}, {"max_tokens": 0}, "max_tokens"),
        ({"beam": {"budget": {"thoughts": 10**5}}}, {}, "decoding.beam.budget.thoughts"),
        ({"beam": {"budget": {"sequences": 99}}}, {}, "decoding.beam.budget.sequences"),
        ({"best_of": {"budget": {"thoughts": 3}}}, {}, "decoding.best_of.n"),
        (
            {"best_of": {"budget": {"sequences": 1}}, "cfg": {}},
            {},
            "decoding.best_of.budget.sequences",
        ),
        ({"best_of": {"rank": "evaluator", "evaluator": "x"}}, {}, "decoding.best_of.evaluator"),
    ],
)
def test_what_cannot_work_is_refused(
    built: Built, decoding: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as error:
        search_request(built, PROMPT, decoding, **fields)
    assert error.value.param == param


def test_beams_and_eviction_are_refused_together(built: Built) -> None:
    with pytest.raises(RequestError, match=r"token by token") as error:
        search_request(built, PROMPT, "beam", kv_cache="h2o")
    assert error.value.param == "kv_cache.h2o"


@pytest.mark.parametrize("negative", [None, "no"])
def test_guided_beams_and_chains_are_guided_answers(built: Built, negative: str | None) -> None:
    """All contexts go on with the same answer, from one generation to the next."""
    cfg = {"cfg": {"scale": 3.0, "negative_prompt": negative}}
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    (answer,) = run(built, [Job(prompt=[1, 2, 3], params=SamplingParams(**greedy), decoding=cfg)])
    request = search_request(built, [1, 2, 3], {**cfg, "beam": {"width": 1}}, **greedy)
    (beam,) = Run(built, request).finish()
    assert list(beam.token_ids) == answer.tokens[0]
    chain = {"generate": "sample", "generate_samples": 1, "breadth": 1, "depth": 3}
    greedy["max_tokens"] = 4
    request = search_request(built, [1, 2, 3], {**cfg, "tot": chain}, **greedy)
    (thoughts,) = Run(built, request).finish()
    ids = list(thoughts.token_ids)
    assert ids
    assert answer.tokens[0][: len(ids)] == ids


@pytest.mark.parametrize("sequences", [1, 8])
def test_a_budget_that_ends_best_of_leaves_the_best_so_far(built: Built, sequences: int) -> None:
    budget = {"tokens": 120, "sequences": sequences}
    decoding = {"best_of": {"n": 6, "budget": budget}}
    run_ = Run(built, search_request(built, PROMPT, decoding, max_tokens=20, ignore_eos=True))
    (answer,) = run_.finish()
    assert answer.text
    assert run_.search.trace.exhausted == "tokens"
    assert 0 < len(run_.search.trace.nodes) < 6
    usage = run_.search.usage
    assert usage.prompt_tokens + usage.completion_tokens <= 120


def test_choices_that_cannot_evict_together_evict_in_turn(tiny_model: TinyModel) -> None:
    """One that could never be admitted would keep everybody behind it waiting for ever."""
    built = build(tiny_model("llama"), kv_cache_memory=24 * 12_288, max_model_len=300)
    policy = {"h2o": {"heavy": 60, "recent": 60, "interval": 8}}
    request = search_request(
        built, [1] * 200, {"best_of": {"n": 8}}, kv_cache=policy, ignore_eos=True
    )
    run_ = Run(built, request)
    (answer,) = run_.finish()
    assert answer.text
    assert len(run_.search.trace.nodes) == 8


def test_questions_are_put_as_the_chat_was(built: Built) -> None:
    """Behind what was said before, and with the chat's own words for the template."""
    hf = built.input_processor.tokenizer.hf
    hf.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}{{ mood }}"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    request = built.input_processor.prepare(
        Input(
            request_id="r",
            prompt="<s><u>calm",
            params=SamplingParams(),
            decoding="tot",
            conversation=Conversation(messages=messages, template_kwargs={"mood": "calm"}),
        )
    )
    known = built.input_processor
    model = replace(known.model, tokenizer=Tokenizer(hf))
    context = RequestContext(request, replace(known, model=model))
    assert context.problem == "u"
    assert context.decode(context.ask("why").ids) == "<s><why>calm"
