"""The engine's process is killed in the middle of streams; the server must say so, and stay."""

import asyncio
import signal
import time
from collections.abc import Mapping
from typing import Any

import httpx
import psutil

from benchmarks.server_process import ServerProcess
from loadtest.leaks import read_metrics
from loadtest.soak.client import Answer, exchange
from loadtest.soak.verdict import Verdict

ARGUMENTS = ("--engine-in", "process")
STREAMS = 8
TOLD_S = 5.0
"""Time in which whoever has a stream must be told."""


async def crash(server: ServerProcess) -> Verdict:
    """Kill the engine of a server that runs it in a process of its own."""
    verdict = Verdict(part="crash")
    fields = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    begun = [asyncio.Event() for _ in range(STREAMS)]
    streams = [asyncio.create_task(_stream(server.url, fields, event)) for event in begun]
    await asyncio.gather(*(event.wait() for event in begun))
    engines = [
        child
        for child in psutil.Process(server.pid).children(recursive=True)
        if "penstock.engine.transport.child" in child.cmdline()
    ]
    verdict.expect(len(engines) == 1, f"{len(engines)} engine processes")
    for engine in engines:
        engine.send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    ended, late = await asyncio.wait(streams, timeout=TOLD_S)
    told_s = time.monotonic() - killed_s
    for task in late:
        task.cancel()
        verdict.blame(f"a stream goes on {TOLD_S:g} s after its engine was killed")
    for task in ended:
        answer = task.result()
        verdict.expect(bool(answer.error), "a stream ended without an error event")
        verdict.expect(not answer.done, "a stream that broke off ended with [DONE]")
    for path, body in (("/health", None), ("/v1/models", None), ("/v1/completions", fields)):
        answer = await exchange(server.url, path, body)
        verdict.expect(answer.status == 503, f"{path} answers {answer.status} without an engine")
        verdict.expect(bool(answer.error), f"{path} answers without an error object")
    async with httpx.AsyncClient(trust_env=False) as client:
        gauges = read_metrics((await client.get(f"{server.url}/metrics")).text)
    for name, value in gauges.items():
        verdict.expect(value == 0, f"{name} is {value:g} without an engine")
    verdict.figures = {"streams": STREAMS, "all told after, s": told_s}
    return verdict


async def _stream(url: str, fields: Mapping[str, Any], begun: asyncio.Event) -> Answer:
    """The whole stream; `begun` is set when its first event has come, or it has ended without."""
    try:
        return await exchange(url, "/v1/completions", fields, on_event=begun.set)
    finally:
        begun.set()
