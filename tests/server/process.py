"""A `penstock serve` of its own process, ended by its own process id."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

PENSTOCK = str(Path(sys.executable).with_name("penstock"))
START_S = 60.0
STOP_S = 30.0
IDLE_S = 20.0
GAUGES = (
    "penstock_num_requests_running",
    "penstock_num_requests_waiting",
    "penstock_kv_cache_pages_in_use",
)


class ServeProcess:
    """Starts on entering a block, ready when it is entered; ends with the block."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        environment: dict[str, str] | None = None,
        wait_ready: bool = True,
        key: str | None = None,
    ) -> None:
        self.log_file = log
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._arguments = list(arguments)
        self._wait_ready = wait_ready
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
        self._environment = {**clean, "HF_HUB_OFFLINE": "1", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """Everything the process wrote so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def client(self, timeout_s: float = 60.0) -> httpx.Client:
        # Plain HTTP: reading the machine's certificates would take longer than most requests.
        return httpx.Client(
            base_url=self.url,
            timeout=timeout_s,
            headers=self.headers,
            trust_env=False,
            verify=False,
        )

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(STOP_S)

    def metrics(self) -> dict[str, float]:
        """Gauges and counters without labels."""
        with self.client() as client:
            text = client.get("/metrics").text
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }

    def wait_idle(self) -> None:
        """Poll until nothing runs, nothing waits and no page is held."""
        end_s = time.monotonic() + IDLE_S
        while True:
            metrics = self.metrics()
            left = {name: metrics[name] for name in GAUGES if metrics[name] != 0}
            if not left:
                return
            assert time.monotonic() < end_s, f"not idle: {left}"

    def __enter__(self) -> Self:
        with self.log_file.open("wb") as out:
            self._process = subprocess.Popen(
                [PENSTOCK, "serve", "--port", "0", *self._arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        try:
            self._wait_for_address()
            if self._wait_ready:
                self._wait_for_health()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _wait_for_address(self) -> None:
        end_s = time.monotonic() + START_S
        while True:
            found = re.search(r"listening on (http://\S+)", self.log)
            if found is not None:
                self.url = found[1].replace("0.0.0.0", "127.0.0.1")
                return
            assert self.process.poll() is None, f"it ended early:\n{self.log}"
            assert time.monotonic() < end_s, f"it never listened:\n{self.log}"
            time.sleep(0.02)

    def _wait_for_health(self) -> None:
        end_s = time.monotonic() + START_S
        with self.client() as client:
            while client.get("/health").status_code != 200:
                assert self.process.poll() is None, f"it ended early:\n{self.log}"
                assert time.monotonic() < end_s, f"it never became ready:\n{self.log}"
                time.sleep(0.05)
