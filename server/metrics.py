"""The HTTP metrics; the engine registers its own in the same registry."""

from prometheus_client import CollectorRegistry, Counter


class HttpMetrics:
    """Counts answers. `route` is a template of the app or "other": a closed set."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "penstock_http_requests",
            "HTTP requests by route and status; 499 is a caller who left before the answer.",
            ["route", "status"],
            registry=registry,
        )
