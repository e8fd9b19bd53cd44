"""When one request passed its stations, and what it adds to the metrics."""

from ..state.counters import MethodCounters
from ..state.request import ChoiceDelta, Request, StepOutput, Usage
from .metrics import DecodingMetrics


class RequestTimes:
    """Times of one request, in seconds of the engine's clock, and its metrics.

    `started_s`: left the queue. `first_token_s`: the step of its first token was known.
    """

    def __init__(self, request: Request, metrics: DecodingMetrics, submitted_s: float) -> None:
        self.submitted_s = submitted_s
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self._last_token_s: dict[int, float] = {}
        self._request = request
        self._metrics = metrics
        metrics.n.observe(request.n)
        metrics.max_tokens.observe(request.max_tokens)
        if request.contexts:
            metrics.guidance_requests.inc()

    def choice(
        self, delta: ChoiceDelta, first_scheduled_s: float | None, usage: Usage, now_s: float
    ) -> None:
        """Count what a choice got in a step."""
        last_s = self._last_token_s.get(delta.index)
        if last_s is not None:
            self._metrics.inter_token.observe(now_s - last_s)
        self._last_token_s[delta.index] = now_s
        if self.first_token_s is None:
            self._metrics.prompt_tokens.inc(usage.prompt_tokens)
        self._count(delta.token_ids, delta.counters, first_scheduled_s, now_s)

    def subrequest(self, output: StepOutput, now_s: float) -> None:
        """Count what a subrequest of a search got in a step."""
        self._count(output.token_ids, output.counters, output.first_scheduled_s, now_s)

    def search(self, usage: Usage) -> None:
        """Count what only the end of a search tells."""
        self._metrics.prompt_tokens.inc(usage.prompt_tokens)
        self._metrics.thoughts.inc(usage.thoughts)

    def ended(self, usage: Usage, now_s: float) -> None:
        """Record the times between its stations."""
        metrics, started_s, first_s = self._metrics, self.started_s, self.first_token_s
        metrics.end_to_end.observe(now_s - self.submitted_s)
        if started_s is None or first_s is None:
            return
        metrics.queued.observe(max(0.0, started_s - self.submitted_s))
        metrics.prefill.observe(max(0.0, first_s - started_s))
        metrics.decode.observe(now_s - first_s)
        metrics.inference.observe(max(0.0, now_s - started_s))
        metrics.request_prompt.observe(usage.prompt_tokens)
        metrics.request_generation.observe(usage.completion_tokens)
        later = usage.completion_tokens - self._request.n
        if later > 0:
            metrics.per_token.observe((now_s - first_s) / later)

    def _count(
        self,
        token_ids: tuple[int, ...],
        counters: MethodCounters | None,
        first_scheduled_s: float | None,
        now_s: float,
    ) -> None:
        if self.first_token_s is None:
            self.first_token_s = now_s
            self.started_s = first_scheduled_s
            self._metrics.first_token.observe(now_s - self.submitted_s)
        self._metrics.generation_tokens.inc(len(token_ids))
        if counters is not None:
            self._metrics.count(counters)
