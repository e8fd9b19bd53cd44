"""From a rendered chat to token ids, with control tokens only where the template wrote them.

If every control token in the ids comes from the template's own text, the ids are exactly what the
tokenizer makes of the whole text. Otherwise the text is encoded again by a copy of the tokenizer
that knows no control tokens, with a mark in place of each one that the template wrote.
"""

import json
import secrets
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken, Encoding, Tokenizer

from .template import RenderedChat

_BLOT = "\ufdd2"  # a noncharacter of Unicode, and never a control token


class Control(NamedTuple):
    """A control token in a text: its characters and its id."""

    start: int
    end: int
    token: int


class ChatEncoder:
    """Encodes chats for one tokenizer. Thread-safe.

    `added`: contents of the added tokens by id. Tokens of white space alone are not control tokens:
    models use them for runs of spaces.
    """

    def __init__(
        self,
        backend: Tokenizer,
        added: dict[int, str],
        unknown: int | None,
        encode: Callable[[Tokenizer, list[str], bool], list[Encoding]],
    ) -> None:
        self._backend = backend
        self._markup = {i: text for i, text in added.items() if text.replace("▁", " ").strip()}
        self._ids = frozenset(self._markup)
        self._unknown = unknown
        self._encode = encode
        self._plain = _Plain(backend, frozenset(self._markup.values()))

    def encode(self, chat: RenderedChat, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of the chat."""
        (encoding,) = self._encode(self._backend, [chat.text], add_special_tokens)
        ids: list[int] = encoding.ids
        if not chat.said:
            return ids
        found = self._controls(chat.text, encoding, ids)
        if all(self._is_written(chat, control) for control in found):
            return ids
        encoded = self._encode_parts(chat, self._written(chat, found))
        mask: list[int] = encoding.special_tokens_mask
        before = mask.index(0)
        behind = len(mask) - mask[::-1].index(0)
        return [*ids[:before], *encoded, *ids[behind:]]

    def _controls(self, text: str, encoding: Encoding, ids: list[int]) -> list[Control]:
        """The control tokens in the text, but not those that stand for unknown characters."""
        found: list[Control] = []
        for index, token in enumerate(ids):
            place = encoding.token_to_chars(index) if token in self._ids else None
            if place is None or place[0] == place[1]:  # added by a post-processor, not in the text
                continue
            is_text = text[slice(*place)].strip() == self._markup[token].strip()
            if token != self._unknown or is_text:
                found.append(Control(*place, token))
        return found

    def _is_written(self, chat: RenderedChat, control: Control) -> bool:
        """Whether the template wrote all of it, apart from white space that some tokens absorb."""
        start, end, token = control
        length = len(self._markup[token])
        while end - start > length and chat.text[start].isspace():
            start += 1
        while end - start > length and chat.text[end - 1].isspace():
            end -= 1
        at = bisect_right(chat.said, (start, start))
        overlaps_before = at > 0 and chat.said[at - 1][1] > start
        return not overlaps_before and not (at < len(chat.said) and chat.said[at][0] < end)

    def _encode_parts(self, chat: RenderedChat, written: list[Control]) -> list[int]:
        cuts: set[int] = set()
        while True:
            marked, origin = self._plain.mark(chat.text, written, cuts)
            (encoding,) = self._encode(self._plain.tokenizer, [marked], False)
            ids: list[int] = encoding.ids
            # A vocabulary may hold the text of a control token as a word; cut such words.
            more = {
                origin(control.start) + 1
                for control in self._controls(marked, encoding, ids)
                if control.end - control.start > 1 and not self._plain.is_mark(control.token)
            }
            if more <= cuts:
                return self._plain.restore(ids, written)
            cuts |= more

    def _written(self, chat: RenderedChat, found: list[Control]) -> list[Control]:
        """The control tokens that remain once those in the caller's text are overwritten."""
        text = chat.text
        while forged := [control for control in found if not self._is_written(chat, control)]:
            blots = [
                (max(start, control.start), min(end, control.end))
                for control in forged
                for start, end in chat.said
                if start < control.end and end > control.start
            ]
            characters = list(text)
            for start, end in blots:
                characters[start:end] = _BLOT * (end - start)
            text = "".join(characters)
            (encoding,) = self._encode(self._backend, [text], False)
            found = self._controls(text, encoding, encoding.ids)
        return found


class _Plain:
    """A copy of a tokenizer that knows no control tokens, and its two marks."""

    def __init__(self, backend: Tokenizer, markup: frozenset[str]) -> None:
        data: dict[str, Any] = json.loads(backend.to_str())
        data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in markup]
        data["post_processor"] = data["truncation"] = data["padding"] = None
        self.tokenizer = Tokenizer.from_str(json.dumps(data))
        # Random, so that a caller cannot predict them.
        self._control, self._cut = (f"\ufdd0{secrets.token_hex(16)}\ufdd1" for _ in range(2))
        self.tokenizer.add_special_tokens(
            [
                AddedToken(mark, special=True, normalized=False)
                for mark in (self._control, self._cut)
            ]
        )
        self._control_id = self.tokenizer.token_to_id(self._control)
        self._cut_id = self.tokenizer.token_to_id(self._cut)

    def is_mark(self, token: int) -> bool:
        """Whether `token` is one of the two marks."""
        return token in (self._control_id, self._cut_id)

    def mark(
        self, text: str, written: Sequence[Control], cuts: set[int]
    ) -> tuple[str, Callable[[int], int]]:
        """The text with marks for `written` and at `cuts`; and a map back to places in `text`."""
        changes = sorted(
            [(c.start, c.end, self._control) for c in written]
            + [(cut, cut, self._cut) for cut in cuts]
        )
        pieces: list[str] = []
        places: list[tuple[int, int]] = [(0, 0)]  # in the marked text, in the text
        at = length = 0
        for start, end, mark in changes:
            pieces += (text[at:start], mark)
            length += start - at + len(mark)
            at = end
            places.append((length, at))
        pieces.append(text[at:])

        def origin(place: int) -> int:
            marked, before = places[bisect_right(places, (place, len(text))) - 1]
            return before + place - marked

        return "".join(pieces), origin

    def restore(self, ids: list[int], written: Sequence[Control]) -> list[int]:
        """The ids with control tokens in place of their marks, and without cuts."""
        controls = iter(written)
        restored = [
            next(controls).token if token == self._control_id else token
            for token in ids
            if token != self._cut_id
        ]
        assert next(controls, None) is None, "every control token has its mark"
        return restored
