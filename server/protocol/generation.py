"""What completions and chats have in common."""

from pydantic import Field

from penstock.errors import RequestError

from ...decoding.sampling_params import MAX_LOGPROBS, SamplingParams
from .fields import STRICT, MethodSpec, Name, Priority, StreamOptions, TruncateTokens, User


class GenerationBody(SamplingParams):
    """Fields of every request that generates; the sampling fields and their bounds are inherited.

    `user` is accepted for OpenAI's clients and has no effect.
    """

    model_config = STRICT

    model: Name | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: User | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    truncate_prompt_tokens: TruncateTokens | None = None
    return_token_ids: bool = False
    priority: Priority = 0
    cache_salt: Name | None = None
    decoding: MethodSpec | None = None
    kv_cache: MethodSpec | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check_together(self) -> None:
        """Raise RequestError where fields that are right alone contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options is only for streams; set stream to true or leave it out",
                param="stream_options",
                code="invalid_parameter",
            )
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError(
                "prompt_logprobs is not sent in streams; set stream to false or leave it out",
                param="prompt_logprobs",
                code="invalid_parameter",
            )
