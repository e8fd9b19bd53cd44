"""Settings of scheduling: what runs in one step, and what may wait."""

from typing import Annotated

from pydantic import Field

from penstock.errors import ConfigurationError
from penstock.settings import Settings


class SchedulingSettings(Settings):
    """Scheduling.

    `max_running`: sequences that run at once; also the largest `n` of a request.
    `max_batch_tokens`: rows of one step, prompt chunks and decoding together; default: 256 on a
    CPU, 8192 on CUDA.
    `chunk_tokens`: longest chunk of one prompt in a step; default: `max_batch_tokens`.
    `max_queued_requests`: sequences that may wait; further requests get a 429. An owner that holds
    less than an equal part is admitted up to twice the limit.
    `max_queued_tokens`: prompt tokens that may wait, in the same way.
    """

    max_running: Annotated[int, Field(ge=1, le=4096)] = 64
    max_batch_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    chunk_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    max_queued_requests: Annotated[int, Field(ge=0, le=2**20)] = 512
    max_queued_tokens: Annotated[int, Field(ge=1, le=2**40)] = 1_000_000

    def batch_tokens(self, default: int) -> int:
        """Rows of one step. `default`: those that fit the device.

        Raises:
            ConfigurationError: `max_batch_tokens` is below `max_running`.
        """
        if self.max_batch_tokens is None:
            return max(default, self.max_running)
        if self.max_batch_tokens < self.max_running:
            raise ConfigurationError(
                f"--max-batch-tokens is {self.max_batch_tokens}, below --max-running "
                f"({self.max_running}): every running sequence needs a row"
            )
        return self.max_batch_tokens
