"""The body of /v1/chat/completions, and the messages that /tokenize shares with it."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_validator

from penstock.errors import RequestError

from .fields import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TEMPLATE_KWARGS,
    STRICT,
    FreeObject,
    Hint,
    Name,
)
from .generation import Alternatives, GenerationBody
from .hints import Hints


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
        custom_error_message='a string or a list of {"type": "text"} parts',
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

    @property
    def text(self) -> str:
        """Its text, in whichever form it came."""
        content = self.content or ""
        return content if isinstance(content, str) else "\n".join(part.text for part in content)

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it: developer is the later name of system."""
        content = self.content or ""
        if not isinstance(content, str):
            content = [{"type": part.type, "text": part.text} for part in content]
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": content}
        return message if self.name is None else {**message, "name": self.name}


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
TemplateValue = bool | int | float | Annotated[str, Field(max_length=1024)]
TemplateKwargs = Annotated[dict[Name, TemplateValue], Field(max_length=MAX_TEMPLATE_KWARGS)]


class ConversationFields(BaseModel):
    """Messages and how they are rendered; shared by chats and /tokenize."""

    model_config = STRICT

    messages: Messages
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: TemplateKwargs | None = None
    add_special_tokens: bool = False
    reasoning_effort: Hint | None = None
    reasoning: FreeObject | None = None
    think: Hint | None = None
    verbosity: Hint | None = None

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

    def template_messages(self) -> list[dict[str, Any]]:
        """The messages for the tokenizer's template."""
        return [message.for_template() for message in self.messages]

    @property
    def hints(self) -> Hints:
        """What the caller would like the model to know."""
        return Hints(
            reasoning_effort=self.reasoning_effort,
            reasoning=self.reasoning,
            think=self.think,
            verbosity=self.verbosity,
        )

    def template_kwargs(self, reads: Collection[str]) -> Mapping[str, Any]:
        """Further words for a template that reads these variables."""
        return {**self.hints.variables(reads), **(self.chat_template_kwargs or {})}


class ChatBody(GenerationBody, ConversationFields):
    """A chat request."""

    endpoint: ClassVar[str] = "/v1/chat/completions"

    logprobs: bool = False
    top_logprobs: Alternatives | None = None
    echo: bool = False

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to report beside each token; None reports nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def echoed(self) -> str:
        """What stands before the answer: the last message, where it is the assistant's."""
        last = self.messages[-1]
        return last.text if self.echo and last.role == "assistant" else ""

    def check_together(self) -> None:
        """Raise RequestError where fields that are right alone contradict each other."""
        super().check_together()
        if self.top_logprobs and not self.logprobs:
            raise RequestError(
                f"top_logprobs is {self.top_logprobs} and logprobs is not true; set it, or leave "
                "top_logprobs out",
                param="top_logprobs",
                code="invalid_parameter",
            )
