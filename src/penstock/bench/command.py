"""`penstock bench`: measure a server, show the results, write them down."""

import asyncio
import sys
import time
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import Progress as Bar

from penstock.errors import ConfigurationError

from .benchmark import Run, measure
from .report import show, to_csv, to_json
from .settings import BenchSettings

__all__ = ["BenchSettings", "run_bench"]

REDRAW_S = 0.25


def run_bench(settings: BenchSettings) -> int:
    """Run the benchmark; 0 is success, 1 that some request failed, 2 that there is no result."""
    console = Console()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        runs = asyncio.run(_measure(settings, console))
    except ConfigurationError as error:
        sys.stderr.write(f"penstock bench: {error}\n")
        return 2
    show(runs, console)
    try:
        if settings.output_json is not None:
            settings.output_json.write_bytes(to_json(settings, runs, date=date))
        if settings.output_csv is not None:
            settings.output_csv.write_text(to_csv(runs, date=date), encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"penstock bench: cannot write the results: {error}\n")
        return 2
    return 1 if any(run.summary.failed for run in runs) else 0


async def _measure(settings: BenchSettings, console: Console) -> list[Run]:
    if not console.is_terminal:
        return await measure(settings)
    # Redrawn here, and rarely: the server needs the processor more.
    with Bar(console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("requests", total=None)
        drawn_s = 0.0

        def progress(run: Run | None, done: int, total: int) -> None:
            nonlocal drawn_s
            if time.perf_counter() - drawn_s > REDRAW_S:
                drawn_s = time.perf_counter()
                bar.update(task, completed=done, total=total, refresh=True)

        return await measure(settings, progress)
