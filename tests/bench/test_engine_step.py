"""The timers still find what they time, and take nothing with them when they go."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.engine_step import (
    PARTS,
    STEP_TIMED,
    load,
    measure,
    split,
    summarise,
    watched,
)
from penstock.engine.attention.interface import PagedStep


def test_parts_add_up_to_the_step() -> None:
    parts = split(10.0, {"schedule": 1.0, "run": 6.0, "attention": 2.5, "sampling": 0.5})
    assert sum(parts.values()) == 10
    assert parts == {
        "schedule": 1.0,
        "model": 3.5,
        "attention": 2.5,
        "sampling": 0.5,
        "commit": 2.5,
    }


def test_measures_a_real_engine(tiny_model: Callable[[str], Path]) -> None:
    options = Namespace(device="cpu", rounds=1, steps=3)
    subject = load(tiny_model("olmo2"), options)  # its attention is a call of its own
    times = measure(subject, 2, options)
    assert all(len(times[part]) == 3 for part in PARTS)
    assert all(value > 0 for value in times["attention"] + times["sampling"] + times["schedule"])
    rows = {row["part"]: row for row in summarise(times)}
    assert rows[STEP_TIMED]["share_of_step"] == 1
    assert subject.built.engine.stats().pages_in_use == 0


def test_nothing_stays_wrapped(tiny_model: Callable[[str], Path]) -> None:
    subject = load(tiny_model("llama"), Namespace(device="cpu"))
    engine = subject.built.engine
    attention = PagedStep.__call__
    with pytest.raises(KeyError), watched(subject):
        raise KeyError
    assert PagedStep.__call__ is attention
    assert "run" not in vars(engine.runner)
    assert "schedule" not in vars(engine.scheduler)
    assert "sample" not in vars(engine.decoder.sampler)
