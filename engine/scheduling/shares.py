"""Fair shares of a step's rows: weighted max-min fairness among flows, in steps of bounded time.

A flow is what one owner runs. The searches of an owner are a flow beside its other requests, and
both share its weight, so that a search slows its owner's chats like those of any other owner.

A flow that is alone has all rows. Of several flows, each may use its part of a step, and the others
use what it leaves. A step in which a flow decodes takes no longer than its fair part of the machine
allows: beside one other flow of equal weight, twice as long as alone, less a part for what the
others cost between steps. The time of a flow alone is measured in steps of its own; what rows of
other flows add is measured in steps with them. After a step that took too long, the flows that used
more than their part get less until that time is made good. So the bound holds on average, whatever
rows cost (long contexts, rules, logprobs).

The text of a step is handled during the next one, which takes longer for it on the same cores.
Therefore the first step alone after one with others is not measured, and an estimate grows slowly
while others are there.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..state.cost_curve import Curve, on_grid
from ..state.request import Flow
from ..state.sequence import Sequence

_WEIGHT: Final = 0.2
"""Weight of a new measurement."""
_LONGER: Final = 0.1
"""Weight of one that is longer than the estimate and may have been disturbed."""
_ON_TOP: Final = 0.3
"""Part of the others' time in a step that is left for handling their text, beside the steps."""
_MOST: Final = 3.0
"""Cap on a measurement, as a multiple of the estimate."""
_MOST_DEBT: Final = 16.0
"""Largest debt, as a multiple of a step's bound."""
_STALE: Final = 32
"""Bounded steps after which a flow is measured alone again; at least 8 for each flow."""
_AHEAD: Final = 16
"""Rows of other flows that a step may always have; more rows may at most double at once."""
_REMEMBERED: Final = 256
"""Ended flows whose costs are remembered."""


@dataclass(slots=True, kw_only=True)
class _Account:
    """What is known of a flow.

    `weight`: its owner's. `live`: number of its sequences. `pace`: time of its steps alone,
    relative to those of all flows. `row_s`: what one of its rows adds to a step of others.
    `debt_s`: what it owes for steps that took too long. `since_alone`: bounded steps since the last
    that it had for itself. None: not known.
    """

    weight: float = 1.0
    live: int = 0
    pace: float | None = None
    row_s: float | None = None
    debt_s: float = 0.0
    since_alone: int = _STALE


@dataclass(slots=True, kw_only=True)
class RowDemand:
    """Rows that a flow could use in a step, and whether it decodes."""

    rows: int = 0
    decodes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """How long a step may take, and the flow that bounds it; `alone_s`: its time without others."""

    flow: Flow
    alone_s: float
    seconds: float


