"""Models with states beside keys and values: equal to `generate`, whatever the batch does."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, SamplingParams
from penstock.decoding.constraint.fields import StructuredOutputs
from penstock.decoding.constraint.thinking import Thinking
from penstock.engine.build import Built
from penstock.engine.state.request import Request
from penstock.errors import ConfigurationError, RequestError
from penstock.kvcache.recurrent_state import RecurrentState
from penstock.registry import Spec
from tests.engine import hybrids
from tests.engine.jobs import Job, build, prepare, run
from tests.engine.reference import greedy

hybrid, poisoned_states = hybrids.hybrid, hybrids.poisoned_states

NEW_TOKENS = 24
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=NEW_TOKENS, temperature=1.0, seed=5, ignore_eos=True)
FEW = ("qwen3_5_text", "falcon_h1", "lfm2", "jamba", "mamba2")
"""One of each kind of state."""


def prompts() -> list[list[int]]:
    chooser = random.Random(7)
    shared = [chooser.randrange(256) for _ in range(70)]
    several = [[chooser.randrange(256) for _ in range(n)] for n in (1, 2, 5, 16, 40, 150)]
    return [*several, [*shared, 1, 2], [*shared, 3]]


def jobs(params: SamplingParams = GREEDY, decoding: Spec = None) -> list[Job]:
    return [Job(prompt=prompt, params=params, decoding=decoding) for prompt in prompts()]


def tokens(built: Built, jobs: list[Job]) -> list[list[list[int]]]:
    return [answer.tokens for answer in run(built, jobs)]


def alone(built: Built, jobs: list[Job]) -> list[list[list[int]]]:
    return [tokens(built, [job])[0] for job in jobs]


@pytest.mark.parametrize("kind", hybrids.HYBRIDS)
def test_equals_generate(kind: str, hybrid: Any) -> None:
    folder = hybrid(kind)
    expected = [[answer] for answer in greedy(folder, prompts(), NEW_TOKENS)]

    # Chunks of 7 split the prompts anywhere; the second round goes on from snapshots.
    built = build(folder, chunk_tokens=7, max_batch_tokens=64)
    assert tokens(built, jobs()) == expected
    before = built.engine.stats().prefix_hit_tokens
    assert before >= 64, "the prompts that begin alike share what they begin with"
    assert tokens(built, jobs()) == expected
    assert built.engine.stats().prefix_hit_tokens >= before + 32 + 144 + 64 + 64

    assert tokens(built, jobs(decoding={"jacobi": {"window": 6, "adaptive": False}})) == expected
    assert tokens(build(folder, chunk_tokens=64, prefix_cache=False), jobs()) == expected


@pytest.mark.parametrize("kind", hybrids.HYBRIDS)
def test_preempted(kind: str, hybrid: Any) -> None:
    """Without room for all answers, sequences lose their states, and read everything again."""
    folder = hybrid(kind)
    expected = [[answer] for answer in greedy(folder, prompts(), NEW_TOKENS)]
    built = build(folder)
    pool = built.engine.pool
    taken = pool.allocate(pool.count - 24)
    assert tokens(built, jobs()) == expected
    assert built.engine.stats().preemptions > 0
    pool.release(taken)


@pytest.mark.parametrize("kind", FEW)
@pytest.mark.parametrize(
    "decoding",
    [
        pytest.param(None, id="plain"),
        pytest.param({"ngram": {"adaptive": False}}, id="ngram"),
        pytest.param({"jacobi": {"window": 5, "scheme": "block", "adaptive": False}}, id="block"),
        pytest.param({"cfg": {"scale": 1.5, "negative_prompt": "a thing not wanted"}}, id="cfg"),
        pytest.param(
            {"cfg": {"scale": 1.5}, "jacobi": {"window": 4, "adaptive": False}}, id="cfg-jacobi"
        ),
    ],
)
def test_seeded_and_together(kind: str, decoding: Spec, hybrid: Any) -> None:
    """Seeded answers, three of each prompt, do not depend on what else runs, nor on drafts."""
    three = SEEDED.model_copy(update={"n": 3})
    built = build(hybrid(kind), chunk_tokens=7, max_batch_tokens=64)
    together = tokens(built, jobs(three, decoding))
    assert together == alone(build(hybrid(kind)), jobs(three, decoding))
    if decoding is not None and "cfg" not in decoding:
        assert together == tokens(built, jobs(three))


@pytest.mark.parametrize("drafter", ["jacobi", "ngram", "lookahead"])
@pytest.mark.parametrize("kind", ["qwen3_5_text", "lfm2"])
def test_forms_leave_nothing_of_a_draft(kind: str, drafter: str, hybrid: Any) -> None:
    """A grammar may forbid all of a draft; the one row that is left is read like any other."""
    built = build(hybrid(kind))
    form = StructuredOutputs(regex="(ab|cd[0-9]{1,3}|xyz){4,12}")
    params = SamplingParams(max_tokens=40, temperature=0, structured_outputs=form)
    for _ in range(2):
        assert tokens(built, jobs(params, drafter)) == tokens(built, jobs(params))


@pytest.mark.parametrize("kind", FEW)
@pytest.mark.parametrize(
    "decoding",
    [
        {"beam": {"width": 3}},
        {"best_of": {"n": 4}},
        {"tot": {"breadth": 2, "depth": 2, "thought_tokens": 6, "judge_tokens": 4}},
    ],
    ids=["beam", "best_of", "tot"],
)
def test_searches(kind: str, decoding: Spec, hybrid: Any) -> None:
    """A search goes on from states that it retains; without any, it reads all again: the same."""
    folder = hybrid(kind)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.8, seed=3)
    found = []
    for settings in ({"chunk_tokens": 7}, {"prefix_cache": False}):
        llm = LLM(str(folder), kv_cache_memory=0.01, **settings)
        outputs = llm.generate(prompts()[3:6], params, decoding=decoding, use_tqdm=False)
        found.append([[choice.token_ids for choice in out.outputs] for out in outputs])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["qwen3_5_text", "lfm2", "falcon_h1"])
@pytest.mark.parametrize(
    "cache",
    [
        {"h2o": {"heavy": 6, "recent": 8, "sink": 2, "interval": 4}},
        {"window": {"recent": 10, "sink": 2}},
    ],
    ids=["h2o", "window"],
)
def test_evicting(kind: str, cache: Spec, hybrid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies evict keys of the attention layers; preempted contexts take their states along."""
    evicting = [Job(prompt=prompt, params=GREEDY, kv_cache=cache) for prompt in prompts()]
    asked = [*evicting, *jobs(GREEDY.model_copy(update={"max_tokens": 90}))]
    expected = alone(build(hybrid(kind)), asked)
    swapped: list[RecurrentState] = []
    swap_out = RecurrentState.swap_out

    def noted(self: RecurrentState) -> None:
        swapped.append(self)
        swap_out(self)

    monkeypatch.setattr(RecurrentState, "swap_out", noted)
    built = build(hybrid(kind), chunk_tokens=7, max_batch_tokens=64)
    pool = built.engine.pool
    taken = pool.allocate(pool.count - 40)
    # The last by priority are preempted, and those evict.
    assert [answer.tokens for answer in run(built, asked, change=_last_if_evicting)] == expected
    assert swapped
    pool.release(taken)


