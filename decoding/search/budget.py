"""The budget of a search: limits on nodes, sequences, tokens and time."""

from pydantic import BaseModel, Field

from ...registry import STRICT

MAX_THOUGHTS = 100_000
MAX_SEQUENCES = 4096
MAX_TOKENS = 2**31 - 1
MAX_SECONDS = 86_400.0


class Budget(BaseModel):
    """Limits of one search; a field left out is the server's limit.

    `thoughts`: nodes of the tree. `sequences`: those that run at once, each context counted.
    `tokens`: those of all prompts and answers, cached ones included, as `usage.total_tokens` counts
    them. `seconds`: from submission.
    """

    model_config = STRICT

    thoughts: int | None = Field(default=None, ge=1, le=MAX_THOUGHTS)
    sequences: int | None = Field(default=None, ge=1, le=MAX_SEQUENCES)
    tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    seconds: float | None = Field(default=None, gt=0, le=MAX_SECONDS, allow_inf_nan=False)


def filled(budget: Budget, limits: Budget) -> Budget:
    """The budget, with `limits` for the fields that it leaves out."""
    said = budget.model_dump(exclude_none=True)
    return Budget(**{**limits.model_dump(), **said})
