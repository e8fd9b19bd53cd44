"""Results as a table for people, and as JSON and CSV for programs."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from .benchmark import Run
from .settings import BenchSettings
from .statistics import Spread

SPREADS = ("ttft", "tpot", "itl", "e2el")


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One flat record for each run; units are in the names, missing figures are None."""
    flat: list[dict[str, Any]] = []
    for run in runs:
        summary = run.summary
        row: dict[str, Any] = {
            "model": run.model,
            "concurrency": run.concurrency,
            "request_rate_per_s": run.request_rate,
            "requests": summary.requests,
            "failed": summary.failed,
            "duration_s": summary.duration_s,
            "prompt_tokens": summary.prompt_tokens,
            "output_tokens": summary.output_tokens,
            "tokens_from": summary.tokens_from,
            "requests_per_s": summary.requests_per_s,
            "output_tokens_per_s": summary.output_tokens_per_s,
            "total_tokens_per_s": summary.total_tokens_per_s,
            "goodput_per_s": summary.goodput_per_s,
        }
        for name in SPREADS:
            spread: Spread = getattr(summary, name)
            for figure in ("mean", "median", "p99"):
                value: float = getattr(spread, f"{figure}_ms")
                row[f"{name}_{figure}_ms"] = None if math.isnan(value) else value
        flat.append(row)
    return flat


def to_json(settings: BenchSettings, runs: Sequence[Run], *, date: str) -> bytes:
    """Settings (without the API key) and results, with the reasons of failures."""
    results = [
        row | {"failures": run.summary.failures} for row, run in zip(rows(runs), runs, strict=True)
    ]
    document = {
        "date": date,
        "settings": settings.model_dump(mode="json", exclude={"api_key"}),
        "runs": results,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def to_csv(runs: Sequence[Run], *, date: str) -> str:
    """A header and one line for each run."""
    flat = [{"date": date} | row for row in rows(runs)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def show(runs: Sequence[Run], console: Console) -> None:
    """Print a table on a terminal, aligned plain text elsewhere; each run is a column."""
    header = ["", *(_title(run) for run in runs)]
    lines = _lines(runs)
    if console.is_terminal:
        table = Table(*header, title=f"{runs[0].model}", title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for line in lines:
            table.add_row(*line)
        console.print(table)
    else:
        console.print(runs[0].model, markup=False, highlight=False, soft_wrap=True)
        for text in plain_table([header, *lines]):
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    for note in notes(runs):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def plain_table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def notes(runs: Sequence[Run]) -> list[str]:
    """Caveats of the table: failures, and how tokens were counted."""
    said: list[str] = []
    for run in runs:
        for reason, count in run.summary.failures.items():
            said.append(f"{_title(run)}: {count} failed: {reason}")
    if any(run.summary.tokens_from != "usage" for run in runs):
        said.append("Some answers had no usage: their output tokens are counted as chunks of text.")
    return said


def _title(run: Run) -> str:
    parts: list[str] = []
    if run.concurrency is not None:
        parts.append(f"{run.concurrency} client{'s' * (run.concurrency != 1)}")
    if run.request_rate is not None:
        parts.append(f"{run.request_rate:g}/s")
    return ", ".join(parts)


def _lines(runs: Sequence[Run]) -> list[list[str]]:
    summaries = [run.summary for run in runs]
    lines = [
        ["requests", *(str(s.requests) for s in summaries)],
        ["failed", *(str(s.failed) for s in summaries)],
        ["duration, s", *(_number(s.duration_s) for s in summaries)],
        ["prompt tokens", *(str(s.prompt_tokens) for s in summaries)],
        ["output tokens", *(str(s.output_tokens) for s in summaries)],
        ["requests/s", *(_number(s.requests_per_s) for s in summaries)],
        ["output tokens/s", *(_number(s.output_tokens_per_s) for s in summaries)],
        ["total tokens/s", *(_number(s.total_tokens_per_s) for s in summaries)],
    ]
    if any(s.goodput_per_s is not None for s in summaries):
        lines.append(["goodput, requests/s", *(_number(s.goodput_per_s) for s in summaries)])
    for name in SPREADS:
        for figure in ("mean", "median", "p99"):
            values = [getattr(getattr(s, name), f"{figure}_ms") for s in summaries]
            lines.append([f"{name.upper()} {figure}, ms", *(_number(value) for value in values)])
    return lines


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.2f}"
