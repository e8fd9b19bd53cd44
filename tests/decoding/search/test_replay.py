"""The logged searches of Yao et al. 2023 (arXiv:2305.10601), replayed step by step."""

import json
import re
from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import Any

import pytest

from penstock.decoding.search.operations import Generate
from penstock.decoding.search.tasks.board import PLACES, Board
from penstock.decoding.search.tasks.crosswords import CONFIDENCES, Crosswords
from tests.decoding.search.scripted import Context, Driver, data, text_of

LABELS = {"impossible": 0.001, "likely": 1.0, "sure": 20.0}
JUDGE = "judge "


def labels_of(value: float) -> list[str]:
    """Three answers that are worth `value` together; "?" is no label."""
    for said in combinations_with_replacement([*LABELS, "?"], 3):
        if sum(number * said.count(label) for label, number in LABELS.items()) == value:
            return list(said)
    raise AssertionError(f"no three labels make {value}")


@pytest.mark.parametrize("run", range(20))
def test_breadth_first_selects_what_the_log_says(run: int) -> None:
    log: dict[str, Any] = json.loads(data("game24/gpt4_bfs_steps.json"))[run]
    proposals: dict[str, str] = {}
    answers: dict[str, list[str]] = {}
    for step in log["steps"]:
        for state in step["ys"]:
            mine = [y for y in step["new_ys"] if y.startswith(state)]
            proposals[state.rstrip("\n")] = "\n".join(y[len(state) :][:-1] for y in mine)
        seen: set[str] = set()
        for y, value in zip(step["new_ys"], step["values"], strict=True):
            if y not in seen:
                answers[y[:-1]] = labels_of(value)
            seen.add(y)

    def reply(text: str, choice: int) -> str:
        if text.startswith(JUDGE):
            return answers[text.removeprefix(JUDGE)][choice]
        return proposals[text]

    driver = Driver(reply=reply)
    driver.run(
        Context(problem=log["x"], max_tokens=65536),
        depth=4,
        prompts={"propose": "{thoughts}", "value": JUDGE + "{thoughts}"},
        labels=LABELS,
    )
    proposed = [
        [text_of(one.state) for one in listed]
        for listed in driver.asked(Generate)
        if not text_of(listed[0].state).startswith(JUDGE)
    ]
    made = iter(driver.made)
    for number, step in enumerate(log["steps"]):
        nodes = [next(made) for _ in step["new_ys"]]
        assert ["\n".join(driver.path(node)) + "\n" for node in nodes] == step["new_ys"]
        assert [node.value for node in nodes] == step["values"]
        kept = [y for y, node in zip(step["new_ys"], nodes, strict=True) if node.status == "kept"]
        assert sorted(kept) == sorted(step["select_new_ys"])
        # The order of the selection is the order in which the next step asks.
        assert proposed[number] == [y.rstrip("\n") for y in step["ys"]]
    assert next(made, None) is None


def lines_of(action: str, confidence: float) -> Iterator[str]:
    """Proposals of an action that sum to exactly this float."""

    def search(left: list[str], total: float) -> list[str] | None:
        if total == confidence:
            return left
        if total > confidence + 1e-9:
            return None
        for name, number in CONFIDENCES.items():
            found = search([*left, name], total + number)
            if found is not None:
                return found
        return None

    names = search([], 0.0)
    assert names is not None, (action, confidence)
    return (f"{action} ({name})" for name in names)


@pytest.mark.parametrize("run", range(5))
def test_depth_first_walks_as_the_log_says(run: int) -> None:
    trace: list[dict[str, Any]] = json.loads(data("crosswords/gpt4_dfs_traces.json"))[run]
    proposals: dict[str, dict[str, float]] = json.loads(data("crosswords/proposals.json"))
    clues, letters = json.loads(data("crosswords/mini0505.json"))[run * 5]
    counts = {"\n".join(step["actions"]): step["count"] for step in trace}
    places: dict[str, list[str]] = {}

    def reply(text: str, choice: int) -> str:
        if not text.startswith(JUDGE):
            if choice > 0:
                return ""
            return "\n".join(
                line for action, sum_ in proposals[text].items() for line in lines_of(action, sum_)
            )
        clue, _, path = text.removeprefix(JUDGE).partition("\n")
        if path not in counts:  # a sibling that the log's search did not come to
            return "?"
        said = [label for label, count in counts[path].items() for _ in range(count)]
        asked = places.setdefault(path, [])
        asked.append(clue)
        return said[len(asked) - 1] if len(asked) <= len(said) else "?"

    problem = "\n".join(f"{place}. {clue}" for place, clue in zip(PLACES, clues, strict=True))
    driver = Driver(reply=reply)
    driver.run(
        Context(problem=problem, max_tokens=65536),
        task="crosswords",
        prompts={"propose": "{state}", "value": JUDGE + "{state}\n{thoughts}"},
    )
    paths = [list(driver.path(node)) for node in driver.made]
    assert paths == [step["actions"] for step in trace]
    assert [node.depth for node in driver.made] == [step["env_step"] for step in trace]
    assert [node.id - 1 for node in driver.made] == [step["total_step"] for step in trace]
    solution = Board(letters="".join(letters))
    for node, path, step in zip(driver.made, paths, trace, strict=True):
        board = Board()
        for action in path:
            after = board.place(action)
            assert after is not None
            board = after
        right_letters = sum(a == b for a, b in zip(board.letters, letters, strict=True))
        right_words = sum(a == b for a, b in zip(board.words, solution.words, strict=True))
        assert right_letters / 25 == step["info"]["r_letter"]
        assert right_words / 10 == step["info"]["r_word"]
        assert len(places["\n".join(path)]) >= sum(step["count"].values())
        assert (node.status == "dropped") == (step["count"]["impossible"] > 0)


def test_boards_are_written_as_in_the_log() -> None:
    """All 505 of them, from the words that they list as filled in."""
    boards = list(json.loads(data("crosswords/proposals.json")))
    for text in boards:
        found = {line[1]: line for line in re.finditer(r"(?m)^([hv][1-5])\. (.*): \S{5}$", text)}
        listed = text.partition("Filled:\n")[2].partition("\nChanged:")[0].split("\n")
        path = tuple(f"{line[:2]}. {line[-5:].lower()}" for line in listed if line)
        puzzle = Crosswords().start("\n".join(f"{p}. {line[2]}" for p, line in found.items()))
        assert puzzle.state(path) == text
        assert not path or puzzle.legal(path)
    assert len(boards) == 505
