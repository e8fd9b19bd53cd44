"""Searches on the engine: what operations give, what they share, and what they leave behind."""

import math
import random
from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, SamplingParams
from penstock.decoding.search.base import SearchContext
from penstock.decoding.search.operations import (
    Answer,
    BudgetExhausted,
    Forward,
    Free,
    Generate,
    Generated,
    Outcome,
    Score,
    State,
)
from penstock.engine.build import Built
from tests.conftest import TinyModel
from tests.engine.jobs import build
from tests.engine.searches import Run, Steps, search_request, with_controller

PROMPT = "The quick brown fox jumps over the lazy dog"
DONE = Outcome(answers=())


def plain(folder: Path, prompt: list[int] | str, **sampling: Any) -> list[list[int]]:
    """Token ids of each choice, by themselves."""
    llm = LLM(str(folder), kv_cache_memory=0.01)
    defaults: dict[str, Any] = {"seed": 7, "max_tokens": 16}
    params = SamplingParams(**defaults | sampling)
    (output,) = llm.generate([prompt], params)  # type: ignore[list-item]
    return [choice.token_ids for choice in output.outputs]


@pytest.fixture
def built(tiny_model: TinyModel) -> Built:
    return build(tiny_model("llama"))


@pytest.mark.parametrize("sequences", [1, 2, 16], ids=lambda n: f"{n} at once")
def test_generating_equals_plain_choices(
    tiny_model: TinyModel, built: Built, sequences: int
) -> None:
    """Seeds are those of the choices, also where not all of them may run at once."""
    found: list[tuple[Generated, ...]] = []

    def body(context: SearchContext) -> Steps:
        found.append((yield Generate(state=context.prompt, count=3, max_tokens=16)))
        return DONE

    searching = with_controller(built, body)
    decoding = {"scripted": {"budget": {"sequences": sequences}}}
    Run(searching, search_request(searching, PROMPT, decoding)).finish()
    expected = plain(tiny_model("llama"), PROMPT, n=3)
    assert [list(one.token_ids) for one in found[0]] == expected


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3_moe", "gpt2"])
@pytest.mark.parametrize("prefix_cache", [True, False], ids=["sharing", "no sharing"])
def test_forks_equal_fresh_prompts(kind: str, tiny_model: TinyModel, prefix_cache: bool) -> None:
    """Continued, truncated and appended states, each against its tokens as a prompt."""
    built = build(tiny_model(kind), prefix_cache=prefix_cache)
    states: list[State] = []
    results: list[Generated] = []

    def body(context: SearchContext) -> Steps:
        first = yield Generate(state=context.prompt, count=2, max_tokens=13, keep=True)
        for one in first:
            ids = one.state
            states.extend(
                [ids, ids.append((1, 2, 3)), ids.truncate(len(ids.ids) - 5), ids.truncate(21)]
            )
        found = yield [Generate(state=state, max_tokens=9, keep=True) for state in states]
        results.extend(one for (one,) in found)
        again = yield [Generate(state=one.state, max_tokens=5) for one in list(results)]
        states.extend(one.state for one in list(results))
        results.extend(one for (one,) in again)
        return DONE

    searching = with_controller(built, body)
    request = search_request(searching, PROMPT, "scripted", ignore_eos=True)
    Run(searching, request).finish()
    assert len(states) == len(results) == 16
    for state, result in zip(states, results, strict=True):
        length = len(result.token_ids)
        expected = plain(tiny_model(kind), list(state.ids), max_tokens=length, ignore_eos=True)
        assert [list(result.token_ids)] == expected


def test_prompt_tokens_computed_are_the_unique_ones(built: Built) -> None:
    """Many prompts that share beginnings, asked at once: each shared page is computed once."""
    chooser = random.Random(3)
    trunk = tuple(chooser.randrange(256) for _ in range(100))
    limbs = [trunk + tuple(chooser.randrange(256) for _ in range(40)) for _ in range(3)]
    leaves = [(*limb, i, i, i) for limb in limbs for i in range(5)]

    def body(context: SearchContext) -> Steps:
        yield [Generate(state=State(leaf), max_tokens=2) for leaf in leaves]
        return DONE

    searching = with_controller(built, body)
    Run(searching, search_request(searching, PROMPT, "scripted", ignore_eos=True)).finish()
    unique = 100 + 3 * 40 + 15 * 3
    assert built.engine.stats().prompt_tokens <= unique + 16 * len(leaves)
    assert built.engine.stats().prompt_tokens >= unique


def test_continuing_computes_nothing_twice(built: Built) -> None:
    """What is kept is continued to the token, without the rounding of pages."""

    def body(context: SearchContext) -> Steps:
        (one,) = yield Generate(state=context.prompt, max_tokens=6, keep=True)
        for _ in range(5):
            (one,) = yield Generate(state=one.state, max_tokens=1, keep=True)
        return DONE

    searching = with_controller(built, body)
    run = Run(searching, search_request(searching, PROMPT, "scripted", ignore_eos=True))
    run.finish()
    # Each continuation reads one token: the newest, whose keys nobody had computed.
    assert built.engine.stats().prompt_tokens == len(PROMPT) + 5
    usage = run.search.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), 6 + 5)


