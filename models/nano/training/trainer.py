"""One training run: optimiser, checkpoint, loss curve. The command line is `train`.

A checkpoint and the plan determine the rest of a run on the same machine.
"""

import csv
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from .batches import Batch, Encoder, collate, in_order, rows
from .initial import set_initial_weights
from .plan import TrainingPlan, learning_rate, model_config

_LOSS_COLUMNS: Final = ("step", "tokens", "train_loss", "held_out_loss", "learning_rate", "time_s")
_CHECKPOINT: Final = "checkpoint.pt"
_HELD_OUT_ROWS: Final = 16
_HELD_OUT_ROW_TOKENS: Final = 512


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run is: the part of a checkpoint that is not tensors."""

    step: int = 0
    elapsed_s: float = 0.0


def multiplies_bf16(device: str) -> bool:
    """Whether a device (`cpu`, `cuda`) multiplies bfloat16 faster than float32.

    Without AVX-512 a CPU takes fifty times as long for it.
    """
    return device == "cuda" or (
        device == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bw"))
    )


def token_loss(model: LlamaForCausalLM, found: Batch) -> Tensor:
    """Return the weighted mean cross entropy in nats per learned token, float32 scalar.

    The distribution over the vocabulary is computed for the learned tokens alone.
    """
    device = found.ids_BT.device.type
    with torch.autocast(device, torch.bfloat16) if multiplies_bf16(device) else nullcontext():
        hidden_BTD = cast("Tensor", model.model(found.ids_BT, use_cache=False).last_hidden_state)
        before_ND = hidden_BTD.flatten(0, 1)[found.places_N - 1]
        logits_NV = cast("Tensor", model.lm_head(before_ND))
    targets_N = found.ids_BT.flatten()[found.places_N]
    loss_N = cross_entropy(logits_NV.float(), targets_N, reduction="none")
    return (loss_N * found.weight_N).sum() / found.weight_N.sum()


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
        workers: int = 0,
    ) -> None:
        """`workers`: processes that make batches ahead of the steps; a GPU needs some ten."""
        self.plan = plan
        self.workers = workers
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
        self.progress = Progress()

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

    def start_at(self, step: int, weights: LlamaForCausalLM, losses: Path) -> None:
        """Begin with exported weights where a restart afresh does.

        `losses`: the curve that led to them, which goes on.
        """
        self.model.load_state_dict(weights.state_dict())
        self.progress.step = step
        shutil.copyfile(losses, self.log_path)
        with losses.open(newline="") as file:
            self.progress.elapsed_s = float(list(csv.DictReader(file))[-1]["time_s"])

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

    def step(self, found: Batch) -> Tensor:
        """Make one optimiser step; return its loss in nats per token, a scalar on the device.

        Nothing here waits for a GPU: it computes this step while the next ones are queued.
        """
        progress, plan = self.progress, self.plan
        match plan.restart(progress.step):
            case (restart, 0) if restart.afresh:
                self.optimizers = _optimizers(self.model, plan)
            case _:
                pass
        rate = learning_rate(plan, progress.step)
        loss = token_loss(self.model, found.to(self.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), plan.gradient_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        return loss.detach()

    @cached_property
    def _held_out(self) -> Batch:
        source = rows(self.encoder, self.plan.seed, _HELD_OUT_ROW_TOKENS, "held_out")
        return collate(islice(source, _HELD_OUT_ROWS)).to(self.device)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean loss over rows of held-out documents, in nats per token."""
        return token_loss(self.model, self._held_out).item()

    def run(self, *, save_every_s: float, log_every: int, stop_at: int) -> None:
        """Train until the planned end or step `stop_at`; log to `loss.csv` by the checkpoint."""
        self._cut_log()
        progress = self.progress
        before_s, saved_s = progress.elapsed_s, progress.elapsed_s
        start_s, losses = time.monotonic(), list[Tensor]()
        bar = tqdm(total=self.plan.last_step, initial=progress.step, unit="step", smoothing=0.05)
        end = min(self.plan.last_step, stop_at)
        batches = in_order(
            self.encoder,
            self.plan,
            range(progress.step, end),
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for found in batches:
            losses.append(self.step(found))
            progress.elapsed_s = before_s + time.monotonic() - start_s
            bar.update()
            if progress.step % log_every == 0 or progress.step == self.plan.last_step:
                train_loss = torch.stack(losses).mean().item()
                bar.set_postfix(loss=f"{train_loss:.3f}", refresh=False)
                self._log(train_loss)
                losses.clear()
            if progress.elapsed_s - saved_s >= save_every_s:
                self.save()
                saved_s = progress.elapsed_s
        bar.close()
        self.save()

    def _log(self, train_loss: float) -> None:
        step = self.progress.step
        rate = learning_rate(self.plan, step - 1)
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
