"""Installs packages of examples/ as a stranger would, into a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def install(package: str, folder: Path) -> Path:
    """The folder that then holds the package, for PYTHONPATH."""
    source, site = folder / f"{package}-source", folder / "site"
    # A copy: building leaves files beside the source.
    source.mkdir()
    for file in (EXAMPLES / package).iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(site), str(source)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return site
