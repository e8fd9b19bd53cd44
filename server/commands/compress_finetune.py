"""`penstock compress-finetune`: a fine-tune becomes a small adapter of its base."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg
from tqdm import tqdm

from penstock.errors import ConfigurationError

from ..log import configure_logging
from .command_settings import CommandSettings
from .loading import only_on_a_terminal
from .perplexity import perplexity, windows_of

if TYPE_CHECKING:
    from ...engine.loading.finetune import Kept

_SHOWN: Final = 3
_WINDOW: Final = 512
_MIB: Final = 1 << 20


def _auto(value: object) -> object:
    return None if value == "auto" else value


def _whole(value: object) -> object:
    """On a command line it is text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class CompressSettings(CommandSettings):
    """Write the difference between a model and a fine-tune of it as an adapter of few bits.

    `base`: the model: its folder, or owner/name on the Hub.
    `finetuned`: the fine-tune: a folder of the same architecture and sizes.
    `output`: folder for the adapter; serve it with --adapters NAME=FOLDER.
    `rank`: rank of each matrix; auto, the default, takes the smallest that keeps the wanted energy.
    `energy`: share of each matrix's squared difference that auto keeps.
    `max_rank`: the highest rank that auto takes.
    `bits`: of a stored number; 16 makes a folder that peft reads, too.
    `text`: file whose perplexity is reported for the base, the fine-tune and the adapter.
    `text_tokens`: how many tokens of it.
    """

    base: CliPositionalArg[str]
    finetuned: CliPositionalArg[str]
    output: Path
    rank: Annotated[Annotated[int, Field(ge=1, le=4096)] | None, BeforeValidator(_auto)] = None
    energy: Annotated[float, Field(gt=0, lt=1)] = 0.95
    max_rank: Annotated[int, Field(ge=1, le=4096)] = 128
    bits: Annotated[Literal[4, 8, 16], BeforeValidator(_whole)] = 4
    text: Path | None = None
    text_tokens: Annotated[int, Field(ge=64, le=10_000_000)] = 8192


def run_compress(settings: CompressSettings) -> int:
    """Write the adapter and print a report; returns the exit status.

    Raises:
        ConfigurationError: the models cannot be read, or do not belong together.
    """
    from ...engine.loading.finetune import Wanted, compress
    from ...engine.loading.open_checkpoint import open_checkpoint
    from ...engine.loading.settings import ModelSettings

    configure_logging("warning")
    only_on_a_terminal()
    text = None if settings.text is None else _read(settings.text)
    if settings.output.exists() and any(settings.output.iterdir()):
        raise ConfigurationError(f"--output {settings.output}: the folder is not empty")
    wanted = Wanted(
        rank=settings.rank,
        energy=settings.energy,
        most=settings.max_rank,
        bits=settings.bits,
    )
    with (
        open_checkpoint(ModelSettings(model=settings.base)) as base,
        open_checkpoint(ModelSettings(model=settings.finetuned)) as tuned,
    ):
        kept = compress(base, tuned, settings.output, wanted, progress=_bar)
    rows = _report(kept)
    if text is not None:
        rows = chain(rows, _perplexities(settings, text))
    for name, value in rows:
        sys.stdout.write(f"{name:<27} {value}\n")
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--text {path}: {error}") from error


def _bar(names: Iterator[str], count: int) -> Iterator[str]:
    # disable=None: only where standard error is a terminal.
    return iter(tqdm(names, total=count, unit="tensor", leave=False, disable=None))


def _report(kept: Kept) -> Iterator[tuple[str, str]]:
    ranks = sorted(kept.ranks.values())
    yield "linear layers changed", str(len(ranks))
    yield "ranks", f"{ranks[0]} to {ranks[-1]}, {ranks[len(ranks) // 2]} in the middle"
    yield "difference kept", f"{100 * (1 - kept.lost / kept.squares):.2f} % of its squares"
    share = kept.adapter_bytes / kept.tuned_bytes
    yield (
        "size",
        f"{kept.adapter_bytes / _MIB:.1f} MiB, {100 * share:.2f} % of the fine-tune's "
        f"{kept.tuned_bytes / _MIB:.1f}",
    )
    if kept.left_out:
        names = ", ".join(kept.left_out[:_SHOWN])
        more = f" and {len(kept.left_out) - _SHOWN} more" if len(kept.left_out) > _SHOWN else ""
        of_all = kept.other_squares / (kept.other_squares + kept.squares)
        yield "left out", f"{names}{more}: {100 * of_all:.2f} % of all squares"


def _perplexities(settings: CompressSettings, text: str) -> Iterator[tuple[str, str]]:
    from ...engine.llm import LLM

    name, most = "tuned", max(1, settings.text_tokens // _WINDOW)
    llm = LLM(settings.base, adapters=[f"{name}={settings.output}"], max_adapter_rank=4096)
    windows = windows_of(llm, text, window=_WINDOW, most=most)
    if len(windows[0]) < 2:
        raise ConfigurationError(f"--text {settings.text}: it has no two tokens")
    yield "perplexity of the base", f"{perplexity(llm, windows):.3f}"
    yield "with the adapter", f"{perplexity(llm, windows, adapter=name):.3f}"
    del llm
    yield "of the fine-tune", f"{perplexity(LLM(settings.finetuned), windows):.3f}"
