"""How long a step takes, from recent measurements: what a draft costs on this machine now.

    seconds = F(rows) + g(rows + draft tokens) * draft tokens + a * drafts

F is the cost of the rows without draft tokens, g that of one draft token in a pass of that many
rows, and `a` what a draft costs beyond its draft tokens, since its attention may be a call of its
own. F and g are kept on a grid. All are learned from steps that read no prompt and are not launched
ahead (`overlap.py`): F only from steps without draft tokens, g and `a` from the others, where the
error is split by how uncertain each of them is. The planner picks sizes that seem cheap; if they
turn out dearer, that says nothing about F."""

from collections.abc import Callable
from typing import Final

from ..state.cost_curve import Curve, on_grid

_WEIGHT: Final = 0.15
"""Weight of a new measurement."""
_WEIGHT_AFTER: Final = 0.4
"""Weight of a step without draft tokens after many steps with some."""
_MOST: Final = 2.5
"""Cap on a measurement, as a multiple of the estimate."""
_FORGET_EVERY, _FORGET_SHARE = 64, 0.03
_STALE, _LONGEST_STALE = 32, 128
"""Steps with draft tokens, at one number of other rows, after which a step without them has to
measure F; doubled each time that F was within `_NO_SURPRISE` of its estimate."""
_NO_SURPRISE: Final = 0.1
_ASTRAY, _ASTRAY_AFTER = 0.2, 4
"""Mean relative error, over about this many steps with draft tokens, above which a step without
them has to measure F as well: the machine itself may have changed."""
_ASTRAY_MOST: Final = 0.6
"""Cap on the relative error of one step: a single interruption is no change."""
_DRAFT_TOKEN_SHARE: Final = 0.02
"""Cost of a draft token until measured, as a share of F: passes of few rows are bound by reading
the weights."""
_VARIANCES: Final = (0.02**2, 0.03**2)
"""Variances of g and `a`, relative to F."""


class StepCostModel:
    """Estimates a step's time from measured steps, interpolating between measured sizes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._plain = Curve()
        self._draft_token = Curve()
        self._per_draft = 0.0
        self._observed = 0
        # Sizes measured since the last `_forget`, and the draft tokens of each size's last step.
        self._measured: set[int] = set()
        self._draft_tokens: dict[int, int] = {}
        # By rows without draft tokens: steps with draft tokens since the last one without, and how
        # many of them are too many; and the recent mean relative error of the estimates.
        self._since_plain: dict[int, tuple[int, int]] = {}
        self._astray: dict[int, float] = {}
        self._began_s = 0.0

    def start(self) -> None:
        """Start timing a step."""
        self._began_s = self._clock()

    def stop(self, rows: int, draft_tokens: int, drafts: int) -> None:
        """Stop timing the step and `observe` it."""
        self.observe(rows, draft_tokens, drafts, self._clock() - self._began_s)

    def observe(self, rows: int, draft_tokens: int, drafts: int, seconds: float) -> None:
        """Learn from a step: its rows without draft tokens, its draft tokens, drafts and time."""
        self._observed += 1
        if self._observed % _FORGET_EVERY == 0:
            self._forget()
        size = on_grid(rows)
        if not self._plain.sizes:
            self._plain.set(size, seconds)
            return
        plain = self._of_rows(rows)
        estimate = self.seconds(rows, draft_tokens, drafts)
        error = min(seconds, _MOST * estimate) - estimate
        if not draft_tokens:
            since, patience = self._since_plain.get(size, (0, _STALE))
            weight = _WEIGHT_AFTER if since >= patience else _WEIGHT
            if since >= patience:
                calm = abs(error) < _NO_SURPRISE * estimate
                patience = min(2 * patience, _LONGEST_STALE) if calm else _STALE
            self._since_plain[size] = 0, patience
            self._astray[size] = 0.0
            self._plain.set(size, max(plain + weight * error, 0.0))
            return
        since, patience = self._since_plain.get(size, (0, _STALE))
        self._since_plain[size] = since + 1, patience
        astray = self._astray.get(size, 0.0)
        relative = max(-_ASTRAY_MOST, min(error / estimate, _ASTRAY_MOST)) if estimate else 0.0
        self._astray[size] = astray + (relative - astray) / _ASTRAY_AFTER
        of_draft_token, of_draft = _VARIANCES
        of_draft_tokens, of_drafts = (
            of_draft_token * draft_tokens * draft_tokens,
            of_draft * drafts * drafts,
        )
        error *= _WEIGHT / (of_draft_tokens + of_drafts)
        each = self._of_draft_token(rows, draft_tokens) + error * of_draft_tokens / draft_tokens
        at = on_grid(rows + draft_tokens)
        self._draft_token.set(at, max(each, 0.0))
        self._measured.add(at)
        self._draft_tokens[at] = draft_tokens
        if drafts:
            self._per_draft = max(self._per_draft + error * of_drafts / drafts, 0.0)

    def is_stale(self, rows: int) -> bool:
        """Whether F has to be measured at this number of rows, by a step without draft tokens.

        It has to if all steps have had draft tokens for long, if they took other times than
        estimated, or if nothing is known yet.
        """
        if not self._plain.sizes:
            return True
        size = on_grid(rows)
        since, patience = self._since_plain.get(size, (0, _STALE))
        astray = since >= _ASTRAY_AFTER and abs(self._astray.get(size, 0.0)) > _ASTRAY
        return astray or since >= patience

    def seconds(self, rows: int, draft_tokens: int = 0, drafts: int = 0) -> float:
        """Estimated seconds of a step; where nothing is known, 1 without draft tokens.

        Linear between two measured sizes. Beyond them F is an estimate that encourages trying them:
        fewer rows take less, more rows take no more than in proportion."""
        seconds = self._of_rows(rows) + self._per_draft * drafts
        return seconds + self.of_draft_tokens(rows, draft_tokens)

    def of_draft_tokens(self, rows: int, draft_tokens: int) -> float:
        """The part of `seconds` that the draft tokens take."""
        return self._of_draft_token(rows, draft_tokens) * draft_tokens if draft_tokens else 0.0

    def _of_rows(self, rows: int) -> float:
        return self._plain.estimate(rows) if self._plain.sizes else 1.0

    def _of_draft_token(self, rows: int, draft_tokens: int) -> float:
        if not self._draft_token.sizes:
            return _DRAFT_TOKEN_SHARE * self._of_rows(rows)
        return self._draft_token.at(rows + draft_tokens)

    def _forget(self) -> None:
        """Lower the estimates of sizes no longer measured, until they are tried and measured again.

        All draft tokens of such a pass stay at least as dear as those of a smaller measured one.
        """
        least = 0.0
        for size in self._draft_token.sizes:
            each, draft_tokens = self._draft_token.at(size), self._draft_tokens[size]
            if size in self._measured:
                least = max(least, each * draft_tokens)
            else:
                self._draft_token.set(
                    size, min(each, max(each * (1 - _FORGET_SHARE), least / draft_tokens))
                )
        if not self._measured:
            self._per_draft *= 1 - _FORGET_SHARE
        self._measured.clear()
