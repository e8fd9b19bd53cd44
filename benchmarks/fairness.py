"""What the most expensive legal requests of one caller cost another: `make fairness`.

    python benchmarks/fairness.py [--seconds 5] [--kinds rules choices] [--python OTHER/bin/python]

One server of the embedded model, two API keys. The caller that is measured streams a chat, and
begins a short chat about once a second; the other sends each kind of `expensive_requests.py` in
turn. Before and after each kind the same is measured without it, and the mean of both is "alone":
a machine on which others work is not always as fast.

Bounds: the time between two tokens of the stream is at most 3 times that alone, and a short chat
has its first token within 1 s. On small and busy machines single gaps say little, so the mean of
each half second counts, and of those the median; p99 stands beside it, and the same alone. Of the
first tokens the slowest but one counts. Status 1 where a bound is missed.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import results
from benchmarks.beside import idle
from benchmarks.expensive_requests import KINDS
from benchmarks.provenance import ROOT, Provenance
from benchmarks.server_process import ServerProcess, exit_on_terminate, free_port

RESULTS: Final = ROOT / "benchmarks" / "results" / "fairness.csv"
MOST_TIMES: Final = 3.0
MOST_FIRST_S: Final = 1.0
WINDOW_S: Final = 0.5
WARM_S: Final = 1.0
"""Since the other's first requests are there, not counted."""
BEGIN_S: Final = 60.0
"""That they may take until then."""
VICTIM, OTHER = "sk-measured", "sk-other"


@dataclass(slots=True)
class Seen:
    """What the measured caller saw: times of the stream's tokens, and until first tokens, in s."""

    tokens_s: list[float] = field(default_factory=list[float])
    first_s: list[float] = field(default_factory=list[float])

    @property
    def gaps_s(self) -> list[float]:
        """Between tokens of one stream, in order of size."""
        return sorted(b - a for a, b in zip(self.tokens_s, self.tokens_s[1:], strict=False))

    def windows_s(self, until_s: float) -> list[float]:
        """Mean time between tokens of each window; a window without any counts as one gap."""
        began_s, found = self.tokens_s[0], list[float]()
        while began_s + WINDOW_S <= until_s:
            inside = sum(began_s <= at < began_s + WINDOW_S for at in self.tokens_s)
            found.append(WINDOW_S / max(1, inside))
            began_s += WINDOW_S
        return found


async def events(client: httpx.AsyncClient, prompt: str, tokens: int) -> AsyncIterator[float]:
    """Times at which tokens of a chat come."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            raise RuntimeError(f"{answer.status_code}: {answer.text[:500]}")
        async for line in answer.aiter_lines():
            if '"content":"' in line and '"content":""' not in line:
                yield time.perf_counter()


async def watch(client: httpx.AsyncClient, seconds: float) -> Seen:
    """Stream, and begin short chats, for so long."""
    seen = Seen()

    async def stream() -> None:
        while True:
            # Shorter than its stories: behind their end there is nothing to see.
            async for at_s in events(client, "Write a story about a dragon and a key.", 150):
                seen.tokens_s.append(at_s)

    async def short() -> None:
        while True:
            began_s = time.perf_counter()
            first = True
            async for at_s in events(client, f"What is a dog? ({began_s})", 8):
                if first:
                    seen.first_s.append(at_s - began_s)
                first = False
            await asyncio.sleep(max(0.0, 1.0 - (time.perf_counter() - began_s)))

    tasks = [asyncio.create_task(stream()), asyncio.create_task(short())]
    done, _ = await asyncio.wait(tasks, timeout=seconds)
    for task in done:
        task.result()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if not seen.first_s:
        seen.first_s.append(seconds)
    if not seen.tokens_s:
        seen.tokens_s.append(time.perf_counter() - seconds)
    return seen


async def counted(client: httpx.AsyncClient) -> tuple[float, float]:
    """Requests that the server has seen or has now, and tokens that it has read and written."""
    text = (await client.get("/metrics")).text
    requests = tokens = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("penstock_num_requests_"):
                requests += sample.value
            elif sample.name == "penstock_http_requests_total":
                requests += sample.value * (sample.labels["route"] == "/v1/completions")
            elif sample.name in (
                "penstock_prompt_tokens_total",
                "penstock_generation_tokens_total",
            ):
                tokens += sample.value
    return requests, tokens


async def begun(client: httpx.AsyncClient, before: float) -> None:
    """Wait until the other's requests are there, and a little longer."""
    async with asyncio.timeout(BEGIN_S):
        while (await counted(client))[0] <= before:
            await asyncio.sleep(0.05)
    await asyncio.sleep(WARM_S)


