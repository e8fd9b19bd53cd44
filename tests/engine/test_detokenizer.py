"""Text while it comes: equal to decoding at once, never a split character, no stop string."""

import random
import threading
import time
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer as Rust
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from penstock.decoding.sampling_params import TextOptions
from penstock.engine.outputs.detokenizer import Detokenizer
from penstock.engine.requests.tokenizer import Tokenizer
from tests.tiny import byte_tokenizer

TEXT = "Grüße, 世界! 🎉👩‍👩‍👧 naïve café\n\tend"


def sentencepiece_like() -> Tokenizer:
    """Metaspace pieces with byte fallback, as in Llama 2 and Gemma."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += ["▁the", "▁cat", "s", "▁", "a", "▁world"]
    bpe = models.BPE(
        vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    rust = Rust(bpe)
    rust.decoder = decoders.Sequence(  # type: ignore[assignment]
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="</s>"))


def stream(tokenizer: Tokenizer, ids: list[int], **options: object) -> list[str]:
    detokenizer = Detokenizer(tokenizer, (), **options)  # type: ignore[arg-type]
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def test_bytes_come_as_whole_characters() -> None:
    tokenizer = Tokenizer(byte_tokenizer())
    pieces = stream(tokenizer, tokenizer.encode(TEXT))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert max(len(piece) for piece in pieces) == 1


def test_broken_bytes_are_replaced_as_in_one_piece() -> None:
    tokenizer = Tokenizer(byte_tokenizer())
    chooser = random.Random(4)
    table = {tokenizer.token_bytes(i): i for i in range(256)}
    for _ in range(200):
        raw = bytes(chooser.randrange(256) for _ in range(chooser.randrange(1, 30)))
        ids = [table[bytes([byte])] for byte in raw]
        assert "".join(stream(tokenizer, ids)) == raw.decode("utf-8", errors="replace")


def test_window_equals_decoding_at_once() -> None:
    tokenizer = sentencepiece_like()
    vocab = tokenizer.hf.get_vocab()
    words = [vocab[p] for p in ("▁the", "▁cat", "s", "▁", "▁world", "a")]
    emoji = [vocab[f"<0x{byte:02X}>"] for byte in "🎉é".encode()]
    chooser = random.Random(6)
    for _ in range(100):
        ids = [chooser.choice(words) for _ in range(8)] + emoji + [chooser.choice(words)]
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)


def test_first_space_depends_on_the_prompt() -> None:
    tokenizer = sentencepiece_like()
    vocab = tokenizer.hf.get_vocab()
    after = Detokenizer(tokenizer, (vocab["▁the"],))
    assert after.push(vocab["▁cat"]) == " cat"
    assert Detokenizer(tokenizer, ()).push(vocab["▁cat"]) == "cat"


def test_special_tokens_are_not_text() -> None:
    tokenizer = Tokenizer(byte_tokenizer())
    ids = [*tokenizer.encode("ab"), 300, *tokenizer.encode("c")]
    assert "".join(stream(tokenizer, ids)) == "abc"


@pytest.mark.parametrize(
    ("text", "stops", "shown", "stopped_by"),
    [
        ("hello END world", ("END",), "hello ", "END"),
        ("aaab", ("aab",), "a", "aab"),
        ("EN EN EN", ("END",), "EN EN EN", None),
        ("one two", ("two", "one"), "", "one"),
        ("x\n\ny", ("\n\n",), "x", "\n\n"),
        ("Grüße", ("üß",), "Gr", "üß"),
    ],
)
def test_stop_strings(text: str, stops: tuple[str, ...], shown: str, stopped_by: str) -> None:
    tokenizer = Tokenizer(byte_tokenizer())
    detokenizer = Detokenizer(tokenizer, (), stop_strings=stops)
    out = ""
    for token in tokenizer.encode(text):
        out += detokenizer.push(token)
        assert shown.startswith(out), "nothing of a stop string may leak"
        if detokenizer.stopped_by:
            break
    if not detokenizer.stopped_by:
        out += detokenizer.flush()
    assert (out, detokenizer.stopped_by) == (shown, stopped_by)


def test_stop_strings_wait_for_min_tokens() -> None:
    tokenizer = Tokenizer(byte_tokenizer())
    pieces = stream(tokenizer, tokenizer.encode("a.b.c."), stop_strings=(".",), min_tokens=3)
    assert "".join(pieces) == "a.b"


def spaced() -> Tokenizer:
    """A tokenizer whose decoder puts a space before every token, as WordPiece does."""
    vocab = {"[UNK]": 0, "hello": 1, "world": 2}
    rust = Rust(models.WordLevel(vocab=vocab, unk_token="[UNK]"))
    rust.decoder = decoders.WordPiece()  # type: ignore[assignment]
    hf = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="[SEP]", cls_token="[CLS]")
    return Tokenizer(hf)


@pytest.mark.parametrize("make", [lambda: Tokenizer(byte_tokenizer()), sentencepiece_like, spaced])
def test_special_tokens_are_text_where_asked_for(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    eos = tokenizer.hf.eos_token_id
    assert isinstance(eos, int)
    ordinary = [i for i in range(len(tokenizer.hf)) if i not in tokenizer.special_ids][-2:]
    ids = [ordinary[0], eos, eos, ordinary[1], eos]
    shown = stream(tokenizer, ids, options=TextOptions(skip_special_tokens=False))
    assert "".join(shown) == tokenizer.decode(ids, skip_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_special_tokens_stand_together_where_asked_for() -> None:
    tokenizer = spaced()
    (hello,) = tokenizer.encode("hello", add_special_tokens=False)
    ids = [hello, *tokenizer.special_ids, hello]
    apart = stream(tokenizer, ids, options=TextOptions(skip_special_tokens=False))
    together = stream(
        tokenizer,
        ids,
        options=TextOptions(skip_special_tokens=False, spaces_between_special_tokens=False),
    )
    names = [tokenizer.token_text(i) for i in tokenizer.special_ids]
    assert "".join(apart) == f"hello {' '.join(names)} hello"
    assert "".join(together) == f"hello {''.join(names)} hello"


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_stop_string_that_is_shown_holds_nothing_back(width: int) -> None:
    tokenizer = Tokenizer(byte_tokenizer())
    text = "one, two, three"
    detokenizer = Detokenizer(
        tokenizer, (), stop_strings=("two, t"[:width],), options=TextOptions(include_stop=True)
    )
    shown = ""
    for token in tokenizer.encode(text):
        shown += detokenizer.push(token)
        if detokenizer.stopped_by is not None:
            break
        assert shown == text[: len(shown)]
    assert shown == "one, " + "two, t"[:width]
    assert detokenizer.flush() == ""


def test_what_waits_for_stop_strings_is_no_more_than_could_begin_one() -> None:
    """Against trying every end with every stop string; 3 letters, so that many begin alike."""
    chooser = random.Random(8)

    def word(most: int) -> str:
        return "".join(chooser.choice("abc") for _ in range(chooser.randrange(1, most)))

    tokenizer = Tokenizer(byte_tokenizer())
    for _ in range(300):
        stops = tuple(word(6) for _ in range(chooser.randrange(1, 9)))
        text = word(30)
        detokenizer = Detokenizer(tokenizer, (), stop_strings=stops)
        shown, seen = "", ""
        for token in tokenizer.encode(text):
            shown += detokenizer.push(token)
            seen += tokenizer.token_text(token)
            if detokenizer.stopped_by is not None:
                break
            ends = [
                size
                for size in range(1, len(seen) + 1)
                if any(len(stop) > size and stop.startswith(seen[-size:]) for stop in stops)
            ]
            assert shown == seen[: len(seen) - max(ends, default=0)]
        else:
            assert not any(stop in text for stop in stops)
            continue
        assert shown == seen[: min(seen.find(stop) for stop in stops if stop in seen)]


def test_many_tokens_are_decoded_without_the_interpreters_lock() -> None:
    """Or nothing else would run for as long: `/detokenize` takes any number of them."""
    tokenizer = Tokenizer(byte_tokenizer())
    ids = [116, 104, 101, 32] * 500_000
    took_s: list[float] = []

    def decode() -> None:
        began_s = time.perf_counter()
        tokenizer.decode(ids)
        took_s.append(time.perf_counter() - began_s)

    thread = threading.Thread(target=decode)
    last_s, longest_s = time.perf_counter(), 0.0
    thread.start()
    while thread.is_alive():
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    assert longest_s < took_s[0] / 2
