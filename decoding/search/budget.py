"""What one search may use."""

from pydantic import BaseModel, Field

from ...registry import STRICT

MAX_THOUGHTS = 100_000
MAX_SEQUENCES = 4096
MAX_TOKENS = 2**31 - 1
MAX_SECONDS = 86_400.0


class Budget(BaseModel):
    """Bounds of a search; what it leaves out is as much as the server allows.

    `thoughts`: nodes of the tree. `sequences`: that run at once, in all their contexts. `tokens`:
    of all prompts and answers of all branches, shared ones included, as `usage.total_tokens` counts
    them. `seconds`: from submission.
    """

    model_config = STRICT

    thoughts: int | None = Field(default=None, ge=1, le=MAX_THOUGHTS)
    sequences: int | None = Field(default=None, ge=1, le=MAX_SEQUENCES)
    tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    seconds: float | None = Field(default=None, gt=0, le=MAX_SECONDS, allow_inf_nan=False)


def filled(budget: Budget, limits: Budget) -> Budget:
    """The budget, with the limits where it says nothing."""
    said = budget.model_dump(exclude_none=True)
    return Budget(**{**limits.model_dump(), **said})
