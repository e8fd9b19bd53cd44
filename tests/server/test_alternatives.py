"""As many alternatives as were asked for, whatever their tokens are called.

The kind: answers in which tokens are keys, or lists that a client makes a dictionary of. Two ids
may have one text (SentencePiece has `<0x41>` and `A`), and an id may have none (an embedding that
was padded beyond the tokenizer): what is keyed by text then loses entries. It could also occur in
chats, whose list clients turn into a dictionary, and in prompt logprobs, which are keyed by id.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from penstock.engine.requests.tokenizer import Tokenizer
from tests.server.process import ServeProcess
from tests.tiny import byte_tokenizer, sentencepiece_tokenizer

ASKED = 20
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "padded": byte_tokenizer,
    "twins": sentencepiece_tokenizer,
}
BODY: dict[str, Any] = {"temperature": 1.5, "seed": 5, "max_tokens": 40, "ignore_eos": True}


class Ask:
    """A server and its tokenizer."""

    def __init__(self, client: httpx.Client, tokenizer: Tokenizer) -> None:
        self.client = client
        self.tokenizer = tokenizer

    def one(self, route: str, **fields: Any) -> dict[str, Any]:
        answer = self.client.post(route, json={**BODY, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, route: str, **fields: Any) -> list[dict[str, Any]]:
        """The choices of all chunks."""
        answer = self.client.post(route, json={**BODY, **fields, "stream": True})
        data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        return [choice for line in data for choice in json.loads(line)["choices"]]

    def text(self, token_id: int) -> str:
        return self.tokenizer.token_text(token_id)


@pytest.fixture(params=list(TOKENIZERS))
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    name = "server" if request.param == "padded" else "pieces_server"
    running: ServeProcess = request.getfixturevalue(name)
    with running.client() as client:
        yield Ask(client, Tokenizer(TOKENIZERS[request.param]()))


def check(ask: Ask, lists: dict[str, Any], ids: list[int]) -> None:
    """`ids`: the tokens themselves."""
    named_by_id = 0
    for token, logprob, top, token_id in zip(
        lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], ids, strict=True
    ):
        if logprob is None:
            continue
        beside = logprob < min(value for key, value in top.items() if key != token)
        assert len(top) == ASKED + beside
        assert top[token] == logprob
        for key in top:
            if key.startswith("token_id:"):
                named_by_id += 1
                text = ask.text(int(key.removeprefix("token_id:")))
                # Without a text, or one that a likelier token has.
                assert not text or top[text] >= top[key]
        if token.startswith("token_id:"):
            assert token == f"token_id:{token_id}"
        elif not token.startswith("bytes:"):
            assert token == ask.text(token_id)
    assert named_by_id > 10


def test_completions(ask: Ask) -> None:
    fields = {"prompt": "that is a cat", "logprobs": ASKED, "return_token_ids": True}
    (choice,) = ask.one("/v1/completions", **fields)["choices"]
    check(ask, choice["logprobs"], choice["token_ids"])
    chunks = ask.stream("/v1/completions", **fields)
    streamed = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"]]
    for name, values in choice["logprobs"].items():
        assert [item for part in streamed for item in part[name]] == values


def test_an_echoed_prompt(ask: Ask) -> None:
    prompt = "that is a cat" * 4
    fields = {"prompt": prompt, "echo": True, "max_tokens": 0}
    answer = ask.one("/v1/completions", **fields, logprobs=ASKED, prompt_logprobs=ASKED)
    (choice,) = answer["choices"]
    ids = ask.tokenizer.encode(prompt)
    check(ask, choice["logprobs"], ids)
    # vLLM's form is keyed by id: as many entries, of the same values.
    by_id = choice["prompt_logprobs"]
    assert len(by_id) == len(ids)
    for place, top, token_id in zip(by_id, choice["logprobs"]["top_logprobs"], ids, strict=True):
        if place is None:
            assert top is None
            continue
        assert [entry["logprob"] for entry in place.values()] == list(top.values())
        assert str(token_id) in place
        for key, entry in place.items():
            assert entry["decoded_token"] == ask.text(int(key))


@pytest.mark.parametrize("stream", [False, True])
def test_chats(server: ServeProcess, *, stream: bool) -> None:
    with server.client() as client:
        ask = Ask(client, Tokenizer(byte_tokenizer()))
        fields = {"logprobs": True, "top_logprobs": ASKED, "return_token_ids": True}
        fields |= {"messages": [{"role": "user", "content": "that is a cat"}]}
        if stream:
            chunks = ask.stream("/v1/chat/completions", **fields)
            ids = [token for chunk in chunks for token in chunk.get("token_ids", ())]
            parts = [chunk["logprobs"]["content"] for chunk in chunks if chunk["logprobs"]]
            content = [entry for part in parts for entry in part]
        else:
            (choice,) = ask.one("/v1/chat/completions", **fields)["choices"]
            content, ids = choice["logprobs"]["content"], choice["token_ids"]
    without_token = 0
    for entry, token_id in zip(content, ids, strict=True):
        top = {one["token"]: one for one in entry["top_logprobs"]}
        assert len(top) == ASKED
        if entry["token"] in top:
            assert top[entry["token"]]["logprob"] == entry["logprob"]
        for one in [entry, *entry["top_logprobs"]]:
            if one["token"].startswith("token_id:"):
                assert one["bytes"] is None
                without_token += 1
            elif one["token"].startswith("bytes:"):
                assert one["bytes"][0] >= 0x80
            else:
                assert bytes(one["bytes"]).decode() == one["token"]
        if entry["bytes"] is not None:
            assert bytes(entry["bytes"]) == ask.tokenizer.token_bytes(token_id)
    assert without_token > 10
