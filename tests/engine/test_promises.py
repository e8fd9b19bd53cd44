"""What a drafter's promises are worth."""

import pytest

from penstock.engine.state.calibration import Promises


def test_promises_that_are_kept_are_believed() -> None:
    promises = Promises()
    assert promises.share == 1.0
    for _ in range(500):
        promises.note(2.0, 2)
    assert promises.share == 1.0
    promises.note(0.5, 9)
    assert promises.share == 1.0, "never more than was said"


def test_half_of_what_came_is_believed_and_forgiven_later() -> None:
    promises = Promises()
    promises.note(4.0, 0)
    assert promises.share == pytest.approx(8 / 12), "one draft says little"
    for _ in range(500):
        promises.note(2.0, 1)
    assert promises.share == pytest.approx(0.5, abs=0.05)
    for _ in range(3000):
        promises.forgive()
    assert promises.share > 0.9
