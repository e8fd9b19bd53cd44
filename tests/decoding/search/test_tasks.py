"""What tasks make of problems and of whatever models write."""

import time

import pytest

from penstock.decoding.search.tasks.base import read_label, read_vote
from penstock.decoding.search.tasks.board import PLACES, Board
from penstock.decoding.search.tasks.catalogue import TASKS, TaskName
from penstock.decoding.search.tasks.game24 import NONE_FOUND
from penstock.errors import RequestError
from penstock.models.nano.abilities import game24 as learnt

LABELS = {"impossible": 0.001, "likely": 1.0, "sure": 20.0}
CLUES = "\n".join(f"{place}. clue of {place}" for place in PLACES)
HOSTILE = [
    pytest.param("", id="empty"),
    pytest.param("\n" * 1000, id="blank-lines"),
    pytest.param(" " * 100_000, id="blanks"),
    pytest.param("9" * 100_000, id="huge-number"),
    pytest.param("(" * 100_000, id="deep"),
    pytest.param("h1. " + "a" * 100_000, id="long-word"),
    pytest.param("h1. apple (" + "certain" * 20_000, id="long-confidence"),
    pytest.param("9**9**9", id="power"),
    pytest.param("__import__('os')", id="code"),
    pytest.param("４ + ５ = ９ (left: ６)", id="unicode-digits"),
    pytest.param("h１. apple (certain)", id="unicode-place"),
    pytest.param("h9. apple (certain)", id="no-such-place"),
    pytest.param("h1. äpfel (certain)", id="unicode-word"),
    pytest.param("\x00\ud800", id="not-text"),
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(("task", "problem"), [("game24", "4 5 6 10"), ("crosswords", CLUES)])
def test_hostile_proposals_come_to_nothing(task: TaskName, problem: str, text: str) -> None:
    puzzle = TASKS[task].start(problem)
    start = time.perf_counter()
    legal = [one for one in puzzle.read([text]) if puzzle.legal((one.text,))]
    assert legal == []
    assert not puzzle.legal((text,))
    for path in ((text,), (text, text)):
        assert puzzle.answer(path) == puzzle.answer(())
    assert read_label(text, LABELS) is None
    assert read_vote(text, 9) in (None, 0, 8)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("sure", "sure"),
        ("Sure.\n", "sure"),
        ("4 + 20 = 24\nsure\n\n", "sure"),
        ("**Likely**", "likely"),
        ("Judgement: impossible", "impossible"),
        ("unsure", None),
        ("sure thing", None),
        ("sure\nor so", None),
        ("sur", None),
    ],
)
def test_labels(text: str, label: str | None) -> None:
    assert read_label(text, LABELS) == label


def test_the_longest_label_counts() -> None:
    labels = {"sure": 1.0, "not sure": 0.0}
    assert read_label("I am not sure", labels) == "not sure"
    assert read_label("I am sure", labels) == "sure"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("3", 2),
        ("The best is 2.", 1),
        ("1 or 2? 2", 1),
        ("0", None),
        ("6", None),
        ("999999999999", None),
        ("٣", None),
        ("none", None),
    ],
)
def test_votes(text: str, place: int | None) -> None:
    assert read_vote(text, 5) == place


@pytest.mark.parametrize(
    ("problem", "state"),
    [
        ("4 5 6 10", "4 5 6 10"),
        ("10,6,5,4", "4 5 6 10"),
        ("Use 4, 5, 6 and 10 to make 24.", "4 5 6 10"),
        ("How can I get 24 out of 4, 5, 6 and 10, each used once?", "4 5 6 10"),
        ("Game of 24: 24 1 1 1", "1 1 1 24"),
        ("1 2", "1 2"),
    ],
)
def test_game24_reads_its_numbers(problem: str, state: str) -> None:
    assert TASKS["game24"].start(problem).state(()) == state


@pytest.mark.parametrize(
    "problem",
    ["", "24", "five six", "1 2 3 4 5 6 7", "4 5 6 1.5", "4 5 6 1/2", "4 5 6 -10", "4 " * 5000],
)
def test_game24_refuses_what_is_no_puzzle(problem: str) -> None:
    with pytest.raises(RequestError, match="whole numbers") as caught:
        TASKS["game24"].start(problem)
    assert caught.value.param == "prompt"