async def measure(url: str, name: str, seconds: float, most_times: float) -> dict[str, Any]:
    """One line: the measured caller alone, then beside one kind."""
    headers = {"Authorization": f"Bearer {VICTIM}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, timeout=120, limits=limits, headers=headers, trust_env=False
    ) as client:
        alone = await watch(client, seconds / 2)
        alone_s = [statistics.median(alone.windows_s(time.perf_counter()))]
        await idle(client, deadline_s=60)
        requests, _ = await counted(client)
        command = [sys.executable, "-m", "benchmarks.expensive_requests", url, OTHER, name]
        other = subprocess.Popen(command, cwd=ROOT)
        try:
            await begun(client, requests)
            _, tokens = await counted(client)
            beside = await watch(client, seconds)
            beside_s = statistics.median(beside.windows_s(time.perf_counter()))
            tokens = (await counted(client))[1] - tokens
            if other.poll() is not None:
                raise RuntimeError(f"the requests of kind {name} ended by themselves")
        finally:
            other.terminate()
            other.wait()
        await idle(client, deadline_s=60)
        again = await watch(client, seconds / 2)
        alone_s.append(statistics.median(again.windows_s(time.perf_counter())))
    times = beside_s / statistics.mean(alone_s)
    first_s = sorted(beside.first_s)[-2:][0]
    gaps_s, alone_gaps_s = beside.gaps_s or [seconds], alone.gaps_s
    return {
        "kind": name,
        "alone_ms": 1e3 * statistics.mean(alone_s),
        "beside_ms": 1e3 * beside_s,
        "times_alone": times,
        "alone_p99_ms": 1e3 * alone_gaps_s[int(0.99 * len(alone_gaps_s))],
        "beside_p99_ms": 1e3 * gaps_s[int(0.99 * len(gaps_s))],
        "first_alone_s": statistics.median(alone.first_s),
        "first_median_s": statistics.median(beside.first_s),
        "first_slowest_but_one_s": first_s,
        "first_slowest_s": max(beside.first_s),
        "short_chats": len(beside.first_s),
        "tokens_per_s": tokens / seconds,
        "kept": times <= most_times and first_s <= MOST_FIRST_S,
    }


def serve(python: str) -> ServerProcess:
    """`penstock serve` of the embedded model, with two keys."""
    port = free_port()
    command = [python, "-c", "from penstock.server.cli import main; main()", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--api-key", VICTIM, "--api-key", OTHER, "--no-access-log"]
    return ServerProcess(command, url=f"http://127.0.0.1:{port}")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="of each kind")
    parser.add_argument("--most-times", type=float, default=MOST_TIMES, help="the first bound")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--python", default=sys.executable, help="of the environment that serves")
    parser.add_argument("--label", default="", help="a column of the results, to tell runs apart")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    exit_on_terminate()
    lines: list[dict[str, Any]] = []
    with serve(options.python) as server:
        for name in options.kinds:
            line = asyncio.run(measure(server.url, name, options.seconds, options.most_times))
            lines.append({"label": options.label, **line})
            print(
                f"{name:16} {line['alone_ms']:6.1f} ms alone, {line['times_alone']:5.2f} times; "
                f"p99 {line['alone_p99_ms']:6.1f} and {line['beside_p99_ms']:7.1f} ms; first token "
                f"{line['first_median_s']:5.2f} s, slowest {line['first_slowest_s']:5.2f} s; "
                f"{line['tokens_per_s']:5.0f} tokens/s in all"
                f"{'' if line['kept'] else '   MISSED'}",
                flush=True,
            )
            results.merge(options.out, lines, Provenance.now("torch"), key=["label", "kind"])
    missed = [line["kind"] for line in lines if not line["kept"]]
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