class Shares:
    """Divides the rows of each step by the weights of the flows' owners."""

    def __init__(self) -> None:
        self._alone = Curve()
        self._live: dict[Flow, _Account] = {}
        self._known: OrderedDict[Flow, _Account] = OrderedDict()
        self._bound: _Bound | None = None
        self._rows_beside = 0
        self._last: frozenset[Flow] = frozenset()  # with rows in the last step

    @property
    def contended(self) -> bool:
        """Whether more than one flow has sequences."""
        return len(self._live) > 1

    @property
    def flows(self) -> list[Flow]:
        """Flows that have sequences."""
        return list(self._live)

    def join(self, sequence: Sequence) -> None:
        """Count a sequence of its flow."""
        flow = sequence.request.flow
        account = self._live.get(flow)
        if account is None:
            account = self._live[flow] = self._known.pop(flow, None) or _Account()
        account.weight = sequence.request.weight
        account.live += 1

    def leave(self, sequence: Sequence) -> None:
        """Count it no more; the costs of a flow without sequences are remembered for a while."""
        flow = sequence.request.flow
        account = self._live[flow]
        account.live -= 1
        if not account.live:
            del self._live[flow]
            account.debt_s = 0.0
            self._known[flow] = account
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    def weight(self, flow: Flow) -> float:
        """A flow's weight: its owner's, or half of it if the owner has a flow of both kinds."""
        other = (flow[0], not flow[1]) in self._live
        return self._live[flow].weight / (2 if other else 1)

    def unbounded(self) -> None:
        """Give the next step no bound; one flow may use all of it."""
        self._bound = None

    def divide(self, demands: Mapping[Flow, RowDemand], most_rows: int) -> dict[Flow, int]:
        """Rows of each flow in the next step; those that need the smallest part come first.

        Flows that owe more time than their part are missing. Now and then a flow has a step for
        itself, to measure how long that takes.
        """
        weights = {flow: self.weight(flow) for flow in demands}
        needs = {flow: float(demand.rows) for flow, demand in demands.items()}
        fair = {f: int(part) for f, part in _water_filled(needs, weights, most_rows).items()}
        self._bound = bound = self._bound_of(demands, fair, weights)
        if bound is None:
            return {flow: max(1, rows) for flow, rows in fair.items() if demands[flow].rows}
        unmeasured = self._unmeasured(demands)
        if unmeasured is not None:
            return {unmeasured: most_rows}
        granted = {bound.flow: max(1, fair[bound.flow])}
        row_s: dict[Flow, float] = {}
        for flow, demand in demands.items():
            if flow != bound.flow and demand.rows:
                row_s[flow] = self._row_s(flow, granted[bound.flow])
        needs = {flow: demands[flow].rows * row_s[flow] for flow in row_s}
        parts = _water_filled(needs, weights, bound.seconds - bound.alone_s)
        left = min(most_rows - granted[bound.flow], max(_AHEAD, 2 * self._rows_beside))
        for flow, part_s in parts.items():
            debt_s, rows = self._live[flow].debt_s, demands[flow].rows
            if row_s[flow] > 0:
                rows = min(rows, round((part_s - debt_s) / row_s[flow]))
            if rows > 0 or not debt_s:
                granted[flow] = max(1, min(rows, left))
                left -= granted[flow]
        return granted

    def observe(self, rows: Mapping[Flow, int], seconds: float) -> None:
        """Learn from a step: the rows of each flow, and the time that it took."""
        bound, self._bound = self._bound, None
        present = frozenset(rows)
        undisturbed, self._last = self._last == present, present
        if len(rows) == 1:
            if undisturbed:
                self._observe_alone(*next(iter(rows.items())), seconds)
        elif bound is not None and bound.flow in rows:
            beside = {f: n for f, n in rows.items() if f != bound.flow and f in self._live}
            self._observe_beside(beside, bound, seconds)
        if bound is not None:
            self._settle(rows, bound, seconds)

    def _observe_alone(self, flow: Flow, rows: int, seconds: float) -> None:
        curve, size = self._alone, on_grid(rows)
        if not curve.sizes:
            curve.set(size, seconds)
        estimate = curve.estimate(size)
        capped = min(seconds, _MOST * estimate)
        if not self.contended or not curve.has(size):
            curve.set(size, estimate + (_WEIGHT if curve.has(size) else 1.0) * (capped - estimate))
        account = self._live.get(flow) or self._known.get(flow)  # it may have ended with the step
        if account is not None:
            account.since_alone = 0
            if estimate > 0:
                pace = capped / estimate
                known = pace if account.pace is None else account.pace
                weight = _LONGER if pace > known and self.contended else _WEIGHT
                account.pace = known + weight * (pace - known)

    def _observe_beside(self, rows: Mapping[Flow, int], bound: _Bound, seconds: float) -> None:
        """Correct what a row of each other flow adds, most for flows with most rows."""
        self._rows_beside = sum(rows.values())
        known = {flow: self._row_s(flow, 1) for flow in rows}
        estimate = sum(known[flow] * n for flow, n in rows.items())
        most = bound.alone_s + _MOST * max(estimate, bound.alone_s)
        error = min(seconds, most) - bound.alone_s - estimate
        squares = sum(n * n for n in rows.values())
        for flow, n in rows.items():
            corrected = known[flow] + _WEIGHT * error * n / squares
            self._live[flow].row_s = max(0.0, corrected)

    def _settle(self, rows: Mapping[Flow, int], bound: _Bound, seconds: float) -> None:
        """Charge the time beyond the bound to flows that used more than their part of the step."""
        for account in self._live.values():
            account.since_alone += 1
            account.debt_s = max(0.0, account.debt_s - max(0.0, bound.seconds - seconds))
        if seconds <= bound.seconds:
            return
        others = [flow for flow in rows if flow != bound.flow and flow in self._live]
        weights = {flow: self.weight(flow) for flow in others}
        used = {flow: self._row_s(flow, 1) * rows[flow] for flow in others}
        spare_s, total = bound.seconds - bound.alone_s, sum(weights.values())
        beyond = {f: max(0.0, used[f] - spare_s * weights[f] / total) for f in others}
        if not any(beyond.values()):
            beyond = used
        for flow in others:
            share = beyond[flow] / (sum(beyond.values()) or 1.0)
            debt_s = self._live[flow].debt_s + share * (seconds - bound.seconds)
            self._live[flow].debt_s = min(debt_s, _MOST_DEBT * bound.seconds)

    def _bound_of(
        self,
        demands: Mapping[Flow, RowDemand],
        fair: Mapping[Flow, int],
        weights: Mapping[Flow, float],
    ) -> _Bound | None:
        """The step's bound; None: no flow decodes, or nothing is known yet.

        `fair`: how many rows each flow has at most where they are divided by weight alone.
        """
        if not self._alone.sizes:
            return None
        total, found = sum(weights.values()), None
        for flow, demand in demands.items():
            if demand.decodes:
                pace = self._live[flow].pace or 1.0
                alone_s = pace * self._alone.estimate(max(1, fair[flow]))
                others = (total - weights[flow]) / weights[flow]
                seconds = alone_s * (1 + (1 - _ON_TOP) * others)
                if found is None or seconds < found.seconds:
                    found = _Bound(flow=flow, alone_s=alone_s, seconds=seconds)
        return found

    def _row_s(self, flow: Flow, beside: int) -> float:
        """What a row of the flow adds to a step with `beside` rows of others."""
        known = self._live[flow].row_s
        if known is not None:
            return known
        more_s = self._alone.estimate(beside + _AHEAD) - self._alone.estimate(beside)
        return max(0.0, more_s) / _AHEAD

    def _unmeasured(self, demands: Mapping[Flow, RowDemand]) -> Flow | None:
        """A flow that decodes and whose steps alone were measured too long ago.

        Only one with few rows: it may bound a step, and its step alone delays no other flow much.
        """
        stale = max(_STALE, _STALE // 4 * len(demands))
        decoding = {flow: demand.rows for flow, demand in demands.items() if demand.decodes}
        for flow, rows in decoding.items():
            if rows <= 2 * min(decoding.values()) and self._live[flow].since_alone >= stale:
                return flow
        return None


def _water_filled(
    needs: Mapping[Flow, float], weights: Mapping[Flow, float], left: float
) -> dict[Flow, float]:
    """What each flow gets of `left` (water-filling): all that it needs, or its part by weight."""
    parts: dict[Flow, float] = {}
    weight_left = sum(weights[flow] for flow in needs)
    for flow in sorted(needs, key=lambda flow: needs[flow] / weights[flow]):
        parts[flow] = min(needs[flow], left * weights[flow] / weight_left)
        left -= parts[flow]
        weight_left -= weights[flow]
    return parts
