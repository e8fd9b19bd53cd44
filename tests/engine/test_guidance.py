"""Classifier-free guidance against transformers' `guidance_scale`, and in every company."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock import SamplingParams
from penstock.errors import ContextLengthError, RequestError
from penstock.registry import Spec
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, Job, build, prepare, run
from tests.tiny import byte_tokenizer

NEW_TOKENS = 24
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
NEGATIVES = (None, "no", "a longer thing that is not wanted at all")


def prompts() -> list[list[int]]:
    chooser = random.Random(5)
    return [[chooser.randrange(256) for _ in range(n)] for n in (1, 7, 16, 40)]


def cfg(scale: float, negative: str | None = None, **fields: Any) -> Spec:
    return {"cfg": {"scale": scale, "negative_prompt": negative, **fields}}


def tokens(answers: list[Answer]) -> list[list[list[int]]]:
    return [answer.tokens for answer in answers]


def reference(folder: Path, scale: float, negative: str | None) -> list[list[int]]:
    """transformers, one prompt at a time."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    found: list[list[int]] = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        extra: dict[str, Any] = {}
        if negative is not None:
            extra["negative_prompt_ids"] = torch.tensor([byte_tokenizer().encode(negative)])
            extra["negative_prompt_attention_mask"] = torch.ones_like(extra["negative_prompt_ids"])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            guidance_scale=scale,
            **extra,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "mistral", "qwen3_moe", "phi3"])
@pytest.mark.parametrize("negative", NEGATIVES, ids=["none", "short", "long"])
def test_equals_transformers(kind: str, negative: str | None, tiny_model: TinyModel) -> None:
    folder = tiny_model(kind)
    built = build(folder, chunk_tokens=11)
    for scale in (1.5, 3.0):
        jobs = [Job(prompt=p, params=GREEDY, decoding=cfg(scale, negative)) for p in prompts()]
        expected = [[answer] for answer in reference(folder, scale, negative)]
        assert tokens(run(built, jobs)) == expected
        assert tokens(run(built, jobs)) == expected, "with cached prefixes"


