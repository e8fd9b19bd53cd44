"""`text[text_offset:]` begins with the token's text: one account of texts and places.

The kind is told in tests/engine/test_capacity.py; here it goes over HTTP, where a third text could
come in: the prompt as it is sent back.
"""

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import httpx
import pytest

from penstock.engine.requests.tokenizer import Tokenizer
from tests.server.process import ServeProcess
from tests.tiny import byte_tokenizer, sentencepiece_tokenizer

BODY: dict[str, Any] = {
    "temperature": 1.5,
    "seed": 3,
    "max_tokens": 24,
    "logprobs": 2,
    "return_token_ids": True,
}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "bytes": {
        "words": {"prompt": "the cat"},
        "special tokens": {"prompt": "a<eos>b<eos>"},
        "characters of several tokens": {"prompt": "Grüße 世界 🎉"},
        "ids": {"prompt": [66, 256, 67, 171, 198, 66, 256]},
        "half a character": {"prompt": [171, 198]},
        "truncated": {"prompt": "世界 a<eos>b", "truncate_prompt_tokens": 8},
        "several": {"prompt": ["the cat", "é<eos>"]},
        "several of ids": {"prompt": [[66, 256], [198, 67]], "n": 2},
        "end token": {"prompt": "x", "logit_bias": {"300": 100}},
        "unknown tokens": {"prompt": "x", "allowed_token_ids": [66, 67, 310, 171, 198]},
        "stop string": {"prompt": "x", "allowed_token_ids": [66, 67, 68], "stop": ["dc"]},
    },
    "pieces": {
        "words": {"prompt": "the cat is a cat"},
        "special tokens": {"prompt": "<s>the</s> cat </s>"},
        "characters of several tokens": {"prompt": "é世界 the 🎉"},
        "ids": {"prompt": [1, 356, 362, 2, 198, 172, 356]},
        "ids without a beginning": {"prompt": [356, 356, 1, 356]},
        "truncated": {"prompt": "é the</s> cat is a", "truncate_prompt_tokens": 5},
        "only words": {"prompt": "the", "allowed_token_ids": [356, 362, 347, 259]},
        "bytes of characters": {"prompt": "the", "allowed_token_ids": [198, 172, 356]},
        "stop string": {"prompt": "x", "allowed_token_ids": [356, 362], "stop": ["e c"]},
        "end token": {"prompt": "the", "logit_bias": {"2": 100}},
    },
}


class Ask:
    def __init__(self, client: httpx.Client, tokenizer: Tokenizer) -> None:
        self.client = client
        self.tokenizer = tokenizer

    def whole(self, **fields: Any) -> list[dict[str, Any]]:
        answer = self.client.post("/v1/completions", json={**BODY, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"]

    def streamed(self, **fields: Any) -> list[dict[str, Any]]:
        """The choices, put together from their chunks."""
        answer = self.client.post("/v1/completions", json={**BODY, **fields, "stream": True})
        assert answer.status_code == 200, answer.text
        choices: dict[int, dict[str, Any]] = {}
        for line in answer.text.splitlines():
            if not line.startswith("data: {"):
                continue
            for chunk in json.loads(line[6:])["choices"]:
                fresh = {"text": "", "token_ids": [], "prompt_token_ids": [], "logprobs": {}}
                choice = choices.setdefault(chunk["index"], fresh)
                choice["text"] += chunk["text"]
                for name in ("token_ids", "prompt_token_ids"):
                    choice[name] += chunk.get(name, [])
                for name, values in (chunk["logprobs"] or {}).items():
                    choice["logprobs"].setdefault(name, []).extend(values)
        return [choices[index] for index in sorted(choices)]


@pytest.fixture
def asks(server: ServeProcess, pieces_server: ServeProcess) -> Iterator[dict[str, Ask]]:
    with server.client() as first, pieces_server.client() as second:
        yield {
            "bytes": Ask(first, Tokenizer(byte_tokenizer(), [300])),
            "pieces": Ask(second, Tokenizer(sentencepiece_tokenizer(), [2])),
        }


def is_there(ask: Ask, token_id: int, rest: str) -> bool:
    """Whether `rest` begins with the token, as far as it goes, or with a character of its bytes."""
    raw = ask.tokenizer.token_bytes(token_id)
    if not raw or not rest:
        return True
    try:
        spelled = raw.decode()
    except UnicodeDecodeError:
        return raw in rest[0].encode() or rest[0] == "\ufffd"
    if ask.tokenizer.token_piece(token_id).startswith("<0x") and rest[0] == "\ufffd":
        return True  # a byte among broken ones
    return rest.startswith(spelled) or spelled.startswith(rest)


@pytest.mark.parametrize(
    ("kind", "case"), [(kind, case) for kind, cases in CASES.items() for case in cases]
)
def test_capacity(asks: dict[str, Ask], kind: str, case: str) -> None:
    ask, fields = asks[kind], CASES[kind][case]
    prompts = fields["prompt"] if isinstance(fields["prompt"], list) else [fields["prompt"]]
    for echo, stream in product((False, True), repeat=2):
        choices = (ask.streamed if stream else ask.whole)(**fields, echo=echo)
        for choice in choices:
            text, lists = choice["text"], choice["logprobs"]
            prompt = choice["prompt_token_ids"] if echo else []
            ids = [*prompt, *choice["token_ids"]]
            places = lists["text_offset"]
            assert len(ids) == len(places) == len(lists["tokens"])
            assert places == sorted(places)
            special = ask.tokenizer.special_ids
            for number, (token_id, place) in enumerate(zip(ids, places, strict=True)):
                if is_there(ask, token_id, text[place:]):
                    continue
                if token_id in special:
                    # Skipped: not a word of the prompt.
                    assert not isinstance(prompts[0], str) or number >= len(prompt) or not place
                    continue
                # The tokenizer puts a space before a text, and behind special tokens.
                assert kind == "pieces", (text, ids, number, place)
                assert not number or ids[number - 1] in special or not text[:place]
                assert is_there(ask, token_id, " " + text[place:]), (text, ids, number, place)


@pytest.mark.parametrize(
    ("kind", "case"), [(kind, case) for kind, cases in CASES.items() for case in cases]
)
def test_streams_say_the_same(asks: dict[str, Ask], kind: str, case: str) -> None:
    ask, fields = asks[kind], CASES[kind][case]
    for echo in (False, True):
        whole = ask.whole(**fields, echo=echo)
        for one, streamed in zip(whole, ask.streamed(**fields, echo=echo), strict=True):
            assert streamed == {name: one[name] for name in streamed}


def test_the_echo_is_the_callers_own_text(asks: dict[str, Ask]) -> None:
    for kind, prompt in product(asks, ("the <eos>cat</s>", " é  the", "<s>the")):
        (choice,) = asks[kind].whole(prompt=prompt, echo=True, max_tokens=0)
        assert choice["text"] == prompt
        tail = asks[kind].whole(prompt=prompt, echo=True, max_tokens=0, truncate_prompt_tokens=3)
        assert tail[0]["text"]
        assert prompt.endswith(tail[0]["text"])
