"""A real server, a relay before it, and no way to anything else. `make agents` runs this."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.relay import Relay
from tests.agents.world import MODEL, World
from tests.server import process
from tests.server.process import ServeProcess

# Read when the libraries are imported, which is later: no prices from the network, no traces to it.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LANGSMITH_TRACING"] = "false"
os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
    os.environ.pop(name, None)

if "PENSTOCK" not in os.environ:
    raise pytest.UsageError("these tests have an environment of their own: make agents")
process.PENSTOCK = os.environ["PENSTOCK"]  # it is installed in another environment


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """`penstock serve` with the model of PENSTOCK_AGENTS_MODEL, else with the embedded one."""
    folder = os.environ.get("PENSTOCK_AGENTS_MODEL")
    model = [str(Path(folder).resolve())] if folder else []
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ServeProcess([*model, "--served-model-name", MODEL], log) as running:
        yield running


@pytest.fixture(scope="session")
def every_exchange(server: ServeProcess) -> Iterator[Relay]:
    with Relay(server.url).running() as relay:
        yield relay


@pytest.fixture
def relay(every_exchange: Relay, server: ServeProcess) -> Iterator[Relay]:
    """What clients talk to. The server accepts all that they send, and is idle afterwards."""
    every_exchange.exchanges.clear()
    yield every_exchange
    for exchange in every_exchange.exchanges:
        print(exchange)  # noqa: T201 (pytest shows it where a test fails)
    assert {exchange.status for exchange in every_exchange.exchanges} == {200}
    server.wait_idle()


@pytest.fixture
def world() -> World:
    return World()
