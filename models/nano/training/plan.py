"""What determines the weights: the shape of the model and the plan of its training."""

import math
from dataclasses import dataclass
from typing import Final

from transformers import LlamaConfig

from .tokenizer import CONTEXT_TOKENS

LONG_ROW_TOKENS: Final = CONTEXT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """A further cycle: from a lower peak, linearly to nothing.

    `mixes`: of its documents, one after the other, each with the share of steps that has it.
    `afresh`: with new optimisers, so that it can begin with exported weights.
    """

    steps: int
    rate: float
    mixes: tuple[tuple[str, float], ...]
    afresh: bool = True


RESTARTS: Final = (
    Restart(steps=300, rate=1e-3, mixes=(("last", 1.0),), afresh=False),
    Restart(
        steps=3600, rate=2e-3, mixes=(("main and stumbles", 0.75), ("last and stumbles", 0.25))
    ),
    Restart(steps=1500, rate=1.5e-3, mixes=(("ordered and stumbles", 1.0),)),
)
"""What each brought is in docs/decisions/0011."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What determines the weights. Units: tokens, steps; rates are per step."""

    steps: int  # of the main cycle of the learning rate
    restarts: tuple[Restart, ...] = ()
    seed: int = 0
    batch_tokens: int = 8192
    row_tokens: int = 384
    # Long texts cost time and teach nothing before finding is learned on short ones.
    long_rows_from: int = 1000  # steps with rows of short texts alone, at first
    long_rows_every: int = 5  # each n-th step after that has rows of the whole context
    learning_rate: float = 3e-3
    final_fraction: float = 0.01
    warmup_steps: int = 50
    decay_fraction: float = 0.75
    weight_decay: float = 0.05
    gradient_norm: float = 1.0
    tokenizer_documents: int = 10_000

    def shape(self, step: int) -> tuple[int, int]:
        """Return (rows, tokens of a row) of the batch at `step` (0-based)."""
        into = step - self.long_rows_from
        is_long = into >= 0 and (into + 1) % self.long_rows_every == 0
        row_tokens = LONG_ROW_TOKENS if is_long else self.row_tokens
        return max(1, self.batch_tokens // row_tokens), row_tokens

    @property
    def last_step(self) -> int:
        """How many steps there are."""
        return self.steps + sum(restart.steps for restart in self.restarts)

    def restart(self, step: int) -> tuple[Restart, int] | None:
        """Return the further cycle that `step` (0-based) is in, and how far; None: the main one."""
        into = step - self.steps
        if into < 0:
            return None
        for restart in self.restarts:
            if into < restart.steps:
                return restart, into
            into -= restart.steps
        raise ValueError(f"the plan has {self.last_step} steps, and {step} is beyond them")

    def mix(self, step: int) -> str:
        """Return the mix of documents at `step`, one of `corpus.MIXES`."""
        found = self.restart(step)
        if found is None:
            return "main"
        restart, into = found
        share = 0.0
        for mix, of_steps in restart.mixes:
            share += of_steps
            if into < restart.steps * share:
                return mix
        return restart.mixes[-1][0]

    def tokens(self, steps: int) -> int:
        """Return how many tokens the first `steps` steps take."""
        return sum(math.prod(self.shape(step)) for step in range(steps))


def model_config(vocab_size: int) -> LlamaConfig:
    """Return the shape of the embedded model: a small Llama with grouped queries."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )


def learning_rate(plan: TrainingPlan, step: int) -> float:
    """Return the rate of `step` (0-based).

    The main cycle: warm-up, plateau, cosine decay. The others are warm restarts (Loshchilov &
    Hutter 2017, arXiv:1608.03983) that decay linearly to nothing.
    """
    found = plan.restart(step)
    if found is not None:
        restart, into = found
        warm = min(1.0, (into + 1) / max(1, plan.warmup_steps))
        return restart.rate * min(warm, 1 - into / restart.steps)
    steps = plan.steps
    decay_steps = max(1, int(steps * plan.decay_fraction))
    warm = min(1.0, (step + 1) / max(1, plan.warmup_steps))
    into_decay = max(0.0, (step + 1 - (steps - decay_steps)) / decay_steps)
    low = plan.final_fraction
    cooled = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * into_decay))
    return plan.learning_rate * min(warm, cooled)