def test_scores_are_the_logprobs_of_continuations(tiny_model: TinyModel, built: Built) -> None:
    continuations = tuple(tuple(text.encode()) for text in ("a", "sure", "impossible"))
    found: list[tuple[float, ...]] = []

    def body(context: SearchContext) -> Steps:
        found.append((yield Score(state=context.prompt, continuations=continuations)))
        # And from the prefix cache:
        found.append((yield Score(state=context.prompt, continuations=continuations)))
        return DONE

    searching = with_controller(built, body)
    Run(searching, search_request(searching, PROMPT, "scripted")).finish()
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    nothing = SamplingParams(max_tokens=0, prompt_logprobs=0)
    prompt = llm.tokenizer.encode(PROMPT)
    for i, ids in enumerate(continuations):
        (output,) = llm.generate([[*prompt, *ids]], nothing)
        own = zip(ids, (output.prompt_logprobs or ())[-len(ids) :], strict=True)
        expected = sum(at[token].logprob for token, at in own if at is not None)
        assert found[0][i] == pytest.approx(expected, abs=1e-4)
        assert found[1][i] == pytest.approx(expected, abs=1e-4)


def test_forward_gives_the_most_probable_tokens(tiny_model: TinyModel, built: Built) -> None:
    found: list[Any] = []

    def body(context: SearchContext) -> Steps:
        forwarded = yield Forward(state=context.prompt, top=5)
        found.append(forwarded.next)
        forwarded = yield Forward(state=forwarded.state.append((65,)), top=3)
        found.append(forwarded.next)
        return DONE

    searching = with_controller(built, body)
    Run(searching, search_request(searching, PROMPT, "scripted", temperature=2.0)).finish()
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    for top, more in zip(found, ([], [65]), strict=True):
        prompt = [*llm.tokenizer.encode(PROMPT), *more]
        one = SamplingParams(max_tokens=1, temperature=0, logprobs=len(top))
        (output,) = llm.generate([prompt], one)
        assert output.outputs[0].logprobs is not None
        expected = output.outputs[0].logprobs[0]  # in order: the greedy token is the first
        assert [token for token, _ in top] == list(expected)
        probable = [at.logprob for at in expected.values()]
        assert [p for _, p in top] == pytest.approx(probable, abs=1e-4)


def tree(context: SearchContext) -> Steps:
    """A search that uses everything: it can be stopped anywhere."""
    first = yield Generate(state=context.prompt, count=3, max_tokens=10, keep=True)
    yield Free(states=(first[0].state,))
    seconds = yield [Generate(state=one.state, count=2, max_tokens=8, keep=True) for one in first]
    yield [Score(state=one.state, continuations=((1, 2), (3,))) for two in seconds for one in two]
    forwarded = yield Forward(state=seconds[0][0].state, top=4)
    yield [Generate(state=forwarded.state.append((t,)), max_tokens=4) for t, _ in forwarded.next]
    return Outcome(answers=(Answer(text="end"),))


def test_everything_is_free_wherever_it_is_cancelled(built: Built) -> None:
    searching = with_controller(built, tree)
    whole = Run(searching, search_request(searching, PROMPT, "scripted", ignore_eos=True))
    whole.start()
    steps = 0
    while built.engine.has_work:
        whole.step()
        steps += 1
    whole.leave()
    assert built.engine.pool.in_use == 0
    assert steps > 20
    for stop in range(steps):
        run = Run(searching, search_request(searching, PROMPT, "scripted", ignore_eos=True))
        run.start()
        for _ in range(stop):
            run.step()
        run.leave()
        stats = built.engine.stats()
        assert (stats.running, stats.waiting, stats.pages_in_use) == (0, 0, 0)


@pytest.mark.parametrize("budget", range(20, 420, 19))
def test_tokens_never_exceed_their_budget(built: Built, budget: int) -> None:
    """Whatever it is; and what was done within it does not depend on luck."""
    ended: list[str] = []

    def body(context: SearchContext) -> Steps:
        try:
            return (yield from tree(context))
        except BudgetExhausted as error:
            ended.append(error.budget)
            return Outcome(answers=(Answer(text="so far", finish_reason="length"),))

    searching = with_controller(built, body)
    decoding = {"scripted": {"budget": {"tokens": budget}}}
    run = Run(searching, search_request(searching, PROMPT, decoding, ignore_eos=True))
    (answer,) = run.finish()
    usage = run.search.usage
    used = usage.prompt_tokens + usage.completion_tokens
    assert used <= budget
    assert (answer.finish_reason == "length") == bool(ended)
    if ended:
        assert ended == ["tokens"]
        assert run.search.trace.exhausted == "tokens"
    else:
        assert used > 100


