"""Settings of where the engine runs."""

from typing import Annotated, Literal

from pydantic import Field

from penstock.settings import Settings


class TransportSettings(Settings):
    """Engine.

    `engine_in`: where the engine runs: in a thread of the server, or in its own process, where HTTP
    does not delay it. `LLM` ignores this and runs in the caller's thread.
    `stall_s`: a step that takes longer counts as a dead engine in /health.
    """

    engine_in: Literal["thread", "process"] = "thread"
    stall_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
