"""/tokenize and /detokenize as vLLM has them: names, nulls, and special tokens.

The kind: two ways from tokens to text that differ in what they leave out. A text that goes through
both routes comes back whole; it could also be lost in further prompts that a target derives from
the text of the first (tests/engine/test_capacity.py and examples/context_aware).
"""

import httpx
import pytest

from tests.server.conftest import MODEL
from tests.server.process import ServeProcess
from tests.tiny import byte_tokenizer, sentencepiece_tokenizer


@pytest.fixture(params=["bytes", "pieces"])
def client(request: pytest.FixtureRequest) -> httpx.Client:
    name = "server" if request.param == "bytes" else "pieces_server"
    running: ServeProcess = request.getfixturevalue(name)
    return running.client()


def test_special_tokens_come_back(client: httpx.Client) -> None:
    with client:
        for text in ("a<eos> is</s>", "Grüße</s>🎉<eos>"):
            body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
            tokens = client.post("/tokenize", json=body).json()["tokens"]
            back = client.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()
            # This tokenizer puts a space before what comes after a special token.
            assert back in ({"prompt": text}, {"prompt": text.replace("</s>🎉", "</s> 🎉")})


def test_pieces_are_the_vocabularys(server: ServeProcess, pieces_server: ServeProcess) -> None:
    body = {"prompt": "a é</s>", "return_token_strs": True}
    for running, tokenizer in (
        (server, byte_tokenizer()),
        (pieces_server, sentencepiece_tokenizer()),
    ):
        with running.client() as client:
            answer = client.post("/tokenize", json=body).json()
        assert answer["tokens"] == tokenizer.encode("a é</s>")
        assert answer["token_strs"] == tokenizer.convert_ids_to_tokens(answer["tokens"])
        assert answer["count"] == len(answer["tokens"])
        assert list(answer) == ["count", "max_model_len", "tokens", "token_strs"]


def test_what_was_not_asked_for_is_null(http: httpx.Client) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    for body in ({"prompt": "a"}, {"prompt": "a", "return_token_strs": False}, {"messages": chat}):
        assert http.post("/tokenize", json=body).json()["token_strs"] is None
    answer = http.post("/tokenize", json={"messages": chat, "return_token_strs": True}).json()
    assert "".join(answer["token_strs"]) == "<user>HiĊ<assistant>"


def test_added_special_tokens(pieces_server: ServeProcess) -> None:
    """A text has those that begin every prompt, a chat only what its template writes."""
    with pieces_server.client() as client:

        def first(**body: object) -> int:
            return client.post("/tokenize", json=body).json()["tokens"][0]

        assert first(prompt="the") == 1
        assert first(prompt="the", add_special_tokens=False) != 1
        chat = [{"role": "user", "content": "the"}]
        assert first(messages=chat) != 1
        assert first(messages=chat, add_special_tokens=True) == 1
