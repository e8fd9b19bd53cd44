"""Users who complete texts, chat with streams, and sometimes leave in the middle of one.

Entries besides the requests themselves: `TTFT chat` (time to the first text) and `ITL chat` (time
between two texts), in milliseconds. The exit status is 1 if an objective of `--slo` is missed.
"""

import os
import random
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import orjson
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from locust.stats import StatsEntry

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from loadtest.contract import ChatStream, ContractError, check_completion
from loadtest.slo import Figures, Slo
from loadtest.stream import stream_events
from penstock.bench.prompts import synthetic_text

TIMEOUT_S = 60.0
PERCENTILES = (50, 80, 95, 99)


@events.init_command_line_parser.add_listener
def _options(parser: ArgumentParser) -> None:
    slo_path = Path(__file__).with_name("slo.yaml")
    parser.add_argument("--slo", type=str, default=str(slo_path), help="objectives, YAML")
    parser.add_argument("--figures", type=str, default="", help="write statistics here, JSON")


class Reader(FastHttpUser):
    """One user with one request at a time."""

    wait_time = constant(0)
    connection_timeout = TIMEOUT_S
    network_timeout = TIMEOUT_S

    def on_start(self) -> None:
        """Learn the model's name."""
        key = os.environ.get("PENSTOCK_API_KEY")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._random = random.Random()
        with self.rest("GET", "/v1/models", headers=self._headers) as response:
            self._model: str = response.js["data"][0]["id"]

    @task(2)
    def complete(self) -> None:
        """A completion in one piece."""
        max_tokens = self._random.randint(1, 48)
        body = self._body(max_tokens, prompt=self._text())
        with self.client.post(
            "/v1/completions",
            data=body.decode(),
            headers=self._headers | {"content-type": "application/json"},
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(f"HTTP {response.status_code}")
                return
            try:
                check_completion(orjson.loads(response.content), max_tokens=max_tokens)
            except (ContractError, orjson.JSONDecodeError) as error:
                response.failure(str(error))

    @task(4)
    def chat(self) -> None:
        """A chat, streamed to its end."""
        self._chat("stream to the end", leave_after=None)

    @task(1)
    def leave(self) -> None:
        """A chat whose reader closes the connection after a few texts."""
        self._chat("stream, then leave", leave_after=self._random.randint(0, 8))

    def _chat(self, name: str, *, leave_after: int | None) -> None:
        max_tokens = self._random.randint(2, 96)
        body = self._body(
            max_tokens,
            messages=[{"role": "user", "content": self._text()}],
            stream=True,
            stream_options={"include_usage": True},
        )
        checker = ChatStream(max_tokens=max_tokens)
        texts = received_bytes = 0
        failure: Exception | None = None
        started_s = previous_s = time.perf_counter()
        arrivals = stream_events(
            f"{self.host}/v1/chat/completions", body, headers=self._headers, timeout_s=TIMEOUT_S
        )
        try:
            for now_s, payload in arrivals:
                received_bytes += len(payload)
                if checker.feed(payload):
                    kind = "ITL" if texts else "TTFT"
                    self._fire(kind, "chat", (now_s - previous_s) * 1e3)
                    texts += 1
                    previous_s = now_s
                if leave_after is not None and texts >= leave_after:
                    break
            else:
                checker.close()
        except (ContractError, OSError) as error:
            failure = error
        finally:
            arrivals.close()
        took_ms = (time.perf_counter() - started_s) * 1e3
        self._fire("SSE", name, took_ms, response_length=received_bytes, exception=failure)

    def _body(self, max_tokens: int, **fields: Any) -> bytes:
        return orjson.dumps({"model": self._model, "max_tokens": max_tokens} | fields)

    def _text(self) -> str:
        return synthetic_text(self._random.choice((1, 8, 40, 200)), self._random)

    def _fire(self, kind: str, name: str, took_ms: float, **fields: Any) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=took_ms,
            **{"response_length": 0, "exception": None, "context": {}} | fields,
        )


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Compare what was measured with the objectives; the verdict is the exit status."""
    assert environment.parsed_options is not None
    if environment.parsed_options.figures:
        Path(environment.parsed_options.figures).write_bytes(orjson.dumps(_rows(environment)))
    missed = Slo.load(Path(environment.parsed_options.slo)).violations(_figures(environment))
    if environment.runner is not None and environment.runner.exceptions:
        missed.append("the load test itself raised; see above")
    for line in missed:
        print(f"objective missed: {line}", flush=True)
    environment.process_exit_code = 1 if missed else 0


def _rows(environment: Environment) -> list[dict[str, Any]]:
    """One flat record for each entry; Locust's own `--csv` misses what its last second brought."""
    return [
        {
            "kind": entry.method,
            "name": entry.name,
            "requests": entry.num_requests,
            "failures": entry.num_failures,
            "requests_per_s": round(entry.total_rps, 3),
            "mean_ms": round(entry.avg_response_time, 3),
            **{f"p{p}_ms": entry.get_response_time_percentile(p / 100) for p in PERCENTILES},
            "max_ms": round(entry.max_response_time, 3),
        }
        for entry in environment.stats.entries.values()
    ]


def _figures(environment: Environment) -> Figures:
    requests = failures = 0
    for entry in environment.stats.entries.values():
        if entry.method not in ("TTFT", "ITL"):
            requests += entry.num_requests
            failures += entry.num_failures
    return Figures(
        requests=requests,
        failures=failures,
        completion_p95_ms=_p95_ms(environment.stats.get("/v1/completions", "POST")),
        ttft_p95_ms=_p95_ms(environment.stats.get("chat", "TTFT")),
        inter_token_p95_ms=_p95_ms(environment.stats.get("chat", "ITL")),
    )


def _p95_ms(entry: StatsEntry) -> float | None:
    return entry.get_response_time_percentile(0.95) if entry.num_requests else None
