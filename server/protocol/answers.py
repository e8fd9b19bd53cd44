"""The answers as /openapi.json describes them; the routes write them without these models."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from .usage import Count, TokenUsage

Ids = list[Count]
FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class ErrorDetails(BaseModel):
    """`param`: the field, as a dotted path. `code`: the kind of mistake."""

    message: str
    type: Literal[
        "invalid_request_error", "authentication_error", "rate_limit_error", "server_error"
    ]
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every refusal and failure; also the data of an event that ends a stream."""

    error: ErrorDetails


class PromptLogprob(BaseModel):
    """One token at a place of the prompt."""

    logprob: float
    rank: Count | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionLogprobLists(BaseModel):
    """Parallel lists, an item a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class CompletionChoice(BaseModel):
    """One answer to one prompt."""

    index: Count
    text: str
    logprobs: CompletionLogprobLists | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    token_ids: Ids | None = None
    prompt_token_ids: Ids | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(BaseModel):
    """An answer of /v1/completions; a stream's events have its shape too."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage | None = None
    penstock: dict[str, Any] | None = None


class TokenLogprob(BaseModel):
    """A token, and how likely it was."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]] | None


class ChosenLogprob(TokenLogprob):
    """The token that was chosen, beside the likeliest ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """An item a token."""

    content: list[ChosenLogprob] | None
    refusal: None = None


class FunctionCall(BaseModel):
    """A function and the JSON of its arguments."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer to a chat."""

    index: Count
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    stop_reason: str | int | None = None
    token_ids: Ids | None = None


class ChatCompletion(BaseModel):
    """An answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage
    prompt_token_ids: Ids | None = None
    prompt_logprobs: PromptLogprobs | None = None
    penstock: dict[str, Any] | None = None


class FunctionDelta(BaseModel):
    """What an event adds to a call's function; the name comes first, and whole."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(BaseModel):
    """What an event adds to a call."""

    index: Count
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(BaseModel):
    """What an event adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """What an event adds to one answer."""

    index: Count
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: str | int | None = None
    token_ids: Ids | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[ChatChunkChoice]
    usage: TokenUsage | None = None
    prompt_token_ids: Ids | None = None
    penstock: dict[str, Any] | None = None


class Tokens(BaseModel):
    """The tokens of a text or a chat."""

    count: Count
    max_model_len: Count
    tokens: Ids
    token_strs: list[str] | None = None


class Text(BaseModel):
    """The text of tokens."""

    prompt: str


class ModelCard(BaseModel):
    """A model, an adapter of it, or a preset of either with what it sets."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    max_model_len: Count
    input_modalities: list[Literal["text", "image"]]
    parent: str | None = None
    decoding: Any = None
    kv_cache: Any = None


class ModelList(BaseModel):
    """What is served."""

    object: Literal["list"]
    data: list[ModelCard]


class Method(BaseModel):
    """A method that requests may name; `parameters` is the JSON schema of what it takes."""

    name: str
    slot: str
    summary: str
    parameters: dict[str, Any]


class MethodList(BaseModel):
    """Methods, what their slots decide, and which go together."""

    object: Literal["list"]
    slots: dict[str, str]
    decoding: list[Method]
    kv_cache: list[Method]
    combinations: list[dict[str, list[str]]]
    presets: dict[str, dict[str, Any]]


class Health(BaseModel):
    """Requests can be served."""

    status: Literal["ok"]


class Version(BaseModel):
    """Of Penstock."""

    version: str
