"""Records what a terminal shows of a search on a running server: `make recording`.

Starts a server of the embedded model, runs `examples/game24.py`, and writes `recording.svg`.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.text import Text

from benchmarks.server_process import ServerProcess, free_port

PICTURE: Final = Path(__file__).with_name("recording.svg")
EXAMPLE: Final = "examples/game24.py 4 5 6 10 --breadth 2 --dropped 1"
STYLES: Final = {"*": "bold green", "+": "yellow", " ": "dim"}


def output() -> str:
    """What the example prints."""
    port = free_port()
    serve = [sys.executable, "-c", "from penstock.server.cli import main; main()", "serve"]
    serve += ["--host", "127.0.0.1", "--port", str(port)]
    with ServerProcess(serve, url=f"http://127.0.0.1:{port}") as server:
        command = [sys.executable, *shlex.split(EXAMPLE), "--url", f"{server.url}/v1"]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=PICTURE.parents[1]
        ).stdout


def styled(line: str) -> Text:
    """A line of the tree in the colour of its mark: leads to the answer, kept, dropped."""
    branch, found, rest = line.partition("── ")
    if not found:
        return Text(line)
    return Text(branch + found, "dim").append(rest, STYLES.get(rest[0], "dim"))


def main() -> None:
    """Run, colour, write."""
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=72, file=nowhere, force_terminal=True)
        console.print(Text("$ penstock serve &", "bold"))
        console.print(Text(f"$ python {EXAMPLE}", "bold"))
        for line in output().splitlines():
            console.print(styled(line))
        picture = console.export_svg(title="tree of thoughts: 4 5 6 10")
    # Fonts of the reader's machine: a picture fetches nothing.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    PICTURE.write_text(picture.replace("Fira Code, monospace", "ui-monospace, monospace"))


if __name__ == "__main__":
    main()
