"""What a request may say about sampling: one declaration for HTTP bodies and for Python.

Every number is bounded on both ends here, before anything is allocated or fanned out. `None`
means "the model's generation_config, else the neutral value".
"""

from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from penstock.validation import show

from .constraint.fields import ResponseFormat, StructuredOutputs

MAX_N = 128
MAX_STOP = 64
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256
MAX_TOKEN_LIST = 16_384
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 2**31 - 1
ALL_THAT_IS_LEFT = -1
"""As `max_tokens`: the answer may fill the model's context."""
NO_SEED = -1

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
_Stops = Annotated[
    list[Annotated[str, Field(max_length=MAX_STOP_LENGTH)]], Field(max_length=MAX_STOP)
]
_StopInput = Annotated[str, Field(max_length=MAX_STOP_LENGTH)] | _Stops | None
BadWord = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


def _seed(value: int | None) -> int | None:
    return None if value == NO_SEED else value


def _stops(value: Any) -> Any:
    """One string becomes a list of it; empty strings ask for nothing."""
    if value is None:
        return None
    if isinstance(value, str):
        return [value] if value else None
    if not isinstance(value, list | tuple):
        raise ValueError(f"is {show(value)}; it must be a string or a list of strings")
    return [item for item in cast("list[Any]", value) if item != ""]


def _biases(value: Any) -> Any:
    return {} if value == [] else value


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How an answer's tokens become its text.

    `skip_special_tokens`: leave them out. `spaces_between_special_tokens`: space shown ones as the
    tokenizer's decoder does; false: no space between them.
    `include_stop`: the text includes the stop string or stop token that ended it.
    `shown_tokens`: special tokens that are never left out, because they are read as markup.
    """

    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop: bool = False
    shown_tokens: frozenset[int] = frozenset()


PLAIN_TEXT = TextOptions()


class SamplingFields(BaseModel):
    """How tokens are chosen, when to stop and what is shown, with vLLM's names and meanings.

    `seed`: same seed, prompt and parameters give the same tokens, whatever else the server does; -1
    is none. `max_tokens`: -1 is all that the context leaves. `top_p`: 0 keeps only the most likely
    token. `logit_bias`: token id (JSON turns it into a string) -> value added to its logit.
    `response_format`: what the answer has to be, as OpenAI has it. `structured_outputs`: the same,
    as vLLM has it.
    `skip_special_tokens`, `spaces_between_special_tokens`, `include_stop_str_in_output`: see
    `TextOptions`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    n: int = Field(default=1, ge=1, le=MAX_N)
    max_tokens: int | None = Field(default=None, ge=ALL_THAT_IS_LEFT, le=MAX_TOKENS)
    min_tokens: int = Field(default=0, ge=0, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKEN_ID)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: Annotated[
        dict[str, Bias] | None, Field(max_length=MAX_LOGIT_BIAS), BeforeValidator(_biases)
    ] = None
    seed: Annotated[int | None, Field(ge=-(2**63), le=2**63 - 1), AfterValidator(_seed)] = None
    stop: Annotated[
        list[StopString] | None,
        Field(max_length=MAX_STOP),
        BeforeValidator(_stops, json_schema_input_type=_StopInput),
    ] = None
    # fail_fast: a list of many wrong items must make one error, not many.
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=MAX_STOP, fail_fast=True)
    ignore_eos: bool = False
    bad_words: list[BadWord] | None = Field(default=None, max_length=MAX_BAD_WORDS)
    allowed_token_ids: list[TokenId] | None = Field(
        default=None, min_length=1, max_length=MAX_TOKEN_LIST, fail_fast=True
    )
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def form_field(self) -> str | None:
        """The field that says what the answer has to be; None: it may be anything."""
        if self.structured_outputs is not None and self.structured_outputs.kinds:
            return "structured_outputs"
        if self.response_format is not None and self.response_format.type != "text":
            return "response_format"
        return None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return tuple(self.stop or ())

    @property
    def text_options(self) -> TextOptions:
        """How the answer's tokens become its text."""
        return TextOptions(
            skip_special_tokens=self.skip_special_tokens,
            spaces_between_special_tokens=self.spaces_between_special_tokens,
            include_stop=self.include_stop_str_in_output,
        )


class SamplingParams(SamplingFields):
    """What `LLM` takes: the fields that HTTP bodies and command lines share, and logprobs.

    `logprobs`, `prompt_logprobs`: how many alternatives to report beside each token of the answer,
    or of the prompt; 0 reports the token alone, None nothing.
    """

    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
