"""Fields about tools and thoughts, with OpenAI's names."""

from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
)

from penstock.validation import show

from ..conventions.tools.format import Tool
from .fields import STRICT, Name

MAX_TOOLS = 128
MAX_DESCRIPTION = 65_536
MAX_CALLS = 128
MAX_ARGUMENTS = 2**20
MAX_BUDGET = 2**31 - 1

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


def _only_functions(value: Any) -> Any:
    if isinstance(value, str) and value != "function":
        raise ValueError(f"is {show(value)}; only tools of the type 'function' can be called here")
    return value


FunctionType = Annotated[Literal["function"], BeforeValidator(_only_functions)]


class FunctionFields(BaseModel):
    """A function that the model may call."""

    model_config = STRICT

    name: ToolName
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolFields(BaseModel):
    """One tool."""

    model_config = STRICT

    type: FunctionType = "function"
    function: FunctionFields

    @property
    def tool(self) -> Tool:
        """The same as formats know it."""
        function = self.function
        parameters = function.parameters or {"type": "object", "properties": {}}
        return Tool(
            name=function.name,
            description=function.description,
            parameters=parameters,
            strict=bool(function.strict),
        )


def _different(tools: list[ToolFields]) -> list[ToolFields]:
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"has two functions with the name {twice!r}; give each its own")
    return tools


Tools = Annotated[
    list[ToolFields], Field(fail_fast=True, max_length=MAX_TOOLS), AfterValidator(_different)
]


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = STRICT

    name: ToolName


class NamedTool(BaseModel):
    """The one tool to call."""

    model_config = STRICT

    type: FunctionType = "function"
    function: NamedFunction


class AllowedTools(BaseModel):
    """Some of the tools."""

    model_config = STRICT

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


class ChoiceOfAllowed(BaseModel):
    """Only some of the tools may be called."""

    model_config = STRICT

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolWord = Literal["none", "auto", "required"]


def _choice_kind(value: Any) -> str | None:
    if isinstance(value, dict):
        kind: Any = cast("dict[str, Any]", value).get("type")
        return "allowed" if kind == "allowed_tools" else "named"
    return "word" if isinstance(value, str) else None


ToolChoice = Annotated[
    Annotated[ToolWord, Tag("word")]
    | Annotated[ChoiceOfAllowed, Tag("allowed")]
    | Annotated[NamedTool, Tag("named")],
    Discriminator(
        _choice_kind,
        custom_error_type="tool_choice_kind",
        custom_error_message="'none', 'auto', 'required', or an object that names tools",
    ),
]


class CalledFunction(BaseModel):
    """The function of an earlier call. `arguments`: JSON as the model wrote it."""

    model_config = STRICT

    name: ToolName
    arguments: Annotated[str, Field(max_length=MAX_ARGUMENTS)] = "{}"


class EarlierCall(BaseModel):
    """A call in an earlier message."""

    model_config = STRICT

    id: Name
    type: FunctionType = "function"
    function: CalledFunction


class ThinkingFields(BaseModel):
    """`budget`: tokens that a thought may have; then it is closed. `type`: whether to think."""

    model_config = STRICT

    budget: Annotated[int, Field(ge=0, le=MAX_BUDGET)] | None = None
    type: Literal["enabled", "disabled"] | None = None
