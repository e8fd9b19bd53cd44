"""Legal requests that cost a server most, each kind repeated without end over many connections.

    python -m benchmarks.expensive_requests URL KEY KIND

They run in a process of their own with the lowest priority, so that sending and reading them takes
no core from the server: clients run elsewhere.
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import httpx

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG_TOKENS: Final = 1600
VOCABULARY: Final = 2000
"""Ids below this are ordinary tokens of the embedded model."""
Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`clients`: connections, each with one request after another. `body`: made for a number."""

    clients: int
    body: Callable[[int], Body]
    path: str = COMPLETIONS


def ids(number: int, count: int) -> list[int]:
    """A prompt that begins like no other."""
    rng = Random(number)
    return [rng.randrange(300, VOCABULARY) for _ in range(count)]


def _many(number: int, n: int, tokens: int = 1000, **fields: Any) -> Body:
    """Many choices, which last long and are sent token by token."""
    return {
        "prompt": ids(number, 20),
        "n": n,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        **fields,
    }


def _long(number: int, **fields: Any) -> Body:
    return {"prompt": ids(number, LONG_TOKENS), "max_tokens": 1, **fields}


def _rules(number: int) -> Body:
    """Every rule that changes logits, as large as it may be."""
    return _many(
        number,
        62,
        allowed_token_ids=[3 + i % VOCABULARY for i in range(16_384)],
        bad_words=[f"{i} " + "word " * 48 for i in range(256)],
        logit_bias={str(i): 0.5 for i in range(1024)},
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logprobs=20,
    )


def _big_text(number: int) -> Body:
    words = " ".join(str(Random(number).randrange(10**6)) for _ in range(50_000))
    return {"prompt": words, "truncate_prompt_tokens": 16, "max_tokens": 1}


def _grammars(number: int) -> Body:
    """A large grammar that nobody has compiled yet."""
    rng = Random(number)
    names = ["".join(rng.choices("abcdefghij", k=40)) for _ in range(400)]
    schema = {name: {"type": "string", "pattern": f"^{name[:9]}.{{0,30}}$"} for name in names}
    return {
        "prompt": ids(number, 20),
        "max_tokens": 4,
        "structured_outputs": {
            "json": {"type": "object", "properties": schema, "additionalProperties": False}
        },
    }


def _masks(number: int) -> Body:
    """Masks that take long, for as many rows as there may be."""
    rng = Random(number)
    words = ["".join(rng.choices("abcdefghij", k=1000)) for _ in range(1000)]
    ambiguous = 'start: e\ne: e e | e "+" e | "a" | "b" | /[a-z]{1,9}/'
    structure = {"choice": words} if number % 2 else {"grammar": ambiguous}
    return _many(number, 62, structured_outputs=structure)


KINDS: Final[dict[str, Kind]] = {
    "long-prompts": Kind(clients=64, body=_long),
    "choices": Kind(clients=2, body=lambda i: _many(i, 64)),
    "rules": Kind(clients=2, body=_rules),
    "grammars": Kind(clients=16, body=_grammars),
    "masks": Kind(clients=2, body=_masks),
    "logprobs": Kind(clients=2, body=lambda i: _many(i, 64, logprobs=20)),
    "prompt-logprobs": Kind(clients=16, body=lambda i: _long(i, prompt_logprobs=20)),
    "echo": Kind(clients=16, body=lambda i: _long(i, echo=True, logprobs=20, max_tokens=0)),
    "jacobi": Kind(
        clients=8,
        body=lambda i: _many(i, 8, decoding={"jacobi": {"window": 256, "adaptive": False}}),
    ),
    "lookahead": Kind(
        clients=8, body=lambda i: _many(i, 8, decoding={"lookahead": {"window": 32, "ngram": 16}})
    ),
    "guided": Kind(
        clients=4,
        body=lambda i: _many(
            i, 32, decoding={"cfg": {"scale": 2.0, "negative_prompt": "a story " * 100}}
        ),
    ),
    "beam": Kind(
        clients=8,
        body=lambda i: {
            "prompt": ids(i, 20),
            "max_tokens": 200,
            "ignore_eos": True,
            "decoding": {"beam": {"width": 16}},
        },
    ),
    "tree": Kind(
        clients=16,
        body=lambda i: {
            "prompt": "4 9 10 13",
            "seed": i,
            "decoding": {"tot": {"task": "game24", "breadth": 20, "evaluate_samples": 3}},
        },
    ),
    "best-of": Kind(
        clients=4, body=lambda i: {**_many(i, 1, tokens=500), "stream": False, "best_of": 16}
    ),
    "evicting": Kind(
        clients=4,
        body=lambda i: _many(
            i,
            16,
            tokens=400,
            prompt=ids(i, LONG_TOKENS),
            kv_cache={"h2o": {"heavy": 64, "recent": 64}},
        ),
    ),
    "stop-strings": Kind(
        clients=2, body=lambda i: _many(i, 64, stop=["a" * 255 + chr(65 + k) for k in range(16)])
    ),
    "big-bodies": Kind(clients=16, body=_big_text),
    "tiny": Kind(clients=64, body=lambda i: {"prompt": ids(i, 2), "max_tokens": 1}),
    "urgent": Kind(
        clients=64,
        body=lambda i: {
            "prompt": ids(i, 50),
            "max_tokens": 50,
            "ignore_eos": True,
            "priority": -(2**31 - 1),
        },
    ),
    "batch": Kind(
        clients=2,
        body=lambda i: {
            "prompt": [ids(64 * i + k, 400) for k in range(64)],
            "max_tokens": 40,
            "ignore_eos": True,
        },
    ),
}


async def send(url: str, key: str, kind: Kind) -> None:
    """Requests of one kind without end."""
    numbers = itertools.count(Random().randrange(10**9))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url,
        timeout=600,
        limits=limits,
        trust_env=False,
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    ) as client:

        async def repeat() -> None:
            while True:
                body = json.dumps(kind.body(next(numbers)))
                async with client.stream("POST", kind.path, content=body) as answer:
                    refused = answer.status_code == 429
                    if answer.status_code not in (200, 429):
                        await answer.aread()
                        raise RuntimeError(f"{answer.status_code}: {answer.text[:500]}")
                    async for _ in answer.aiter_raw():
                        pass
                if refused:  # sooner than it was told to: it is no polite client
                    await asyncio.sleep(0.2)

        async with asyncio.TaskGroup() as group:
            for _ in range(kind.clients):
                group.create_task(repeat())


def main() -> int:
    """Send until terminated."""
    url, key, name = sys.argv[1:]
    os.nice(19)  # weighs 15 where the server weighs 1024
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(send(url, key, KINDS[name]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
