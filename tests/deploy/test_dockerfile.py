"""No container engine builds the image in CI, so all that it runs must be what CI runs."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"useradd", "rm"}
"""Commands that need no trying out: a user of the image, and apt's lists."""


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments), continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.split("\n"))]


def prerequisites(target: str) -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}:([^#\n]*)", makefile, re.MULTILINE)
    assert found is not None
    return set(found[1].split())


def test_run_steps_are_those_of_ci() -> None:
    made: set[str] = set()
    for word, arguments in instructions():
        if word != "RUN":
            continue
        for command in arguments.split("&&"):
            name, *rest = shlex.split(command)
            if name == "make":
                made.add(rest[0])
            else:
                assert name in ELSEWHERE | {"system-packages"}
    assert made == prerequisites("wheel-check")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "deploy/system-packages" in ci
    assert "make wheel-check" in ci


def test_what_is_copied_exists_and_is_sent() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    links = {link.name for link in (ROOT / "src" / "penstock").iterdir() if link.is_symlink()}
    assert links <= sent
    for word, arguments in instructions():
        if word == "COPY" and not arguments.startswith("--from"):
            sources = arguments.split()[:-1]
            assert all(source == "." or source.split("/")[0] in sent for source in sources)
            assert all((ROOT / source).exists() for source in sources)


def test_runs_as_a_user_and_reports_its_health() -> None:
    last: dict[str, str] = dict(instructions())
    assert last["USER"] not in ("", "root", "0")
    assert "healthcheck.py" in last["HEALTHCHECK"]
    assert last["ENTRYPOINT"] == '["penstock"]'
