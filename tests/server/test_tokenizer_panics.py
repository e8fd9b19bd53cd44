"""A panic of the Rust tokenizer is answered as any other failure is.

The kind: an error that is no `Exception`, and passes every handler but the last. It can occur
wherever the library is called: prompts, chats, texts of /tokenize, tokens of /detokenize, and on
the event loop, where tokens become text (tests/engine/test_async_engine.py).
"""

from typing import Any

import pytest
from tokenizers import Regex, decoders, pre_tokenizers

from tests.server.templated import templated
from tests.tiny import byte_tokenizer

ENDLESS = "(x+x+)+y"
TEXT = "x" * 40


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "scripted", "prompt": TEXT}, "prompt"),
        (
            "/v1/chat/completions",
            {"model": "scripted", "messages": [{"role": "user", "content": TEXT}]},
            "messages",
        ),
        ("/tokenize", {"prompt": TEXT}, "prompt"),
    ],
    ids=["completions", "chats", "tokenize"],
)
def test_texts_that_the_tokenizer_cannot_read(path: str, body: dict[str, Any], param: str) -> None:
    hf = byte_tokenizer()
    backend: Any = hf.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(ENDLESS), "isolated"), backend.pre_tokenizer]
    )
    with templated(tokenizer=hf) as server, server.client() as client:
        answer = client.post(path, json=body, timeout=120)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("tokenizer_error", param)
        assert "regex" not in error["message"].lower()
        short = {"model": "scripted", "prompt": "short"}
        assert client.post("/v1/completions", json=short).status_code == 200


def test_tokens_that_the_tokenizer_cannot_spell() -> None:
    hf = byte_tokenizer()
    backend: Any = hf.backend_tokenizer
    ids = backend.encode(TEXT).ids
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex(ENDLESS), "")])
    with templated(tokenizer=hf) as server, server.client() as client:
        answer = client.post("/detokenize", json={"tokens": ids}, timeout=120)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "tokenizer_error"
