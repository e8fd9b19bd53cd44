"""The body of /v1/chat/completions, and the messages that /tokenize shares with it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_validator

from penstock.errors import RequestError

from ..conventions.chat import ThoughtUse, ToolUse
from ..conventions.frame import Mode, Offered
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
from .tool_fields import (
    MAX_CALLS,
    ChoiceOfAllowed,
    EarlierCall,
    NamedTool,
    ThinkingFields,
    ToolChoice,
    Tools,
)


def _refuse_calls(value: Any) -> Any:
    if value is not None:
        raise ValueError("is the older form of tool_calls; send that")
    return value


def _content_kind(value: Any) -> str | None:
    return {str: "text", list: "parts"}.get(type(value))


class TextPart(BaseModel):
    """One part of a message; sounds and files are refused by `type`."""

    model_config = STRICT

    type: Literal["text"]
    text: str


class PictureUrl(BaseModel):
    """Where a picture is: a data: URI, or an address if the server fetches from there."""

    model_config = STRICT

    url: str
    detail: Literal["auto", "low", "high"] | None = None


def _url_kind(value: Any) -> str | None:
    return {str: "string", dict: "object"}.get(type(value))


class PicturePart(BaseModel):
    """A picture in a message of a user. `detail` has no effect: the model's processor decides."""

    model_config = STRICT

    type: Literal["image_url"]
    image_url: Annotated[
        Annotated[PictureUrl, Tag("object")] | Annotated[str, Tag("string")],
        Discriminator(
            _url_kind,
            custom_error_type="url_kind",
            custom_error_message='an object {"url": ...} or a string',
        ),
    ]

    @property
    def url(self) -> str:
        """The URL, in whichever form it came."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


def _part_kind(value: Any) -> str:
    kind = cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else None
    return "picture" if kind == "image_url" else "text"


Part = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[PicturePart, Tag("picture")],
    Discriminator(_part_kind),
]
Content = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[Part], Field(fail_fast=True, max_length=MAX_PARTS), Tag("parts")],
    Discriminator(
        _content_kind,
        custom_error_type="content_kind",
        custom_error_message='a string or a list of parts, of the type "text" or "image_url"',
    ),
]


def _with_refusals(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant's message whose refusals are its text."""
    content, refusal = message.get("content"), message.get("refusal")
    if message.get("role") != "assistant":
        return message
    if isinstance(content, list):
        content = [_as_text(part) for part in cast("list[Any]", content)]
    if isinstance(refusal, str) and refusal:
        if isinstance(content, list):
            content = [*cast("list[Any]", content), {"type": "text", "text": refusal}]
        elif content is None or isinstance(content, str):
            content = f"{content}\n{refusal}" if content else refusal
    return {**message, "content": content}


def _as_text(part: Any) -> Any:
    match part:
        case {"type": "refusal", "refusal": str(said)}:
            return {"type": "text", "text": said}
        case _:
            return part


