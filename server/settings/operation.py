"""Settings of streams, shutdown and logs."""

from typing import Literal

from pydantic import Field

from penstock.settings import Settings

from .values import Seconds


class OperationSettings(Settings):
    """Operation.

    `heartbeat_s`: a stream that is silent for this long sends a comment, so that proxies keep it
    open.
    `shutdown_timeout_s`: how long running requests may take to finish after SIGTERM.
    `stats_interval_s`: seconds between the lines with throughput in the log.
    `access_log`: log one line for each request.
    `log_level`: lowest level that is logged.
    """

    heartbeat_s: Seconds = 15.0
    shutdown_timeout_s: float = Field(default=30.0, ge=0, le=86_400)
    stats_interval_s: Seconds = 10.0
    access_log: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
