"""Which candidates of a step are kept."""

from collections import Counter
from collections.abc import Sequence
from random import Random

from .parameters import Selection


def select(values: Sequence[float], count: int, how: Selection, rng: Random) -> dict[int, int]:
    """The indices that are kept and how many times each, in the order of the choice.

    `greedy`: the `count` highest, of equal ones the earliest. `sample`: `count` draws with
    replacement, with probabilities in proportion to the values; values under 0 count as 0, and if
    all are 0, all are equally likely.
    """
    places = range(len(values))
    if not places:
        return {}
    if how == "greedy":
        best = sorted(places, key=values.__getitem__, reverse=True)[:count]
        return dict.fromkeys(best, 1)
    weights = [max(value, 0.0) for value in values]
    return Counter(rng.choices(places, weights if any(weights) else None, k=count))
