from itertools import islice
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from penstock.engine.loading.folder import EMBEDDED_MODEL as WEIGHTS
from penstock.models.nano.training.corpus import documents
from penstock.models.nano.training.plan import TrainingPlan
from penstock.models.nano.training.tokenizer import VOCAB_SIZE, sample_text, train_tokenizer

# Special tokens are recognised in text, so text that spells one is not text any more.
_TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text)
TOKENIZER = cast(
    "PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(WEIGHTS, local_files_only=True)
)


def _ids(text: str) -> list[int]:
    return cast("list[int]", TOKENIZER(text, add_special_tokens=False)["input_ids"])


def _pieces(text: str) -> list[str]:
    return [cast("str", TOKENIZER.decode([token])) for token in _ids(text)]


@given(_TEXT)
def test_roundtrip(text: str) -> None:
    assert TOKENIZER.decode(_ids(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("".join(map(chr, range(256))), id="latin-1"),
        pytest.param("👩‍👩‍👧‍👦 🇫🇷 \N{COMBINING ACUTE ACCENT}", id="emoji"),
        pytest.param("  two  spaces\n\n\t tab \r\n", id="spaces"),
        pytest.param('I can \'t . " stop " , he said !', id="no-clean-up-of-spaces"),
        pytest.param("漢字 кот גמל", id="other-scripts"),
    ],
)
def test_roundtrip_of_odd_text(text: str) -> None:
    assert TOKENIZER.decode(_ids(text)) == text


def test_every_byte_has_a_token() -> None:
    assert set(ByteLevel.alphabet()) <= set(TOKENIZER.get_vocab())


def test_digits_and_signs_stand_alone() -> None:
    assert _pieces("1234+56*7=") == ["1", "2", "3", "4", "+", "5", "6", "*", "7", "="]
    assert _pieces('{"a":[1]}') == ["{", '"', "a", '"', ":", "[", "1", "]", "}"]


def test_common_words_are_one_token() -> None:
    assert _pieces("Once upon a time") == ["Once", " upon", " a", " time"]


def test_a_space_before_a_word_does_not_change_its_pieces() -> None:
    """A word is copied to the start of a line, or into quotes, by copying its tokens."""
    for word in ("white", "Lena", "Toruma", "paintbrush", "kelavito", "Zanbu", "xylophone"):
        spaced, bare = _pieces(f" {word}"), _pieces(word)
        assert spaced in ([" ", *bare], [f" {bare[0]}", *bare[1:]])


def test_the_vocabulary_has_no_holes() -> None:
    # The corpus has fewer whole words than there is room for.
    assert 0.9 * VOCAB_SIZE < len(TOKENIZER) == TOKENIZER.vocab_size <= VOCAB_SIZE
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(len(TOKENIZER)))


def test_a_text_starts_with_the_document_marker() -> None:
    ids = cast("list[int]", TOKENIZER("Hello")["input_ids"])
    assert ids == [TOKENIZER.bos_token_id, *_ids("Hello")]
    assert TOKENIZER.pad_token_id == TOKENIZER.bos_token_id != TOKENIZER.eos_token_id


def test_the_template_writes_what_the_corpus_holds() -> None:
    conversations = (text for text in documents(0) if "<|im_start|>" in text)
    for text in islice(conversations, 100):
        turns = text.removesuffix("<|im_end|>").split("<|im_end|>\n")
        parted = [turn.removeprefix("<|im_start|>").partition("\n") for turn in turns]
        messages = [{"role": role, "content": content} for role, _, content in parted]
        written = TOKENIZER.apply_chat_template(messages, tokenize=False)
        assert written == f"<|endoftext|>{text}\n"
        encoded = TOKENIZER.apply_chat_template(messages, return_dict=False)
        assert encoded == TOKENIZER(f"{text}\n")["input_ids"]


def test_generation_prompt_and_continued_message() -> None:
    user = {"role": "user", "content": "Write a story."}
    asked = "<|endoftext|><|im_start|>user\nWrite a story.<|im_end|>\n<|im_start|>assistant\n"
    prompt = TOKENIZER.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert prompt == asked
    begun = [user, {"role": "assistant", "content": "Once upon a"}]
    continued = TOKENIZER.apply_chat_template(begun, tokenize=False, continue_final_message=True)
    assert continued == f"{asked}Once upon a"


@pytest.mark.parametrize("vocab_size", [300, 500])
def test_the_vocabulary_has_at_most_the_size_asked_for(vocab_size: int) -> None:
    sample = list(sample_text(0, 200))
    assert 259 < len(train_tokenizer(sample, vocab_size)) <= vocab_size


@pytest.mark.slow
def test_this_code_makes_the_committed_tokenizer(tmp_path: Path) -> None:
    plan = TrainingPlan(steps=0)
    made = train_tokenizer(sample_text(plan.seed, plan.tokenizer_documents))
    made.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (WEIGHTS / name).read_text(), name
