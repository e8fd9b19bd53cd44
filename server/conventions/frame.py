"""The grammar of a whole answer: calls of tools, and beside them the form that was asked for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from penstock.errors import RequestError

from ...decoding.constraint.grammar import GrammarError, Grammars
from ...engine.requests.grammar import MAX_SCHEMA_CHARS, checked_schema, refused
from ...engine.requests.lark import CALL_ID, NO_CALL, SPACE, TEXT, Lark
from .tools.format import CallSyntax, Tool, ToolFormat

Mode = Literal["auto", "required"]
_OF_OTHERS: Final = {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}
"""Keywords that may speak of properties besides those in `properties`."""
_ANY: Final[Mapping[str, Any]] = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A tool that may be called. `param`: the field that errors about its parameters name."""

    tool: Tool
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFrame:
    """What a request says about calls.

    `tools`: those that may be called. `mode`: "required" is at least one call. `several`: more than
    one call may stand in an answer. `held`: calls are held to the grammar even where the answer may
    be any text. `before`: markup between a thought and an answer that is no call. `thinks`: a
    thought may stand before it all, which is no part of the grammar. `form`, `syntax`: of calls;
    None: there are no tools.
    """

    form: ToolFormat | None
    syntax: CallSyntax | None
    tools: Sequence[Offered]
    mode: Mode
    several: bool
    held: bool
    before: str = ""
    thinks: bool = False

    @property
    def field(self) -> str | None:
        """See `Frame`."""
        return "tools" if self.tools and (self.mode == "required" or self.held) else None

    def grammar(self, answer: str | None, grammars: Grammars) -> str | None:
        """See `Frame`."""
        if answer is None and self.field is None:
            return None
        characters = sum(len(json.dumps(each.tool.parameters)) for each in self.tools)
        if characters > MAX_SCHEMA_CHARS:
            raise refused(
                "tools",
                f"their parameters have {characters} characters together, and {MAX_SCHEMA_CHARS} "
                "can be held to; send fewer tools, or simpler ones",
            )
        return self._written(self.tools, answer, grammars)

    def refusal(self, grammars: Grammars, reason: str) -> RequestError:
        """Why the grammar cannot be compiled: the first tool that alone cannot be, or the whole."""
        for each in self.tools:
            try:
                grammars.compile(self._written([each], None, grammars))
            except GrammarError as error:
                return refused(each.param, str(error))
        return refused("tools", reason)

    def _written(self, tools: Sequence[Offered], answer: str | None, grammars: Grammars) -> str:
        lark = Lark(grammars.controls)
        syntax = self.syntax
        said = TEXT if answer is None else lark.other(answer)
        text = f"{lark.text(self.before)} {said}"
        space = SPACE if self.thinks and not self.before else ""
        if syntax is None or self.form is None:
            return lark.grammar(f"{space} {text}")
        begin = syntax.begin + syntax.before
        calls = [self._call(each, lark, self.form, syntax, grammars) for each in tools]
        call = lark.rule(" | ".join(calls))
        again = f"{lark.text(syntax.between + syntax.before)} {call}"
        more = f" ({again})*" if self.several and syntax.parallel else ""
        end = lark.text(syntax.end)
        whole = f"{lark.text(begin)} {call}{more} {end}"
        if self.thinks and syntax.thought:
            whole = f"{lark.text(syntax.thought)} {whole}"
        if self.mode == "required":
            return lark.grammar(f"{space} {whole}")
        if answer is not None or self.before:
            return lark.grammar(f"{space} ({whole} | {text})")
        return lark.grammar(self._free(lark, syntax, f"{call}{more} {end} {SPACE}"))

    def _free(self, lark: Lark, syntax: CallSyntax, calls: str) -> str:
        """Any text, and calls behind their trigger."""
        begin, trigger = syntax.begin + syntax.before, syntax.trigger
        if not trigger:
            return f"{NO_CALL} | {lark.text(begin)} {calls}"
        rest = lark.text(begin[len(trigger) :])
        return f"{TEXT} | {lark.behind_text(trigger, f'{rest} {calls}')}"

    def _call(
        self, each: Offered, lark: Lark, form: ToolFormat, syntax: CallSyntax, grammars: Grammars
    ) -> str:
        parameters = self._parameters(each, form, grammars)
        try:
            arguments = form.arguments(parameters, lark)
        except ValueError as error:
            raise refused(each.param, str(error)) from None
        middle, after = lark.text(syntax.middle), lark.text(syntax.after)
        if syntax.before_id:
            middle = f"{lark.text(syntax.before_id)} {CALL_ID} {middle}"
        return f"{json.dumps(each.tool.name)} {middle} {arguments} {after}"

    def _parameters(self, each: Offered, form: ToolFormat, grammars: Grammars) -> Mapping[str, Any]:
        """The schema that arguments are held to: any object, where the caller does not insist on
        parameters that no grammar can hold."""
        try:
            parameters = closed({"type": "object", "properties": {}, **each.tool.parameters})
            parameters = cast("dict[str, Any]", checked_schema(parameters, each.param))
            if self.mode == "auto" and not each.tool.strict:
                alone = Lark(grammars.controls)
                grammars.compile(alone.grammar(form.arguments(parameters, alone)))
        except GrammarError:
            return _ANY
        except ValueError as error:
            raise refused(each.param, str(error)) from None
        return parameters


def closed(schema: Any) -> Any:
    """The same without properties that it does not name, where it does not speak of others.

    Functions take the arguments that they name, and a model that may go on often does.
    """
    if isinstance(schema, list):
        return [closed(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    fields = cast("dict[str, Any]", schema)
    found = dict(fields)
    for keyword in ("properties", "$defs", "definitions"):
        named = fields.get(keyword)
        if isinstance(named, dict):
            parts = cast("dict[str, Any]", named)
            found[keyword] = {name: closed(part) for name, part in parts.items()}
    for keyword in ("items", "prefixItems", "anyOf", "oneOf", "additionalProperties"):
        if keyword in fields:
            found[keyword] = closed(fields[keyword])
    if "properties" in fields and not fields.keys() & _OF_OTHERS:
        found["additionalProperties"] = False
    return found
