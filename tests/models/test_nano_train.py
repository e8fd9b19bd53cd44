import csv
import sys
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from penstock.engine.loading.folder import EMBEDDED_MODEL as WEIGHTS
from penstock.models.nano.training import train, trainer
from penstock.models.nano.training.batches import Encoded, Encoder, batch, collate, in_order, rows
from penstock.models.nano.training.corpus import MIXES
from penstock.models.nano.training.plan import (
    LONG_ROW_TOKENS,
    RESTARTS,
    Restart,
    TrainingPlan,
    learning_rate,
    model_config,
)
from penstock.models.nano.training.stumbles import LEARNED_FROM_HERE
from penstock.models.nano.training.train import export
from penstock.models.nano.training.trainer import Trainer, token_loss

PLAN = TrainingPlan(steps=4, batch_tokens=256, row_tokens=128)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model: what `Muon` does in bfloat16 takes minutes on a CPU without AVX-512."""

    def config(vocab_size: int) -> LlamaConfig:
        small = model_config(vocab_size)
        small.hidden_size = small.intermediate_size = 64
        small.num_hidden_layers = 1
        small.head_dim = 16
        return small

    monkeypatch.setattr(trainer, "model_config", config)
    monkeypatch.setattr(trainer, "_HELD_OUT_ROWS", 2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(WEIGHTS, local_files_only=True)


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(tokenizer)


def _run(trainer: Trainer, stop_at: int) -> None:
    trainer.run(save_every_s=float("inf"), log_every=1, stop_at=stop_at)


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


def test_export_loads(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    trainer = Trainer(PLAN, tokenizer, CPU, tmp_path)
    export(trainer.model, tokenizer, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert isinstance(loaded, LlamaForCausalLM)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(torch.bfloat16)), name


def test_learning_rate_warms_up_stays_and_decays() -> None:
    plan = TrainingPlan(steps=1000, warmup_steps=100, decay_fraction=0.25, learning_rate=1.0)
    rates = [learning_rate(plan, step) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[0] == pytest.approx(0.01)
    assert set(rates[99:750]) == {1.0}
    assert rates[750:] == sorted(rates[750:], reverse=True)
    assert rates[-1] == pytest.approx(plan.final_fraction)


AGAIN = Restart(steps=50, rate=1.0, mixes=(("last", 0.5), ("main and stumbles", 0.5)))


def test_restarts_decay_to_nothing_from_their_own_peak() -> None:
    plan = TrainingPlan(steps=100, restarts=(AGAIN, replace(AGAIN, rate=2.0)), warmup_steps=10)
    for begin, peak in ((100, 1.0), (150, 2.0)):
        rates = [learning_rate(plan, step) for step in range(begin, begin + 50)]
        assert rates[:9] == sorted(rates[:9])
        assert max(rates) == pytest.approx(0.84 * peak, rel=0.03)
        assert rates[9:] == sorted(rates[9:], reverse=True)
        assert 0 < rates[-1] < 0.03 * peak
    with pytest.raises(ValueError, match="200 steps, and 200"):
        learning_rate(plan, 200)


def test_restarts_have_their_mixes_one_after_the_other() -> None:
    plan = TrainingPlan(steps=10, restarts=(AGAIN, AGAIN))
    assert plan.last_step == 110
    assert {plan.mix(step) for step in range(10)} == {"main"}
    for begin in (10, 60):
        assert {plan.mix(step) for step in range(begin, begin + 25)} == {"last"}
        assert {plan.mix(step) for step in range(begin + 25, begin + 50)} == {"main and stumbles"}


def test_the_restarts_of_the_embedded_model_have_mixes_that_there_are() -> None:
    for restart in RESTARTS:
        assert sum(share for _, share in restart.mixes) == 1
        assert {mix for mix, _ in restart.mixes} <= set(MIXES)


@pytest.mark.parametrize("afresh", [False, True])
def test_a_restart_afresh_has_new_optimisers(
    afresh: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    plan = replace(PLAN, steps=1, restarts=(replace(AGAIN, steps=1, afresh=afresh),))
    trainer = Trainer(plan, tokenizer, CPU, tmp_path)
    before = trainer.optimizers
    _run(trainer, stop_at=plan.last_step)
    assert trainer.progress.step == 2
    assert (trainer.optimizers is before) != afresh


def test_a_restart_goes_on_from_what_was_exported(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    once = replace(AGAIN, steps=1)
    plan = replace(PLAN, steps=1, restarts=(once,))
    first = Trainer(plan, tokenizer, CPU, tmp_path / "first")
    _run(first, stop_at=2)
    export(first.model, tokenizer, tmp_path / "out")
    weights = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    further = replace(plan, restarts=(once, replace(AGAIN, steps=2)))
    ends: list[dict[str, torch.Tensor]] = []
    for name in ("whole", "resumed"):  # the second stops where the restart begins
        trainer = Trainer(further, tokenizer, CPU, tmp_path / name)
        trainer.start_at(2, weights, tmp_path / "first" / "loss.csv")
        if name == "resumed":
            trainer.save()
            trainer = Trainer(further, tokenizer, CPU, tmp_path / name)
            trainer.resume()
        assert trainer.progress.step == 2
        _run(trainer, stop_at=4)
        ends.append(trainer.model.state_dict())
        log = (tmp_path / name / "loss.csv").read_text().splitlines()
        steps = [row["step"] for row in csv.DictReader(log)]
        assert steps == ["1", "2", "3", "4"]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
        assert not torch.equal(tensor, weights.state_dict()[name].float()), name


def _decoded(encoder: Encoder, ids: list[int]) -> str:
    return cast("str", encoder.tokenizer.decode(ids))


@pytest.mark.parametrize("row_tokens", [256, LONG_ROW_TOKENS], ids=["short", "long"])
def test_rows_are_packed_with_whole_documents(encoder: Encoder, row_tokens: int) -> None:
    padding = 0
    for row in islice(rows(encoder, 0, row_tokens), 12):
        assert len(row.ids) == len(row.weights) == row_tokens
        assert row.ids[0] == encoder.document
        assert row.weights[0] == 0
        last = max(index for index, token in enumerate(row.ids) if token != encoder.document)
        padding += row_tokens - last - 1
        for text in _decoded(encoder, row.ids).split("<|endoftext|>"):
            assert text.count("<|im_start|>") == text.count("<|im_end|>")
    assert padding < 0.15 * 12 * row_tokens


def test_answers_alone_are_learned(encoder: Encoder) -> None:
    asked = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    text = f"{asked}<|im_start|>assistant\nHello! Shall I?<|im_end|>"
    (conversation,) = encoder([text])
    learned = [i for i, w in zip(conversation.ids, conversation.weights, strict=True) if w > 0]
    assert _decoded(encoder, learned) == "Hello! Shall I?<|im_end|>"


def test_a_plain_text_is_learned_with_its_end(encoder: Encoder) -> None:
    (plain,) = encoder(["Once upon a time."])
    assert plain.ids[0] == plain.ids[-1] == encoder.document
    assert plain.weights == [0.0, *[1.0] * (len(plain.ids) - 1)]


def test_what_an_answer_began_with_is_not_learned(encoder: Encoder) -> None:
    whole = "<|im_start|>user\nTwice?<|im_end|>\n<|im_start|>assistant\none\none\ntwo<|im_end|>"
    cut = "one\none\n"
    begun = whole.replace(cut, f"{cut.rstrip()}{LEARNED_FROM_HERE}\n")
    (plain, found) = encoder([whole, begun])
    assert found.ids == plain.ids
    learned = [i for i, w in zip(found.ids, found.weights, strict=True) if w > 0]
    assert _decoded(encoder, learned) == "\ntwo<|im_end|>"


def test_batches_made_ahead_are_those_of_their_steps(encoder: Encoder) -> None:
    steps = range(1, 4)
    found = in_order(encoder, PLAN, steps, workers=2, pin_memory=False)
    for step, ahead in zip(steps, found, strict=True):
        for one, other in zip(ahead, batch(encoder, PLAN, step), strict=True):
            assert torch.equal(one, other)


def test_a_short_answer_weighs_as_much_as_sixteen_tokens(encoder: Encoder) -> None:
    question = "<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n"
    answers = ["sure<|im_end|>", "a " * 30 + "<|im_end|>"]
    short, long = encoder([question + answer for answer in answers])
    assert sum(short.weights) == pytest.approx(16)
    assert set(long.weights) == {0.0, 1.0}


def test_the_loss_is_the_weighted_mean_over_learned_tokens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    trainer = Trainer(PLAN, tokenizer, CPU, tmp_path)
    ids_BT = torch.randint(3, 100, (2, 16))
    weight_BT = torch.rand(2, 16) * (torch.rand(2, 16) > 0.5)
    rows_of_both = zip(ids_BT.tolist(), weight_BT.tolist(), strict=True)
    with torch.no_grad():
        found = token_loss(trainer.model, collate(Encoded(*row) for row in rows_of_both)).item()
        logits_BTV = trainer.model(ids_BT).logits
    loss_BV = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].transpose(1, 2), ids_BT[:, 1:], reduction="none"
    )
    expected = (loss_BV * weight_BT[:, 1:]).sum() / weight_BT[:, 1:].sum()
    assert found == pytest.approx(expected.item(), rel=0.02)  # bfloat16 against float32


STAGED = TrainingPlan(
    steps=10, batch_tokens=1024, row_tokens=128, long_rows_from=4, long_rows_every=2
)


@pytest.mark.parametrize(
    ("step", "shape"),
    [(0, (8, 128)), (3, (8, 128)), (4, (8, 128)), (5, (1, 2048)), (6, (8, 128)), (7, (1, 2048))],
)
def test_long_rows_come_late_and_among_short_ones(
    step: int, shape: tuple[int, int], encoder: Encoder
) -> None:
    assert STAGED.shape(step) == shape
    assert batch(encoder, STAGED, step).ids_BT.shape == shape


def test_long_rows_hold_long_texts(encoder: Encoder) -> None:
    plan = replace(STAGED, batch_tokens=8192)
    lengths: list[int] = []
    for row in batch(encoder, plan, 5).ids_BT.tolist():
        starts = [place for place, token in enumerate(row) if token == encoder.document]
        lengths += [end - start for start, end in pairwise([*starts, len(row)])]
    assert max(lengths) > 2 * TrainingPlan(steps=1).row_tokens


def test_tokens_are_counted_over_both_shapes() -> None:
    assert STAGED.tokens(7) == 6 * 1024 + 2048


def test_a_run_that_began_with_weights_resumes_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps the curve up to there."""
    one, two = (Restart(steps=1, rate=1e-3, mixes=(("last", 1.0),)) for _ in range(2))
    monkeypatch.setattr(train, "RESTARTS", (one, two))
    folders = ["--checkpoint-dir", str(tmp_path / "run"), "--log-every", "1", "--steps", "1"]

    def run(name: str, *arguments: str) -> list[str]:
        out = ["--out", str(tmp_path / name / "weights")]
        monkeypatch.setattr(sys, "argv", ["train", *folders, *out, *arguments])
        train.main()
        return (tmp_path / name / "loss.csv").read_text().splitlines()

    start = ["--start", str(tmp_path / "first" / "weights")]
    assert len(run("first", "--restarts", "1")) == 1 + 2
    curve = run("further", *start, "--restarts", "2")
    assert len(curve) == 1 + 3
    assert run("further", *start, "--restarts", "2", "--resume") == curve
    with pytest.raises(SystemExit):
        run("none", *start, "--restarts", "0")
