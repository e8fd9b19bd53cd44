"""What a request may say about sampling: one declaration for HTTP bodies and for Python.

Every number is bounded on both ends here, before anything is allocated or fanned out. `None`
means "the model's generation_config, else the neutral value".
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_N = 128
MAX_STOP = 16
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256
MAX_TOKEN_LIST = 16_384
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 2**31 - 1

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
BadWord = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class SamplingParams(BaseModel):
    """How tokens are chosen and when to stop, with vLLM's names and meanings.

    `seed`: same seed, prompt and parameters give the same tokens, whatever else the server does.
    `logit_bias`: token id (JSON turns it into a string) -> value added to its logit.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    n: int = Field(default=1, ge=1, le=MAX_N)
    max_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    min_tokens: int = Field(default=0, ge=0, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKEN_ID)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[str, Bias] | None = Field(default=None, max_length=MAX_LOGIT_BIAS)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP)] | None = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=MAX_STOP)
    ignore_eos: bool = False
    bad_words: list[BadWord] | None = Field(default=None, max_length=MAX_BAD_WORDS)
    allowed_token_ids: list[TokenId] | None = Field(
        default=None, min_length=1, max_length=MAX_TOKEN_LIST
    )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever form it came in."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
