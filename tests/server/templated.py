"""The scripted server with a chat template, or a whole tokenizer, of the test's own."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
from transformers import PreTrainedTokenizerFast

from penstock.engine.requests.tokenizer import Tokenizer
from tests.server.scripted import (
    CONTEXT,
    Script,
    ScriptedEngine,
    ScriptedServer,
    text_deltas,
    until,
)
from tests.tiny import EOS, byte_tokenizer

LONGEST = 8 * CONTEXT


@contextmanager
def templated(
    template: str | dict[str, str] | None = None,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Generator[ScriptedServer]:
    """A ready server. `options`: of its `Tokenizer`."""
    hf = tokenizer or byte_tokenizer()
    if template is not None:
        hf.chat_template = template
    engine = ScriptedEngine(Script(deltas=text_deltas("ok")))
    engine.tokenizer = Tokenizer(hf, [EOS], **(options or {}))
    engine.tokenizer.prepare()
    known = engine.input_processor
    engine.input_processor = replace(
        known,
        model=replace(known.model, tokenizer=engine.tokenizer, vocab_size=1000),
        limits=replace(known.limits, max_length_tokens=LONGEST, context_tokens=LONGEST),
    )
    with ScriptedServer(load=lambda: engine, **settings) as server:
        server.engine = engine
        with server.client() as client:
            until(lambda: client.get("/health").status_code == 200)
        yield server


def prompt_of(client: httpx.Client, messages: list[dict[str, Any]], **more: Any) -> str:
    """The text of a chat's prompt, by way of its tokens."""
    answer = client.post("/tokenize", json={"messages": messages, **more})
    assert answer.status_code == 200, answer.text
    return text_of(client, answer.json()["tokens"])


def text_of(client: httpx.Client, ids: list[int]) -> str:
    return client.post("/detokenize", json={"tokens": ids}).json()["prompt"]
