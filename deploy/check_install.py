"""Checks an installed wheel from outside the repository: run it with that environment's Python.

What a user gets is what is checked: files, command line, Python import, generated text, and a
server that becomes healthy, answers and stops when told to.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import distribution
from pathlib import Path

BIN = Path(sys.executable).parent
HEALTHCHECK = Path(__file__).resolve().with_name("healthcheck.py")
START_S = 120.0
STOP_S = 30.0
WANTED = ("penstock/py.typed", "penstock/models/nano/weights/model.safetensors")
UNWANTED = ("tests", "benchmarks", "loadtest", "docs")


def main() -> int:
    """Run every check; the first that fails ends the process with its reason."""
    os.chdir("/")
    check_files()
    say("files: weights and py.typed are there, tests are not")
    expect(run("penstock", "--version").startswith("penstock "), "no version")
    expect("serve" in run("penstock", "--help"), "no help")
    run(sys.executable, "-c", "import penstock; from penstock import LLM")
    say("command line and import: fine from /")
    expect("\ncompiled kernels         for " in run("penstock", "doctor"), "no compiled kernels")
    say("doctor: compiled kernels are there, and all checks pass")
    text = run("penstock", "generate", "Once upon a time", "--max-tokens", "8").strip()
    expect(text, "penstock generate printed nothing")
    say(f"generate: {text!r}")
    say(f"serve: {serve_once()!r}")
    return 0


def say(text: str) -> None:
    """Report one check."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def expect(condition: object, problem: str) -> None:
    """End the process with `problem` unless the condition holds."""
    if not condition:
        sys.exit(f"check_install: {problem}")


def check_files() -> None:
    """The wheel holds what it needs and no more, and is not an editable install."""
    files = [str(file) for file in distribution("penstock").files or ()]
    missing = [name for name in WANTED if name not in files]
    expect(not missing, f"not in the wheel: {missing}")
    stray = [name for name in files if set(UNWANTED) & set(Path(name).parts)]
    expect(not stray, f"should not be in the wheel: {stray[:5]}")


def run(command: str, *arguments: str) -> str:
    """Standard output of a command of this environment, which must succeed."""
    path = shutil.which(command, path=str(BIN)) or command
    return subprocess.run([path, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def serve_once() -> str:
    """Serve as the image does, on a loopback port; returns the text of one completion."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {**os.environ, "PENSTOCK_PORT": str(port)}
    server = subprocess.Popen([BIN / "penstock", "serve", "--host", "127.0.0.1"], env=environment)
    try:
        wait_until_healthy(server, environment)
        text = complete(port)
        server.send_signal(signal.SIGTERM)
        status = server.wait(STOP_S)
        expect(status == 0, f"the server ended with status {status}")
        return text
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def wait_until_healthy(server: "subprocess.Popen[bytes]", environment: dict[str, str]) -> None:
    """Until the image's health check succeeds."""
    deadline_s = time.monotonic() + START_S
    while subprocess.run([sys.executable, HEALTHCHECK], env=environment).returncode != 0:
        expect(server.poll() is None, f"the server ended with status {server.returncode}")
        expect(time.monotonic() < deadline_s, f"not healthy after {START_S:g} s")
        time.sleep(0.5)


def complete(port: int) -> str:
    """The text of one completion over HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 8})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    expect(answer.status == 200, content.decode())
    return str(json.loads(content)["choices"][0]["text"])


if __name__ == "__main__":
    sys.exit(main())
