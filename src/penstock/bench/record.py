"""The measurements of one request: TTFT, TPOT, ITL and E2EL."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as the client saw it; times are readings of one monotonic clock, in seconds.

    `started_s`: just before the request was written to an open connection.
    `ended_s`: the last event arrived, or the request failed.
    `chunk_times_s`: arrivals of the events that carried text.
    `prompt_tokens`, `completion_tokens`: the server's usage; None where it sent none.
    `error`: why the request failed; None for a success.
    """

    started_s: float
    ended_s: float
    chunk_times_s: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None

    @property
    def output_tokens(self) -> int:
        """Tokens by usage, else the number of chunks with text."""
        if self.completion_tokens is None:
            return len(self.chunk_times_s)
        return self.completion_tokens

    @property
    def ttft_s(self) -> float | None:
        """Time to the first text; None if there was none."""
        return self.chunk_times_s[0] - self.started_s if self.chunk_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None below two tokens."""
        if self.output_tokens < 2 or len(self.chunk_times_s) < 2:
            return None
        return (self.chunk_times_s[-1] - self.chunk_times_s[0]) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Gaps between consecutive chunks; a chunk may carry several tokens."""
        return [later - earlier for earlier, later in pairwise(self.chunk_times_s)]

    @property
    def e2el_s(self) -> float:
        """Time to the end of the answer."""
        return self.ended_s - self.started_s