@pytest.mark.parametrize("sequences", [1, 2, 3, 6])
def test_sequences_at_once_never_exceed_their_budget(built: Built, sequences: int) -> None:
    searching = with_controller(built, tree)
    decoding = {"scripted": {"budget": {"sequences": sequences}}}
    run = Run(searching, search_request(searching, PROMPT, decoding, ignore_eos=True))
    most = 0
    run.start()
    while built.engine.has_work:
        run.step()
        stats = built.engine.stats()
        most = max(most, stats.running + stats.waiting)
    assert run.ended
    run.leave()
    assert most == sequences


def test_time_ends_a_search(built: Built) -> None:
    seen: list[str] = []

    def body(context: SearchContext) -> Steps:
        try:
            yield Generate(state=context.prompt, count=4, max_tokens=400)
        except BudgetExhausted as error:
            seen.append(error.budget)
        return DONE

    searching = with_controller(built, body)
    decoding = {"scripted": {"budget": {"seconds": 1e-6}}}
    run = Run(searching, search_request(searching, PROMPT, decoding, ignore_eos=True))
    run.start()
    run.step()
    run.search.check_time()
    assert seen == ["seconds"]
    assert not built.engine.has_work
    (delta,) = run.answers
    assert (delta.text, delta.finish_reason) == ("", "length")
    run.leave()


@pytest.mark.parametrize(
    ("decoding", "kv_cache"),
    [
        ({"jacobi": {}}, None),
        ({"lookahead": {}}, None),
        ({"cfg": {"scale": 1.5, "negative_prompt": "no"}}, None),
        ({"cfg": {"scale": 1.5}, "jacobi": {}}, None),
        ({}, "h2o"),
        ({}, {"window": {"recent": 0.3}}),
    ],
    ids=["jacobi", "lookahead", "cfg", "cfg+jacobi", "h2o", "window"],
)
def test_thoughts_are_what_the_other_methods_generate(
    tiny_model: TinyModel, built: Built, decoding: dict[str, Any], kv_cache: Any
) -> None:
    found: list[Any] = []

    def body(context: SearchContext) -> Steps:
        found.extend((yield Generate(state=context.prompt, count=2, max_tokens=16, keep=True)))
        found.extend((yield Generate(state=found[0].state, max_tokens=8)))
        return DONE

    searching = with_controller(built, body)
    request = search_request(
        searching, PROMPT, {"scripted": {}, **decoding}, kv_cache=kv_cache, ignore_eos=True
    )
    Run(searching, request).finish()
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)

    def alone(prompt: list[int], n: int, max_tokens: int) -> list[list[int]]:
        params = SamplingParams(seed=7, n=n, max_tokens=max_tokens, ignore_eos=True)
        (output,) = llm.generate([prompt], params, decoding=decoding, kv_cache=kv_cache)
        return [choice.token_ids for choice in output.outputs]

    prompt = llm.tokenizer.encode(PROMPT)
    assert [list(one.token_ids) for one in found[:2]] == alone(prompt, 2, 16)
    if kv_cache is None:  # all contexts go on with the same answer
        assert [[*found[0].token_ids, *found[2].token_ids]] == alone(prompt, 1, 24)
    else:  # what evicts reads its tokens again
        assert [list(found[2].token_ids)] == alone(list(found[0].state.ids), 1, 8)


def test_judgements_know_no_guidance_and_no_rules(tiny_model: TinyModel, built: Built) -> None:
    found: list[Any] = []

    def body(context: SearchContext) -> Steps:
        found.extend((yield Generate(state=context.prompt, max_tokens=8, guided=False)))
        return DONE

    searching = with_controller(built, body)
    request = search_request(
        searching,
        PROMPT,
        {"scripted": {}, "cfg": {"scale": 5.0}},
        ignore_eos=True,
        presence_penalty=2.0,
        stop=["e"],
    )
    Run(searching, request).finish()
    expected = plain(tiny_model("llama"), PROMPT, max_tokens=8, ignore_eos=True)
    assert [list(found[0].token_ids)] == expected


def test_a_full_context_ends_a_thought(built: Built) -> None:
    found: list[Any] = []
    room = built.input_processor.limits.max_length_tokens

    def body(context: SearchContext) -> Steps:
        almost = State(tuple(range(100)) * (room // 100 + 1)).truncate(room - 3)
        found.append((yield Generate(state=almost, count=2, max_tokens=50)))
        found.append((yield Generate(state=almost.append((1, 2, 3)), count=2, max_tokens=50)))
        forwarded = yield Forward(state=almost.append((1, 2, 3)), top=2)
        found.append(forwarded.next)
        found.append((yield Score(state=almost, continuations=((1, 2), (1, 2, 3, 4)))))
        found.append((yield Score(state=almost, continuations=((1, 2), (1, 2, 3)))))
        return DONE

    searching = with_controller(built, body)
    Run(searching, search_request(searching, PROMPT, "scripted", ignore_eos=True)).finish()
    assert [(len(one.token_ids), one.finish_reason) for one in found[0]] == [(3, "length")] * 2
    assert [(one.token_ids, one.finish_reason) for one in found[1]] == [((), "length")] * 2
    assert found[2] == ()
    assert found[3] == (-math.inf, -math.inf)
    assert all(-math.inf < score < 0 for score in found[4])
