"""Writes grammars in llguidance's variant of Lark."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_WRITTEN: Final[dict[str, Any]] = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": False,
    # As Python's json.dumps and the texts that models have learned from write it.
    "key_separator": ": ",
    "item_separator": ", ",
}


TEXT: Final = "TEXT"
"""Any text without control tokens."""
SPACE: Final = "SPACE"
"""A little white space, or none."""
NO_CALL: Final = "NO_CALL"
"""Any text that does not begin as JSON does."""
CALL_ID: Final = "CALL_ID"
"""Nine letters and digits."""
_TERMINALS: Final = {
    TEXT: r"/(.|\n)*/",
    SPACE: r"/[ \n]{0,3}/",
    CALL_ID: r"/[A-Za-z0-9]{9}/",
    NO_CALL: r"/(\s*[^\s{\[](.|\n)*)?/",
}


class Lark:
    """A grammar under construction. `controls`: ids of control tokens by text; other text is
    written with ordinary tokens."""

    def __init__(self, controls: Mapping[str, int]) -> None:
        self._controls = controls
        longest_first = sorted(controls, key=len, reverse=True)
        self._pieces = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._rules: list[str] = []
        self._others: list[dict[str, Any]] = []

    def rule(self, body: str, options: str = "") -> str:
        """A further rule; returns its name."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def text(self, text: str) -> str:
        """An expression for this text alone; control tokens in it are tokens."""
        pieces = self._pieces.split(text) if self._controls else [text]
        written: list[str] = []
        for piece in filter(None, pieces):
            token = self._controls.get(piece)
            written.append(json.dumps(piece) if token is None else f"<[{token}]>")
        return " ".join(written) or '""'

    def json(self, schema: Mapping[str, Any] | bool) -> str:
        """An expression for JSON that matches a schema."""
        if isinstance(schema, bool):
            schema = {} if schema else {"not": {}}
        name = f"s{len(self._others)}"
        self._others.append({"name": name, "json_schema": {**schema, "x-guidance": _WRITTEN}})
        return f"@{name}"

    def text_before(self, pattern: str | Sequence[str], end: str, without: str) -> str:
        """An expression for text, and the `end` behind it.

        `pattern`: a regular expression of the whole text, or all texts that it may be. `without`:
        what the text cannot have in it. Text and end are one lexeme up to the first control token,
        because lexemes are as long as they can be.
        """
        if not isinstance(pattern, str):
            texts = " | ".join(self.text(text) for text in pattern) or '""'
            return f"({texts}) {self.text(end)}"
        pieces = self._pieces.split(end) if self._controls else [end]
        plain, rest = pieces[0], "".join(pieces[1:])
        name = f"T{len(self._rules)}"
        body = f"{_regex(pattern)} & ~{_regex(f'(?s:.*){re.escape(without)}(?s:.*)')}"
        whole = f"({body}) {json.dumps(plain)}" if plain else body
        self._rules.append(f"{name}: {whole}")
        return f"{name} {self.text(rest)}" if rest else name

    def other(self, grammar: str) -> str:
        """An expression for another grammar, in any of llguidance's notations."""
        try:
            grammars = json.loads(grammar)["grammars"]
        except ValueError:
            grammars = [{"lark_grammar": grammar}]
        first, *rest = grammars
        self._others += [{**first, "name": "answer"}, *rest]
        return "@answer"

    def behind_text(self, trigger: str, rest: str) -> str:
        """An expression for any text, the trigger, and what `rest` is an expression for.

        The first trigger counts, so that the text does not have it.
        """
        if trigger.startswith(tuple(self._controls)):
            return f"{TEXT} {self.text(trigger)} {rest}"
        lead = self.rule(f"{TEXT} {json.dumps(trigger)}", "[lazy]")
        return f"{lead} {rest}"

    def grammar(self, start: str) -> str:
        """The whole grammar."""
        whole = "\n".join([f"start: {start}", *self._rules])
        used = [f"{name}: {body}" for name, body in _TERMINALS.items() if name in whole]
        lark = "\n".join(["%llguidance {}", whole, *used])
        return json.dumps({"grammars": [{"lark_grammar": lark}, *self._others]})


def _regex(pattern: str) -> str:
    """A regular expression as Lark has it: slashes are escaped, line breaks have letters."""
    slashes = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern)
    return "/" + slashes.replace("\n", "\\n") + "/"
