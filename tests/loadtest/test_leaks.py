import pytest

from loadtest.leaks import read_metrics, wait_until_idle
from tests.bench.scripted import ScriptedServer
from tests.loadtest.answers import METRICS


def test_metrics_are_summed_over_labels() -> None:
    text = METRICS.decode().replace('"high"} 0.0', '"high"} 2').replace('"low"} 0.0', '"low"} 1 17')
    assert read_metrics(text) == {
        "penstock_num_requests_running": 0,
        "penstock_num_requests_waiting": 3,
        "penstock_kv_cache_pages_in_use": 0,
    }


def test_a_missing_metric_is_not_zero() -> None:
    with pytest.raises(KeyError, match="pages_in_use"):
        read_metrics(METRICS.decode().replace("pages_in_use", "pages_used"))


def test_idle_after_a_while() -> None:
    with ScriptedServer() as server:
        server.metrics = METRICS.replace(b"running 0.0", b"running 3.0")
        waits: list[float] = []

        def sleep(wait_s: float) -> None:
            waits.append(wait_s)
            server.metrics = METRICS

        assert wait_until_idle(server.url, deadline_s=60, sleep=sleep) == {}
        assert len(waits) == 1


def test_leak_is_named() -> None:
    with ScriptedServer() as server:
        server.metrics = METRICS.replace(b"in_use 0.0", b"in_use 7.0")
        leaks = wait_until_idle(server.url, deadline_s=0, sleep=lambda wait_s: None)
        assert leaks == {"penstock_kv_cache_pages_in_use": 7.0}
