"""Whose rows a step computes: weighted max-min fairness among flows, in steps of bounded time.

A flow is what one owner runs. The searches of an owner are a flow beside its other requests, and
both share its weight, so that a search slows the same owner's chats as it would anybody's.

One flow alone has everything. Of several, each may use its part of a step, and what one leaves the
others use. A step in which a flow decodes takes no longer than its fair part of the machine would
make it take: beside one other flow of equal weight, twice as long as alone. What a flow takes alone
is measured in steps of its own, what rows of others add to that in steps with them. Where a step
took too long, those that used more than their part have less until that time is made good: so the
bound holds on average whatever rows cost (long contexts, rules, logprobs).
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .curve import Curve, on_grid
from .request import Flow
from .sequence import Sequence

_WEIGHT: Final = 0.2
"""Of a new measurement."""
_MOST: Final = 3.0
"""Times the estimate: a measurement above counts as no more."""
_MOST_DEBT: Final = 16.0
"""In bounds of a step."""
_STALE: Final = 32
"""Bounded steps after which a flow is measured alone again; at least 8 for each flow."""
_AHEAD: Final = 16
"""Rows by which steps may grow at once, or twofold."""
_REMEMBERED: Final = 256
"""Flows of the past whose costs are known."""


@dataclass(slots=True, kw_only=True)
class _Account:
    """What is known of a flow.

    `weight`: its owner's. `live`: its sequences. `pace`: what its steps alone take, relative to
    those of all flows. `row_s`: what one of its rows adds to a step of others; None: not known.
    `debt_s`: what it owes for steps that took too long. `since_alone`: bounded steps since the last
    that it had for itself.
    """

    weight: float = 1.0
    live: int = 0
    pace: float = 1.0
    row_s: float | None = None
    debt_s: float = 0.0
    since_alone: int = _STALE


@dataclass(slots=True, kw_only=True)
class Demand:
    """Rows that a flow could use in a step, and whether it decodes."""

    rows: int = 0
    decodes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """How long a step may take, and the flow because of which; `alone_s`: without the others."""

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

    @property
    def contended(self) -> bool:
        """Whether more than one flow lives."""
        return len(self._live) > 1

    @property
    def flows(self) -> list[Flow]:
        """Those that live."""
        return list(self._live)

    def join(self, sequence: Sequence) -> None:
        """A sequence lives from now on."""
        flow = sequence.request.flow
        account = self._live.get(flow)
        if account is None:
            account = self._live[flow] = self._known.pop(flow, None) or _Account()
        account.weight = sequence.request.weight
        account.live += 1

    def leave(self, sequence: Sequence) -> None:
        """It does not any more."""
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
        """Of a flow: its owner's, divided where the owner also has a flow of the other kind."""
        other = (flow[0], not flow[1]) in self._live
        return self._live[flow].weight / (2 if other else 1)

    def unbounded(self) -> None:
        """The next step is for one flow alone, which may use all of it."""
        self._bound = None

    def divide(self, demands: Mapping[Flow, Demand], most_rows: int) -> dict[Flow, int]:
        """Rows of each flow in the next step; those that need the smallest part come first.

        Flows that owe more time than their part are missing. Now and then a flow has a step for
        itself, which tells how long that takes.
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
        """A step with so many rows of each flow took so long."""
        bound, self._bound = self._bound, None
        if len(rows) == 1:
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
        curve.set(size, estimate + (_WEIGHT if curve.has(size) else 1.0) * (capped - estimate))
        account = self._live.get(flow) or self._known.get(flow)  # it may have ended with the step
        if account is not None:
            account.since_alone = 0
            if estimate > 0:
                account.pace += _WEIGHT * (capped / estimate - account.pace)

    def _observe_beside(self, rows: Mapping[Flow, int], bound: _Bound, seconds: float) -> None:
        """Correct what rows of others add, most for those of which there were most."""
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
        """Charge what a step took too long to those that used more than their part of it."""
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
        demands: Mapping[Flow, Demand],
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
                alone_s = self._live[flow].pace * self._alone.estimate(max(1, fair[flow]))
                seconds = alone_s * total / weights[flow]
                if found is None or seconds < found.seconds:
                    found = _Bound(flow=flow, alone_s=alone_s, seconds=seconds)
        return found

    def _row_s(self, flow: Flow, beside: int) -> float:
        """What a row of the flow adds to a step of so many others."""
        known = self._live[flow].row_s
        if known is not None:
            return known
        more_s = self._alone.estimate(beside + _AHEAD) - self._alone.estimate(beside)
        return max(0.0, more_s) / _AHEAD

    def _unmeasured(self, demands: Mapping[Flow, Demand]) -> Flow | None:
        """A flow that decodes and whose steps alone were measured too long ago.

        Only one with few rows, which may bound a step, and whose step alone holds up nobody.
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
    """What each gets of `left`: all that it needs, or as much by its weight as all such do."""
    parts: dict[Flow, float] = {}
    weight_left = sum(weights[flow] for flow in needs)
    for flow in sorted(needs, key=lambda flow: needs[flow] / weights[flow]):
        parts[flow] = min(needs[flow], left * weights[flow] / weight_left)
        left -= parts[flow]
        weight_left -= weights[flow]
    return parts
