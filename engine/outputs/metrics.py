"""Prometheus metrics of the engine, with vLLM's names and meanings under `penstock_`.

Gauges and counters are read from the engine at scrape time; per-request times are observed once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..state.counters import MethodCounters
from ..state.stats import EngineStats

# vLLM's buckets: milliseconds for tokens, minutes for requests.
_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536, 262144)


METHOD_COUNTERS: Final = {
    "drafted": ("draft_tokens", "Draft tokens verified."),
    "accepted": ("accepted_tokens", "Draft tokens that were accepted."),
    "guidance_tokens": ("guidance_tokens", "Tokens of further contexts, prompts and answers."),
    "evicted": ("evicted_tokens", "Tokens whose keys were evicted."),
}
"""Fields of `MethodCounters` that are exported: name and help of the metric."""


def token_buckets(longest: int) -> tuple[int, ...]:
    """vLLM's buckets for tokens of a request: 1, 2, 5, 10, 20, 50... up to `longest`."""
    steps = (digit * 10**power for power in range(len(str(longest))) for digit in (1, 2, 5))
    return tuple(step for step in steps if step <= longest)


class EngineCollector(Collector):
    """Exports `EngineStats` as gauges and counters."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Metrics of one consistent snapshot per scrape."""
        s = self._stats()
        gauges = (
            ("num_requests_running", "Running sequences.", s.running),
            ("num_requests_waiting", "Waiting sequences.", s.waiting),
            (
                "kv_cache_usage_ratio",
                "Share of the pages in use, 0 to 1.",
                s.pages_in_use / s.pages_total,
            ),
            ("kv_cache_pages_in_use", "Pages held by sequences.", s.pages_in_use),
            ("kv_cache_pages_cached", "Pages that only the prefix cache holds.", s.pages_cached),
            ("kv_cache_pages", "Pages of the page pool.", s.pages_total),
            (
                "kv_cache_bytes_in_use",
                "Bytes of the pages held by sequences.",
                s.pages_in_use * s.page_bytes,
            ),
            ("kv_cache_bytes", "Bytes of the page pool.", s.pages_total * s.page_bytes),
        )
        if s.state_slots_total:
            gauges += (
                ("state_slots_in_use", "Slots of states held by sequences.", s.state_slots_in_use),
                ("state_snapshots", "Slots that hold a prefix's states.", s.state_snapshots),
                ("state_slots", "Slots of the states beside the pages.", s.state_slots_total),
                (
                    "state_bytes",
                    "Bytes of the states beside the pages.",
                    s.state_slots_total * s.state_slot_bytes,
                ),
            )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"penstock_{name}", text, value=value)
        counters = (
            (
                "prefix_cache_queries",
                "Tokens looked up in the prefix cache.",
                s.prefix_queried_tokens,
            ),
            ("prefix_cache_hits", "Tokens found in the prefix cache.", s.prefix_hit_tokens),
            ("computed_prompt_tokens", "Prompt tokens not found in a cache.", s.prompt_tokens),
            ("num_preemptions", "Sequences preempted for lack of pages.", s.preemptions),
            ("engine_steps", "Steps of the engine.", s.steps),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"penstock_{name}", text, value=value)


class RequestMetrics:
    """Counters and histograms of requests. `max_length_tokens`: limit of prompt plus answer."""

    def __init__(self, registry: CollectorRegistry, *, max_length_tokens: int) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(
                f"penstock_{name}", text, ["decoding"], registry=registry, buckets=buckets
            )

        per_request = token_buckets(max_length_tokens)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"penstock_{name}", text, labels, registry=registry)

        self.iteration_tokens = Histogram(
            "penstock_iteration_tokens",
            "Rows computed in a step.",
            registry=registry,
            buckets=_TOKENS,
        )
        self._success = counter(
            "request_success", "Requests that ended.", ("decoding", "finished_reason")
        )
        self._counters = {
            "prompt_tokens": counter("prompt_tokens", "Prompt tokens.", ("decoding",)),
            "generation_tokens": counter("generation_tokens", "Tokens generated.", ("decoding",)),
            "thoughts": counter("search_thoughts", "Nodes generated by searches.", ("decoding",)),
            "guidance_requests": counter(
                "guidance_requests", "Requests with further contexts.", ("decoding",)
            ),
        }
        self._methods = {
            field: counter(name, text, ("decoding",))
            for field, (name, text) in METHOD_COUNTERS.items()
        }
        self._histograms = {
            "first_token": histogram(
                "time_to_first_token_seconds", "From submission to the first token."
            ),
            "inter_token": histogram(
                "inter_token_latency_seconds", "Between two tokens of a choice."
            ),
            "per_token": histogram(
                "time_per_output_token_seconds", "Mean per token after the first, of a request."
            ),
            "end_to_end": histogram("e2e_request_latency_seconds", "From submission to the end."),
            "queued": histogram(
                "request_queue_time_seconds", "From submission to the first scheduling."
            ),
            "prefill": histogram(
                "request_prefill_time_seconds", "From the first scheduling to the first token."
            ),
            "decode": histogram("request_decode_time_seconds", "From the first token to the end."),
            "inference": histogram(
                "request_inference_time_seconds", "From the first scheduling to the end."
            ),
            "request_prompt": histogram(
                "request_prompt_tokens", "Prompt tokens of a request that ended.", per_request
            ),
            "request_generation": histogram(
                "request_generation_tokens",
                "Tokens generated for a request that ended, all choices together.",
                per_request,
            ),
            "n": histogram("request_params_n", "Choices (n) of a request.", _COUNTS),
            "max_tokens": histogram(
                "request_params_max_tokens",
                "max_tokens of a request, or what its context leaves.",
                _TOKENS,
            ),
        }
        self._of: dict[str, DecodingMetrics] = {}

    def of(self, decoding: str) -> "DecodingMetrics":
        """The metrics with that label, cached: some are written for every token."""
        found = self._of.get(decoding)
        if found is None:
            metrics: dict[str, Any] = {**self._counters, **self._histograms}
            found = self._of[decoding] = DecodingMetrics(
                methods={name: counter.labels(decoding) for name, counter in self._methods.items()},
                **{name: metric.labels(decoding) for name, metric in metrics.items()},
            )
        return found

    def ended(self, decoding: str, reason: str) -> None:
        """Count a request that ended."""
        self._success.labels(decoding, reason).inc()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingMetrics:
    """The metrics of all requests with the same decoding methods.

    `methods`: by the field of `MethodCounters`.
    """

    methods: Mapping[str, Counter]
    prompt_tokens: Counter
    generation_tokens: Counter
    thoughts: Counter
    guidance_requests: Counter
    first_token: Histogram
    inter_token: Histogram
    per_token: Histogram
    end_to_end: Histogram
    queued: Histogram
    prefill: Histogram
    decode: Histogram
    inference: Histogram
    request_prompt: Histogram
    request_generation: Histogram
    n: Histogram
    max_tokens: Histogram

    def count(self, counters: MethodCounters) -> None:
        """Count what methods have counted."""
        for name, counter in self.methods.items():
            counter.inc(getattr(counters, name))
