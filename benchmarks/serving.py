"""Penstock beside `transformers serve --continuous-batching`: one machine, one run, ratios.

    python benchmarks/serving.py [--models nano llama-4.6m llama-85m] [--concurrency 1 4 16]

Servers take turns (A B A B ...), each started afresh for its turn, so that a drift of the machine
hits both and an idle server costs the other nothing. Within a round both get the same prompts,
which no earlier round had. A ratio is Penstock's output tokens/s over the other's of that round.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from transformers import AutoTokenizer

from benchmarks.contenders import CONTENDERS, Contender, check_installed
from benchmarks.models import model_folder
from benchmarks.prompts import write_dataset
from benchmarks.provenance import Provenance
from benchmarks.results import write
from benchmarks.server_process import ServerError, exit_on_terminate
from penstock.bench.benchmark import Run, measure
from penstock.bench.report import plain_table, rows
from penstock.bench.settings import BenchSettings
from penstock.errors import ConfigurationError

OUTPUT = Path(__file__).resolve().parent / "results" / "serving.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One server's run on one model at one concurrency in one round."""

    server: str
    model: str
    round: int
    concurrency: int
    run: Run

    @property
    def output_tokens_per_s(self) -> float:
        """What is compared."""
        return self.run.summary.output_tokens_per_s


def main() -> int:
    """Measure, print, write; 1 if a request failed or an answer was not of full length."""
    options = _parse()
    exit_on_terminate()
    cells: list[Cell] = []
    try:
        check_installed(options.servers)
        for model in options.models:
            for cell in compare(model, options):
                cells.append(cell)
                print(describe(cell), flush=True)
    except (ServerError, ConfigurationError) as error:
        print(f"no result: {error}")
        return 1
    print("\n".join(["", *plain_table(table(cells))]))
    lines = [line(cell, cells) for cell in cells]
    write(options.output, lines, Provenance.now("torch", "transformers"))
    return 0


def compare(model: str, options: argparse.Namespace) -> Iterator[Cell]:
    """All rounds of one model."""
    folder = model_folder(model)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    with tempfile.TemporaryDirectory() as temporary:
        for number in range(1, options.rounds + 1):
            datasets = {0: Path(temporary) / f"{number}-warm-up.jsonl"}
            for concurrency in options.concurrency:
                datasets[concurrency] = Path(temporary) / f"{number}-{concurrency}.jsonl"
            for concurrency, path in datasets.items():
                write_dataset(
                    path,
                    encode,
                    count=requests(concurrency, options),
                    tokens=options.input_tokens,
                    seed=number * 1000 + concurrency,
                )
            for name in options.servers:
                start = CONTENDERS[name]
                environment = dict(pair.split("=", 1) for pair in options.environment)
                contender = start(folder, environment, output_tokens=options.output_tokens)
                with contender.server:
                    yield from turn(name, model, number, contender, datasets, options)


def turn(
    name: str,
    model: str,
    number: int,
    contender: Contender,
    datasets: dict[int, Path],
    options: argparse.Namespace,
) -> Iterator[Cell]:
    """One started server: a warm-up (concurrency 0 in `datasets`), then each concurrency."""
    for concurrency, path in datasets.items():
        settings = BenchSettings(
            base_url=contender.server.url,
            api_key=None,
            model=contender.model,
            concurrency=[max(1, concurrency)],
            num_prompts=requests(concurrency, options),
            warmup_requests=0,
            output_tokens=options.output_tokens,
            dataset=path,
            extra_body=contender.extra_body,
        )
        (run,) = asyncio.run(measure(settings))
        check(name, run, options.output_tokens)
        if concurrency:
            yield Cell(server=name, model=model, round=number, concurrency=concurrency, run=run)


def requests(concurrency: int, options: argparse.Namespace) -> int:
    """Requests of a run: each client sends a few; the warm-up sends two."""
    return max(4, options.waves * concurrency) if concurrency else 2


def check(name: str, run: Run, output_tokens: int) -> None:
    """A speed counts only if the work was done.

    Raises:
        ConfigurationError: failed requests, or answers that are shorter than asked for.
    """
    summary = run.summary
    if summary.failed:
        raise ConfigurationError(f"{name}: {summary.failures}")
    if summary.output_tokens != summary.requests * output_tokens or summary.tokens_from != "usage":
        raise ConfigurationError(
            f"{name}: {summary.output_tokens} tokens in {summary.requests} answers, "
            f"{output_tokens} each were asked for"
        )


def ratio(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """Penstock's throughput over the other's in the same round; None for the other's own row."""
    if cell.server != "penstock":
        return None
    place = (cell.model, cell.round, cell.concurrency)
    for other in cells:
        if other.server != "penstock" and (other.model, other.round, other.concurrency) == place:
            return cell.output_tokens_per_s / other.output_tokens_per_s
    return None


def describe(cell: Cell) -> str:
    """One line for a run that just ended."""
    summary = cell.run.summary
    return (
        f"{cell.model}, round {cell.round}, {cell.server}, {cell.concurrency} clients: "
        f"{cell.output_tokens_per_s:.1f} tokens/s, TTFT {summary.ttft.median_ms:.0f} ms, "
        f"TPOT {summary.tpot.median_ms:.1f} ms"
    )


def table(cells: Sequence[Cell]) -> list[list[str]]:
    """Medians over rounds, one line for each model and concurrency."""
    lines = [["model", "clients", "penstock, tok/s", "transformers, tok/s", "ratio", "range"]]
    for model, concurrency in dict.fromkeys((cell.model, cell.concurrency) for cell in cells):
        here = [c for c in cells if (c.model, c.concurrency) == (model, concurrency)]
        line = [model, str(concurrency)]
        for server in ("penstock", "transformers"):
            speeds = [c.output_tokens_per_s for c in here if c.server == server]
            line.append(f"{statistics.median(speeds):.1f}" if speeds else "-")
        ratios = [value for cell in here if (value := ratio(cell, cells)) is not None]
        line += [f"{statistics.median(ratios):.2f}" if ratios else "-"]
        line += [f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-"]
        lines.append(line)
    return lines


def line(cell: Cell, cells: Sequence[Cell]) -> dict[str, Any]:
    """A run as a flat record."""
    (figures,) = rows([cell.run])
    for name in ("model", "concurrency", "request_rate_per_s", "goodput_per_s"):
        del figures[name]
    return {
        "model": cell.model,
        "concurrency": cell.concurrency,
        "round": cell.round,
        "server": cell.server,
        "ratio_of_output_tokens_per_s": ratio(cell, cells),
        **figures,
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["nano", "llama-4.6m", "llama-85m"])
    parser.add_argument("--servers", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waves", type=int, default=2, help="requests of each client")
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument(
        "--environment", nargs="*", default=[], metavar="NAME=VALUE", help="for both servers"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
