"""An engine that says what a test tells it to, behind the real server, in this process.

For what a real engine does not do on command: fail half-way, be full, hang. The tokenizer, the
intake, uvicorn and the connections are the real ones.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import openai
from prometheus_client import CollectorRegistry

from penstock.decoding.base import DecodingMethod
from penstock.decoding.plain import PLAIN
from penstock.decoding.search.base import SearchLimits
from penstock.decoding.search.budget import Budget
from penstock.engine.adapters.served import ServedAdapter
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.grammar_vocabulary import grammars_of
from penstock.engine.requests.input_processor import InputProcessor
from penstock.engine.requests.limits import Limits
from penstock.engine.requests.tokenizer import Tokenizer
from penstock.engine.requests.traits import ModelTraits
from penstock.engine.state.request import ChoiceDelta, Request, TokenLogprobs, Usage
from penstock.errors import PenstockError
from penstock.kvcache.base import CachePolicy
from penstock.kvcache.full import FULL
from penstock.registry import Registry
from penstock.server.app import create_app
from penstock.server.backend import Backend
from penstock.server.commands.serve import bind, make_server
from penstock.server.settings.serve import ServeSettings
from tests.tiny import EOS, VOCAB, byte_tokenizer

MODEL = "scripted"
CONTEXT = 512
DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    id: str = MODEL
    created: int = 1_700_000_000
    max_length_tokens: int = CONTEXT


@dataclass(slots=True, kw_only=True)
class Stats:
    running: int = 0
    waiting: int = 0
    pages_in_use: int = 0
    pages_total: int = 8
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0


@dataclass(slots=True)
class Script:
    """What every request is answered with.

    `deltas`: sent one after another. `error`: raised after them. `forever`: instead of an end,
    wait to be aborted. `refuse`: submissions beyond the first `accept` raise it.
    """

    deltas: list[ChoiceDelta] = field(default_factory=list[ChoiceDelta])
    error: Exception | None = None
    forever: bool = False
    refuse: PenstockError | None = None
    accept: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


class ScriptedGeneration:
    def __init__(self, request: Request, script: Script) -> None:
        self.request = request
        self.usage = Usage(prompt_tokens=len(request.prompt_ids))
        self.prompt_logprobs = script.prompt_logprobs
        self.trace = None
        self.aborted = asyncio.Event()
        self.ended = False
        self.script = script

    async def __aiter__(self) -> AsyncIterator[ChoiceDelta]:
        for delta in self.script.deltas:
            await asyncio.sleep(0)
            if self.aborted.is_set():
                return
            self.usage.completion_tokens += len(delta.token_ids)
            self.usage.steps += 1
            yield delta
        if self.script.error is not None:
            raise self.script.error
        if self.script.forever:
            await self.aborted.wait()
        self.ended = True

    def ready(self) -> list[ChoiceDelta]:
        return []

    def abort(self) -> None:
        self.aborted.set()


class ScriptedEngine:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.model = Model()
        self.tokenizer = Tokenizer(byte_tokenizer(), [EOS])
        self.input_processor = InputProcessor(
            model=ModelTraits(
                tokenizer=self.tokenizer,
                vocab_size=VOCAB,
                eos_token_ids=frozenset([EOS]),
                defaults={},
                can_evict=True,
            ),
            limits=Limits(
                max_length_tokens=CONTEXT,
                context_tokens=CONTEXT,
                max_sequences=64,
                pages=1024,
                page_size=16,
            ),
            decoding=Registry[DecodingMethod[Any]]("decoding", [PLAIN]),
            kv_cache=Registry[CachePolicy[Any]]("kv_cache", [FULL]),
            search_limits=SearchLimits(
                budget=Budget(thoughts=100, sequences=16, tokens=10_000, seconds=60)
            ),
            grammars=grammars_of(self.tokenizer, VOCAB),
        )
        self.generations: list[ScriptedGeneration] = []
        self.snapshot = Stats()
        self.unhealthy: PenstockError | None = None
        self.adapters: dict[str, ServedAdapter] = {}

    async def load_adapter(
        self, name: str, folder: Path, *, created: int, replace: bool = False
    ) -> ServedAdapter:
        del folder, replace
        self.adapters[name] = ServedAdapter(name=name, key=f"{name}#1", created=created)
        return self.adapters[name]

    def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    def start(self) -> None:
        pass

    async def stop(self, drain_s: float) -> None:
        del drain_s
        for generation in self.generations:
            generation.abort()

    def submit(self, request: Request) -> ScriptedGeneration:
        if self.script.refuse is not None and len(self.generations) >= self.script.accept:
            raise self.script.refuse
        generation = ScriptedGeneration(request, self.script)
        self.generations.append(generation)
        return generation

    def stats(self) -> Stats:
        return self.snapshot

    def check_health(self) -> None:
        if self.unhealthy is not None:
            raise self.unhealthy


def real_engine(folder: Path, registry: CollectorRegistry, **config: Any) -> AsyncEngine:
    """A real engine for a `ScriptedServer` to load: in a thread of this process."""
    fields: dict[str, Any] = {"model": str(folder), "threads": 1, "kv_cache_memory": 8_000_000}
    return AsyncEngine.load(
        EngineConfig(**fields | config), registry=registry, clock=time.monotonic
    )


class ScriptedServer:
    """The real server around a scripted engine, on a thread of this process."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        load: Callable[[], Backend] | None = None,
        **settings: Any,
    ) -> None:
        self.engine = ScriptedEngine(script or Script())
        self.registry = CollectorRegistry()
        defaults: dict[str, Any] = {"port": 0, "shutdown_timeout_s": 0.0}
        self.settings = ServeSettings(**defaults | settings)
        self.app = create_app(
            self.settings,
            load or (lambda: self.engine),
            registry=self.registry,
            clock=time.monotonic,
            wall_clock=lambda: 1_700_000_000.5,
        )
        self.server = make_server(self.app, self.settings)
        self._thread = threading.Thread(
            target=self.server.run, args=[[bind(self.settings)]], name="scripted server"
        )

    @property
    def port(self) -> int:
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, timeout=DEADLINE_S, trust_env=False, verify=False, **options
        )

    def sdk(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="x", max_retries=0, timeout=20)

    def wait(self) -> None:
        """Wait for the server to end by itself."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.should_exit = True
        self.wait()


def until(condition: Callable[[], object], *, deadline_s: float = DEADLINE_S) -> None:
    """Poll until the condition holds; fail after the deadline."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.005)


@contextmanager
def scripted(script: Script | None = None, **options: Any) -> Generator[ScriptedServer]:
    """A ready server for the length of a block."""
    with ScriptedServer(script, **options) as server:
        with server.client() as client:
            until(lambda: client.get("/health").status_code == 200)
        yield server


def text_deltas(*texts: str, index: int = 0, end: str = "stop") -> list[ChoiceDelta]:
    """One delta a text, with the byte tokenizer's ids; the last one ends the choice."""
    tokenizer = byte_tokenizer()
    return [
        ChoiceDelta(
            index=index,
            text=text,
            token_ids=tuple(tokenizer.encode(text)),
            finish_reason=end if number == len(texts) else None,  # type: ignore[arg-type]
        )
        for number, text in enumerate(texts, start=1)
    ]
