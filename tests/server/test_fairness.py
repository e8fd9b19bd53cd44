"""One caller's requests leave room for another's: places, queue and turn, over HTTP.

The kind: what is bounded for all together (sequences that run, requests and tokens that wait, the
order among them) could be used up by one caller. Rows, time and pages, which could be used up as
well, are in tests/engine/test_fairness.py.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import ServeProcess

PLACES, QUEUED = 4, 4
KEYS = "first\nsecond weight=2 priority=-5\n"


@pytest.fixture(scope="module")
def shared(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A server with few places, for the holders of two keys."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "keys").write_text(KEYS)
    arguments = [str(tiny_llama), "--threads", "1", "--max-running", str(PLACES)]
    arguments += ["--max-queued-requests", str(QUEUED), "--api-key-file", str(folder / "keys")]
    with ServeProcess(arguments, folder / "log", key="first") as running:
        yield running
        running.wait_idle()


Caller = Callable[..., httpx.Client]


@pytest.fixture
def caller(shared: ServeProcess) -> Iterator[Caller]:
    """Makes clients that send a key."""
    with ExitStack() as stack:

        def make(key: str) -> httpx.Client:
            client = stack.enter_context(shared.client())
            client.headers["Authorization"] = f"Bearer {key}"
            return client

        yield make


@contextmanager
def running(client: httpx.Client, **fields: Any) -> Generator[threading.Event]:
    """A long stream that has begun; the event is set when it has ended."""
    body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True, **fields}
    ended = threading.Event()
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        next(line for line in lines if '"text"' in line)
        reader = threading.Thread(target=lambda: (sum(1 for _ in lines), ended.set()))
        reader.start()
        yield ended
        reader.join()


def short(client: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"prompt": "Hi", "max_tokens": 3, "ignore_eos": True, **fields}
    return client.post("/v1/completions", json=body)


def test_all_places_of_one_key_are_not_waited_for(caller: Caller) -> None:
    with running(caller("first"), n=PLACES) as ended:
        assert short(caller("second")).status_code == 200
        assert not ended.is_set()


def test_as_many_choices_as_places_begin_beside_another(caller: Caller) -> None:
    """They neither wait for the end of the other's stream nor lose a choice."""
    with running(caller("second")) as ended:
        answer = short(caller("first"), n=PLACES).json()
        assert not ended.is_set()
    assert [choice["index"] for choice in answer["choices"]] == list(range(PLACES))
    assert answer["usage"]["completion_tokens"] == 3 * PLACES


def test_a_full_queue_of_one_key_refuses_that_key_alone(
    caller: Caller, shared: ServeProcess
) -> None:
    first = caller("first")
    with running(first, n=PLACES), ExitStack() as stack:
        waiting = threading.Thread(target=short, args=(first,), kwargs={"n": QUEUED})
        waiting.start()
        stack.callback(waiting.join)
        while shared.metrics()["penstock_num_requests_waiting"] == 0:
            pass
        assert short(first).status_code == 429
        assert short(caller("second")).status_code == 200


@pytest.mark.parametrize(
    ("key", "priority", "named"),
    [
        ("first", -1, True),
        ("first", 0, False),
        ("first", 7, False),
        ("second", -5, False),
        ("second", -6, True),
    ],
)
def test_priority_is_the_operators_to_grant(
    key: str, priority: int, named: bool, caller: Caller
) -> None:
    answer = short(caller(key), priority=priority)
    assert answer.status_code == 200
    assert ("priority" in answer.headers.get("X-Penstock-Ignored", "")) == named


def test_without_keys_an_address_is_an_owner(server: ServeProcess) -> None:
    """All places of one address are not waited for by another."""
    local = httpx.HTTPTransport(local_address="127.0.0.2")
    with (
        server.client() as client,
        httpx.Client(base_url=server.url, transport=local, timeout=60) as other,
        running(client, n=64) as ended,
    ):
        assert short(other).status_code == 200
        assert not ended.is_set()
