from random import Random

import pytest

from penstock.models.nano.abilities.game24 import grade_solution
from penstock.models.nano.training import stumbles
from penstock.models.nano.training.stumbles import LEARNED_FROM_HERE

MAKERS = (
    stumbles.missed_solution,
    stumbles.steps_with_repeats,
    stumbles.code_with_repeats,
    stumbles.without_end,
)


@pytest.mark.parametrize("make", MAKERS)
def test_answers_are_cut_once_and_end(make: stumbles.Maker) -> None:
    rng = Random(1)
    for _ in range(200):
        example = make(rng, "train")
        begun, cut, rest = example.answer.partition(LEARNED_FROM_HERE)
        assert begun
        assert cut
        assert LEARNED_FROM_HERE not in rest
        assert LEARNED_FROM_HERE not in example.turns[0].text


def test_a_missed_solution_says_so() -> None:
    rng = Random(2)
    for _ in range(100):
        example = stumbles.missed_solution(rng, "train")
        begun, _, rest = example.answer.partition(LEARNED_FROM_HERE)
        left = begun.split("\n")[2].partition("(left: ")[2].rstrip(")")
        assert rest == f"\nThat makes {left}, not 24."
        assert left != "24"
        assert grade_solution((1, 1, 1, 1), begun + rest) == {"solved": 0.0}


def test_what_is_learned_after_repeated_lines_is_the_rest_of_the_right_answer() -> None:
    rng, repeated = Random(3), 0
    for _ in range(100):
        example = stumbles.steps_with_repeats(rng, "train")
        begun, _, rest = example.answer.partition(LEARNED_FROM_HERE)
        lines = begun.split("\n")
        repeated += len(set(lines)) < len(lines)
        assert rest == "" or rest.startswith("\n")
    assert repeated > 30


def test_what_is_learned_after_what_came_many_times_is_the_rest_of_a_right_answer() -> None:
    rng, longest = Random(4), 0
    for _ in range(300):
        example = stumbles.without_end(rng, "train")
        begun, _, rest = example.answer.partition(LEARNED_FROM_HERE)
        line = begun.rpartition("\n")[2]
        longest = max(longest, len(line))
        last = rest.rpartition("\n")[2]
        if last.startswith("Answer: "):
            assert last.endswith(" = 24")
        if begun.startswith("{"):
            assert rest.endswith("}")
    assert longest > 300
