"""The command `penstock`: finds the subcommand, and turns refusals into one line.

Each subcommand is imported when it is called, so that help and version never wait for torch.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from penstock import __version__
from penstock.errors import ConfigurationError, PenstockError

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One subcommand: `run` takes its arguments and returns the exit status."""

    usage: str
    summary: str
    run: Callable[[Sequence[str]], int]


def _serve(arguments: Sequence[str]) -> int:
    from .commands.command_settings import read_settings
    from .settings.serve import ServeSettings

    settings = read_settings(ServeSettings, arguments, program="penstock serve")
    from .commands.serve import run_serve

    return run_serve(settings)


def _generate(arguments: Sequence[str]) -> int:
    from .commands.command_settings import read_settings
    from .commands.generate import GenerateSettings, run_generate

    return run_generate(read_settings(GenerateSettings, arguments, program="penstock generate"))


def _bench(arguments: Sequence[str]) -> int:
    from ..bench.command import BenchSettings, run_bench
    from .commands.command_settings import read_settings

    return run_bench(read_settings(BenchSettings, arguments, program="penstock bench"))


def _doctor(arguments: Sequence[str]) -> int:
    from .commands.command_settings import read_settings
    from .commands.doctor import DoctorSettings, run_doctor

    return run_doctor(read_settings(DoctorSettings, arguments, program="penstock doctor"))


def _compress_finetune(arguments: Sequence[str]) -> int:
    from .commands.command_settings import read_settings
    from .commands.compress_finetune import CompressSettings, run_compress

    program = "penstock compress-finetune"
    return run_compress(read_settings(CompressSettings, arguments, program=program))


COMMANDS = {
    "serve": Command(usage="serve [MODEL]", summary="serve a model to OpenAI clients", run=_serve),
    "generate": Command(
        usage='generate "prompt"', summary="stream one answer to the terminal", run=_generate
    ),
    "bench": Command(usage="bench", summary="measure any OpenAI-compatible server", run=_bench),
    "doctor": Command(
        usage="doctor", summary="show device, kernels, memory and versions", run=_doctor
    ),
    "compress-finetune": Command(
        usage="compress-finetune BASE TUNED",
        summary="write a fine-tune as a small adapter of its base",
        run=_compress_finetune,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for a mistake in it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Our threads tokenise in parallel already, and the library warns of forks otherwise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if words[:1] in (["--version"], ["-V"]):
        sys.stdout.write(f"penstock {__version__}\n")
        return 0
    if words[:1] in (["--help"], ["-h"], ["help"]):
        sys.stdout.write(_help())
        return 0
    if not words:
        sys.stderr.write(_help())
        return EXIT_USAGE
    command = COMMANDS.get(words[0])
    if command is None:
        close = get_close_matches(words[0], COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        sys.stderr.write(f"penstock: there is no command {words[0]!r}{hint}; see penstock --help\n")
        return EXIT_USAGE
    try:
        return command.run(words[1:])
    except ConfigurationError as error:
        sys.stderr.write(f"penstock {words[0]}: {error}\n")
        return EXIT_USAGE
    except PenstockError as error:
        sys.stderr.write(f"penstock {words[0]}: {error}\n")
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        logger.debug("unexpected", exc_info=True)
        said = " ".join(str(error).split())
        sys.stderr.write(f"penstock {words[0]}: unexpected {type(error).__name__}: {said}\n")
        return EXIT_FAILED


def _help() -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"  penstock {c.usage:<{width}}  {c.summary}\n" for c in COMMANDS.values()]
    return (
        "Penstock: an OpenAI-compatible server in which how to decode and what the KV cache keeps\n"
        "are parameters of each request.\n\n"
        + "".join(lines)
        + "\nEach command explains its flags with --help. A flag --some-name can also be given as\n"
        "PENSTOCK_SOME_NAME in the environment, or as some_name in the YAML file of --config;\n"
        "flags win over the environment, the environment over the file.\n"
    )
