"""Where and how a result came about, so that it can be compared later."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The columns that every committed result begins with."""

    date: str
    machine: str
    commit: str
    versions: str
    command: str

    @classmethod
    def now(cls, *packages: str) -> "Provenance":
        """This run's; `packages` are the distributions whose versions matter to it."""
        python = f"python {platform.python_version()}"
        return cls(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=f"{_processor()}, {os.cpu_count()} logical cores",
            commit=_commit(),
            versions=", ".join([python, *(f"{name} {version(name)}" for name in packages)]),
            command=_command(),
        )

    def columns(self) -> dict[str, str]:
        """Column names and values."""
        return {
            "date": self.date,
            "machine": self.machine,
            "commit": self.commit,
            "versions": self.versions,
            "command": self.command,
        }


def graphics_driver() -> str:
    """The version of NVIDIA's driver, which torch does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.partition("\n")[0].strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    """The commit that is checked out; `+` marks changes that are not in it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _command() -> str:
    """Of paths of this machine the last part."""
    script = Path(sys.argv[0]).resolve()
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    given = [Path(each).name if Path(each).is_absolute() else each for each in sys.argv[1:]]
    return " ".join(["python", name, *given])
