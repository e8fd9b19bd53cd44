"""Which candidates of a step are kept."""

from collections import Counter
from collections.abc import Sequence
from random import Random

from .parameters import Selection


def select(values: Sequence[float], count: int, how: Selection, rng: Random) -> dict[int, int]:
    """The places that are kept, and how many times each, in the order of the choice.

    `greedy`: the `count` highest, of equal ones the earliest. `sample`: `count` draws with
    replacement, each with a chance in proportion to its value; values under 0 have none, and where
    all are so, all are as likely.
    """
    places = range(len(values))
    if not places:
        return {}
    if how == "greedy":
        best = sorted(places, key=values.__getitem__, reverse=True)[:count]
        return dict.fromkeys(best, 1)
    weights = [max(value, 0.0) for value in values]
    return Counter(rng.choices(places, weights if any(weights) else None, k=count))
