"""What determines the weights: the shape of the model and the plan of its training."""

import math
from dataclasses import dataclass
from typing import Final

from transformers import LlamaConfig

from .tokenizer import CONTEXT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Steps that share a shape of batch. Rows longer than the batch make one row."""

    steps: int
    row_tokens: int
    batch_tokens: int
    long_rows_every: int = 0  # each n-th step has one row of the whole context; 0: none


# First short rows and small batches: what is to be repeated is near, and steps are cheap. Then
# whole documents, and among them full contexts, so that late positions are learned.
_STAGES: Final = (
    Stage(steps=2000, row_tokens=128, batch_tokens=1024),
    Stage(steps=10**9, row_tokens=512, batch_tokens=2048, long_rows_every=4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What determines the weights. Units: tokens, steps; rates are per step."""

    steps: int
    seed: int = 0
    stages: tuple[Stage, ...] = _STAGES  # the last one lasts to the end
    learning_rate: float = 3e-3
    final_fraction: float = 0.02
    warmup_steps: int = 100
    decay_fraction: float = 0.25
    weight_decay: float = 0.1
    gradient_norm: float = 1.0
    tokenizer_documents: int = 20_000

    def shape(self, step: int) -> tuple[int, int]:
        """Return (rows, tokens of a row) of the batch at `step`."""
        *earlier, stage = self.stages
        for candidate in earlier:
            if step < candidate.steps:
                stage = candidate
                break
            step -= candidate.steps
        is_long = stage.long_rows_every > 0 and (step + 1) % stage.long_rows_every == 0
        row_tokens = CONTEXT_TOKENS if is_long else stage.row_tokens
        return max(1, stage.batch_tokens // row_tokens), row_tokens

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
    """Return the rate of `step` (0-based) in a run of `steps`: warm-up, plateau, cosine decay."""
    decay_steps = max(1, int(steps * plan.decay_fraction))
    warm = min(1.0, (step + 1) / max(1, plan.warmup_steps))
    into_decay = max(0.0, (step + 1 - (steps - decay_steps)) / decay_steps)
    low = plan.final_fraction
    cooled = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, into_decay)))
    return plan.learning_rate * min(warm, cooled)
