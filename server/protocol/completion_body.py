"""The body of /v1/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Discriminator, Field, Tag

from penstock.errors import RequestError

from ...decoding.sampling_params import MAX_N
from .fields import MAX_PROMPTS, MethodSpec, TokenIds
from .generation import Alternatives, GenerationBody


def _prompt_kind(value: Any) -> str | None:
    # The first item decides, so that one branch is validated and not four.
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    match value:
        case [str(), *_]:
            return "texts"
        case [list(), *_]:
            return "id_lists"
        case _:
            return "ids"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(fail_fast=True, max_length=MAX_PROMPTS), Tag("texts")]
    | Annotated[TokenIds, Field(min_length=1), Tag("ids")]
    | Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_PROMPTS), Tag("id_lists")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_kind",
        custom_error_message=(
            "a string, a list of strings, a list of token ids, or a list of those"
        ),
    ),
]


def _none_if_false(value: Any) -> Any:
    """Chats say whether logprobs come, and clients send that here, too."""
    return None if value is False else value


class CompletionBody(GenerationBody):
    """A completion request; `logprobs` is the number of alternatives, as in OpenAI's first API."""

    endpoint: ClassVar[str] = "/v1/completions"

    prompt: Prompt
    suffix: str | None = None
    echo: bool = False
    logprobs: Annotated[Alternatives | None, BeforeValidator(_none_if_false)] = None
    best_of: Annotated[int | None, Field(ge=1, le=MAX_N)] = None
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a batch, also where there is one."""
        match self.prompt:
            case str():
                return [self.prompt]
            case [int(), *_]:
                return [self.prompt]  # pyright: ignore[reportReturnType] -- one item tells all
            case _:
                return self.prompt  # pyright: ignore[reportReturnType]

    def check_together(self) -> None:
        """Raise RequestError where fields that are right alone contradict each other."""
        super().check_together()
        if self.best_of is not None and self.best_of < self.n:
            raise RequestError(
                f"best_of is {self.best_of} and n is {self.n}: so many answers are generated, and "
                "no more can be returned; raise best_of or lower n",
                param="best_of",
                code="invalid_parameter",
            )

    def method(self, otherwise: MethodSpec | None) -> MethodSpec | None:
        """What `decoding` says, or else `otherwise`, and the method that `best_of` stands for."""
        spec = otherwise if self.decoding is None else self.decoding
        if self.best_of is None or self.best_of == self.n:
            return spec
        if not isinstance(spec, Mapping):
            spec = {name: {} for name in ([spec] if isinstance(spec, str) else spec or [])}
        if "best_of" in spec:
            raise RequestError(
                "best_of and decoding.best_of are both given; send one of them",
                param="best_of",
                code="invalid_parameter",
            )
        return {**spec, "best_of": {"n": self.best_of, "trace": "none"}}
