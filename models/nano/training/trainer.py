"""One training run: optimiser, checkpoint, loss curve. The command line is `train`.

A checkpoint and the plan determine the rest of a run on the same machine. `shorten` starts the
decay early when time runs out, so that a slow machine ends with a finished model too.
"""

import csv
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from .batches import Batch, Encoder, batch, collate, rows
from .initial import set_initial_weights
from .plan import TrainingPlan, learning_rate, model_config

_LOSS_COLUMNS: Final = ("step", "tokens", "train_loss", "held_out_loss", "learning_rate", "time_s")
_CHECKPOINT: Final = "checkpoint.pt"


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run is: the part of a checkpoint that is not tensors."""

    step: int = 0
    steps: int = 0  # the planned number, lowered when time runs out
    elapsed_s: float = 0.0


def token_loss(model: LlamaForCausalLM, found: Batch) -> Tensor:
    """Return the weighted mean cross entropy in nats per learned token, float32 scalar.

    The distribution over the vocabulary is computed for the learned tokens alone.
    """
    device = found.ids_BT.device.type
    context: AbstractContextManager[Any] = (
        torch.autocast(device, torch.bfloat16) if device in ("cpu", "cuda") else nullcontext()
    )
    weight_BS = found.weight_BT[:, 1:]
    learned_BS = weight_BS > 0
    with context:
        hidden_BTD = cast("Tensor", model.model(found.ids_BT, use_cache=False).last_hidden_state)
        logits_NV = cast("Tensor", model.lm_head(hidden_BTD[:, :-1][learned_BS]))
    loss_N = cross_entropy(logits_NV.float(), found.ids_BT[:, 1:][learned_BS], reduction="none")
    weight_N = weight_BS[learned_BS]
    return (loss_N * weight_N).sum() / weight_N.sum()


def _optimizers(model: LlamaForCausalLM, plan: TrainingPlan) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, AdamW for vectors and embeddings.

    Muon: Jordan et al. 2024; its steps are scaled as AdamW's (Liu et al. 2025, arXiv:2502.16982),
    so that one rate serves both.
    """
    layers = [p for p in model.model.layers.parameters() if p.ndim == 2]
    of_layers = {id(p) for p in layers}
    others = [p for p in model.parameters() if id(p) not in of_layers]
    return [
        torch.optim.Muon(
            layers,
            lr=plan.learning_rate,
            weight_decay=plan.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            others, lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


class Trainer:
    """Owns the model, its optimiser and the checkpoint of one run."""

    def __init__(
        self,
        plan: TrainingPlan,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        checkpoint_dir: Path,
    ) -> None:
        self.plan = plan
        self.encoder = Encoder(tokenizer)
        self.device = device
        self.path = checkpoint_dir / _CHECKPOINT
        self.log_path = checkpoint_dir / "loss.csv"
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(plan.seed)
        model = LlamaForCausalLM(model_config(len(tokenizer)))
        set_initial_weights(model)
        self.model = model.to(device)  # pyright: ignore[reportArgumentType] # a decorator hides it
        self.optimizers = _optimizers(self.model, plan)
        self.progress = Progress(steps=plan.steps)

    @property
    def last_step(self) -> int:
        """How many steps the run will have made at its end."""
        return self.progress.steps + self.plan.last_steps

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one. ValueError: it has another plan."""
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        if state["plan"] != asdict(self.plan):
            raise ValueError(
                f"{self.path} was written with {state['plan']}, this run has {asdict(self.plan)}: "
                "use the same options or another --checkpoint-dir"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])

    def save(self) -> None:
        """Write the checkpoint; an interrupted write leaves the one before."""
        state = {
            "plan": asdict(self.plan),
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def step(self) -> float:
        """Make one optimiser step and return its loss in nats per token."""
        progress, plan = self.progress, self.plan
        rate = learning_rate(plan, progress.step, progress.steps)
        found = batch(self.encoder, plan, progress.step).to(self.device)
        loss = token_loss(self.model, found)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), plan.gradient_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        return loss.item()

    @torch.no_grad()
    def held_out_loss(self, count: int = 16, row_tokens: int = 512) -> float:
        """Return the mean loss over `count` rows of held-out documents, in nats per token."""
        source = rows(self.encoder, self.plan.seed, row_tokens, "held_out")
        held_out = collate(islice(source, count))
        return token_loss(self.model, held_out.to(self.device)).item()

    def shorten(self, limit_s: float) -> None:
        """Lower the number of steps when the decay must start now to end within `limit_s`.

        Leaves a run alone that is in its decay already or that will end in time.
        """
        progress = self.progress
        decay_steps = int(progress.steps * self.plan.decay_fraction)
        if progress.step >= progress.steps - decay_steps:
            return
        plateau_share = 1 - self.plan.decay_fraction
        if progress.elapsed_s >= limit_s * plateau_share:
            progress.steps = math.ceil(progress.step / plateau_share)

    def run(self, *, limit_s: float, save_every_s: float, log_every: int, stop_at: int) -> None:
        """Train until the planned end or step `stop_at`; log to `loss.csv` by the checkpoint."""
        self._cut_log()
        progress = self.progress
        before_s, saved_s = progress.elapsed_s, progress.elapsed_s
        start_s, losses = time.monotonic(), list[float]()
        bar = tqdm(total=self.last_step, initial=progress.step, unit="step", smoothing=0.05)
        while progress.step < min(self.last_step, stop_at):
            losses.append(self.step())
            progress.elapsed_s = before_s + time.monotonic() - start_s
            self.shorten(limit_s)
            bar.total = self.last_step
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            if progress.step % log_every == 0 or progress.step == self.last_step:
                self._log(sum(losses) / len(losses))
                losses.clear()
            if progress.elapsed_s - saved_s >= save_every_s:
                self.save()
                saved_s = progress.elapsed_s
        bar.close()
        self.save()

    def _log(self, train_loss: float) -> None:
        step = self.progress.step
        rate = learning_rate(self.plan, step - 1, self.progress.steps)
        row = (
            step,
            self.plan.tokens(step),
            f"{train_loss:.4f}",
            f"{self.held_out_loss():.4f}",
            f"{rate:.3e}",
            f"{self.progress.elapsed_s:.0f}",
        )
        with self.log_path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)

    def _cut_log(self) -> None:
        """Drop the rows after the checkpoint: they are about to be written again."""
        kept = [_LOSS_COLUMNS]
        if self.log_path.exists():
            with self.log_path.open(newline="") as file:
                lines = list(csv.reader(file))[1:]
            kept += [tuple(line) for line in lines if int(line[0]) <= self.progress.step]
        with self.log_path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(kept)
