"""GGUF files served beside llama-server: the same files and prompts, streaming over HTTP, in turns.

    python benchmarks/gguf_beside_llama_cpp.py --gguf FILE ... --llama-server PATH
        [--streams 1 4 16] [--shapes 64/64 1000/64 4000/1] [--rounds 3]

Both servers answer /v1/completions for prompts of token ids, greedily, without ends and without
prefix caches, one file after the other. A shape is tokens in and out; of one token out the time to
it counts, with one stream. llama.cpp's cache holds half precision, its default; ours the model's.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import httpx
import psutil

from benchmarks.provenance import ROOT, Provenance
from benchmarks.results import write
from benchmarks.server_process import ServerProcess, free_port, penstock_server
from penstock.bench.report import plain_table

OUTPUT: Final = ROOT / "benchmarks" / "results" / "gguf_beside_llama_cpp.csv"
OURS: Final = "penstock"
THEIRS: Final = "llama-server"
TOKENS: Final = range(1000, 20_000)
"""Token ids of prompts: ordinary ones in any vocabulary."""
CONTEXT: Final = 32_768


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    rows: list[dict[str, Any]] = []
    for path in options.gguf:
        with ExitStack() as stack:
            servers = {
                name: stack.enter_context(server)
                for name, server in _servers(path, options).items()
            }
            for shape in options.shapes:
                inputs, outputs = map(int, shape.split("/"))
                for streams in options.streams if outputs > 1 else [1]:
                    case = _Case(streams, inputs, outputs)
                    rows += asyncio.run(measure(path, servers, case, options.rounds))
                    print(rows[-2], flush=True)
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    print("\n".join(plain_table(lines)))
    write(options.output, rows, Provenance.now("torch", "transformers", "gguf"))
    return 0


class _Case:
    """`streams` at a time, each of so many tokens in and out."""

    def __init__(self, streams: int, inputs: int, outputs: int) -> None:
        self.streams, self.inputs, self.outputs = streams, inputs, outputs

    def bodies(self, number: int) -> list[dict[str, Any]]:
        """Requests of a round; no two prompts begin alike."""
        source = Random(f"{self.inputs} {number}")
        return [
            {
                "prompt": source.choices(TOKENS, k=self.inputs),
                "max_tokens": self.outputs,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            for _ in range(self.streams)
        ]


def _servers(path: Path, options: argparse.Namespace) -> dict[str, ServerProcess]:
    port = free_port()
    command = [options.llama_server, "-m", str(path), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-np", str(max(options.streams)), "-c", str(CONTEXT), "-t", str(options.threads)]
    command += ["-fa", "on", "--no-webui", "--cache-ram", "0", "--no-cache-prompt", "-kvu"]
    ours = [str(path), "--no-prefix-cache", "--threads", str(options.threads)]
    ours += ["--kv-cache-memory", str(options.cache_bytes)]
    return {
        OURS: penstock_server(ours),
        THEIRS: ServerProcess(command, url=f"http://127.0.0.1:{port}"),
    }


async def measure(
    path: Path, servers: dict[str, ServerProcess], case: _Case, rounds: int
) -> list[dict[str, Any]]:
    """Medians over the rounds, of which the first is thrown away."""
    spent_s: dict[str, list[float]] = {name: [] for name in servers}
    first_s: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(rounds + 1):
        for name, server in servers.items():
            began_s = time.perf_counter()
            firsts = await _answers(server.url, case.bodies(number))
            took_s = time.perf_counter() - began_s
            if number:
                spent_s[name].append(took_s)
                first_s[name].append(statistics.median(firsts))
    ratios = [theirs / ours for ours, theirs in zip(spent_s[OURS], spent_s[THEIRS], strict=True)]
    return [
        {
            "file": path.stem,
            "streams": case.streams,
            "tokens_in": case.inputs,
            "tokens_out": case.outputs,
            "server": name,
            "output_tokens_per_s": round(
                case.streams * case.outputs / statistics.median(spent_s[name]), 1
            ),
            "first_token_s": round(statistics.median(first_s[name]), 3),
            "speed_over_llama_server": round(statistics.median(ratios), 2) if name == OURS else 1.0,
            "least": round(min(ratios), 2) if name == OURS else 1.0,
            "most": round(max(ratios), 2) if name == OURS else 1.0,
            "resident_MiB": psutil.Process(server.pid).memory_info().rss >> 20,
            "rounds": rounds,
        }
        for name, server in servers.items()
    ]


async def _answers(url: str, bodies: list[dict[str, Any]]) -> list[float]:
    """Seconds to the first token of each answer."""
    async with httpx.AsyncClient(base_url=url, timeout=1800, trust_env=False) as client:
        return await asyncio.gather(*(_answer(client, body) for body in bodies))


async def _answer(client: httpx.AsyncClient, body: dict[str, Any]) -> float:
    began_s, first_s, tokens = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event.get("choices") and first_s is None:
                first_s = time.perf_counter() - began_s
            if usage := event.get("usage"):
                tokens = usage["completion_tokens"]
    assert first_s is not None, "an answer without a token"
    assert tokens in (0, body["max_tokens"]), f"{tokens} tokens"
    return first_s


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, nargs="+", required=True)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--shapes", nargs="+", default=["64/64", "1000/64", "4000/1"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-bytes", type=int, default=2 << 30)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
