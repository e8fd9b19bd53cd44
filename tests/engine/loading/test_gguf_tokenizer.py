"""The tokenizer of a GGUF file: the same tokens as the one that it was made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from penstock.engine.config import EngineConfig
from penstock.engine.loading.gguf.splits import SPLITS
from penstock.engine.loading.loader import load_tokenizer
from penstock.engine.requests.tokenizer import Tokenizer
from penstock.errors import ConfigurationError
from tests.engine.loading.gguf_files import merging_tokenizer, save_gguf
from tests.tiny import save_tiny, sentencepiece_tokenizer

TEXTS = [
    "hello 12 1212 hell he",
    "  two in front, two behind  ",
    "I'LL we've\n\n\n x\t\ty\r\n",
    "naïve — “quotes” 日本語 🙂",
    "def f(x):\n    return x**2",
    "<eos>hello<eos>",
    "",
    " ",
]
Metadata = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("gguf") / "m", tokenizer=merging_tokenizer())


def tokenizer_of(
    folder: Path, place: Path, change: Callable[[Metadata], object] | None = None
) -> Tokenizer:
    file = save_gguf(folder, place / "m.gguf", metadata=change)
    return load_tokenizer(EngineConfig(model=str(file)), frozenset())


def test_byte_pairs(folder: Path, tmp_path: Path) -> None:
    ours = tokenizer_of(folder, tmp_path)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert ours.hf.get_vocab() == theirs.get_vocab()
    assert ours.hf.eos_token_id == theirs.eos_token_id
    assert ours.hf.chat_template == theirs.chat_template


def test_how_text_is_split_matters(folder: Path, tmp_path: Path) -> None:
    """SmolLM merges no digits, although its vocabulary has a token for them here."""
    merged = tokenizer_of(folder, tmp_path)
    assert 259 in merged.encode("12")

    def smollm(metadata: Metadata) -> None:
        metadata["tokenizer.ggml.pre"] = "smollm"

    apart = tokenizer_of(folder, tmp_path, smollm)
    assert apart.encode("12") == merged.encode("1") + merged.encode("2")
    assert apart.encode("hello") == merged.encode("hello")


@pytest.mark.parametrize("name", SPLITS)
def test_every_expression_loses_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    def split(metadata: Metadata) -> None:
        metadata["tokenizer.ggml.pre"] = name
        metadata["tokenizer.ggml.bos_token_id"] = 300

    ours = tokenizer_of(folder, tmp_path, split)
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False)
        assert ours.decode(ids, skip_special_tokens=False) == text
    begins = name in ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
    assert (ours.encode("x")[0] == 300) == begins


def test_a_word_that_is_a_token_is_that_token(folder: Path, tmp_path: Path) -> None:
    """Llama 3 takes whole words first; a merge is missing on the way to this one."""

    def without_a_merge(name: str) -> Callable[[Metadata], None]:
        def change(metadata: Metadata) -> None:
            metadata["tokenizer.ggml.pre"] = name
            metadata["tokenizer.ggml.merges"] = ["h e", "l l"]

        return change

    assert 258 not in tokenizer_of(folder, tmp_path, without_a_merge("gpt-2")).encode("hell")
    assert tokenizer_of(folder, tmp_path, without_a_merge("llama-bpe")).encode("hell") == [258]


def test_control_tokens_with_letters_beyond_the_alphabet(folder: Path, tmp_path: Path) -> None:
    """DeepSeek's: two bars and a space that no byte is written as."""
    marker = "<｜User▁says｜>"

    def marked(metadata: Metadata) -> None:
        metadata["tokenizer.ggml.tokens"][310] = marker
        metadata["tokenizer.ggml.token_type"][310] = 3
        metadata["tokenizer.ggml.tokens"][311] = "<think>"
        metadata["tokenizer.ggml.token_type"][311] = 4

    ours = tokenizer_of(folder, tmp_path, marked)
    assert ours.encode(f"he{marker}he<think>") == [256, 310, 256, 311]
    assert 310 in ours.special_ids
    assert 311 not in ours.special_ids
    assert ours.decode([310, 256, 311]) == "he<think>"


