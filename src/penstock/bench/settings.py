"""The settings of `penstock bench`."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from .connection import Origin
from .statistics import Slo


def _split(value: Any) -> Any:
    """Split `1,4,16`, or a list of such strings, as flags and environment give them."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [part for item in items for part in str(item).split(",")]
    return value


Count = Annotated[int, Field(ge=1, le=1_000_000)]
Counts = Annotated[list[Count], NoDecode, BeforeValidator(_split)]
Milliseconds = Annotated[float, Field(gt=0, le=86_400_000)]


def _api_key() -> SecretStr | None:
    for name in ("PENSTOCK_API_KEY", "OPENAI_API_KEY"):
        if value := os.environ.get(name, "").strip():
            return SecretStr(value)
    return None


class BenchSettings(BaseModel):
    """Measure an OpenAI-compatible server.

    One run for each entry of `concurrency`, every run with its own `num_prompts` prompts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = Field(
        default="http://127.0.0.1:8000/v1", description="the API; /v1 if it has no path"
    )
    api_key: SecretStr | None = Field(
        default_factory=_api_key, description="else PENSTOCK_API_KEY, else OPENAI_API_KEY"
    )
    model: str | None = Field(
        default=None, description="default: the first one that the server lists"
    )
    endpoint: Literal["completions", "chat"] = "completions"
    concurrency: Counts | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="clients with one request at a time; 1,4,16 makes three runs (default 1); "
        "with a request rate, the most requests in flight (default: no limit)",
    )
    request_rate: float | None = Field(
        default=None, gt=0, le=1e6, description="arrivals a second, a Poisson process"
    )
    num_prompts: Count = Field(default=32, description="requests of each run")
    warmup_requests: int = Field(
        default=1, ge=0, le=10_000, description="sent before the runs, not counted"
    )
    input_tokens: Count = Field(
        default=64, description="length of the synthetic prompts, approximately"
    )
    output_tokens: Count = Field(default=64, description="max_tokens of each request")
    dataset: Path | None = Field(
        default=None,
        description="instead of synthetic prompts: .jsonl with prompt or messages, or text",
    )
    ignore_eos: bool = Field(
        default=False, description="always generate max_tokens, where supported"
    )
    temperature: float | None = Field(
        default=0.0, ge=0, le=100, description="null: the server's default"
    )
    seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="of prompts, arrivals and requests"
    )
    stream_usage: bool = Field(default=True, description="ask for token counts (stream_options)")
    extra_body: dict[str, Any] = Field(
        default_factory=dict[str, Any],
        description="JSON added to each request; null removes a field",
    )
    slo_ttft_ms: Milliseconds | None = Field(
        default=None, description="goodput: most time to first token"
    )
    slo_tpot_ms: Milliseconds | None = Field(
        default=None, description="goodput: most time per token"
    )
    slo_e2el_ms: Milliseconds | None = Field(
        default=None, description="goodput: most time to the end"
    )
    timeout_s: float = Field(default=600, gt=0, le=86_400, description="of one request")
    output_json: Path | None = Field(default=None, description="write settings and results here")
    output_csv: Path | None = Field(default=None, description="write one line a run here")

    @field_validator("base_url")
    @classmethod
    def _normalise(cls, value: str) -> str:
        return Origin.parse(value).url

    @property
    def slo(self) -> Slo:
        """The objectives for goodput."""
        return Slo(ttft_ms=self.slo_ttft_ms, tpot_ms=self.slo_tpot_ms, e2el_ms=self.slo_e2el_ms)
