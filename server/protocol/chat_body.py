"""The body of /v1/chat/completions, and the messages that /tokenize shares with it."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_validator

from penstock.errors import RequestError

from ...decoding.sampling_params import MAX_LOGPROBS, MAX_TOKENS
from .fields import MAX_MESSAGES, MAX_PARTS, MAX_TEMPLATE_KWARGS, STRICT, Name
from .generation import GenerationBody


def _refuse_tools(value: Any) -> Any:
    if value not in (None, []):
        raise ValueError("is not supported yet by this server; leave it out")
    return value


def _content_kind(value: Any) -> str | None:
    return {str: "text", list: "parts"}.get(type(value))


class TextPart(BaseModel):
    """One part of a message; images and sounds are refused by `type`."""

    model_config = STRICT

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_PARTS), Tag("parts")],
    Discriminator(
        _content_kind,
        custom_error_type="content_kind",
        custom_error_message='it must be a string or a list of {"type": "text"} parts',
    ),
]


class Message(BaseModel):
    """One message of a chat. Null fields are what client libraries send back of an answer."""

    model_config = STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[Any, AfterValidator(_refuse_tools)] = None
    function_call: Annotated[Any, AfterValidator(_refuse_tools)] = None

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("has no content; give a string or a list of text parts")
        return self

    def for_template(self) -> dict[str, str]:
        """The message as chat templates know it: developer is the later name of system."""
        content = self.content or ""
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": text}
        return message if self.name is None else {**message, "name": self.name}


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
TemplateValue = bool | int | float | Annotated[str, Field(max_length=1024)]
TemplateKwargs = Annotated[dict[Name, TemplateValue], Field(max_length=MAX_TEMPLATE_KWARGS)]


class Conversation(BaseModel):
    """Messages and how they are rendered; shared by chats and /tokenize."""

    model_config = STRICT

    messages: Messages
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: TemplateKwargs | None = None

    @property
    def starts_answer(self) -> bool:
        """Whether the prompt ends with the beginning of an assistant's message."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt

    def check_template(self, allowed: Collection[str]) -> None:
        """Raise RequestError for what the template must not be told."""
        if self.add_generation_prompt and self.continue_final_message:
            raise RequestError(
                "add_generation_prompt and continue_final_message contradict each other; "
                "set at most one of them",
                param="continue_final_message",
                code="invalid_parameter",
            )
        for name in self.chat_template_kwargs or {}:
            if name not in allowed:
                known = ", ".join(sorted(allowed)) or "none"
                raise RequestError(
                    f"chat_template_kwargs: {name[:64]!r} is not allowed by this server; "
                    f"it allows: {known}",
                    param=f"chat_template_kwargs.{name[:64]}",
                    code="unsupported_parameter",
                )

    def template_messages(self) -> list[dict[str, str]]:
        """The messages for the tokenizer's template."""
        return [message.for_template() for message in self.messages]

    def template_kwargs(self) -> Mapping[str, Any]:
        """The allowed extra words for the template."""
        return self.chat_template_kwargs or {}


class ChatBody(GenerationBody, Conversation):
    """A chat request; `max_completion_tokens` is the later name of `max_tokens`."""

    max_completion_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to report beside each token; None reports nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check_together(self) -> None:
        """Raise RequestError where fields that are right alone contradict each other."""
        super().check_together()
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(
                "top_logprobs needs logprobs; set logprobs to true or leave top_logprobs out",
                param="top_logprobs",
                code="invalid_parameter",
            )
        newer, older = self.max_completion_tokens, self.max_tokens
        if newer is not None and older is not None and newer != older:
            raise RequestError(
                f"max_completion_tokens is {newer} and max_tokens is {older}; send one of them",
                param="max_completion_tokens",
                code="invalid_parameter",
            )

    def with_max_tokens(self) -> "ChatBody":
        """The same with `max_tokens` holding the limit, whichever name it came under."""
        if self.max_completion_tokens is None:
            return self
        return self.model_copy(update={"max_tokens": self.max_completion_tokens})