class Message(BaseModel):
    """One message of a chat. Null fields are what client libraries send back of an answer."""

    model_config = STRICT

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[list[EarlierCall], Field(fail_fast=True, max_length=MAX_CALLS)] | None = (
        None
    )
    tool_call_id: Name | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    function_call: Annotated[Any, AfterValidator(_refuse_calls)] = None

    @model_validator(mode="before")
    @classmethod
    def _says_refusals(cls, value: Any) -> Any:
        return _with_refusals(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _has_its_fields(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("has no content; give a string or a list of text parts")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("has no tool_call_id; name the call that it is the result of")
        if self.role != "user" and any(isinstance(part, PicturePart) for part in self.parts):
            raise ValueError(f"has a picture, which only a user's message has, not a {self.role}'s")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"has tool_calls, which only an assistant has, not a {self.role}")
        return self

    @property
    def parts(self) -> list[Part]:
        """The parts of its content; none where it is a string."""
        return self.content if isinstance(self.content, list) else []

    @property
    def text(self) -> str:
        """Its text, in whichever form it came."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it, but for pictures: developer is the later name of
        system."""
        content = self.content or ""
        if not isinstance(content, str):
            content = [
                {"type": part.type, "text": part.text}
                if isinstance(part, TextPart)
                else {"type": part.type, "image_url": {"url": part.url}}
                for part in content
            ]
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        if self.role == "tool":
            message["tool_call_id"] = self.tool_call_id
        if self.reasoning_content is not None and self.role == "assistant":
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return message


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
    thinking: ThinkingFields | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True

    @property
    def tool_use(self) -> ToolUse:
        """What the chat says about tools."""
        choice = self.tool_choice
        if not self.tools or choice == "none":
            return ToolUse()
        tools = [fields.tool for fields in self.tools]
        offered = [
            Offered(tool=tool, param=f"tools.{index}.function.parameters")
            for index, tool in enumerate(tools)
        ]
        mode: Mode = "required" if choice == "required" else "auto"
        several, held = self.parallel_tool_calls, not self.parallel_tool_calls
        if isinstance(choice, NamedTool):
            mode, several = "required", False
            offered = [each for each in offered if each.tool.name == choice.function.name]
        elif isinstance(choice, ChoiceOfAllowed):
            mode, held = choice.allowed_tools.mode, True
            names = {tool.function.name for tool in choice.allowed_tools.tools}
            offered = [each for each in offered if each.tool.name in names]
        held = held or any(each.tool.strict for each in offered)
        return ToolUse(tools=tools, offered=offered, mode=mode, several=several, held=held)

    def check_tools(self) -> None:
        """Raise RequestError where tools, choice and calls contradict each other."""
        known = {fields.function.name for fields in self.tools or ()}
        for param, name in self._names_chosen():
            if name not in known:
                raise RequestError(
                    f"{param}: {name!r} is none of the tools; "
                    + (f"they are {', '.join(sorted(known))[:200]}" if known else "there are none"),
                    param=param,
                    code="invalid_parameter",
                )
        if self.tool_choice == "required" and not known:
            raise RequestError(
                "tool_choice is 'required', and there are no tools; send tools, or leave it out",
                param="tool_choice",
                code="invalid_parameter",
            )
        called: set[str] = set()
        for index, message in enumerate(self.messages):
            called |= {call.id for call in message.tool_calls or ()}
            if message.role == "tool" and message.tool_call_id not in called:
                raise RequestError(
                    f"messages.{index}.tool_call_id is {message.tool_call_id!r}, and no message "
                    "before it has a call with this id; send the assistant's message with it",
                    param=f"messages.{index}.tool_call_id",
                    code="invalid_parameter",
                )

    def _names_chosen(self) -> Iterator[tuple[str, str]]:
        """The tools that `tool_choice` names, and where."""
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            yield "tool_choice.function.name", choice.function.name
        elif isinstance(choice, ChoiceOfAllowed):
            for index, tool in enumerate(choice.allowed_tools.tools):
                path = f"tool_choice.allowed_tools.tools.{index}.function.name"
                yield path, tool.function.name

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
        """The messages for the tokenizer's template, but for pictures (`without_pictures`)."""
        return [message.for_template() for message in self.messages]

    @property
    def hints(self) -> Hints:
        """What the caller would like the model to know."""
        return Hints(
            reasoning_effort=self.reasoning_effort,
            reasoning=self.reasoning,
            think=self.think,
            verbosity=self.verbosity,
            thinking=None if self.thinking is None else self.thinking.type,
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
    include_reasoning: bool = True
    separate_reasoning: bool = True

    @property
    def thought_use(self) -> ThoughtUse:
        """What the chat says about thoughts."""
        budget = None if self.thinking is None else self.thinking.budget
        return ThoughtUse(
            budget=budget, apart=self.separate_reasoning, shown=self.include_reasoning
        )

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
        self.check_tools()
        if self.top_logprobs and not self.logprobs:
            raise RequestError(
                f"top_logprobs is {self.top_logprobs} and logprobs is not true; set it, or leave "
                "top_logprobs out",
                param="top_logprobs",
                code="invalid_parameter",
            )
