"""The servers that `serving.py` compares, and how each is told to answer at full length."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from benchmarks.server_process import ServerError, ServerProcess, free_port, penstock_server


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A started server: its process, the model's name there, and the fields of a request."""

    server: ServerProcess
    model: str | None
    extra_body: dict[str, Any]


def penstock(folder: Path, environment: Mapping[str, str], *, output_tokens: int) -> Contender:
    """`penstock serve`, in float32; `ignore_eos` makes answers as long as asked for."""
    server = penstock_server(
        [str(folder), "--dtype", "float32", "--no-access-log"], environment=environment
    )
    return Contender(server=server, model=None, extra_body={"ignore_eos": True})


def transformers(folder: Path, environment: Mapping[str, str], *, output_tokens: int) -> Contender:
    """`transformers serve --continuous-batching`, in float32.

    It refuses fields that OpenAI does not have, so the length is forced through its own field
    `generation_config`: no token has the number -1, so none ends the answer.
    """
    port = free_port()
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command += ["serve", str(folder), "--continuous-batching", "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    server = ServerProcess(
        command,
        url=f"http://127.0.0.1:{port}",
        environment={"HF_HUB_OFFLINE": "1"} | dict(environment),
    )
    generation = {"do_sample": False, "eos_token_id": -1, "max_new_tokens": output_tokens}
    fields = {"generation_config": orjson.dumps(generation).decode(), "stream_options": None}
    return Contender(server=server, model=str(folder), extra_body=fields)


def check_installed(servers: Sequence[str]) -> None:
    """Look for what the servers need before any of them takes its minutes.

    Raises:
        ServerError: `accelerate` is missing, without which transformers serves no model.
    """
    if "transformers" in servers and find_spec("accelerate") is None:
        raise ServerError("transformers serve needs accelerate: pip install accelerate")


CONTENDERS = {"penstock": penstock, "transformers": transformers}
