"""Service level objectives: read from YAML, judged after a run."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

Milliseconds = Annotated[float, Field(gt=0)]


class Figures(BaseModel):
    """What a run measured; a percentile is None if nothing was recorded for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: int
    failures: int
    completion_p95_ms: float | None
    ttft_p95_ms: float | None
    inter_token_p95_ms: float | None


class Slo(BaseModel):
    """The objectives; every one is inclusive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_min: int = Field(ge=1)
    error_ratio_max: float = Field(ge=0, le=1)
    completion_p95_ms: Milliseconds
    ttft_p95_ms: Milliseconds
    inter_token_p95_ms: Milliseconds

    @classmethod
    def load(cls, path: Path) -> "Slo":
        """Read a YAML file.

        Raises:
            pydantic.ValidationError: an objective is missing, unknown or out of range.
        """
        return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))

    def violations(self, figures: Figures) -> list[str]:
        """One line for each objective that was missed."""
        missed: list[str] = []
        if figures.requests < self.requests_min:
            missed.append(f"{figures.requests} requests; at least {self.requests_min} are needed")
        ratio = figures.failures / max(1, figures.requests)
        if ratio > self.error_ratio_max:
            missed.append(
                f"{figures.failures} of {figures.requests} requests failed ({ratio:.2%}); "
                f"at most {self.error_ratio_max:.2%} may"
            )
        for name in ("completion_p95_ms", "ttft_p95_ms", "inter_token_p95_ms"):
            measured: float | None = getattr(figures, name)
            limit: float = getattr(self, name)
            if measured is None:
                missed.append(f"{name}: nothing was measured")
            elif measured > limit:
                missed.append(f"{name} is {measured:g}; at most {limit:g} is allowed")
        return missed
