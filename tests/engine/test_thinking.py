"""Thoughts before answers: equal to a plain loop that counts, whatever else takes part."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock import LLM, SamplingParams
from penstock.decoding.constraint.thinking import Thinking, ThinkingConstraint
from penstock.decoding.drafting.draft import Draft
from penstock.decoding.sampler import Sampler
from penstock.engine.build import Built
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, prepare, run
from tests.engine.test_structured import Row
from tests.tiny import EOS

BEGIN, END = 200, 201
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"age": {"type": "integer", "maximum": 99}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}
DRAFTERS: list[Any] = [None, {"ngram": {}}, {"jacobi": {"window": 4}}, {"lookahead": {}}]
KINDS: dict[str, Thinking] = {
    "opened": Thinking(begin=BEGIN, end=END, opened=True),
    "opened, a budget": Thinking(begin=BEGIN, end=END, opened=True, budget=7),
    "not opened, a budget": Thinking(begin=BEGIN, end=END, opened=False, budget=5),
    "no budget left": Thinking(begin=BEGIN, end=END, opened=True, budget=0),
    "a beginning": Thinking(begin=None, end=END, opened=True, budget=4, opening=(BEGIN, 65, 66)),
    "control tokens": Thinking(begin=BEGIN, end=END, opened=True, budget=30, never=(65, 66, 67)),
}


@pytest.fixture(scope="module")
def tiny(tiny_model: TinyModel) -> Built:
    return build(tiny_model("llama"))


def job(thinking: Thinking | None, form: bool, seed: int = 1, **fields: Any) -> Job:
    values: dict[str, Any] = {
        "max_tokens": 60, "temperature": 1.0, "seed": seed, "logit_bias": {str(END): 4.0},
        "structured_outputs": {"json": FORM} if form else None,
    }  # fmt: skip
    return Job(
        prompt=[72, 101, 108, 108],
        params=SamplingParams.model_validate(
            values | {k: v for k, v in fields.items() if k in values}
        ),
        thinking=thinking,
        decoding=fields.get("decoding"),
    )


def allowed(thinking: Thinking, constraint: Any, answer: list[int], vocab: int) -> list[bool]:
    """Which tokens may follow, found out anew from the whole answer."""
    everything = [token <= 256 or token == EOS for token in range(vocab)]
    inside = thinking.opened or answer[:1] == [BEGIN]
    thought = answer if thinking.opened else answer[1:]
    if inside and END not in thought:
        if len(thought) < len(thinking.opening):
            return [token == thinking.opening[len(thought)] for token in range(vocab)]
        if thinking.budget is not None and len(thought) - len(thinking.opening) >= thinking.budget:
            return [token == END for token in range(vocab)]
        left = [each and token not in thinking.never for token, each in enumerate(everything)]
        if constraint is not None:
            left[EOS] = left[256] = False
        return left
    if constraint is None:
        return everything
    said = thought[thought.index(END) + 1 :] if inside else answer
    constraint.read(said)
    bits = constraint.masks()[0]
    form = [bool(bits[token // 32] >> (token % 32) & 1) for token in range(vocab)]
    if not answer and not inside:
        form[BEGIN] = True
    return form


def naive(built: Built, model: Any, one: Job) -> list[int]:
    request = prepare(built, "naive", one)
    assert one.thinking is not None
    row = Row(request.sampling, list(request.prompt_ids), len(request.prompt_ids), 0)
    row.answer_start = row.prompt_length
    sampler = Sampler(pieces=built.loaded.tokenizer.pieces(built.info.vocab_size))
    answer: list[int] = []
    while len(answer) < request.max_tokens:
        constraint = None if request.grammar is None else request.grammar.start()
        with torch.no_grad():
            logits = model(torch.tensor([row.tokens])).logits[:, -1].float().clone()
        may = [True] * logits.shape[1]
        if request.thinking is not None:  # without a form and a budget a thought is any text
            may = allowed(one.thinking, constraint, answer, logits.shape[1])
        logits[0, torch.tensor([not each for each in may])] = -np.inf
        (token,) = sampler.sample(logits, [row]).tolist()
        answer.append(token)
        row.tokens.append(token)
        if token in request.stop_token_ids:
            break
        inside = one.thinking.opened or answer[0] == BEGIN
        if request.grammar is not None and (END in answer or not inside):
            done = request.grammar.start()
            done.read(answer[answer.index(END) + 1 :] if inside else answer)
            if done.complete:
                break
    return answer


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_loop_with_every_drafter(
    tiny: Built, tiny_model: TinyModel, kind: str, form: bool
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model("llama"), attn_implementation="eager", dtype=torch.float32
    ).eval()
    thinking = KINDS[kind]
    ended = 0
    for seed in (1, 2):
        wanted = naive(tiny, model, job(thinking, form, seed))
        jobs = [job(thinking, form, seed, decoding=each) for each in DRAFTERS]
        for each in jobs:
            assert run(tiny, [each])[0].tokens == [wanted]
        for answer in run(tiny, [*jobs, job(None, form, seed), job(None, False, seed)])[
            : len(jobs)
        ]:
            assert answer.tokens == [wanted]
        ended += END in wanted
    assert ended or thinking.budget is None or not thinking.opened


def test_what_follows_a_thought_has_its_form(tiny: Built) -> None:
    tokenizer = tiny.input_processor.tokenizer
    for seed in range(6):
        (answer,) = run(tiny, [job(KINDS["opened, a budget"], True, seed)])
        tokens = answer.tokens[0]
        place = tokens.index(END)
        assert place <= 7
        jsonschema.validate(json.loads(tokenizer.decode(tokens[place + 1 :])), FORM)


def test_choices_and_preemption_keep_their_place(tiny_model: TinyModel) -> None:
    folder = str(tiny_model("llama"))
    built = build(tiny_model("llama"))
    one = job(KINDS["opened, a budget"], True)
    params = one.params.model_copy(update={"n": 4})
    together = run(built, [Job(prompt=one.prompt, params=params, thinking=one.thinking)])[0]
    assert len(set(map(tuple, together.tokens))) > 1
    for tokens in together.tokens:
        assert END in tokens[:8]
        text = built.input_processor.tokenizer.decode(tokens[tokens.index(END) + 1 :])
        jsonschema.validate(json.loads(text), FORM)
    llm = LLM(folder, kv_cache_memory=0.01)
    small = build(
        tiny_model("llama"),
        max_model_len=112,
        kv_cache_memory=llm.kv_cache_bytes_per_token * 16 * 8,
    )
    jobs = [job(KINDS["opened"], True, seed, logit_bias={str(END): 1.5}) for seed in range(5)]
    alone = [run(built, [each])[0].tokens for each in jobs]
    crowded = run(small, jobs)
    assert [answer.tokens for answer in crowded] == alone
    assert small.engine.stats().preemptions > 0


def test_a_tree_of_drafts_is_followed_up_to_the_end_of_the_thought() -> None:
    thinking = Thinking(begin=BEGIN, end=END, opened=True, budget=2, vocab_size=256, ends=(EOS,))
    constraint = ThinkingConstraint(thinking, None)
    #        0   1    2    3    4    5
    draft = Draft([65, END, 66, END, 70, END], [-1, -1, 0, 0, 2, 2])
    assert constraint.allowed(draft) == [0, 1, 2, 3, 5]
    masks = constraint.masks(draft)

    def counts(row: int) -> int:
        return int(np.unpackbits(masks[row].view(np.uint8)).sum())

    assert [counts(row) for row in range(7)] == [257, 257, 257, 1, 257, 0, 257]
    constraint.read([65, 66])
    assert constraint.forced() == [END]
    fork = constraint.fork()
    fork.read([END])
    assert fork.forced() == []
    assert constraint.forced() == [END]
