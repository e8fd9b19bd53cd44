"""One real server for all of these tests, and the official client for it."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.server.process import ServeProcess
from tests.tiny import save_tiny, sentencepiece_tokenizer, token_of

MODEL = "tiny"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PENSTOCK_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("server") / "llama")


@pytest.fixture(scope="session")
def slow_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough (28M weights) that 500 tokens take a second or more on one thread."""
    folder = tmp_path_factory.mktemp("slow") / "llama"
    return save_tiny("llama", folder, hidden_size=512, intermediate_size=2048, num_hidden_layers=8)


@pytest.fixture(scope="session")
def server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """`penstock serve` with a tiny random Llama and one token a byte."""
    arguments = [str(tiny_llama), "--served-model-name", MODEL, "--threads", "1"]
    arguments += ["--kv-cache-memory", "8000000", "--stats-interval-s", "1"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ServeProcess(arguments, log) as running:
        yield running


@pytest.fixture(scope="session")
def pieces_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A tiny random Llama with SentencePiece-like tokens, bytes as likely as their letters."""
    tokenizer = sentencepiece_tokenizer()
    byte_of = {letter: token_of(tokenizer, f"<0x{ord(letter):02X}>") for letter in "aeiost"}
    folder = save_tiny(
        "llama",
        tmp_path_factory.mktemp("pieces") / "llama",
        tokenizer=tokenizer,
        vocab_size=len(tokenizer) + 40,
        twins={byte_of[letter]: token_of(tokenizer, letter) for letter in byte_of},
        bos_token_id=1,
        eos_token_id=2,
    )
    arguments = [str(folder), "--served-model-name", MODEL, "--threads", "1"]
    log = tmp_path_factory.mktemp("log") / "pieces.log"
    with ServeProcess([*arguments, "--kv-cache-memory", "8000000"], log) as running:
        yield running


@pytest.fixture
def http(server: ServeProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def client(server: ServeProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60
    ) as sdk:
        yield sdk


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever used the server leaves it with nothing running and no page held."""
    yield
    if "server" in request.fixturenames:
        running: ServeProcess = request.getfixturevalue("server")
        running.wait_idle()
