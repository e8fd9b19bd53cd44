"""Which tokens would complete a word: the automaton against plain string search."""

import random

import numpy as np
import pytest

from penstock.decoding.pieces import Pieces
from penstock.decoding.words import Words


def completes(text: bytes, piece: bytes, words: list[bytes]) -> bool:
    """Whether a word ends within `piece` behind `text`."""
    longer = text + piece
    ends = range(len(text) + 1, len(longer) + 1)
    return any(longer[:end].endswith(word) for word in words for end in ends)


@pytest.mark.parametrize("alphabet", [b"ab", b"abc", b"a\xff", "é ".encode()], ids=repr)
def test_what_is_forbidden_equals_string_search(alphabet: bytes) -> None:
    """Failure odds: none; the texts are seeded."""
    chooser = random.Random(7)

    def some(shortest: int, longest: int) -> bytes:
        return bytes(chooser.choice(alphabet) for _ in range(chooser.randint(shortest, longest)))

    for _ in range(300):
        tokens = [some(0, 3) for _ in range(12)]
        words = [some(1, 6) for _ in range(chooser.randint(1, 6))]
        pieces = Pieces(tokens)
        automaton = Words(words, pieces)
        text, ids, state = b"", list[int](), 0
        for _ in range(14):
            forbidden = {*automaton.always.tolist(), *automaton.forbidden(state).tolist()}
            expected = {t for t, piece in enumerate(tokens) if completes(text, piece, words)}
            assert forbidden == expected, (text, tokens, words)
            left = [token for token in range(len(tokens)) if token not in forbidden]
            if not left:
                break
            token = chooser.choice(left)
            ids.append(token)
            text += tokens[token]
            state = automaton.after(state, token)
            again = Words(words, pieces)
            at = again.at_end_of(ids)
            assert np.array_equal(again.forbidden(at), automaton.forbidden(state))


def test_special_tokens_are_spelled_where_they_are_shown() -> None:
    pieces = Pieces([b"a", b"b", b""], {2: b"<b>"})
    words = [b"<b", b"aa"]
    hidden, shown = Words(words, pieces), Words(words, pieces.with_special)
    assert hidden.always.tolist() == []
    assert shown.always.tolist() == [2]
    assert hidden.forbidden(hidden.at_end_of([0, 2])).tolist() == [0]
    assert shown.forbidden(shown.at_end_of([0, 2])).tolist() == []


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And forgetting changes nothing."""
    monkeypatch.setattr("penstock.decoding.words._MOST_STEPS", 4)
    monkeypatch.setattr("penstock.decoding.words._MOST_IDS", 4)
    chooser = random.Random(3)
    words = [bytes(chooser.choice(b"abc") for _ in range(9)) for _ in range(20)]
    pieces = Pieces([bytes([byte]) for byte in b"abc"])
    automaton, text, state = Words(words, pieces), b"", 0
    for _ in range(300):
        expected = [t for t in range(3) if completes(text, pieces.of[t], words)]
        assert automaton.forbidden(state).tolist() == expected
        token = next(t for t in chooser.sample(range(3), 3) if t not in expected)
        text += pieces.of[token]
        state = automaton.after(state, token)
        # A step may add one for each state that it fails to, of which none is longer than a word.
        assert len(automaton._steps) <= 4 + 9 + 1  # pyright: ignore[reportPrivateUsage]
