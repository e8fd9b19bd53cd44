"""Trains the embedded model from nothing: `python -m penstock.models.nano.training.train --help`.

Writes what `AutoModelForCausalLM` and `AutoTokenizer` load offline: weights in bfloat16, the
configuration, the tokenizer and its chat template; beside that folder the loss curve, as CSV and
SVG.
"""

import argparse
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import cast

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from .corpus import END_OF_DOCUMENT, END_OF_TURN
from .curve import draw
from .plan import RESTARTS, TrainingPlan
from .tokenizer import sample_text, train_tokenizer
from .trainer import Trainer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_tokenizer(plan: TrainingPlan, folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer kept in `folder`; train it first where there is none."""
    if not (folder / "tokenizer.json").exists():
        sample = sample_text(plan.seed, plan.tokenizer_documents)
        train_tokenizer(sample).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write weights and configuration in bfloat16; leaves `model` in its own precision."""
    document, turn = (
        cast("int", tokenizer.convert_tokens_to_ids(token))
        for token in (END_OF_DOCUMENT, END_OF_TURN)
    )
    special_ids = {"bos_token_id": document, "eos_token_id": [turn, document]}
    copy = LlamaForCausalLM(deepcopy(model.config))
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)  # pyright: ignore[reportArgumentType] # a decorator hides it
    copy.config.update(special_ids)
    # No padding id in the configuration: the model would then not train that row any further.
    copy.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, pad_token_id=document, **special_ids
    )
    copy.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    """Train, or continue to train, and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--restarts", type=int, default=len(RESTARTS), help="how many follow")
    parser.add_argument(
        "--start", type=Path, help="what a run with one restart less has exported: go on there"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0 ...")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument(
        "--workers", type=int, help="processes that make batches; default: none, for a GPU 2 to 14"
    )
    parser.add_argument("--save-every-minutes", type=float, default=3.0)
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--checkpoint-dir", type=Path, default=Path(".checkpoints/nano"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.start and not arguments.restarts:
        parser.error("--start goes on with the last of --restarts, and there is none")
    plan = TrainingPlan(
        steps=arguments.steps, restarts=RESTARTS[: arguments.restarts], seed=arguments.seed
    )
    name = arguments.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(arguments.threads)
    checkpoint_dir: Path = arguments.checkpoint_dir
    if not arguments.resume and checkpoint_dir.exists():
        shutil.rmtree(checkpoint_dir)
    tokenizer_dir = checkpoint_dir / "tokenizer"
    start: Path | None = arguments.start
    if start is not None:
        tokenizer_dir.mkdir(parents=True, exist_ok=True)
        for file in _TOKENIZER_FILES:  # as they are: saving again would say where they lay
            shutil.copyfile(start / file, tokenizer_dir / file)
    tokenizer = make_tokenizer(plan, tokenizer_dir)
    workers = arguments.workers
    if workers is None:
        workers = 0 if name == "cpu" else max(2, min(14, (os.cpu_count() or 2) - 2))
    trainer = Trainer(plan, tokenizer, torch.device(name), checkpoint_dir, workers)
    if start is not None and not trainer.path.exists():  # else its checkpoint is further
        weights = LlamaForCausalLM.from_pretrained(start, local_files_only=True)
        begun = plan.last_step - plan.restarts[-1].steps
        trainer.start_at(begun, weights, start.parent / "loss.csv")
    trainer.resume()
    trainer.run(
        save_every_s=arguments.save_every_minutes * 60,
        log_every=arguments.log_every,
        stop_at=plan.last_step,
    )
    export(trainer.model, tokenizer, arguments.out)
    shutil.copytree(tokenizer_dir, arguments.out, dirs_exist_ok=True)
    losses = arguments.out.parent / "loss.csv"
    shutil.copyfile(trainer.log_path, losses)
    draw(losses, losses.with_suffix(".svg"))
    print(f"{trainer.progress.step} steps, {trainer.progress.elapsed_s / 60:.1f} minutes")


if __name__ == "__main__":
    main()
