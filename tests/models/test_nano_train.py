import csv
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from penstock.models.nano.batches import batch, rows
from penstock.models.nano.evaluate import WEIGHTS
from penstock.models.nano.plan import Stage, TrainingPlan, learning_rate
from penstock.models.nano.train import export
from penstock.models.nano.trainer import Trainer

PLAN = TrainingPlan(
    steps=4,
    stages=(
        Stage(steps=2, row_tokens=64, batch_tokens=128),
        Stage(steps=2, row_tokens=128, batch_tokens=256),
    ),
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(WEIGHTS, local_files_only=True)


def _run(trainer: Trainer, stop_at: int, limit_s: float = float("inf")) -> None:
    trainer.run(limit_s=limit_s, save_every_s=float("inf"), log_every=1, stop_at=stop_at)


def test_a_resumed_run_ends_with_identical_weights(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    whole = Trainer(PLAN, tokenizer, CPU, tmp_path / "whole")
    _run(whole, stop_at=4)
    _run(Trainer(PLAN, tokenizer, CPU, tmp_path / "halves"), stop_at=2)
    resumed = Trainer(PLAN, tokenizer, CPU, tmp_path / "halves")
    resumed.resume()
    assert resumed.progress.step == 2
    _run(resumed, stop_at=4)
    expected = whole.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    logs = [
        [row[:-1] for row in csv.reader((tmp_path / run / "loss.csv").read_text().splitlines())]
        for run in ("whole", "halves")
    ]
    assert logs[0] == logs[1]
    assert [row[0] for row in logs[0]] == ["step", "1", "2", "3", "4"]


def test_resuming_with_another_plan_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    Trainer(PLAN, tokenizer, CPU, tmp_path).save()
    with pytest.raises(ValueError, match="same options"):
        Trainer(replace(PLAN, seed=1), tokenizer, CPU, tmp_path).resume()


def test_out_of_time_starts_the_decay(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    trainer = Trainer(replace(PLAN, steps=1000, warmup_steps=1), tokenizer, CPU, tmp_path)
    _run(trainer, stop_at=1000, limit_s=0)
    assert trainer.progress.step == trainer.progress.steps == 2


def test_export_loads(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    trainer = Trainer(PLAN, tokenizer, CPU, tmp_path)
    export(trainer.model, tokenizer, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert isinstance(loaded, LlamaForCausalLM)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(torch.bfloat16)), name


def test_learning_rate_warms_up_stays_and_decays() -> None:
    plan = TrainingPlan(steps=1000, warmup_steps=100, decay_fraction=0.25, learning_rate=1.0)
    rates = [learning_rate(plan, step, 1000) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[0] == pytest.approx(0.01)
    assert set(rates[99:750]) == {1.0}
    assert rates[750:] == sorted(rates[750:], reverse=True)
    assert rates[-1] == pytest.approx(plan.final_fraction)


def test_rows_are_full_and_start_with_a_document(tokenizer: PreTrainedTokenizerBase) -> None:
    for row in islice(rows(tokenizer, 0, 512), 20):
        assert len(row) == 512
        assert row[0] == tokenizer.bos_token_id


STAGES = (
    Stage(steps=3, row_tokens=128, batch_tokens=1024),
    Stage(steps=1, row_tokens=512, batch_tokens=1024, long_rows_every=2),
)


@pytest.mark.parametrize(
    ("step", "shape"),
    [(0, (8, 128)), (2, (8, 128)), (3, (2, 512)), (4, (1, 2048)), (5, (2, 512)), (6, (1, 2048))],
)
def test_stages_give_the_shape_of_a_batch(
    step: int, shape: tuple[int, int], tokenizer: PreTrainedTokenizerBase
) -> None:
    plan = TrainingPlan(steps=10, stages=STAGES)
    assert plan.shape(step) == shape
    assert batch(tokenizer, plan, step).shape == shape


def test_tokens_are_counted_over_stages() -> None:
    assert TrainingPlan(steps=10, stages=STAGES).tokens(5) == 3 * 1024 + 1024 + 2048
