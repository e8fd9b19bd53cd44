"""Where tokens are in the text that callers see.

The kind: two texts of one thing. Places counted over one text (the tokens' own bytes) while another
is returned (the caller's words, a decoding without special tokens or without a first space). Texts
and places come from one pass each: the tokenizer's over a prompt, the detokenizer's over ids.
"""

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Rust
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from penstock.engine.outputs.detokenizer import Detokenizer, spell
from penstock.engine.requests.target_prompt import TargetPrompt
from penstock.engine.requests.tokenizer import Tokenizer
from tests.server.scripted import Script, ScriptedEngine
from tests.tiny import byte_tokenizer, sentencepiece_tokenizer, token_of

ALPHABET = "abcthe is\n\té世🎉<s>/▁<eos>e\u0301"


def composing() -> PreTrainedTokenizerFast:
    """Composes characters before it cuts (Qwen), and leaves spaces out of its places (RoBERTa)."""
    rust: Rust = byte_tokenizer().backend_tokenizer
    rust.normalizer = normalizers.NFC()  # type: ignore[assignment]
    rust.post_processor = processors.ByteLevel(trim_offsets=True)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<eos>")


def metaspace() -> PreTrainedTokenizerFast:
    """Spaces become pieces' first characters in the pre-tokenizer (Mistral's later form)."""
    rust: Rust = sentencepiece_tokenizer().backend_tokenizer
    rust.normalizer = None  # type: ignore[assignment]
    rust.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="</s>")


def merged() -> PreTrainedTokenizerFast:
    """Byte-level pieces of several characters, some of them half of one."""
    vocab = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "i"), ("Ġi", "s"), ("ä", "¸"), ("ð", "Ł")]
    vocab |= {"".join(pair): len(vocab) + i for i, pair in enumerate(merges)}
    rust = Rust(models.BPE(vocab=vocab, merges=merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    rust.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<eos>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": byte_tokenizer,
    "merged bytes": merged,
    "composed, trimmed": composing,
    "sentencepiece": sentencepiece_tokenizer,
    "metaspace": metaspace,
}
TOKENIZERS = {name: Tokenizer(make()) for name, make in KINDS.items()}


def begins(tokenizer: Tokenizer, token: int, text: str, place: int) -> bool:
    """Whether `text[place:]` begins with the token, or the character with the token's bytes."""
    raw = tokenizer.token_bytes(token)
    rest = text[place:]
    # Some tokenizers write the text anew before they cut it.
    rests = [rest, unicodedata.normalize("NFC", rest), rest.replace("▁", " ")]
    try:
        return any(one.startswith(raw.decode()) for one in rests)
    except UnicodeDecodeError:
        return any("\ufffd" in rest or raw in rest[:3].encode() for rest in rests)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(ALPHABET, max_size=30))
@settings(max_examples=150, deadline=None)
def test_tokens_of_a_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids, places = tokenizer.encode_with_places(text)
    assert ids == tokenizer.encode(text)
    assert places == sorted(places)
    assert all(0 <= place <= len(text) for place in places)
    for token, place in zip(ids, places, strict=True):
        if begins(tokenizer, token, text, place):
            continue
        spelled = tokenizer.token_text(token)
        added = token in tokenizer.special_ids and place == 0
        first_space = spelled.startswith(" ") and text.startswith(spelled[1:], place)
        unknown = token == tokenizer.hf.unk_token_id
        assert added or first_space or unknown, (text, token, place)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_tokens_of_an_answer(kind: str, data: st.DataObject) -> None:
    """Random ids: half characters, special tokens, ids without a token."""
    tokenizer = TOKENIZERS[kind]
    token = st.integers(0, len(tokenizer.hf) + 20)
    ids = tuple(data.draw(st.lists(token, max_size=24)))
    text, places = spell(tokenizer, ids)
    decoded = tokenizer.decode(ids)
    # A broken byte of such a run breaks those before it, too, which have been sent already.
    in_one_piece = tokenizer.is_byte_level or "\ufffd" not in decoded
    assert not in_one_piece or text == decoded
    assert len(places) == len(ids)
    assert places == tuple(sorted(places))
    heard = 0
    for token_id, place in zip(ids, places, strict=True):
        assert 0 <= place <= len(text)
        spelled = tokenizer.token_text(token_id)
        if token_id in tokenizer.special_ids or not tokenizer.token_piece(token_id):
            continue
        if not tokenizer.is_byte_level and spelled.startswith(" ") and not heard:
            assert text.startswith(spelled[1:], place)
        elif in_one_piece or not tokenizer.token_piece(token_id).startswith("<0x"):
            assert begins(tokenizer, token_id, text, place), (ids, text, token_id, place)
        heard += 1


@pytest.mark.parametrize("kind", ["merged bytes", "sentencepiece"])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_places_do_not_depend_on_how_tokens_come(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer.hf)), min_size=1, max_size=24))
    cuts = data.draw(st.lists(st.integers(1, 5), min_size=24, max_size=24))
    _, expected = spell(tokenizer, tuple(ids))
    detokenizer = Detokenizer(tokenizer, (), places=True)
    found: tuple[int, ...] = ()
    left = list(ids)
    for size in cuts:
        part, left = left[:size], left[size:]
        for token in part:
            detokenizer.push(token)
        if not left:
            detokenizer.flush()
        found += detokenizer.take_places(len(part))
    assert found == expected


def test_a_prompt_that_ends_inside_a_character() -> None:
    """Its last bytes do not swallow the beginning of the answer."""
    tokenizer, fast = TOKENIZERS["sentencepiece"], sentencepiece_tokenizer()
    byte = {raw: token_of(fast, f"<0x{raw:02X}>") for raw in "€".encode()}
    prompt = (1, byte[0xE2], byte[0x82])
    detokenizer = Detokenizer(tokenizer, prompt)
    letters = [token_of(fast, letter) for letter in "abc"]
    text = "".join(detokenizer.push(token) for token in [byte[0xAC], *letters])
    assert text + detokenizer.flush() == "\ufffdabc"


def test_targets_see_the_whole_prompt() -> None:
    """They derive further prompts from its text, in which a chat's control tokens must remain."""
    input_processor = ScriptedEngine(Script()).input_processor
    ids = tuple(byte_tokenizer().encode("a<eos>b"))
    prompt = TargetPrompt(ids, input_processor.encoder)
    assert prompt.text == "a<eos>b"
    assert prompt.encode(prompt.text, param="p", add_special_tokens=False) == ids