def test_scale_1_is_plain_and_has_no_second_sequence(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    job = Job(prompt=prompts()[2], params=GREEDY, decoding=cfg(1.0, "no"))
    request = prepare(built, "x", job)
    assert (request.contexts, request.combines, request.sequences) == ((), False, 1)
    (plain,) = run(built, [job.with_decoding(None)])
    (found,) = run(built, [job])
    assert found.tokens == plain.tokens
    assert found.usage.counters.guidance_tokens == 0


def test_a_negative_prompt_equal_to_the_prompt_is_plain(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    text = "the very same words"
    plain = Job(prompt=byte_tokenizer().encode(text), params=GREEDY)
    (expected,) = run(built, [plain])
    for scale in (0.0, 0.5, 1.5, 7.0):
        (found,) = run(built, [plain.with_decoding(cfg(scale, text))])
        assert found.tokens == expected.tokens


def test_scale_0_generates_from_the_negative_prompt(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    drawn = GREEDY.model_copy(update={"temperature": 1.0, "seed": 4})
    # Positions count for the seed: prompts of one length.
    own, negative = [1, 2, 3, 4, 5, 6], "abcdef"
    (expected,) = run(built, [Job(prompt=byte_tokenizer().encode(negative), params=drawn)])
    (found,) = run(built, [Job(prompt=own, params=drawn, decoding=cfg(0.0, negative))])
    assert found.tokens == expected.tokens


def test_plausibility_keeps_what_the_prompt_makes_likely(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    plain = Job(prompt=prompts()[1], params=GREEDY)
    (greedy,) = run(built, [plain])
    strict = plain.with_decoding(cfg(20.0, "no", plausibility=1.0))
    assert run(built, [strict])[0].tokens == greedy.tokens
    assert run(built, [plain.with_decoding(cfg(20.0, "no"))])[0].tokens != greedy.tokens
    drawn = plain.params.model_copy(update={"temperature": 2.0, "seed": 1})
    alone = Job(prompt=plain.prompt, params=drawn, decoding=cfg(1.0, plausibility=1.0))
    assert run(built, [alone])[0].tokens == greedy.tokens


def test_rules_win_over_plausibility(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    allowed = GREEDY.model_copy(update={"allowed_token_ids": [65, 66, 67]})
    strict = cfg(1.5, plausibility=1.0)
    (found,) = run(built, [Job(prompt=prompts()[1], params=allowed, decoding=strict)])
    assert set(found.tokens[0]) <= {65, 66, 67}
    # The likeliest token is the end, and it is forbidden.
    first = run(built, [Job(prompt=prompts()[1], params=GREEDY)])[0].tokens[0][0]
    ends = {"stop_token_ids": [first], "min_tokens": 5, "ignore_eos": False}
    later = GREEDY.model_copy(update=ends)
    (found,) = run(built, [Job(prompt=prompts()[1], params=later, decoding=strict)])
    assert first not in found.tokens[0][:5]
    assert found.tokens[0][0] != 0


DRAFTERS: list[dict[str, Any]] = [
    {"jacobi": {"window": 0, "adaptive": False}},
    {"jacobi": {"window": 4, "adaptive": False}},
    {"jacobi": {"window": 16, "init": "random", "adaptive": False}},
    {"jacobi": {}},
    {"ngram": {"min_ngram": 1, "adaptive": False}},
    {"lookahead": {"window": 3, "ngram": 3, "candidates": 3, "adaptive": False}},
    {"lookahead": {}},
]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_drafting_does_not_change_guided_text(kind: str, tiny_model: TinyModel) -> None:
    built = build(tiny_model(kind))
    base: dict[str, Any] = {"max_tokens": NEW_TOKENS, "ignore_eos": True}
    few: dict[str, Any] = {"allowed_token_ids": [7, 8, 9], "temperature": 0.9}
    params = [
        SamplingParams(**base, temperature=0),
        SamplingParams(**base, seed=3, n=2, **few),
        SamplingParams(**base, seed=4, frequency_penalty=0.5, **few),
        SamplingParams(**base, seed=5, temperature=0, min_tokens=5),
    ]
    guidances: list[dict[str, Any]] = [
        {"scale": 1.5},
        {"scale": 2.5, "negative_prompt": "something else entirely"},
        {"scale": 3.0, "negative_prompt": "x", "plausibility": 0.1},
        {"scale": -0.5, "allow_negative": True},
    ]
    jobs = [
        Job(prompt=p, params=one, decoding={"cfg": guidance})
        for p, one, guidance in zip(prompts(), params, guidances, strict=True)
    ]
    expected = run(built, jobs)
    accepted = 0
    for drafter in DRAFTERS:
        drafted = [
            job.with_decoding({**drafter, "cfg": guidance})
            for job, guidance in zip(jobs, guidances, strict=True)
        ]
        found = run(built, drafted)
        assert tokens(found) == tokens(expected), drafter
        accepted += sum(answer.usage.counters.accepted for answer in found)
    assert accepted > 50


def test_neighbours_and_preemption_change_nothing(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    roomy = build(folder)
    guided = [Job(prompt=p, params=GREEDY, decoding=cfg(2.0, "other words")) for p in prompts()]
    plain = [Job(prompt=p, params=GREEDY) for p in prompts()]
    alone = [run(roomy, [job])[0].tokens for job in (*guided, *plain)]
    assert tokens(run(roomy, [*guided, *plain])) == alone
    size = roomy.engine.bytes_per_token * 16 * 13
    small = build(folder, max_model_len=96, kv_cache_memory=size, chunk_tokens=5)
    assert tokens(run(small, [*guided, *plain])) == alone
    assert small.engine.stats().preemptions > 0
    assert small.engine.pool.in_use == 0


def test_usage_counts_the_second_context(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    params = GREEDY.model_copy(update={"n": 3, "temperature": 1.0, "seed": 2})
    (found,) = run(built, [Job(prompt=[1, 2, 3, 4], params=params, decoding=cfg(2.0, "abcdefg"))])
    assert found.usage.prompt_tokens == 4
    assert found.usage.completion_tokens == 3 * NEW_TOKENS
    assert found.usage.counters.guidance_tokens == 7 + 3 * NEW_TOKENS
    (without,) = run(built, [Job(prompt=[1, 2, 3, 4], params=GREEDY, decoding=cfg(2.0))])
    assert without.usage.counters.guidance_tokens == 1 + NEW_TOKENS


def test_contexts_count_against_the_limits(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    built = build(folder, max_running=4)
    params = GREEDY.model_copy(update={"n": 3, "temperature": 1.0})
    with pytest.raises(
        RequestError, match=r"n is 3, each in 2 contexts, but .* at most 4"
    ) as error:
        prepare(built, "x", Job(prompt=[1], params=params, decoding="cfg"))
    assert error.value.param == "n"
    with pytest.raises(
        ContextLengthError, match=r"512 tokens\. decoding\.cfg\.negative_prompt: .*500 in that"
    ):
        prepare(built, "x", Job(prompt=[1], params=GREEDY, decoding=cfg(2.0, "a" * 500)))
    with pytest.raises(ContextLengthError, match=r"decoding\.cfg\.negative_prompt has"):
        prepare(built, "x", Job(prompt=[1], params=GREEDY, decoding=cfg(2.0, "a" * 5000)))
    size = built.engine.bytes_per_token * 16 * 6
    small = build(folder, max_model_len=96, kv_cache_memory=size)
    long = GREEDY.model_copy(update={"max_tokens": 60})
    with pytest.raises(ContextLengthError, match="2 contexts need 128 tokens of KV cache"):
        prepare(small, "x", Job(prompt=[1, 2], params=long, decoding="cfg"))
    alone = build(folder, max_running=1)
    with pytest.raises(RequestError, match="takes 2 sequences, but this server runs at most 1"):
        prepare(alone, "x", Job(prompt=[1], params=GREEDY, decoding="cfg"))
    # Where max_tokens is left to us, it is what all contexts leave.
    free = GREEDY.model_copy(update={"max_tokens": None})
    job = Job(prompt=[1, 2], params=free, decoding=cfg(2.0, "a" * 40))
    assert prepare(built, "x", job).max_tokens == 512 - 40
    assert prepare(small, "x", Job(prompt=[1, 2], params=free, decoding="cfg")).max_tokens == 32
    assert len(run(small, [Job(prompt=[1, 2], params=free, decoding="cfg")])[0].tokens[0]) == 32
    # Two contexts run or wait together: no more than two pairs have four places.
    jobs = [Job(prompt=p, params=GREEDY, decoding="cfg") for p in prompts()]
    most = 0

    def count() -> None:
        nonlocal most
        most = max(most, len(built.engine.scheduler.running))

    run(built, jobs, after_step=count)
    assert most == 2
