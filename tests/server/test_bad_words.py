"""The text never has a bad word in it, whatever tokens spell it.

The kind: a rule about text that is checked on one tokenisation of it. A word can begin inside of a
token and end in another, have its space in the token before, lie within a longer token, be split in
the middle of a character, or go on from the prompt; and it must stay out of every form of an
answer: streamed, echoed, forked into choices, drafted, guided, in a chat, offline.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.server.process import ServeProcess
from tests.tiny import save_tiny

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
LONGER = ["an", "na", "anna", "Ġa", "Ġan", "ĊĊ", "Ċa", "nĊ", "Ġanna", "annan", "nan", "Ã©a", "ĠĠ"]
"""Tokens of several bytes: the same text can be spelled in many ways."""
WORDS: list[list[str]] = [
    ["\n"],
    [" "],
    ["anna"],
    ["\nanna", " an"],
    ["é"],
    ["aé", "nn"],
    ["a na", "na\na"],
    ["aa", "an", "na", "\n\n"],
]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServeProcess, list[int]]]:
    """A server whose vocabulary overlaps itself, and some of its tokens."""
    vocab = {piece: i for i, piece in enumerate([*LETTERS, *LONGER])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    folder = save_tiny("llama", tmp_path_factory.mktemp("pieces") / "llama")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    fast.save_pretrained(folder)
    spelled = {tokenizer.id_to_token(i): i for i in range(len(vocab))}
    stand_ins = [*"an", "Ġ", "Ċ", "Ã", "©"]
    allowed = [spelled[piece] for piece in [*stand_ins, *LONGER]]
    arguments = [str(folder), "--served-model-name", "pieces", "--threads", "1"]
    arguments += ["--kv-cache-memory", "4000000"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ServeProcess(arguments, log) as running:
        yield running, allowed


def body(allowed: list[int], **fields: Any) -> dict[str, Any]:
    return {
        "model": "pieces",
        "prompt": "nanna a\n an",
        "max_tokens": 60,
        "temperature": 1.5,
        "ignore_eos": True,
        "allowed_token_ids": allowed,
        "logit_bias": {str(i): 3 for i in allowed[6:]},
        **fields,
    }


def texts(client: httpx.Client, fields: dict[str, Any]) -> list[str]:
    answer = client.post("/v1/completions", json=fields)
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


METHODS: list[dict[str, Any]] = [
    {},
    {"jacobi": {"window": 8, "adaptive": False}},
    {"ngram": {}},
    {"lookahead": {}},
    {"cfg": {"scale": 1.5, "negative_prompt": "no"}},
    {"beam": {"width": 4}},
    {"best_of": {"n": 3}},
    {"tot": {"generate": "sample", "generate_samples": 2, "breadth": 2, "depth": 3}},
]


@pytest.mark.parametrize("words", WORDS, ids=repr)
def test_no_spelling_of_a_word_gets_through(
    pieces: tuple[ServeProcess, list[int]], words: list[str]
) -> None:
    server, allowed = pieces
    with server.client() as client:
        free = texts(client, body(allowed, n=6, seed=1))
        for method in METHODS:
            n = 1 if set(method) & {"tot", "best_of"} else 3
            asked = body(allowed, n=n, seed=1, bad_words=words, decoding=method)
            for text in texts(client, asked):
                assert not [word for word in words if word in text], (method, text)
                assert text
    server.wait_idle()
    assert any(word in text for word in words for text in free), "nothing to keep out"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("words", [["\n"], ["anna"], ["a a", "é"]], ids=repr)
def test_words_stay_out_of_every_form_of_the_answer(
    pieces: tuple[ServeProcess, list[int]], words: list[str], *, stream: bool
) -> None:
    server, allowed = pieces
    forms: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"echo": True, "prompt": "n"}),
        ("/v1/completions", {"logprobs": 2, "stop": "nan"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "n"}], "prompt": None}),
    ]
    with server.client() as client:
        for path, fields in forms:
            asked = body(allowed, seed=2, bad_words=words, stream=stream, n=2, **fields)
            asked = {name: value for name, value in asked.items() if value is not None}
            answer = client.post(path, json=asked)
            assert answer.status_code == 200, answer.text
            found = {0: "", 1: ""}
            for event in answer.text.split("\n\n") if stream else [f"data: {answer.text}"]:
                data = event.removeprefix("data: ").strip()
                for choice in json.loads(data)["choices"] if data not in ("", "[DONE]") else []:
                    said = choice.get("message") or choice.get("delta") or choice
                    found[choice["index"]] += said.get("text") or said.get("content") or ""
            assert all(found.values())
            assert not [w for w in words for text in found.values() if w in text], found
    server.wait_idle()


def test_a_word_that_begins_in_the_prompt_does_not_end_in_the_answer(
    pieces: tuple[ServeProcess, list[int]],
) -> None:
    """Prompt and answer are one text: what an editor inserts must not complete the word either."""
    server, allowed = pieces
    with server.client() as client:
        for prompt in ("a ann", "a an", "\nan"):
            for method in METHODS[:2]:
                asked = body(allowed, prompt=prompt, seed=3, n=4, bad_words=["anna"])
                for text in texts(client, {**asked, "decoding": method}):
                    assert "anna" not in prompt + text


def test_words_that_nothing_can_spell_are_no_burden(
    pieces: tuple[ServeProcess, list[int]],
) -> None:
    """As many and as long as a request may name, all alike for as long as they can be."""
    server, allowed = pieces
    words = ["an" * 100 + "n" * (i % 56) for i in range(256)]
    with server.client() as client:
        plain = texts(client, body(allowed, seed=4, logit_bias={}))
        assert texts(client, body(allowed, seed=4, logit_bias={}, bad_words=words)) == plain


@pytest.mark.parametrize("word", ["\\ufffd", "a\\ufffd", "\\ud800"])
def test_what_is_no_character_is_refused(http: httpx.Client, word: str) -> None:
    content = '{"model": "tiny", "prompt": "x", "bad_words": ["' + word + '"]}'
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == 400, answer.text


def test_spaces_of_sentencepiece_count(tmp_path: Path) -> None:
    """There a space is the beginning of a token, and bytes are tokens for what has none."""
    from penstock.decoding.sampling_params import SamplingParams
    from penstock.engine.llm import LLM

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["▁", "a", "n", "▁a", "▁an", "an", "na", "▁▁", "é"]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    folder = save_tiny("llama", tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    allowed = [vocab[name] for name in names[259:]] + [vocab["<0x0A>"], vocab["<0x20>"]]
    allowed += [vocab[f"<0x{byte:02X}>"] for byte in "é".encode()]
    llm = LLM(str(folder), kv_cache_memory=0.01)
    for words in ([" "], ["\n"], ["a n"], ["é", "na"], [" a", " n", "  "]):
        params = SamplingParams(
            max_tokens=60,
            n=4,
            temperature=1.5,
            ignore_eos=True,
            allowed_token_ids=allowed,
            bad_words=words,
            seed=1,
        )
        for choice in llm.generate([260, 261], params)[0].outputs:
            assert choice.text
            assert not [word for word in words if word in choice.text], choice.text
