"""`suffix`: filling in the middle, for models whose vocabulary has the control tokens for it.

The kind: a field of OpenAI's that some models can do and others cannot. What decides is the
vocabulary, of which every convention is tried without a server in tests/engine/test_infill.py; here
a model with Code Llama's tokens answers, and one without refuses.
"""

import json
from typing import Any

import httpx
import pytest

from tests.server.process import ServeProcess
from tests.tiny import sentencepiece_tokenizer, token_of

BODY: dict[str, Any] = {
    "prompt": "def cat",
    "suffix": " return the",
    "temperature": 0,
    "max_tokens": 6,
    "return_token_ids": True,
}
TOKENS = sentencepiece_tokenizer()
PRE, SUF, MID, EOT = (token_of(TOKENS, f"▁<{name}>") for name in ("PRE", "SUF", "MID", "EOT"))
BEFORE = TOKENS.encode("def cat", add_special_tokens=False)
BEHIND = [token_of(TOKENS, piece) for piece in ("▁return", "▁the")]


def ask(running: ServeProcess, **fields: Any) -> dict[str, Any]:
    with running.client() as client:
        answer = client.post("/v1/completions", json={**BODY, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def prompt_of(running: ServeProcess, **fields: Any) -> list[int]:
    return ask(running, **fields)["choices"][0]["prompt_token_ids"]


def test_the_texts_are_put_in_their_places(pieces_server: ServeProcess) -> None:
    assert prompt_of(pieces_server) == [1, PRE, *BEFORE, SUF, *BEHIND, MID]
    assert prompt_of(pieces_server, prompt=BEFORE) == [PRE, *BEFORE, SUF, *BEHIND, MID]
    assert prompt_of(pieces_server, prompt="") == [1, PRE, SUF, *BEHIND, MID]
    plain = [PRE, *BEFORE, SUF, *BEHIND, MID]
    assert prompt_of(pieces_server, add_special_tokens=False) == plain
    # No text behind: an ordinary completion.
    assert prompt_of(pieces_server, suffix="") == TOKENS.encode("def cat")
    # No space comes in front of a text that goes on.
    assert prompt_of(pieces_server, suffix="x")[-2] == token_of(TOKENS, "x")


def test_the_answer_is_that_of_the_assembled_prompt(pieces_server: ServeProcess) -> None:
    ids = [1, PRE, *BEFORE, SUF, *BEHIND, MID]
    for decoding in (None, "jacobi", "ngram", {"cfg": {"scale": 1.5, "negative_prompt": "a"}}):
        (filled,) = ask(pieces_server, decoding=decoding)["choices"]
        (assembled,) = ask(pieces_server, suffix=None, prompt=ids, decoding=decoding)["choices"]
        assert filled["token_ids"] == assembled["token_ids"]
        assert filled["text"] == assembled["text"]


def test_the_end_of_the_middle_ends_the_answer(pieces_server: ServeProcess) -> None:
    for end, reason in ((EOT, EOT), (2, None)):
        (choice,) = ask(pieces_server, logit_bias={str(end): 100}, max_tokens=20)["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["stop_reason"] == reason
        assert choice["text"] == ""
    (choice,) = ask(pieces_server, logit_bias={str(EOT): 100}, ignore_eos=True)["choices"]
    assert choice["finish_reason"] == "length"


def test_what_is_nearest_to_the_middle_stays(pieces_server: ServeProcess) -> None:
    long = {"prompt": "def cat is the cat", "suffix": " return the cat is a"}
    before = TOKENS.encode(long["prompt"], add_special_tokens=False)
    behind = TOKENS.encode(long["suffix"].strip(), add_special_tokens=False)
    ids = prompt_of(pieces_server, **long, truncate_prompt_tokens=8)
    assert ids == [1, PRE, *before[-3:], SUF, *behind[:1], MID]
    with pieces_server.client() as client:
        for fields in (
            {"truncate_prompt_tokens": 4},
            {"truncation_side": "right", "truncate_prompt_tokens": 8},
        ):
            answer = client.post("/v1/completions", json={**BODY, **fields})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == next(iter(fields))
        answer = client.post("/v1/completions", json={**BODY, "suffix": "a" * 600})
        assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_the_echo_is_the_prompt_and_not_the_suffix(
    pieces_server: ServeProcess, *, stream: bool
) -> None:
    fields = {"echo": True, "logprobs": 1, "prompt": ["def cat", "the"], "stream": stream}
    with pieces_server.client() as client:
        answer = client.post("/v1/completions", json={**BODY, **fields})
    choices: dict[int, dict[str, Any]] = {}
    if stream:
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        chunks = [choice for line in lines for choice in json.loads(line)["choices"]]
    else:
        chunks = answer.json()["choices"]
    for chunk in chunks:
        choice = choices.setdefault(chunk["index"], {"text": "", "tokens": [], "text_offset": []})
        choice["text"] += chunk["text"]
        for name in ("tokens", "text_offset"):
            choice[name] += (chunk["logprobs"] or {}).get(name, [])
    assert choices[0]["text"].startswith("def cat")
    assert choices[0]["tokens"][:2] == [" def", " cat"]
    assert choices[0]["text_offset"][:2] == [0, 3]
    assert choices[1]["text"].startswith("the")
    assert choices[1]["tokens"][:1] == [" the"]
    assert "return the" not in choices[0]["text"]


def test_other_models_refuse(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json=BODY)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")
    assert http.post("/v1/completions", json={**BODY, "suffix": ""}).status_code == 200
