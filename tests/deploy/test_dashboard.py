"""The dashboard asks only for metrics that the server exports."""

import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from penstock.engine.outputs.metrics import EngineCollector, RequestMetrics
from penstock.engine.state.stats import EngineStats
from penstock.server.metrics import HttpMetrics

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def exported() -> set[str]:
    registry = CollectorRegistry()
    RequestMetrics(registry, max_length_tokens=4096)
    HttpMetrics(registry)
    registry.register(EngineCollector(lambda: EngineStats(pages_total=1)))
    return {
        family.name + suffix for family in registry.collect() for suffix in SUFFIXES[family.type]
    }


def test_every_metric_of_the_dashboard_exists() -> None:
    text = DASHBOARD.read_text(encoding="utf-8")
    dashboard = json.loads(text)
    asked = set(re.findall(r"\bpenstock_\w+", text))
    assert asked
    assert asked <= exported()
    assert all(panel["targets"] for panel in dashboard["panels"])
