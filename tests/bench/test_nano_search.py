"""The breadth-first client, against a scripted model that proposes and judges by the rules."""

import asyncio
import json

import httpx
import pytest

from benchmarks.nano_search import left, search
from penstock.models.nano.abilities.arithmetic24 import Numbers, judge_state, steps

PUZZLE = (4, 5, 6, 10)


def _search(*, honest: bool, breadth: int) -> bool:
    """Search with a model that proposes every step, and judges rightly or says the contrary."""

    def answer(request: httpx.Request) -> httpx.Response:
        prompt = json.loads(request.content)["messages"][0]["content"]
        head, _, question = prompt.partition("\n")
        numbers: Numbers = tuple(map(int, head.partition(": ")[2].split()))
        text = "\n".join(step.line for step in steps(numbers))
        if not question.startswith("Possible"):
            possible = (judge_state(numbers) != "impossible") == honest
            text = "sure" if possible else "impossible"
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 1}})

    async def run() -> bool:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(base_url="http://model", transport=transport) as client:
            found = await search(client, PUZZLE, breadth)
            assert found.legal == found.lines > 0
            return found.solved

    return asyncio.run(run())


def test_a_perfect_judge_finds_24_at_breadth_one() -> None:
    assert _search(honest=True, breadth=1)


def test_a_judge_that_says_the_contrary_does_not() -> None:
    assert not _search(honest=False, breadth=1)


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ("4 + 5 = 9 (left: 6 9 10)", (6, 9, 10)),
        ("4 + 20 = 24 (left: 24)", (24,)),
        ("6 / 4 = 1.5 (left: 1.5 5 10)", None),
        ("nothing", None),
        ("9 - 1 = 8 (left: )", None),
        ("1 + 1 = 2 (left: 99999999999)", None),
    ],
)
def test_left(line: str, numbers: Numbers | None) -> None:
    assert left(line) == numbers
