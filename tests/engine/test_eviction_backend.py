"""Evicting policies with `--attention-backend triton`, in Triton's interpreter."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock import SamplingParams
from penstock.engine import build as building
from penstock.kernels import backend
from penstock.kernels.backend import BackendChoice, Kernels
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, Job, build, run
from tests.engine.test_drafting import tokens
from tests.engine.test_eviction import with_policy
from tests.engine.test_eviction_oracle import PROMPTS, RULES, by_engine, naive
from tests.tiny import save_tiny

pytest.importorskip("triton")

PARAMS = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
LONG = [(7 * i) % 250 for i in range(72)]
DRAFTED: dict[str, Any] = {"jacobi": {"window": 3, "adaptive": False}}


def evicting(prompt: list[int], decoding: Any = None, **policy: dict[str, Any]) -> Job:
    return Job(prompt=prompt, params=PARAMS, decoding=decoding, kv_cache=policy, logprobs=1)


H2O: dict[str, Any] = {"heavy": 6, "recent": 5, "sink": 1, "interval": 1}
JOBS = [
    evicting(LONG, h2o=H2O),
    evicting(LONG[:20], h2o={**H2O, "interval": 4, "score_window": 9}, decoding=DRAFTED),
    evicting(LONG[:9], h2o=H2O, decoding=DRAFTED),
    evicting(LONG[5:20], window={"recent": 9, "sink": 2, "interval": 1}),
    evicting(LONG[9:20], window={"recent": 7, "sink": 2, "interval": 3}),
    evicting(LONG[7:20], h2o={**H2O, "score": "mean"}),
    evicting(LONG[8:20], h2o={**H2O, "score": "decay", "half_life": 9}),
    evicting(LONG[6:20], keynorm={"low": 6, "recent": 4, "interval": 1}),
    evicting(LONG[2:20], tova={"keep": 10, "interval": 3}, decoding=DRAFTED),
    Job(prompt=LONG[3:20], params=PARAMS, logprobs=1),
]
OUTGROWN = [
    evicting(LONG[:40], h2o={**H2O, "sink": 4}),
    evicting(LONG[:35], window={"recent": 9, "sink": 4, "interval": 1}),
]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of Triton's kernels was called by engines built from now on."""
    counter: Counter[str] = Counter()

    def counted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **how: Any) -> Any:
            counter[name] += 1
            return kernel(*args, **how)

        return call

    def load(choice: BackendChoice, *, splits_keys: bool) -> Kernels:
        kernels = backend.load(choice, splits_keys=splits_keys)
        assert kernels.backend == choice.backend
        if choice.backend == "torch":
            return kernels
        names = ("kv_write", "paged_attention", "scored_attention", "evict")
        return replace(kernels, **{name: counted(name, getattr(kernels, name)) for name in names})

    monkeypatch.setattr(building, "load", load)
    return counter


def logprobs(answers: list[Answer]) -> list[float]:
    return [token.logprob for answer in answers for of in answer.logprobs for token in of]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cache", "jobs"),
    [
        pytest.param("llama", "auto", JOBS, id="llama"),
        pytest.param("llama", "int8", [*JOBS[1:4], *JOBS[-3:]], id="int8"),
        # Every other layer has a window of its own, which contexts in slots outgrow.
        pytest.param("gpt_oss", "auto", OUTGROWN, id="windows"),
    ],
)
def test_the_same_tokens(
    kind: str, cache: str, jobs: list[Job], tmp_path: Path, called: Counter[str]
) -> None:
    """Policies and a full cache in the same steps."""
    settings = {"kv_cache_dtype": cache, "chunk_tokens": 68, "prefix_cache": False}
    folder = save_tiny(kind, tmp_path / kind, num_hidden_layers=2)
    expected = run(build(folder, attention_backend="torch", **settings), jobs)
    assert not called
    built = build(folder, attention_backend="triton", **settings)
    answers = run(built, jobs)
    assert tokens(answers) == tokens(expected)
    assert logprobs(answers) == pytest.approx(logprobs(expected), abs=1e-4)
    assert all(called[name] for name in ("kv_write", "paged_attention", "scored_attention"))
    assert called["evict"] > 0
    assert built.engine.pool.in_use == 0


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "prompt"), [("h2o, 1", 0), ("window", 1)])
def test_victims_are_those_of_the_rule(
    rule: str, prompt: int, tmp_path: Path, called: Counter[str]
) -> None:
    folder = save_tiny("llama", tmp_path / "llama", num_hidden_layers=2)
    choice, ids = RULES[rule], PROMPTS[prompt]
    answer, held = by_engine(build(folder, attention_backend="triton"), ids, choice)
    assert called["evict"] >= len(answer) - 14
    shortfalls, expected = naive(folder, ids, answer, choice)
    assert held == expected
    assert max(shortfalls) <= 1e-5


def test_one_launch_a_layer_for_all_contexts_in_slots(
    tiny_model: TinyModel, called: Counter[str]
) -> None:
    built = build(tiny_model("llama"), attention_backend="triton")
    choice = RULES["h2o, 4"]
    seen: list[tuple[int, int]] = []

    def note() -> None:
        running = built.engine.scheduler.running
        in_slots = sum(s.eviction_state is not None and s.eviction_state.in_slots for s in running)
        seen.append((in_slots, called["scored_attention"]))

    params = PARAMS.model_copy(update={"max_tokens": 4})
    jobs = [Job(prompt=LONG[i : i + 13], params=params) for i in range(3)]
    run(built, jobs, change=with_policy(choice), after_step=note)
    (before, first), (after, second) = seen[1:3]
    assert before == after == 3
    assert second - first == 3, "as many as the model has layers"