def test_game24_asks_as_the_embedded_model_has_learnt() -> None:
    prompts = TASKS["game24"].defaults.prompts
    assert prompts.propose == learnt.PROPOSE_PROMPT.replace("numbers", "state")
    assert prompts.value == learnt.JUDGE_PROMPT.replace("numbers", "state")
    assert prompts.sample in [one.replace("numbers", "state") for one in learnt.SOLVE_PROMPTS]
    assert TASKS["game24"].defaults.labels == LABELS


def test_game24_answers() -> None:
    puzzle = TASKS["game24"].start("10 6 5 4")
    path = ("10 - 4 = 6 (left: 5 6 6)", "5 * 6 = 30 (left: 30 6)", "30 - 6 = 24 (left: 24)")
    assert puzzle.state(path[:2]) == "6 30"
    assert puzzle.depth == 3
    assert puzzle.right(path)
    answer = puzzle.answer(path).split("\n")
    assert answer == [*path, "Answer: (5 * 6) - (10 - 4) = 24"] or answer[-1].endswith("= 24")
    assert learnt.grade_solution((4, 5, 6, 10), puzzle.answer(path)) == {"solved": 1.0}
    wrong = (*path[:2], "30 + 6 = 36 (left: 36)")
    assert puzzle.right(wrong) is False
    for other in (wrong, path[:2], (*path[:2], "30 - 6 = 24 (left: 25)"), ()):
        assert puzzle.answer(other) == NONE_FOUND


@pytest.mark.parametrize(
    "problem",
    [
        CLUES,
        "Solve this:\n\n" + CLUES + "\n\nThank you",
        CLUES.replace(". ", ": ").upper().replace("CLUE OF", "clue of"),
        "\n".join(f"- {line}" for line in reversed(CLUES.split("\n"))),
        CLUES.replace("\n", ": _____\n"),
    ],
)
def test_crosswords_read_their_clues(problem: str) -> None:
    state = TASKS["crosswords"].start(problem).state(())
    assert state.lower().count(": _____") == 10
    assert "h1. clue of h1: _____" in state.replace("H1", "h1")


def test_crosswords_refuse_what_lacks_a_clue() -> None:
    for problem in ("", CLUES.replace("v3. clue of v3", ""), CLUES + " " * 10_000):
        with pytest.raises(RequestError, match="ten clues") as caught:
            TASKS["crosswords"].start(problem)
        assert caught.value.param == "prompt"


def test_a_letter_that_is_overwritten_is_a_change() -> None:
    board = Board().place("h1. apple")
    assert board is not None
    after = board.place("v1. bacon")
    assert after is not None
    assert after.changed
    clues = tuple(place.upper() for place in PLACES)
    assert after.render(clues) == (
        "Current Board:\nBPPLE\nA____\nC____\nO____\nN____\n\n"
        "Unfilled:\nh2. H2: A____\nh3. H3: C____\nh4. H4: O____\nh5. H5: N____\n"
        "v2. V2: P____\nv3. V3: P____\nv4. V4: L____\nv5. V5: E____\n\n"
        "Filled:\nv1. V1: BACON\n\n"
        "Changed:\nh1. H1: BPPLE\n"
    )
    agreeing = board.place("v1. amber")
    assert agreeing is not None
    assert not agreeing.changed


def test_crosswords_sum_confidences() -> None:
    puzzle = TASKS["crosswords"].start(CLUES)
    read = puzzle.read(
        ["h1. Apple (low)\nv1. amber (high)\nnonsense", "h1. apple (certain)\nh2. ab (certain)"]
    )
    assert {one.text: one.confidence for one in read} == {"h1. apple": 1.1, "v1. amber": 0.5}
    assert puzzle.answer(("h1. apple", "v1. amber")) == "APPLE\nM____\nB____\nE____\nR____"


def test_every_line_is_a_thought_of_a_question() -> None:
    puzzle = TASKS["generic"].start("why?")
    assert [one.text for one in puzzle.read(["a\n\n b ", ""])] == ["a", "", " b ", ""]
