"""Drafting never changes the text: Jacobi, prompt lookup and lookahead against plain decoding."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel

from penstock import SamplingParams
from penstock.decoding.drafting.base import DraftContext, Drafter, Drafting
from penstock.decoding.drafting.draft import Draft
from penstock.decoding.methods import Methods
from penstock.decoding.sampling import Row
from penstock.engine.build import Built
from penstock.engine.requests.input import Input
from penstock.engine.speculation.planner import DraftPlanner
from penstock.engine.state.request import Request
from penstock.registry import Choice, NoParameters, Spec
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, Job, build, prepare, run

NEW_TOKENS = 40
INITIALISERS = ("pad", "repeat-last", "random", "prompt-sample", "ngram")
FEW: dict[str, Any] = {"allowed_token_ids": [7, 8, 9]}
"""So few tokens that drafts are often accepted, even when tokens are sampled at random."""


def jobs() -> list[Job]:
    chooser = random.Random(11)
    base: dict[str, Any] = {"max_tokens": NEW_TOKENS, "ignore_eos": True}
    drawn: dict[str, Any] = {**base, "temperature": 1.0}
    prompts = [[chooser.randrange(256) for _ in range(n)] for n in (1, 9, 31, 50)]
    prompts += [[7, 8, 9] * 9, [*range(40), 3, 4, 5]]
    params = [
        SamplingParams(**base, temperature=0),
        SamplingParams(**drawn, seed=1, **FEW),
        SamplingParams(**drawn, seed=2, top_p=0.8, frequency_penalty=0.4, n=2, **FEW),
        SamplingParams(**base, temperature=0, repetition_penalty=1.3, logit_bias={"5": 2.0}),
        SamplingParams(**drawn, seed=-3, presence_penalty=-0.5, min_p=0.05, **FEW),
        SamplingParams(**drawn, seed=4, top_k=3, bad_words=["ab"]),
    ]
    return [Job(prompt=p, params=one) for p, one in zip(prompts, params, strict=True)]


def tokens(answers: list[Answer]) -> list[list[list[int]]]:
    return [answer.tokens for answer in answers]


def settled(built: Built) -> None:
    """Between steps nothing is left of a draft, and no unaccepted token is published."""
    for sequence in built.engine.scheduler.running:
        assert sequence.draft is None
        for context in sequence.contexts:
            if context.computed == len(context.tokens) - 1:
                assert context.table.length == context.computed
                assert (
                    context.tokens[context.prompt_length :]
                    == (sequence.tokens[sequence.prompt_length :])
                )


METHODS: list[Spec] = [
    *({"jacobi": {"window": w, "adaptive": False}} for w in (0, 1, 4, 16, 64)),
    *({"jacobi": {"window": 5, "init": init, "adaptive": False}} for init in INITIALISERS),
    {"jacobi": {"window": 6, "scheme": "block", "adaptive": False}},
    {"jacobi": {"window": 6, "scheme": "hybrid", "parallel_tokens": 20, "adaptive": False}},
    "jacobi",
    "ngram",
    {"ngram": {"window": 7, "max_ngram": 3, "min_ngram": 1, "adaptive": False}},
    "lookahead",
    {"lookahead": {"window": 3, "ngram": 3, "candidates": 4, "adaptive": False}},
    {"lookahead": {"window": 0, "ngram": 4, "candidates": 3, "adaptive": False}},
    {"lookahead": {"window": 4, "ngram": 2, "candidates": 0, "adaptive": False}},
]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2", "qwen3_moe"])
def test_every_method_gives_the_text_of_plain_decoding(kind: str, tiny_model: TinyModel) -> None:
    built = build(tiny_model(kind), max_batch_tokens=512)
    expected = tokens(run(built, jobs()))
    pages = built.engine.pool.in_use
    accepted = 0
    for method in METHODS:
        answers = run(
            built, [job.with_decoding(method) for job in jobs()], after_step=lambda: settled(built)
        )
        assert tokens(answers) == expected, method
        for answer in answers:
            assert answer.usage.steps <= answer.usage.completion_tokens
            gained = answer.usage.completion_tokens - answer.usage.steps
            assert gained == answer.usage.counters.accepted <= answer.usage.counters.drafted
            accepted += answer.usage.counters.accepted
        assert built.engine.pool.in_use == pages == 0
    assert accepted > 100


def test_methods_mix_in_one_batch_with_chunks_and_preemption(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    expected = tokens(run(build(folder), jobs()))
    size = build(folder).engine.bytes_per_token * 16 * 14
    small = build(folder, max_model_len=96, kv_cache_memory=size, chunk_tokens=9)
    for shift in range(len(METHODS)):
        mixed = [
            job.with_decoding(METHODS[(shift + 5 * i) % len(METHODS)])
            for i, job in enumerate(jobs())
        ]
        assert tokens(run(small, mixed, after_step=lambda: settled(small))) == expected
    assert small.engine.stats().preemptions > 0
    assert small.engine.stats().prefix_hit_tokens > 0


class _Told(Drafting):
    """Drafts the answer that it was given: as a line, or as the last path, after wrong ones."""

    def __init__(self, row: Row, answer: Sequence[int], window: int, wrong_paths: int) -> None:
        self._row = row
        self._answer = answer
        self._window = window
        self._wrong_paths = wrong_paths

    @property
    def fixed(self) -> bool:
        return True

    def sizes(self, limit: int, worth: float) -> list[tuple[int, float]]:
        size = min(self._window, limit) * (1 + self._wrong_paths)
        return [(size, 0.0)] if size else []

    def propose(self, size: int, limit: int) -> Draft:
        known = len(self._row.tokens) - self._row.prompt_length
        right = list(self._answer[known : known + min(self._window, limit)])
        if not self._wrong_paths:
            return Draft(right)
        draft_tokens: list[int] = []
        parents: list[int] = []
        for path in range(1 + self._wrong_paths):
            parent = -1
            for token in right:
                # Wrong paths turn off at their second token, so that they share their first.
                wrong = path < self._wrong_paths and parent >= 0
                draft_tokens.append((token + 1 + path) % 256 if wrong else token)
                parents.append(parent)
                parent = len(draft_tokens) - 1
        return Draft(draft_tokens, parents)

    def learn(
        self, draft: Draft | None, predictions: Sequence[int], accepted: Sequence[int]
    ) -> None:
        pass


class _Teller(Drafter[NoParameters]):
    name = "told"
    parameters: type[BaseModel] = NoParameters
    summary = "Knows the answer."

    def __init__(self, answer: Sequence[int], window: int, wrong_paths: int) -> None:
        self._about = answer, window, wrong_paths

    def start(self, parameters: NoParameters, row: Row, context: DraftContext) -> Drafting:
        return _Told(row, *self._about)


@pytest.mark.parametrize("window", [1, 3, 8, 100])
def test_an_oracle_needs_the_fewest_passes(window: int, tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    job = jobs()[3]
    (plain,) = run(built, [job])
    teller = Choice(method=_Teller(plain.tokens[0], window, 0), parameters=NoParameters())
    (told,) = run(built, [job], change=lambda r: replace(r, methods=Methods(drafter=teller)))
    assert told.tokens == plain.tokens
    # The first token comes with the prompt.
    assert told.usage.steps == 1 + math.ceil((NEW_TOKENS - 1) / (window + 1))
    assert told.usage.counters.accepted == NEW_TOKENS - told.usage.steps


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_oss"])
def test_the_right_path_of_a_tree_is_found_and_kept(kind: str, tiny_model: TinyModel) -> None:
    built = build(tiny_model(kind))
    # Behind the shared first token the walk takes the first such child: the first path's. Only
    # where all children differ is the right one found, so the paths begin with the second token.
    job = jobs()[5]
    (plain,) = run(built, [job])

    class Last(_Told):
        def propose(self, size: int, limit: int) -> Draft:
            chain = Draft(super().propose(size, limit).tokens[-min(self._window, limit) :])
            wrong = [(token + 1) % 256 for token in chain.tokens]
            return Draft(
                [*wrong, *chain.tokens],
                [*range(-1, len(wrong) - 1), -1, *range(len(wrong), 2 * len(wrong) - 1)],
            )

    class LastTeller(_Teller):
        def start(self, parameters: NoParameters, row: Row, context: DraftContext) -> Drafting:
            return Last(row, *self._about)

    teller = Choice(method=LastTeller(plain.tokens[0], 4, 1), parameters=NoParameters())

    def change(request: Request) -> Request:
        return replace(request, methods=Methods(drafter=teller))

    (told,) = run(built, [job], change=change, after_step=lambda: settled(built))
    assert told.tokens == plain.tokens
    assert told.usage.steps == 1 + math.ceil((NEW_TOKENS - 1) / 5)


def test_answers_end_inside_an_accepted_run_where_they_would(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    job = jobs()[3]
    (plain,) = run(built, [job])
    told = Choice(method=_Teller(plain.tokens[0], 12, 0), parameters=NoParameters())
    endings: list[dict[str, Any]] = [
        {"max_tokens": 7},
        {"stop_token_ids": [plain.tokens[0][9]]},
        {"stop_token_ids": [plain.tokens[0][9]], "min_tokens": 15},
        {"stop": plain.texts[0][8:10]},
    ]
    for ending in endings:
        cut = Job(prompt=job.prompt, params=job.params.model_copy(update=ending))
        (expected,) = run(built, [cut])
        (found,) = run(built, [cut], change=lambda r: replace(r, methods=Methods(drafter=told)))
        assert (found.tokens, found.texts, found.reasons) == (
            expected.tokens,
            expected.texts,
            expected.reasons,
        ), ending
        assert found.usage.completion_tokens == expected.usage.completion_tokens
    assert built.engine.pool.in_use == 0


@pytest.mark.parametrize("method", ["jacobi", "lookahead", "cfg"])
def test_logprobs_are_those_of_plain_decoding(method: str, tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    plain = replace(jobs()[1], logprobs=3)
    reference = plain if method != "cfg" else plain.with_decoding({"cfg": {"scale": 1.0}})
    drafting: Spec = {
        "jacobi": {"jacobi": {"window": 6, "adaptive": False}},
        "lookahead": {"lookahead": {"adaptive": False}},
        "cfg": {"jacobi": {"window": 6, "adaptive": False}, "cfg": {"scale": 1.0}},
    }[method]
    (expected,) = run(built, [reference])
    (found,) = run(built, [plain.with_decoding(drafting)])
    assert found.usage.counters.accepted > 0
    assert found.tokens == expected.tokens
    for one, other in zip(found.logprobs[0], expected.logprobs[0], strict=True):
        assert (one.token_id, one.rank) == (other.token_id, other.rank)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


@pytest.mark.parametrize("seed", range(3))
def test_aborts_at_random_moments_free_everything(seed: int, tiny_model: TinyModel) -> None:
    chooser = random.Random(seed)
    built = build(tiny_model("llama"), max_running=8)
    engine = built.engine
    guided: list[Spec] = [
        {"cfg": {"scale": 1.7}, "jacobi": {"window": 5, "adaptive": False}},
        {"cfg": {"negative_prompt": "no"}, "lookahead": {"adaptive": False}},
    ]
    waiting = [job.with_decoding(chooser.choice([*METHODS, *guided])) for job in jobs() * 4]
    names: list[str] = []
    while waiting or engine.has_work:
        if waiting and chooser.random() < 0.5:
            job = waiting.pop()
            names.append(f"{len(names)}")
            engine.add(
                built.input_processor.prepare(
                    Input(
                        request_id=names[-1],
                        prompt=job.prompt,
                        params=job.params,
                        decoding=job.decoding,
                    )
                )
            )
        if names and chooser.random() < 0.2:
            engine.abort(chooser.choice(names))
        engine.step()
        settled(built)
        held = {p for s in engine.scheduler.all() for b in s.contexts for p in b.table.pages}
        assert engine.pool.in_use == len(held)
    assert engine.pool.in_use == 0


def _steps_until_first_token(built: Built, drafting: Spec) -> int:
    """How long a short request waits behind eight answers that are being generated."""
    params = SamplingParams(max_tokens=200, temperature=1.0, seed=1, n=8, ignore_eos=True)
    greedy_one = prepare(built, "many", Job(prompt=[1, 2, 3], params=params, decoding=drafting))
    built.engine.add(greedy_one)
    for _ in range(5):
        built.engine.step()
    short = SamplingParams(max_tokens=4, temperature=0)
    built.engine.add(prepare(built, "short", Job(prompt=list(range(20)), params=short)))
    for step in range(1, 300):
        if any(output.request_id == "short" for output in built.engine.step()):
            built.engine.abort_all()
            return step
    raise AssertionError("it never got a token")


def test_draft_tokens_do_not_delay_waiting_requests(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"), max_running=16)
    wide: Spec = {"jacobi": {"window": 31, "init": "pad", "adaptive": False}}
    assert _steps_until_first_token(built, None) == _steps_until_first_token(built, wide) == 1


def test_draft_tokens_take_no_page_from_others(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    size = build(folder).engine.bytes_per_token * 16 * 11
    params = SamplingParams(max_tokens=90, temperature=0, ignore_eos=True)
    wide: Spec = {"jacobi": {"window": 64, "init": "pad", "adaptive": False}}
    short = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    counts: list[tuple[int, list[int]]] = []
    for drafting in (None, wide):
        built = build(folder, max_model_len=128, kv_cache_memory=size)
        others = [Job(prompt=[5, i], params=short) for i in range(2)]
        first = Job(prompt=[1, 2, 3], params=params, decoding=drafting)
        answers = run(built, [first, *others])
        counts.append((built.engine.stats().preemptions, answers[0].tokens[0]))
    assert counts[0] == counts[1]
    assert counts[0][0] == 0


def test_on_the_embedded_model_every_method_gives_the_same_text() -> None:
    built = build(None, threads=1)
    tokenizer = built.input_processor.tokenizer
    questions = [
        "Repeat this list: apple, 7, river, stone, lamp, kite, 12, apple, river",
        "Return JSON with name and food.\nJonas lives in Oslo and likes pie. He is 60 years old.",
        "Write a story about a dragon who lost a key.",
        "Game of 24: 4 5 6 10\nPossible next steps:",
    ]
    base: dict[str, Any] = {"max_tokens": 60}
    params = [
        SamplingParams(**base, temperature=0),
        SamplingParams(**base, temperature=0, repetition_penalty=1.1),
        SamplingParams(**base, temperature=0.8, seed=3, n=2),
        SamplingParams(**base, temperature=0.5, seed=4, top_p=0.9),
    ]
    jobs = [
        Job(
            prompt=list(
                tokenizer.encode_chat(
                    tokenizer.render_chat([{"role": "user", "content": question}])
                )
            ),
            params=one,
        )
        for question, one in zip(questions, params, strict=True)
    ]
    guided: dict[str, Any] = {"cfg": {"scale": 1.5}}
    expected = tokens(run(built, jobs))
    expected_guided = tokens(run(built, [job.with_decoding(guided) for job in jobs]))
    for drafter in ("jacobi", "ngram", "lookahead"):
        for adaptive in (True, False):
            drafting: dict[str, Any] = {drafter: {"adaptive": adaptive}}
            mixed = [
                *(job.with_decoding(drafting) for job in jobs),
                *(job.with_decoding({**drafting, **guided}) for job in jobs),
            ]
            answers = run(built, mixed)
            assert tokens(answers) == expected + expected_guided, drafting
            # Whether it pays is for the machine to say; that it can be right is not.
            assert adaptive or sum(answer.usage.counters.accepted for answer in answers) > 20
    assert built.engine.pool.in_use == 0


@pytest.mark.parametrize("method", ["ngram", "jacobi", "lookahead"])
def test_a_request_for_no_tokens_is_not_drafted_for(
    method: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of which one token is left decodes, as it were, for an answer of none."""
    monkeypatch.setattr(DraftPlanner, "_size", None)
    built = build(tiny_model("llama"), chunk_tokens=6)
    params = SamplingParams(max_tokens=0, temperature=0)
    decoding = {method: {"adaptive": False}}
    job = Job(prompt=[5, 6, 5, 6, 5, 6, 5], params=params, decoding=decoding)
    (answer,) = run(built, [job])
    assert answer.tokens == [[]]
    assert answer.usage.counters.drafted == 0
