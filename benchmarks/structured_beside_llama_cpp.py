"""Answers held to a schema, beside llama-server: the same weights, schema and prompts, in turns.

    python benchmarks/structured_beside_llama_cpp.py --model FOLDER --gguf F32.gguf \
        --llama-server PATH [--streams 1 4 16] [--rounds 5]

Both servers answer the same chats through /v1/chat/completions with `response_format`, temperature
0, each with prefix caching off. JSON may have white space with llama-server and has none here, so
what counts is the time of an answer, and of a character of its compact JSON.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import httpx
import jsonschema

from benchmarks.provenance import ROOT, Provenance
from benchmarks.results import write
from benchmarks.server_process import ServerProcess, free_port, penstock_server
from benchmarks.structured import SCHEMA
from penstock.bench.report import plain_table

OUTPUT: Final = ROOT / "benchmarks" / "results" / "structured_beside_llama_cpp.csv"
FORM: Final = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
PEOPLE: Final = ("a baker", "a nurse", "a sailor", "a teacher", "a farmer", "a singer", "a judge")


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        urls = {name: stack.enter_context(server).url for name, server in _servers(options).items()}
        for streams in options.streams:
            rows += asyncio.run(measure(urls, streams, options.rounds))
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    print("\n".join(plain_table(lines)))
    write(options.output, rows, Provenance.now("torch", "llguidance"))
    return 0


def _servers(options: argparse.Namespace) -> dict[str, ServerProcess]:
    port = free_port()
    command = [options.llama_server, "-m", options.gguf, "--host", "127.0.0.1", "--port"]
    command += [str(port), "-np", str(max(options.streams)), "-c", "32768", "-t", "2"]
    command += [
        "-fa",
        "on",
        "--no-webui",
        "-ctk",
        "f32",
        "-ctv",
        "f32",
        "--cache-ram",
        "0",
        "--no-cache-prompt",
    ]
    return {
        "penstock": penstock_server(
            [options.model, "--dtype", "float32", "--no-prefix-cache", "--threads", "2"]
        ),
        "llama-server": ServerProcess(command, url=f"http://127.0.0.1:{port}"),
    }


async def measure(urls: dict[str, str], streams: int, rounds: int) -> list[dict[str, Any]]:
    """Medians over the rounds, of which the first is thrown away."""
    spent_s: dict[str, list[float]] = {name: [] for name in urls}
    characters: dict[str, list[int]] = {name: [] for name in urls}
    tokens: dict[str, list[int]] = {name: [] for name in urls}
    for number in range(rounds + 1):
        for name, url in urls.items():
            began_s = time.perf_counter()
            answers = await _answers(url, streams, number)
            took_s = time.perf_counter() - began_s
            if number:
                spent_s[name].append(took_s)
                characters[name].append(sum(size for size, _ in answers))
                tokens[name].append(sum(count for _, count in answers))
    each = {
        name: statistics.median(s / c for s, c in zip(spent_s[name], characters[name], strict=True))
        for name in urls
    }
    return [
        {
            "streams": streams,
            "server": name,
            "answers_per_s": round(streams / statistics.median(spent_s[name]), 3),
            "tokens_per_s": round(sum(tokens[name]) / sum(spent_s[name]), 1),
            "characters_per_s": round(1 / each[name], 1),
            "speed_over_llama_server": round(each["llama-server"] / each[name], 3),
            "rounds": rounds,
        }
        for name in urls
    ]


async def _answers(url: str, streams: int, number: int) -> list[tuple[int, int]]:
    """Of each answer: characters of its compact JSON, and tokens."""
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        return await asyncio.gather(
            *(_answer(client, number * streams + index) for index in range(streams))
        )


async def _answer(client: httpx.AsyncClient, number: int) -> tuple[int, int]:
    who = f"{PEOPLE[number % len(PEOPLE)]} number {number}"
    response = await client.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": f"Describe {who} as JSON."}],
            "response_format": FORM,
            "temperature": 0,
            "max_tokens": 400,
        },
    )
    response.raise_for_status()
    answer = response.json()
    said = json.loads(answer["choices"][0]["message"]["content"])
    jsonschema.validate(said, SCHEMA)
    compact = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    return len(compact), answer["usage"]["completion_tokens"]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
