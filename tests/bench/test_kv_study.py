"""The study of the KV cache against plain forward passes of transformers, which know no cache."""

import csv
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks import kv_study, kv_texts
from benchmarks.kv_policies import POLICIES, SINK, Foretold
from benchmarks.kv_study import Study, mean_and_error
from benchmarks.kv_texts import Text
from benchmarks.teacher_forcing import forced
from penstock.kvcache.eviction_state import EvictionState
from tests.conftest import TinyModel
from tests.engine.jobs import build

PROMPT = 24


def texts() -> list[Text]:
    rng = Random(3)
    return [
        Text(
            ids=tuple(rng.randrange(256) for _ in range(length)),
            prompt_tokens=PROMPT,
            counted=tuple(range(PROMPT, length, step)),
        )
        for length, step in ((70, 1), (53, 2), (60, 1))
    ]


def study(folder: Path, seed: int = 0) -> Study:
    return Study(build(folder, prefix_cache=False, max_batch_tokens=64), texts(), seed)


def keys_of(text: Text, budget: int) -> int:
    return math.ceil(budget / 100 * len(text.ids))


@torch.no_grad()
def forward(folder: Path, text: Text, seen: Tensor | None = None) -> tuple[float, Any]:
    """transformers' own negative log-probability in nats a token, and its attention."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    mask = None if seen is None else torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    out = model(
        torch.tensor([text.ids]),
        attention_mask=None if mask is None else mask[None, None],
        output_attentions=True,
    )
    logprobs = out.logits[0].log_softmax(-1)
    counted = [-float(logprobs[at - 1, text.ids[at]]) for at in text.counted]
    return sum(counted) / len(counted), torch.stack([a[0] for a in out.attentions])


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_full_cache_is_a_plain_forward_pass(kind: str, tiny_model: TinyModel) -> None:
    found = study(tiny_model(kind)).nats("full", 100)
    expected = [forward(tiny_model(kind), text)[0] for text in texts()]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "full"])
def test_a_budget_of_everything_is_the_full_cache(policy: str, tiny_model: TinyModel) -> None:
    subject = study(tiny_model("llama"))
    full = subject.nats("full", 100)
    assert subject.nats(policy, 100) == full
    assert subject.nats(policy, 30) != full


@pytest.mark.parametrize("budget", [15, 30, 60], ids=["4-to-11", "15-to-21", "in-the-answer"])
@pytest.mark.parametrize(("policy", "sink"), [("window", 0), ("sink + window", SINK)])
def test_windows_are_a_forward_pass_with_their_mask(
    policy: str, sink: int, budget: int, tiny_model: TinyModel
) -> None:
    expected: list[float] = []
    for text in texts():
        query, key = torch.meshgrid(*[torch.arange(len(text.ids))] * 2, indexing="ij")
        # The newest keys besides the token's own; while it is read, a prompt sees all of itself.
        recent = keys_of(text, budget) - sink
        seen = (key <= query) & ((query < PROMPT) | (key < sink) | (key >= query - recent))
        expected.append(forward(tiny_model("llama"), text, seen)[0])
    assert study(tiny_model("llama")).nats(policy, budget) == pytest.approx(expected, rel=1e-5)


def test_the_oracle_knows_the_attention_of_a_forward_pass(tiny_model: TinyModel) -> None:
    futures = study(tiny_model("llama")).futures
    for text, future in zip(texts(), futures, strict=True):
        _, attention = forward(tiny_model("llama"), text)
        of_group = attention.unflatten(1, (2, -1)).sum(2)
        for length in (PROMPT, PROMPT + 1, len(text.ids) - 2):
            expected = of_group[:, :, length:-1, :-1].sum(2)
            torch.testing.assert_close(future(length), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["oracle", "random"])
def test_rankings_decide_what_stays(policy: str, tiny_model: TinyModel) -> None:
    subject, budget = study(tiny_model("llama")), 30
    states: list[EvictionState] = []

    def noted(own: EvictionState | None, eviction_state: Any) -> EvictionState | None:
        state = eviction_state(own)
        assert state is not None
        assert isinstance(state.choice.method, Foretold)
        states.append(state)
        return state

    jobs = [
        replace(job, eviction_state=partial(noted, eviction_state=job.eviction_state))
        for job in subject.jobs(policy, budget)
    ]
    forced(subject.built, jobs, [text.ids for text in subject.texts])
    for number, (text, state) in enumerate(zip(subject.texts, states, strict=True)):
        ranking = subject.ranking(POLICIES[policy].ranked, number)
        assert ranking is not None
        keys, last = keys_of(text, budget), len(text.ids) - 2
        for layer in range(3):
            for head in range(2):
                held = set(range(PROMPT))
                for length in range(PROMPT, last + 1):
                    worth = ranking(length)[layer, head].tolist()
                    free = sorted((worth[at], at) for at in held - {length - 1})
                    held = held - {at for _, at in free[: len(held) - keys]} | {length}
                assert state.positions is not None
                assert set(state.positions[layer, head].tolist()) == held


def test_the_same_seed_throws_the_same_dice(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    one = study(folder, seed=1).nats("random", 20)
    assert study(folder, seed=1).nats("random", 20) == one
    assert study(folder, seed=2).nats("random", 20) != one


def test_the_engine_decodes_as_before_afterwards(tiny_model: TinyModel) -> None:
    subject = study(tiny_model("llama"))
    sampler = subject.built.engine.decoder.sampler
    subject.nats("h2o", 20)
    assert subject.built.engine.decoder.sampler is sampler


def test_the_command_writes_all_policies_and_adds_to_what_is_there(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, output = tmp_path / "some.txt", tmp_path / "out.csv"
    text.write_text("Where does Ann live? Ann lives in Toruma, by the sea. " * 8, encoding="utf-8")
    command = ["kv_study.py", "--model", str(tiny_model("llama")), "--texts", str(text)]
    command += ["--tokens", "96", "--prompt-tokens", "40", "--count", "2"]
    command += ["--output", str(output), "--plots", str(tmp_path)]
    for budgets in (["20", "60"], ["20", "100"]):
        monkeypatch.setattr(sys, "argv", [*command, "--budgets", *budgets])
        assert kv_study.main() == 0
    with output.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    places = sorted((int(line["budget_percent"]), line["policy"]) for line in lines)
    evicting = sorted(set(POLICIES) - {"full"})
    assert places == sorted(
        [*((budget, policy) for budget in (20, 60, 100) for policy in evicting), (100, "full")]
    )
    means = {(line["budget_percent"], line["policy"]): line["mean"] for line in lines}
    assert len({means["100", policy] for policy in POLICIES}) == 1
    assert all(float(line["standard_error"]) > 0 for line in lines)
    assert all(line["texts"] == "2" and line["tokens"] == "112" for line in lines)
    assert (tmp_path / "perplexity.svg").stat().st_size > 1000


@pytest.mark.slow
def test_on_nano_the_oracle_is_best_and_h2o_beats_both_its_halves() -> None:
    built = build(None, prefix_cache=False)
    texts = kv_texts.stories(built.input_processor.tokenizer, Random(0), 3)
    subject = Study(built, texts, 0)
    names = ("full", "oracle", "h2o", "window", "heavy only", "random")
    nats = {name: sum(subject.nats(name, 20)) for name in names}
    assert nats["oracle"] <= nats["h2o"]
    assert nats["h2o"] < min(nats["window"], nats["heavy only"])
    assert nats["random"] > nats["window"]
    assert nats["full"] == pytest.approx(nats["oracle"], abs=0.1)


def test_nano_forgets_what_it_was_told() -> None:
    built = build(None, prefix_cache=False)
    questions = kv_texts.questions(built.input_processor.tokenizer, Random(0), 6)
    subject = Study(built, [question.text for question in questions], 0)
    full = subject.right("full", 100, questions)
    assert sum(full) >= 5
    assert subject.right("window", 10, questions) < full


def test_a_mean_and_its_error() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / math.sqrt(3)))
    assert math.isnan(mean_and_error([1.0])[1])
