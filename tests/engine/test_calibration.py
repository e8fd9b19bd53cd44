"""Calibration of a drafter's acceptance probabilities."""

import pytest

from penstock.engine.speculation.calibration import AcceptanceCalibration


def test_calibrated_probabilities_stay_as_they_are() -> None:
    calibration = AcceptanceCalibration()
    assert calibration.share == 1.0
    for _ in range(500):
        calibration.note(2.0, 2)
    assert calibration.share == 1.0
    calibration.note(0.5, 9)
    assert calibration.share == 1.0, "never more than was said"


def test_half_of_what_came_is_believed_and_recovers_later() -> None:
    calibration = AcceptanceCalibration()
    calibration.note(4.0, 0)
    assert calibration.share == pytest.approx(8 / 12), "one draft says little"
    for _ in range(500):
        calibration.note(2.0, 1)
    assert calibration.share == pytest.approx(0.5, abs=0.05)
    for _ in range(3000):
        calibration.recover()
    assert calibration.share > 0.9
