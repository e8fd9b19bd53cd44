"""How long a step takes, as lately measured: what a draft costs here and now.

    seconds = F(rows) + g(rows + draft tokens) * draft tokens + a * drafts

F is what sequences cost without draft tokens, g a draft token in a pass of so many rows, and `a`
what a sequence that drafts costs beyond its draft tokens, since its attention may be a call of its
own. F and g are kept on a grid. All are learned from the steps that read no prompt and are not
launched ahead (`ahead.py`): F from those without draft tokens alone, g and `a` from the others, an
error shared out by how uncertain each of them is. Whoever drafts takes the sizes that seem cheap;
what they cost beyond that says nothing of F."""

from collections.abc import Callable
from typing import Final

from ..state.cost_curve import Curve, on_grid

_WEIGHT: Final = 0.15
"""Of a new measurement."""
_WEIGHT_AFTER: Final = 0.4
"""Of a step without draft tokens after many with some."""
_MOST: Final = 2.5
"""Times the estimate: a measurement above counts as no more."""
_FORGET_EVERY, _FORGET_SHARE = 64, 0.03
_STALE, _LONGEST_STALE = 32, 128
"""Steps with draft tokens, of so many rows besides, after which one without them has to tell F;
twice as many after each that was no surprise."""
_NO_SURPRISE: Final = 0.1
_ASTRAY, _ASTRAY_AFTER = 0.2, 4
"""Relative error of so many steps with draft tokens, about, after which one without has to tell as
well: it may be the machine that has changed."""
_ASTRAY_MOST: Final = 0.6
"""A step's error counts as no more: one interruption is no change."""
_GUESS_SHARE: Final = 0.02
"""What a draft token costs until measured, as a share of F: few rows are bound by reading the
weights."""
_VARIANCES: Final = (0.02**2, 0.03**2)
"""How uncertain are g and a, as shares of F."""


class StepCostModel:
    """Estimates from measured steps; between the sizes that were measured it interpolates."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._plain = Curve()
        self._draft_token = Curve()
        self._per_draft = 0.0
        self._observed = 0
        # Sizes measured of late; and how many draft tokens each had when it was measured last.
        self._measured: set[int] = set()
        self._draft_tokens: dict[int, int] = {}
        # By rows without draft tokens: steps that had some since the last that had none, and after
        # how many of them that is too long ago; and how far estimates were astray lately.
        self._since_plain: dict[int, tuple[int, int]] = {}
        self._astray: dict[int, float] = {}
        self._began_s = 0.0

    def start(self) -> None:
        """A step begins."""
        self._began_s = self._clock()

    def stop(self, rows: int, draft_tokens: int, drafts: int) -> None:
        """It has ended; see `observe`."""
        self.observe(rows, draft_tokens, drafts, self._clock() - self._began_s)

    def observe(self, rows: int, draft_tokens: int, drafts: int, seconds: float) -> None:
        """A step of so many rows, with so many draft tokens beside them in so many drafts."""
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
        """Whether steps of so many rows have all had draft tokens for long, or other times than
        thought.

        Then a step without draft tokens tells what costs what. So it does where nothing is known.
        """
        if not self._plain.sizes:
            return True
        size = on_grid(rows)
        since, patience = self._since_plain.get(size, (0, _STALE))
        astray = since >= _ASTRAY_AFTER and abs(self._astray.get(size, 0.0)) > _ASTRAY
        return astray or since >= patience

    def seconds(self, rows: int, draft_tokens: int = 0, drafts: int = 0) -> float:
        """Estimate for a step; 1 where nothing is known.

        Between two sizes that were measured it is a straight line. Beyond them it is a draft token
        that invites to try: fewer rows take less, more rows take no more than in proportion."""
        seconds = self._of_rows(rows) + self._per_draft * drafts
        return seconds + self.of_draft_tokens(rows, draft_tokens)

    def of_draft_tokens(self, rows: int, draft_tokens: int) -> float:
        """What of `seconds` the draft tokens take."""
        return self._of_draft_token(rows, draft_tokens) * draft_tokens if draft_tokens else 0.0

    def _of_rows(self, rows: int) -> float:
        return self._plain.estimate(rows) if self._plain.sizes else 1.0

    def _of_draft_token(self, rows: int, draft_tokens: int) -> float:
        if not self._draft_token.sizes:
            return _GUESS_SHARE * self._of_rows(rows)
        return self._draft_token.at(rows + draft_tokens)

    def _forget(self) -> None:
        """Let what is not measured any more seem cheaper, until it is tried and measured again.

        But all draft tokens of a pass no cheaper than those of a smaller one that is measured.
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
