"""Whether a server holds on to anything when nobody asks it for anything."""

import time
from collections.abc import Callable

import httpx

IDLE_METRICS = (
    "penstock_num_requests_running",
    "penstock_num_requests_waiting",
    "penstock_kv_cache_pages_in_use",
)


def read_metrics(text: str, names: tuple[str, ...] = IDLE_METRICS) -> dict[str, float]:
    """Values of `names` in the Prometheus text format, summed over labels.

    Raises:
        KeyError: one of them is not exposed; a metric that is missing must not pass for zero.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        name = line.partition(" ")[0].partition("{")[0]
        if name in names:
            value = line.rpartition("}")[2].split()
            found[name] = found.get(name, 0.0) + float(value[0 if "{" in line else 1])
    return {name: found[name] for name in names}


def wait_until_idle(
    url: str,
    *,
    deadline_s: float,
    headers: dict[str, str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, float]:
    """Poll /metrics until all of them are zero; what is not zero at the deadline is a leak."""
    give_up_s = time.monotonic() + deadline_s
    with httpx.Client(trust_env=False, headers=headers, timeout=10) as client:
        while True:
            values = read_metrics(client.get(f"{url}/metrics").raise_for_status().text)
            leaks = {name: value for name, value in values.items() if value != 0}
            if not leaks or time.monotonic() > give_up_s:
                return leaks
            sleep(0.1)
