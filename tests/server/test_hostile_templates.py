"""Templates of model files are untrusted programs: bounded in time, memory and output.

The kind: code that others wrote, run where it can hold up what everybody needs. Every failure is a
400 with the template's own words; whoever leaves is freed; other requests do not wait; the end of
the server waits for no template.
"""

import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.server.process import ServeProcess
from tests.server.scripted import until
from tests.server.templated import templated
from tests.tiny import save_tiny

MODEL = "tiny"
WHEN = "{% if messages[-1].content == 'now' %}@{% endif %}{{ messages[-1].content }}"
HANGS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "loops": (HANGS, "it takes longer than 2 s"),
    "lipsum": ("{{ lipsum(n=100000) }}", "it takes longer than 2 s"),
    "multiplies": ("{{ 'a' * 10**9 }}", "it needs too much memory"),
    "formats": ("{{ '%999999999d' % 1 }}", "it needs too much memory"),
    "centres": ("{{ 'a'.center(10**9) }}", "it needs too much memory"),
    "filters": ("{{ 'a' | center(10**9) }}", "it needs too much memory"),
    "prints": ("{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "its text is longer than"),
    "doubles": (
        "{% set n = namespace(s='aa') %}"
        "{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "it needs too much memory",
    ),
    "recurses": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "it calls itself too often"),
    "divides": ("{{ 1 / 0 }}", "division by zero"),
    "ranges": ("{{ range(1000000) }}", "Range too big"),
    "undefined": ("{{ messages.x.y }}", "has no attribute 'x'"),
    "refuses": ("{{ raise_exception('only on Sundays') }}", "only on Sundays"),
    "reaches-out": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "types": ("{{ 1 + 'a' }}", "TypeError"),
    "keys": ("{{ {}.popitem() }}", "unsafe"),
    "json": ("{{ cycler | tojson }}", "TypeError"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_every_failure_is_a_400_with_its_reason(name: str) -> None:
    source, reason = HOSTILE[name]
    with templated(WHEN.replace("@", source)) as server, server.client() as client:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "now"}]}
        answer = client.post("/v1/chat/completions", json=body, timeout=120)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert reason in error["message"]
        assert error["code"] == "chat_template_error"
        assert "/" not in error["message"].replace("/v1/", "")
        assert "0x" not in error["message"]
        # What it did to its process hurts nobody who comes later.
        body["messages"] = [{"role": "user", "content": "later"}]
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_syntax_error_is_no_reason_to_fail() -> None:
    with templated("{% for %}") as server, server.client() as client:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "q"}]}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert (
            client.post("/v1/completions", json={"model": "scripted", "prompt": "q"}).status_code
            == 200
        )


def test_completions_do_not_wait_for_templates_and_whoever_leaves_is_freed() -> None:
    with templated(WHEN.replace("@", HANGS), intake_threads=1) as server:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "now"}]}

        def leave() -> None:
            with server.client() as client, pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body, timeout=0.5)

        leaving = [threading.Thread(target=leave) for _ in range(6)]
        for thread in leaving:
            thread.start()
        offload = server.app.state.services.offload
        until(lambda: len(offload._live) == 6)
        with server.client() as client:
            plain = client.post("/v1/completions", json={"model": "scripted", "prompt": "q"})
            assert plain.status_code == 200
            assert len(offload._live) > 0  # it did not wait for them
            for thread in leaving:
                thread.join()
            began = time.thread_time()
            body["messages"] = [{"role": "user", "content": "later"}]
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            until(lambda: not offload._live)
            assert time.thread_time() - began < 1


@pytest.mark.slow
@pytest.mark.parametrize("engine_in", ["thread", "process"])
def test_the_end_of_the_server_waits_for_no_template(engine_in: str, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    (folder / "chat_template.jinja").write_text(WHEN.replace("@", HANGS), encoding="utf-8")
    arguments = [str(folder), "--served-model-name", MODEL, "--threads", "1"]
    arguments += ["--engine-in", engine_in, "--kv-cache-memory", "8000000"]
    arguments += ["--shutdown-timeout-s", "0"]
    with ServeProcess(arguments, tmp_path / "log") as server:
        body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "now"}]}

        def ask() -> None:
            with server.client() as client:
                try:
                    client.post("/v1/chat/completions", json=body)
                except httpx.TransportError:
                    return

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        with server.client() as client:
            plain = client.post(
                "/v1/completions", json={"model": MODEL, "prompt": "q", "max_tokens": 1}
            )
            assert plain.status_code == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        for thread in asking:
            thread.join()
