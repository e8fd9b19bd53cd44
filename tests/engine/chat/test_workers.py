"""Processes that render: whatever one of them does, its caller gets an answer."""

import psutil

from penstock.engine.requests.chat import wire
from penstock.engine.requests.chat.workers import Workers

RENDER = wire.Render(
    template=0,
    messages=[{"role": "user", "content": "x"}],
    variables={},
    add_generation_prompt=True,
    continue_final_message=False,
)


def test_a_process_that_stands_still_ends() -> None:
    start = wire.Start(
        sources=("{{ messages[0].content }}!",), constants={}, cpu_s=0.2, memory_bytes=2**28
    )
    workers = Workers(start, limit=1)
    before = psutil.Process().children()
    assert workers.render(RENDER) == wire.Rendered(text="x!", said=((0, 1),))
    (process,) = (child for child in psutil.Process().children() if child not in before)
    process.suspend()
    refused = workers.render(RENDER)
    assert isinstance(refused, wire.Refused)
    assert refused.reason == "it takes longer than 0.2 s"
    assert not process.is_running()
    assert isinstance(workers.render(RENDER), wire.Rendered)
    workers.close()
    assert psutil.Process().children() == before
