"""What searches leave to others: pages when room is short, and rows of each step."""

from typing import Any

from torch import Tensor

from penstock import SamplingParams
from penstock.decoding.search.base import SearchContext
from penstock.decoding.search.operations import Generate, State
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.engine.state.step import Step
from tests.conftest import TinyModel
from tests.engine.jobs import build
from tests.engine.searches import Run, Steps, search_request, with_controller
from tests.engine.test_search import DONE, PROMPT, tree


def test_what_is_kept_makes_room_before_anybody_is_preempted(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"), kv_cache_memory=16 * 12_288, max_model_len=250)
    long = State(tuple(range(180)))

    def body(context: SearchContext) -> Steps:
        yield Generate(state=long, max_tokens=4, keep=True)  # 12 of 16 pages
        yield Generate(state=context.prompt, max_tokens=180)
        return DONE

    searching = with_controller(built, body)
    Run(searching, search_request(searching, PROMPT, "scripted", ignore_eos=True)).finish()
    stats = built.engine.stats()
    assert (stats.pages_total, stats.preemptions) == (16, 0)


def test_a_small_pool_changes_nothing(tiny_model: TinyModel) -> None:
    """Kept keys make room for whoever needs it, and are computed again."""

    def outputs(**settings: Any) -> tuple[dict[tuple[str, int], list[int]], Built]:
        built = build(tiny_model("llama"), **settings)
        searching = with_controller(built, tree)
        run = Run(searching, search_request(searching, PROMPT, "scripted", ignore_eos=True))
        run.finish()
        joined: dict[tuple[str, int], list[int]] = {}
        for output in run.outputs:
            joined.setdefault((output.request_id, output.index), []).extend(output.token_ids)
        return joined, built

    roomy, _ = outputs()
    tight, built = outputs(kv_cache_memory=16 * 12_288, max_model_len=128)
    assert built.engine.pool.count == 16
    assert tight == roomy


def test_beside_others_searches_get_as_many_rows(tiny_model: TinyModel) -> None:
    """Prompts and branches of searches together, where a step takes as long as it has rows."""

    def body(context: SearchContext) -> Steps:
        prompts = [State((i, *range(60))) for i in range(30)]
        yield [Generate(state=state, max_tokens=6, guided=False) for state in prompts]
        return DONE

    def rows_beside(chats: int) -> list[int]:
        now_s = 0.0
        config = EngineConfig(
            model=str(tiny_model("llama")),
            kv_cache_memory=0.01,
            max_batch_tokens=64,
            search_sequences=32,
        )
        built = build_engine(config, lambda: now_s)
        forward = built.engine.runner.run

        def timed(step: Step) -> Tensor:
            nonlocal now_s
            now_s += step.rows
            return forward(step)

        built.engine.runner.run = timed  # pyright: ignore[reportAttributeAccessIssue]
        searching = with_controller(built, body)
        for i in range(chats):
            params = SamplingParams(max_tokens=60, ignore_eos=True, seed=i)
            chat = built.input_processor.prepare(
                Input(request_id=f"chat{i}", prompt=[i] * 3, params=params)
            )
            built.engine.add(chat)
        for _ in range(min(chats, 2)):
            built.engine.step()
        run = Run(searching, search_request(searching, PROMPT, "scripted", ignore_eos=True))
        run.start()
        rows: list[int] = []
        while built.engine.has_work:
            for output in built.engine.step():
                run.feed(output)
            rows.append(built.engine.last_rows)
        run.leave()
        return rows

    assert max(rows_beside(0)) == 64
    for chats in (2, 8):
        beside = rows_beside(chats)[3:55]
        # The others add at most 0.7 times what the chats take (`shares.py`), in whole rows.
        assert 1.4 * chats <= sum(beside) / len(beside) <= 1.75 * chats
        assert max(beside) <= 2 * chats + 2