def test_what_begins_and_ends_a_prompt(folder: Path, tmp_path: Path) -> None:
    def around(metadata: Metadata) -> None:
        metadata["tokenizer.ggml.bos_token_id"] = 258
        metadata["tokenizer.ggml.add_bos_token"] = True
        metadata["tokenizer.ggml.add_eos_token"] = True

    ours = tokenizer_of(folder, tmp_path, around)
    assert ours.encode("he") == [258, 256, 300]
    assert ours.encode("he", add_special_tokens=False) == [256]


def test_templates_with_names(folder: Path, tmp_path: Path) -> None:
    def named(metadata: Metadata) -> None:
        metadata["tokenizer.chat_template"] = "usual"
        metadata["tokenizer.chat_template.tool_use"] = "with tools"

    found = tokenizer_of(folder, tmp_path, named).hf.chat_template
    assert found == {"default": "usual", "tool_use": "with tools"}


def sentencepiece_metadata(tokenizer: PreTrainedTokenizerFast, size: int) -> Metadata:
    """As llama.cpp's converter writes pieces: no merges, the scores say their order."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    special = {int(i) for i in tokenizer.added_tokens_decoder}
    ranks = {"".join(pair): -float(i) for i, pair in enumerate(described["merges"], 1)}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]

    def type_of(i: int) -> int:
        if i == 0:
            return 2
        if i in special:
            return 3
        if tokens[i].startswith("<0x"):
            return 6
        return 1 if i in by_id else 5

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [ranks.get(token, -1000.0) for token in tokens],
        "tokenizer.ggml.token_type": [type_of(i) for i in range(size)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pieces") / "m"
    tokenizer = sentencepiece_tokenizer()
    return save_tiny("llama", place, tokenizer=tokenizer, vocab_size=400, eos_token_id=2)


def as_pieces(metadata: Metadata) -> None:
    for name in ("tokenizer.ggml.merges", "tokenizer.ggml.pre"):
        del metadata[name]
    metadata.update(sentencepiece_metadata(sentencepiece_tokenizer(), 400))


def test_pieces(pieces: Path, tmp_path: Path) -> None:
    ours = tokenizer_of(pieces, tmp_path, as_pieces)
    theirs = sentencepiece_tokenizer()
    more = ["the cat is a def", "thecat returndef", "return the return", "</s> the", "the<s>cat"]
    for text in [*TEXTS, *more]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode("the")[0] == 1


def test_no_space_in_front(pieces: Path, tmp_path: Path) -> None:
    """Gemma's."""

    def without(metadata: Metadata) -> None:
        as_pieces(metadata)
        metadata["tokenizer.ggml.add_space_prefix"] = False
        metadata["tokenizer.ggml.add_bos_token"] = False

    ours = tokenizer_of(pieces, tmp_path, without)
    assert ours.decode(ours.encode(" the")) == " the"
    assert ours.decode(ours.encode("the")) == "the"
    assert len(ours.encode("the")) == 3
    assert len(ours.encode(" the")) == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("scores", None, "tokenizer.ggml.scores is missing, and there are 400 tokens"),
        ("scores", [1.0], "tokenizer.ggml.scores has 1 values, and there are 400 tokens"),
        ("tokens", "".join(map(chr, range(97, 107))) * 100, "has too many long tokens"),
    ],
    ids=["no scores", "one score", "long pieces"],
)
def test_pieces_that_are_refused(
    name: str, value: Any, said: str, pieces: Path, tmp_path: Path
) -> None:
    def damage(metadata: Metadata) -> None:
        as_pieces(metadata)
        key = f"tokenizer.ggml.{name}"
        if value is None:
            del metadata[key]
        elif isinstance(value, str):
            metadata[key] = [f"{i:03}{value}" for i in range(400)]
            metadata["tokenizer.ggml.token_type"] = [1] * 400
        else:
            metadata[key] = value

    with pytest.raises(ConfigurationError, match=said):
        tokenizer_of(pieces, tmp_path, damage)
