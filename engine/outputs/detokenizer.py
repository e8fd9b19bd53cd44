"""Incremental detokenisation: UTF-8 is never split, stop strings are hidden unless asked for.

There are two methods. With a byte-level tokenizer a token is its bytes, and an incremental UTF-8
decoder holds back unfinished characters. With all others a growing window is decoded and its new
end is taken, because spaces depend on neighbouring tokens (the two offsets of TGI and vLLM).
"""

import codecs
from bisect import bisect_right
from typing import Protocol

from ...decoding.sampling_params import PLAIN_TEXT, TextOptions
from ..requests.tokenizer import Tokenizer

_CONTEXT_TOKENS = 8
"""Prompt tokens that a windowed decoding starts with, so that the first space is right."""
_MAX_PENDING_TOKENS = 16
"""A window that still ends in U+FFFD after more tokens than a character takes contains it."""


class TextStream(Protocol):
    """Turns tokens into text incrementally."""

    def push(self, token_id: int) -> str:
        """Text that has become final with this token."""
        ...

    def flush(self) -> str:
        """The text that was held back; no token follows."""
        ...


class _ByteStream:
    def __init__(self, tokenizer: Tokenizer, options: TextOptions) -> None:
        self._tokenizer = tokenizer
        skipped = tokenizer.special_ids if options.skip_special_tokens else frozenset[int]()
        self._skipped = skipped - options.shown_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowStream:
    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: tuple[int, ...], options: TextOptions
    ) -> None:
        self._tokenizer = tokenizer
        self._skips = options.skip_special_tokens
        self._joins = not (self._skips or options.spaces_between_special_tokens)
        self._after_added = False
        self._shown = options.shown_tokens if self._skips else frozenset[int]()
        self._window = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._known = self._decode()
        while self._known.endswith("\ufffd"):
            # A character that the answer completes would change the length of the known text.
            del self._window[-1]
            self._known = self._decode()
        self._read = len(self._window)

    def push(self, token_id: int) -> str:
        if token_id in self._shown:
            # A text ends before markup, and another begins behind it.
            text = self.flush() + self._tokenizer.token_text(token_id)
            self._window, self._read, self._known = [], 0, ""
            return text
        added = self._tokenizer.added_text(token_id) if self._joins else None
        beside, self._after_added = self._after_added, added is not None
        self._window.append(token_id)
        text = self._decode()
        pending = len(self._window) - self._read
        if len(text) <= len(self._known) or (
            text.endswith("\ufffd") and pending < _MAX_PENDING_TOKENS
        ):
            return ""
        new = text[len(self._known) :]
        self._window = self._window[self._read :]
        self._read = len(self._window)
        self._known = self._decode()
        return added if beside and added is not None else new

    def flush(self) -> str:
        text = self._decode()
        new = text[len(self._known) :]
        self._known = text
        return new

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=self._skips)


class Detokenizer:
    """Text of one choice, cut before the first stop string, or after it if it is to be shown.

    `stop_strings`: not searched for before `min_tokens` tokens. `places`: whether to record where
    in the text each token begins.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: tuple[int, ...],
        *,
        stop_strings: tuple[str, ...] = (),
        min_tokens: int = 0,
        options: TextOptions = PLAIN_TEXT,
        places: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._stream: TextStream = (
            _ByteStream(tokenizer, options)
            if tokenizer.is_byte_level
            else _WindowStream(tokenizer, prompt_ids, options)
        )
        self._shows_stop = options.include_stop
        self._stops = stop_strings
        self._in_order = sorted(stop_strings)
        self._min_tokens = min_tokens
        self._tokens = 0
        self._held = ""
        self._places: list[int] | None = [] if places else None
        self._written = 0
        self.stopped_by: str | None = None

    def push(self, token_id: int) -> str:
        """Text that may be shown now; once a stop string is found, `stopped_by` names it."""
        self._tokens += 1
        new = self._stream.push(token_id)
        if self._places is not None:
            # `new` may begin with text that was held back before this token.
            ahead = len(new) - len(spelled := self._tokenizer.token_text(token_id))
            begins = self._written + (ahead if new.endswith(spelled) else 0)
            self._places.append(begins)
            self._written += len(new)
        return self._show(new)

    def flush(self) -> str:
        """The rest of the text, when the choice ended without a stop string."""
        new = self._stream.flush()
        self._written += len(new)
        text = self._show(new)
        held, self._held = self._held, ""
        return text if self._shows_stop else text + held

    def take_places(self, tokens: int) -> tuple[int, ...]:
        """Where each of the last `tokens` tokens begins, in characters of the whole text.

        A token that begins inside a character has the place of that character; a token without text
        has the place of the next text. Empty where places are not recorded.
        """
        if self._places is None:
            return ()
        taken, self._places = self._places, []
        # A stop token that is hidden was not pushed.
        return (*taken, *(self._written for _ in range(tokens - len(taken))))

    def _show(self, new: str) -> str:
        if not self._stops or self.stopped_by is not None:
            return new if self.stopped_by is None else ""
        text = self._held + new
        # Where stop strings are shown, text is not delayed: the held text has been shown.
        shown = len(self._held) if self._shows_stop else 0
        if self._tokens > self._min_tokens or self._min_tokens == 0:
            found = [(text.find(stop), stop) for stop in self._stops]
            hits = [(at, stop) for at, stop in found if at >= 0]
            if hits:
                at, self.stopped_by = min(hits, key=lambda hit: hit[0])
                self._held = ""
                return text[shown : at + len(self.stopped_by)] if self._shows_stop else text[:at]
        keep = _begun(text, self._in_order)
        self._held = text[len(text) - keep :]
        return new if self._shows_stop else text[: len(text) - keep]


def _begun(text: str, stops: list[str]) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of a stop string.

    `stops`: sorted, so that those that begin with a suffix follow directly after it.
    """
    for size in range(min(len(text), max(map(len, stops)) - 1), 0, -1):
        end = text[-size:]
        behind = bisect_right(stops, end)
        if behind < len(stops) and stops[behind].startswith(end):
            return size
    return 0


def spell(
    tokenizer: Tokenizer, ids: tuple[int, ...], options: TextOptions = PLAIN_TEXT
) -> tuple[str, tuple[int, ...]]:
    """The text of `ids`, and where in it each token begins."""
    detokenizer = Detokenizer(tokenizer, (), options=options, places=True)
    pieces = [detokenizer.push(token) for token in ids]
    pieces.append(detokenizer.flush())
    return "".join(pieces), detokenizer.take_places(len(ids))
