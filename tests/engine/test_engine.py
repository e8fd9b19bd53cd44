"""Stopping, forking, priorities, aborting and logprobs, on the synchronous engine."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock import LLM, SamplingParams
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.engine.state.request import Request
from tests.conftest import TinyModel
from tests.engine.reference import greedy

Ask = Callable[..., Request]


@pytest.fixture
def built(tiny_model: TinyModel) -> Built:
    config = EngineConfig(model=str(tiny_model("llama")), kv_cache_memory=0.01, max_running=4)
    return build_engine(config, time.perf_counter)


@pytest.fixture
def ask(built: Built) -> Ask:
    ids = itertools.count()

    def make(prompt: list[int], priority: int = 0, **fields: Any) -> Request:
        defaults: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
        params = SamplingParams(**defaults | fields)
        return built.input_processor.prepare(
            Input(request_id=f"r{next(ids)}", prompt=prompt, params=params, priority=priority)
        )

    return make


def run(built: Built) -> dict[str, list[int]]:
    """Step until nothing is left; tokens by request."""
    tokens: dict[str, list[int]] = {}
    while built.engine.has_work:
        for output in built.engine.step():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    return tokens


def test_stop_token_ends_the_answer(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    expected = greedy(folder, [[1, 2, 3]], 20)[0]
    stop = expected[7]
    cut = expected.index(stop) + 1
    llm = LLM(str(folder), kv_cache_memory=0.01)
    params = SamplingParams(max_tokens=20, temperature=0, stop_token_ids=[stop])
    choice = llm.generate([[1, 2, 3]], params)[0].outputs[0]
    assert choice.token_ids == expected[:cut]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    later = SamplingParams(max_tokens=20, temperature=0, stop_token_ids=[stop], min_tokens=15)
    choice = llm.generate([[1, 2, 3]], later)[0].outputs[0]
    assert len(choice.token_ids) >= 15
    assert stop not in choice.token_ids[:14]


def test_stop_string_cuts_the_text_and_frees_the_sequence(tiny_model: TinyModel) -> None:
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    params = SamplingParams(max_tokens=30, seed=5, ignore_eos=True, logit_bias={"66": 8, "67": 7.5})
    whole = llm.generate("x", params)[0].outputs[0].text
    stop = whole[9:12]
    at = whole.index(stop)
    cut = llm.generate("x", params.model_copy(update={"stop": ["never", stop]}))[0]
    assert cut.text == whole[:at]
    assert cut.outputs[0].stop_reason == stop
    assert cut.outputs[0].finish_reason == "stop"
    assert llm.stats().running == 0


def test_priority_goes_first_and_no_more_than_max_running_run(built: Built, ask: Ask) -> None:
    requests = [ask([i, 2, 3], priority=p, max_tokens=6) for i, p in enumerate((5, 5, 5, 5, 5, 1))]
    for request in requests:
        built.engine.add(request)
    built.engine.step()
    running = {s.request.id for s in built.engine.scheduler.running}
    assert requests[5].id in running
    assert len(running) == 4
    done = run(built)
    assert all(done[r.id] for r in requests)


def test_a_fork_waits_until_all_its_choices_have_a_place(built: Built, ask: Ask) -> None:
    built.engine.add(ask([1], max_tokens=5))
    built.engine.add(ask([2], max_tokens=5, n=4, temperature=1.0))
    built.engine.step()
    assert len(built.engine.scheduler.running) == 1
    assert max(len(built.engine.scheduler.running) for _ in iter(built.engine.step, [])) == 4


def test_choices_share_the_prompt_pages(built: Built, ask: Ask) -> None:
    built.engine.add(ask(list(range(50)), max_tokens=10, n=4, temperature=1.0))
    built.engine.step()
    built.engine.step()
    # Three full pages are shared; each choice has its own copy of the partial fourth.
    assert built.engine.stats().pages_in_use == 3 + 4
    run(built)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_abort_frees_everything_at_any_moment(built: Built, ask: Ask, steps: int) -> None:
    kept = ask([9, 9], max_tokens=8)
    gone = ask(list(range(60)), max_tokens=20, n=3, temperature=1.0)
    built.engine.add(gone)
    built.engine.add(kept)
    before = [o for _ in range(steps) for o in built.engine.step() if o.request_id == kept.id]
    built.engine.abort(gone.id)
    built.engine.abort(gone.id)
    built.engine.abort("unknown")
    tokens = run(built)
    assert list(tokens) == [kept.id]
    assert len(tokens[kept.id]) + len(before) == 8
    stats = built.engine.stats()
    assert (stats.running, stats.waiting, stats.pages_in_use) == (0, 0, 0)


def test_aborting_one_choice_leaves_the_others(built: Built, ask: Ask) -> None:
    request = ask([5, 6], max_tokens=8, n=3, temperature=1.0)
    built.engine.add(request)
    built.engine.step()
    built.engine.abort(request.id, 1)
    seen: dict[int, int] = {}
    while built.engine.has_work:
        for output in built.engine.step():
            seen[output.index] = seen.get(output.index, 0) + len(output.token_ids)
    assert seen == {0: 7, 2: 7}


def test_logprobs_are_those_of_the_model(tiny_model: TinyModel) -> None:
    folder = tiny_model("qwen3")
    prompt = list(range(20, 57))
    llm = LLM(str(folder), chunk_tokens=7, max_batch_tokens=64, kv_cache_memory=0.01)
    params = SamplingParams(
        max_tokens=6,
        temperature=1.3,
        seed=3,
        ignore_eos=True,
        top_k=5,
        logprobs=4,
        prompt_logprobs=2,
    )
    out = llm.generate([prompt], params)[0]
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    ids = prompt + out.outputs[0].token_ids
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert out.prompt_logprobs is not None
    assert out.outputs[0].logprobs is not None
    assert out.prompt_logprobs[0] is None
    assert len(out.prompt_logprobs) == len(prompt)
    for position, entries in enumerate([*out.prompt_logprobs[1:], *out.outputs[0].logprobs]):
        assert entries is not None
        row, own = table[position], ids[position + 1]
        count = 2 if position < len(prompt) - 1 else 4
        top = row.topk(count).indices.tolist()
        assert list(entries) == [own, *(token for token in top if token != own)]
        for token, entry in entries.items():
            assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert entry.rank == int((row > row[token]).sum()) + 1


def test_scoring_only(built: Built) -> None:
    """max_tokens 0 reads the prompt and generates nothing, for every choice."""
    request = built.input_processor.prepare(
        Input(
            request_id="score",
            prompt=[1, 2, 3, 4],
            params=SamplingParams(max_tokens=0, n=2),
            prompt_logprobs=0,
        )
    )
    built.engine.add(request)
    outputs = built.engine.step()
    assert [(o.index, o.token_ids, o.finish_reason) for o in outputs] == [
        (0, (), "length"),
        (1, (), "length"),
    ]
    assert outputs[0].prompt_logprobs is not None
    assert len(outputs[0].prompt_logprobs) == 3
    assert not built.engine.has_work


def test_long_prompts_do_not_stop_those_that_decode(tiny_model: TinyModel) -> None:
    """While a long prompt is read in chunks, a decoding sequence gets a token in every step."""
    config = EngineConfig(
        model=str(tiny_model("llama")), kv_cache_memory=0.01, max_running=8, max_batch_tokens=16
    )
    built = build_engine(config, time.perf_counter)

    def request(name: str, prompt: list[int], count: int) -> Request:
        return built.input_processor.prepare(
            Input(
                request_id=name,
                prompt=prompt,
                params=SamplingParams(max_tokens=count, ignore_eos=True, temperature=0),
            )
        )

    built.engine.add(request("short", [1], 40))
    built.engine.step()
    built.engine.add(request("long", [i % 256 for i in range(300)], 2))
    for _ in range(10):
        outputs = built.engine.step()
        assert [o.request_id for o in outputs] == ["short"]
    run(built)