def _last_if_evicting(request: Request) -> Request:
    return replace(request, priority=int(request.retention is not None))


@pytest.mark.parametrize("kind", FEW)
def test_prompt_logprobs(kind: str, hybrid: Any) -> None:
    """Every row's logits, in chunks and whole."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    values: list[list[float]] = []
    for chunk in (7, 64):
        llm = LLM(str(hybrid(kind)), chunk_tokens=chunk, kv_cache_memory=0.01)
        (out,) = llm.generate([prompts()[5]], params, use_tqdm=False)
        assert out.prompt_logprobs is not None
        values.append([next(iter(each.values())).logprob for each in out.prompt_logprobs if each])
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_turns_go_on_from_snapshots(hybrid: Any) -> None:
    """A later turn reads again at most what follows the last snapshot of the answer."""
    built = build(hybrid("qwen3_5_text"))
    long = SamplingParams(max_tokens=150, temperature=0, ignore_eos=True)
    (answer,) = run(built, [Job(prompt=prompts()[4], params=long)])
    turn = [*prompts()[4], *answer.tokens[0], 7, 8, 9]
    before = built.engine.stats().prefix_hit_tokens
    expected = greedy(hybrid("qwen3_5_text"), [turn], NEW_TOKENS)
    assert tokens(built, [Job(prompt=turn, params=GREEDY)]) == [expected]
    assert built.engine.stats().prefix_hit_tokens - before == 128


def test_retained(hybrid: Any) -> None:
    """What continues a retained sequence has its states; what leaves it half-way has not."""
    folder = hybrid("qwen3_5_text")
    built = build(folder)
    (answer,) = run(
        built,
        [Job(prompt=prompts()[4], params=GREEDY)],
        change=lambda request: replace(request, retain=True),
    )
    whole = [*prompts()[4], *answer.tokens[0]]
    for prompt, hit in (([*whole[:50], 7, 8], 32), ([*whole, 7, 8], len(whole) - 1)):
        before = built.engine.stats().prefix_hit_tokens
        (found,) = run(
            built,
            [Job(prompt=prompt, params=GREEDY)],
            change=lambda request: replace(request, source="0/0"),
        )
        assert found.tokens == greedy(folder, [prompt], NEW_TOKENS)
        assert built.engine.stats().prefix_hit_tokens - before == hit
    built.engine.release(("0/0",))


def test_keys_apart(hybrid: Any) -> None:
    """Snapshots are shared only within one salt."""
    built = build(hybrid("lfm2"))

    def of(owner: str) -> list[list[int]]:
        (answer,) = run(
            built,
            [Job(prompt=prompts()[5], params=GREEDY)],
            change=lambda request: replace(request, cache_salt=owner),
        )
        return answer.tokens

    first = of("one")
    before = built.engine.stats().prefix_hit_tokens
    assert of("another") == first
    assert built.engine.stats().prefix_hit_tokens == before
    assert of("one") == first
    assert built.engine.stats().prefix_hit_tokens > before


def test_cancels_leave_no_slot(hybrid: Any) -> None:
    """10,000 requests end at any moment: while they wait, read, draft, fork or decode."""
    built = build(hybrid("lfm2"), max_running=8, chunk_tokens=16, max_batch_tokens=32)
    engine = built.engine
    chooser = random.Random(3)
    kinds = [
        prepare(built, str(i), replace(job, params=SEEDED.model_copy(update={"n": n})))
        for i, (job, n) in enumerate(
            (job, n)
            for job in [
                *jobs(),
                *jobs(decoding={"ngram": {}}),
                *jobs(decoding={"cfg": {"scale": 2}}),
            ]
            for n in (1, 3)
        )
    ]
    living: list[str] = []
    for number in range(10_000):
        request = replace(chooser.choice(kinds), id=f"r{number}")
        engine.add(request)
        living.append(request.id)
        if number % 5 == 0:
            engine.step()
        while len(living) > 12:
            engine.abort(living.pop(chooser.randrange(len(living))))
    for name in living:
        engine.abort(name)
    assert not engine.has_work
    assert engine.stats().state_slots_in_use == 0


def test_slots_fit_the_memory(hybrid: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where states of all sequences do not fit, fewer run at once; where none fits, it says so."""
    folder = hybrid("qwen3_5_text")
    slot = build(folder).engine.stats().state_slot_bytes
    few = build(folder, kv_cache_memory=8 * slot)
    assert few.engine.stats().state_slots_total == 4
    assert few.engine.stats().max_running == 3
    assert "3 sequences run at once" in caplog.text
    expected = [[answer] for answer in greedy(folder, prompts()[:5], NEW_TOKENS)]
    assert tokens(few, jobs()[:5]) == expected
    with pytest.raises(RequestError, match="n"):
        tokens(few, [Job(prompt=[1], params=SEEDED.model_copy(update={"n": 4}))])
    with pytest.raises(ConfigurationError, match="states of one sequence take"):
        build(folder, kv_cache_memory=slot)


def test_what_cannot_be_had(hybrid: Any) -> None:
    folder: Path = hybrid("qwen3_5_text")
    with pytest.raises(ConfigurationError, match="--deterministic is not to be had"):
        build(folder, deterministic=True)
    with pytest.raises(ConfigurationError, match="takes no adapters"):
        build(folder, adapters=[f"one={folder}"])
    thinking = Thinking(begin=1, end=2, opened=True)
    job = Job(prompt=[1, 2, 3], params=GREEDY, kv_cache={"drop_thinking": True}, thinking=thinking)
    with pytest.raises(RequestError, match="drop_thinking cannot be had"):
        tokens(build(folder), [job])
    with pytest.raises(RequestError, match="cannot evict"):
        tokens(
            build(hybrid("mamba2")),
            [Job(prompt=[1, 2, 3], params=GREEDY, kv_cache={"window": {"recent": 2}})],
        )
