"""What a request may say about the form of its answer, with OpenAI's and vLLM's names."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CHOICES = 1024
MAX_CHOICE_LENGTH = 1024
MAX_REGEX_LENGTH = 8192
MAX_GRAMMAR_LENGTH = 65_536
MAX_TAGS = 128

_STRICT = ConfigDict(strict=True, frozen=True, extra="forbid", populate_by_name=True)
JsonSchema = dict[str, Any] | bool
"""A schema as JSON; true accepts any value."""


class Structure(BaseModel):
    """One part of an answer that a `StructuralTag` constrains, from its `begin` to its `end`."""

    model_config = _STRICT

    begin: Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_LENGTH)]
    schema_: JsonSchema = Field(alias="schema")
    end: Annotated[str, Field(max_length=MAX_CHOICE_LENGTH)] = ""


_Structures = Annotated[list[Structure], Field(min_length=1, max_length=MAX_TAGS, fail_fast=True)]
_Triggers = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_LENGTH)]],
    Field(min_length=1, max_length=MAX_TAGS, fail_fast=True),
]


def _check_triggers(structures: list[Structure], triggers: list[str]) -> None:
    for at, structure in enumerate(structures):
        if not structure.begin.startswith(tuple(triggers)):
            raise ValueError(f"structures[{at}].begin starts with none of the triggers")


class StructuralTag(BaseModel):
    """Free text in which a trigger begins one of the structures."""

    model_config = _STRICT

    type: Literal["structural_tag"] = "structural_tag"
    structures: _Structures
    triggers: _Triggers

    @model_validator(mode="after")
    def _has_triggers(self) -> "StructuralTag":
        _check_triggers(self.structures, self.triggers)
        return self


class StructuredOutputs(BaseModel):
    """What the answer has to be: one of `json`, `json_object`, `regex`, `choice`, `grammar` and
    `structural_tag`.

    `json`: a JSON schema, or its text. `grammar`: in Lark or GBNF. `whitespace_pattern`: a regular
    expression of the white space between JSON's tokens; by default there is none, or any where
    `disable_any_whitespace` is false.
    """

    model_config = _STRICT

    json_: JsonSchema | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Annotated[str, Field(min_length=1, max_length=MAX_REGEX_LENGTH)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_LENGTH)]],
            Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
        ]
        | None
    ) = None
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_LENGTH)] | None = None
    structural_tag: StructuralTag | str | None = None
    whitespace_pattern: Annotated[str, Field(max_length=MAX_CHOICE_LENGTH)] | None = None
    disable_any_whitespace: bool = True

    @model_validator(mode="after")
    def _is_one(self) -> "StructuredOutputs":
        if len(self.kinds) > 1:
            raise ValueError(
                f"has {' and '.join(self.kinds)}, which contradict each other; give one"
            )
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of what is asked for; none or one."""
        asked = {
            "json": self.json_ is not None,
            "json_object": bool(self.json_object),
            "regex": self.regex is not None,
            "choice": self.choice is not None,
            "grammar": self.grammar is not None,
            "structural_tag": self.structural_tag is not None,
        }
        return tuple(name for name, wanted in asked.items() if wanted)


class NamedSchema(BaseModel):
    """A schema of `ResponseFormat`; answers always match it, `strict` or not."""

    model_config = _STRICT

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Annotated[str, Field(max_length=65_536)] | None = None
    schema_: JsonSchema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`, vLLM's structural tags, and llama.cpp's `schema` of objects."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: NamedSchema | None = None
    schema_: JsonSchema | None = Field(default=None, alias="schema")
    structures: _Structures | None = None
    triggers: _Triggers | None = None

    @model_validator(mode="after")
    def _has_its_part(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("has json_schema exactly where its type is json_schema")
        if self.schema_ is not None and self.type != "json_object":
            raise ValueError("has schema only where its type is json_object")
        for part in (self.structures, self.triggers):
            if (self.type == "structural_tag") != (part is not None):
                raise ValueError(
                    "has structures and triggers exactly where its type is structural_tag"
                )
        _check_triggers(self.structures or [], self.triggers or [])
        return self

    @property
    def place(self) -> str:
        """The part that errors name."""
        places = {"json_schema": "json_schema.schema", "json_object": "schema"}
        return places.get(self.type, "structures")

    @property
    def wanted(self) -> StructuredOutputs | None:
        """The same as `StructuredOutputs`; None: any text."""
        if self.type == "json_object":
            return StructuredOutputs(
                json={"type": "object"} if self.schema_ is None else self.schema_
            )
        if self.json_schema is not None:
            schema = self.json_schema.schema_
            return StructuredOutputs(json={} if schema is None else schema)
        if self.structures is not None and self.triggers is not None:
            tag = StructuralTag(structures=self.structures, triggers=self.triggers)
            return StructuredOutputs(structural_tag=tag)
        return None
