"""What determines the weights: the shape of the model and the plan of its training."""

import math
from dataclasses import dataclass
from typing import Final

from transformers import LlamaConfig

from .tokenizer import CONTEXT_TOKENS

LONG_ROW_TOKENS: Final = CONTEXT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Steps that share a mix of documents; long rows have its long variant (`corpus.MIXES`)."""

    steps: int
    mix: str
    long_rows_every: int = 0  # each n-th step has rows of the whole context; 0: none


# First stories weigh most, then questions about short texts; when copying and finding are learned,
# long texts come too, then more arithmetic, which takes longest, and at last more of what was still
# weak. At the start long texts only cost time: twelve steps with them were a trial.
_STAGES: Final = (
    Stage(steps=750, mix="first"),
    Stage(steps=12, mix="first", long_rows_every=5),
    Stage(steps=438, mix="dense"),
    Stage(steps=200, mix="dense", long_rows_every=4),
    Stage(steps=1100, mix="arithmetic", long_rows_every=4),
    Stage(steps=10**9, mix="weak", long_rows_every=6),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What determines the weights. Units: tokens, steps; rates are per step."""

    steps: int  # of the first cycle of the learning rate
    restart_steps: int = 0  # of a second one, which ends the run
    seed: int = 0
    batch_tokens: int = 8192
    row_tokens: int = 384
    stages: tuple[Stage, ...] = _STAGES  # the last one lasts to the end
    learning_rate: float = 3e-3
    restart_rate: float = 1e-3
    final_fraction: float = 0.02
    warmup_steps: int = 50
    decay_fraction: float = 0.6
    weight_decay: float = 0.05
    gradient_norm: float = 1.0
    tokenizer_documents: int = 10_000

    def stage(self, step: int) -> Stage:
        """Return the stage that `step` (0-based) is in."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def shape(self, step: int) -> tuple[int, int]:
        """Return (rows, tokens of a row) of the batch at `step`."""
        every = self.stage(step).long_rows_every
        is_long = every > 0 and (step + 1) % every == 0
        row_tokens = LONG_ROW_TOKENS if is_long else self.row_tokens
        return max(1, self.batch_tokens // row_tokens), row_tokens

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


def learning_rate(plan: TrainingPlan, step: int, steps: int) -> float:
    """Return the rate of `step` (0-based) in a run whose first cycle has `steps`.

    The first cycle: warm-up, plateau, cosine decay. The second is a warm restart (Loshchilov &
    Hutter 2017, arXiv:1608.03983) that decays linearly from a lower peak.
    """
    if step >= steps:
        into = step + 1 - steps
        warm = min(1.0, into / max(1, plan.warmup_steps))
        return plan.restart_rate * min(warm, 1 - (into - 1) / max(1, plan.restart_steps))
    decay_steps = max(1, int(steps * plan.decay_fraction))
    warm = min(1.0, (step + 1) / max(1, plan.warmup_steps))
    into_decay = max(0.0, (step + 1 - (steps - decay_steps)) / decay_steps)
    low = plan.final_fraction
    cooled = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, into_decay)))
    return plan.learning_rate * min(warm, cooled)
