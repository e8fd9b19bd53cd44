"""Adapters that peft makes of tiny models, and the models that it merges them into."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from penstock import SamplingParams
from penstock.engine.adapters.store import start_key
from tests.engine.jobs import Job

TARGETS: dict[str, list[str]] = {"mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"]}
"""Of models whose experts are no linear layers; of all others, all linear layers."""
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model, adapters a and b of it, and what it is with each of them merged into it."""

    base: Path
    folders: dict[str, Path]
    merged: dict[str, Path]

    @property
    def flags(self) -> list[str]:
        """As `--adapters` has them."""
        return [f"{name}={folder}" for name, folder in self.folders.items()]

    def model(self, name: str | None) -> Path:
        """The model that answers as an adapter does."""
        return self.base if name is None else self.merged[name]


MakeAdapted = Callable[[str], Adapted]


def make_adapter(base: Path, place: Path, seed: int, **settings: Any) -> tuple[Path, Path]:
    """Folders of a random adapter, and of the model with it."""
    logging.disable_progress_bar()
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of heads and of tied weights
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(model, LoraConfig(init_lora_weights=False, **fields))
        adapted.save_pretrained(place / "adapter")
        adapted.merge_and_unload().save_pretrained(place / "merged")
    for file in base.iterdir():  # the tokenizer's
        if not (place / "merged" / file.name).exists():
            shutil.copy(file, place / "merged")
    return place / "adapter", place / "merged"


def make_two(kind: str, base: Path, place: Path) -> Adapted:
    """Two adapters of different ranks."""
    made = {
        name: make_adapter(
            base, place / name, rank, r=rank, target_modules=TARGETS.get(kind, "all-linear")
        )
        for name, rank in (("a", 4), ("b", 19))
    }
    return Adapted(
        base=base,
        folders={name: folders[0] for name, folders in made.items()},
        merged={name: folders[1] for name, folders in made.items()},
    )


def job(prompt: list[int], name: str | None, **fields: Any) -> Job:
    """A request for the adapter of that name."""
    key = "" if name is None else start_key(name)
    given: dict[str, Any] = {"params": GREEDY, **fields}
    return Job(prompt=prompt, adapter=key, **given)
