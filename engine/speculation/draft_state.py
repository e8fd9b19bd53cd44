"""What the planner knows of one sequence that drafts."""

from dataclasses import dataclass

from ...decoding.drafting.base import Drafting
from .calibration import AcceptanceCalibration


@dataclass(slots=True, kw_only=True)
class DraftState:
    """`drafting`: its drafter at work. `calibration`: of what that drafter expects.

    `pause`: steps until the drafter is asked again. `misses`: times in a row that no draft paid.
    `expected_accepted`: draft tokens of the current draft that are expected to be accepted; 0 if it
    is a trial, or its size the caller's choice.
    """

    drafting: Drafting
    calibration: AcceptanceCalibration
    pause: int = 0
    misses: int = 0
    expected_accepted: float = 0.0
