"""Decoding steps in graphs, with what stands in for CUDA's on a CPU: the same tokens as without.

Triton's kernels in its interpreter; those marked `gpu` with CUDA's own graphs.
"""

import gc
import inspect
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock import SamplingParams
from penstock.engine.build import Built
from penstock.engine.model.cuda_graphs import DecodeGraphs, Executor, Rerun, sizes_up_to, usable
from penstock.kernels.backend import BackendChoice, load
from penstock.kernels.transfer import Staging
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, prepare, run
from tests.tiny import save_tiny

pytest.importorskip("triton")

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=6, temperature=1.0, seed=3, ignore_eos=True, n=2)
GUIDED: dict[str, Any] = {"cfg": {"scale": 2.0, "negative_prompt": "no"}}
DRAFTED: dict[str, Any] = {"ngram": {"window": 3, "adaptive": False}}
RANDOM: dict[str, Any] = {"jacobi": {"window": 3, "init": "random", "adaptive": False}}
LOOKAHEAD: dict[str, Any] = {"lookahead": {"window": 2, "ngram": 3, "adaptive": False}}
JOBS = [
    Job(prompt=list(range(9, 40)), params=GREEDY),
    Job(prompt=[7, 8], params=SEEDED),
    Job(prompt=[9, 11, 9, 11, 9, 11], params=GREEDY, decoding=GUIDED),
    Job(prompt=[12, 13, 12, 13, 12], params=GREEDY, logprobs=2),
]
LONGER = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
APART = [
    *JOBS,
    Job(prompt=list(range(70, 90)), params=LONGER),
    Job(prompt=[9, 11, 9, 11, 9, 11, 9], params=GREEDY, decoding=DRAFTED),
    Job(prompt=[5, 6, 5, 6, 5], params=GREEDY, decoding=LOOKAHEAD),
    Job(prompt=list(range(60, 90)), params=GREEDY, kv_cache={"h2o": {"heavy": 6, "recent": 6}}),
]


RowOfStep = tuple[int, int, int, int, list[int]]
"""Id, position, slot, length, pages."""


class Counting(Rerun):
    """Counts replays."""

    def __init__(self) -> None:
        self.replays = 0

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        replay = super().capture(call)

        def counted() -> Tensor:
            self.replays += 1
            return replay()

        return counted


def with_graphs(built: Built, executor: Executor, rows: int = 8) -> DecodeGraphs:
    triton = load(BackendChoice(backend="triton", reason="tested"))
    store = built.engine._store  # pyright: ignore[reportPrivateUsage]
    graphs = DecodeGraphs(
        built.loaded.model, store, triton, built.loaded.device, executor, sizes_up_to(rows)
    )
    built.engine.runner.graphs = graphs
    return graphs


def logits_of(graphs: DecodeGraphs, rows: Sequence[RowOfStep]) -> Tensor:
    ids, positions, slots, lengths, tables = zip(*rows, strict=True)
    logits = graphs.run(ids, positions, slots, lengths, tables)
    assert logits is not None
    return logits


def on_triton(folder: Path, **settings: Any) -> Built:
    return build(folder, attention_backend="triton", **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cache", "jobs"),
    [("llama", "auto", APART), ("llama", "int8", JOBS), ("gpt_oss", "auto", JOBS)],
)
def test_the_same_tokens(kind: str, cache: str, jobs: list[Job], tiny_model: TinyModel) -> None:
    """Changing batches, guidance, forks, drafts; trees and evicting contexts run without graphs."""
    folder = tiny_model(kind)
    expected = run(on_triton(folder, kv_cache_dtype=cache), jobs)
    built = on_triton(folder, kv_cache_dtype=cache)
    executor = Counting()
    graphs = with_graphs(built, executor)
    found = run(built, jobs)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.texts for one in found] == [one.texts for one in expected]
    assert executor.replays > 0
    assert {size for size, _ in graphs.captured} <= {1, 2, 4, 8}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_drafts_without_branches_run_in_graphs(kind: str, tiny_model: TinyModel) -> None:
    """Right ones and wrong ones, beside guidance; a sliding window too. All but the prompts."""
    repeating = [9, 11, 9, 11, 9, 11, 9]
    plain = [
        Job(prompt=repeating, params=LONGER),
        Job(prompt=list(range(9, 40)), params=GREEDY, decoding=GUIDED),
        Job(prompt=[7, 8, 7], params=SEEDED),
    ]
    methods = (DRAFTED, {**DRAFTED, **GUIDED}, RANDOM)
    jobs = [job.with_decoding(method) for job, method in zip(plain, methods, strict=True)]
    expected = run(on_triton(tiny_model(kind)), plain)
    built = on_triton(tiny_model(kind))
    executor = Counting()
    with_graphs(built, executor, rows=32)
    steps: list[int] = []
    found = run(built, jobs, after_step=lambda: steps.append(built.engine.last_rows))
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert sum(one.usage.counters.drafted for one in found) > 10
    assert executor.replays == len(steps) - 1


@pytest.mark.parametrize(("most", "replays"), [(33, 1), (32, 0)])
def test_drafts_behind_long_contexts_run_without_graphs(
    most: int, replays: int, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three draft tokens after eight tokens: as separate rows each reads eleven keys again."""
    monkeypatch.setattr("penstock.engine.model.cuda_graphs.MOST_AGAIN", most)
    built = on_triton(tiny_model("llama"))
    executor = Counting()
    with_graphs(built, executor)
    job = Job(prompt=list(range(9, 16)), params=GREEDY, decoding=RANDOM)
    built.engine.add(prepare(built, "one", job))
    built.engine.step()
    (output,) = built.engine.step()
    assert output.counters is not None
    assert output.counters.drafted == 3
    assert executor.replays == replays
    built.engine.abort("one")


def test_growing_contexts_go_from_graph_to_graph(tmp_path: Path) -> None:
    """Across the end of a split, where tables of the smaller graph have no more room."""
    job = Job(
        prompt=[3 + 7 * i % 290 for i in range(252)],
        params=LONGER,
    )
    folder = save_tiny("llama", tmp_path, num_hidden_layers=1)
    expected = run(on_triton(folder), [job])
    built = on_triton(folder)
    executor = Counting()
    graphs = with_graphs(built, executor)
    assert run(built, [job])[0].tokens == expected[0].tokens
    assert executor.replays == 8
    assert graphs.captured == [(1, 16), (1, 64)]


def test_more_rows_than_the_largest_graph_go_without(tiny_model: TinyModel) -> None:
    built = on_triton(tiny_model("llama"))
    executor = Counting()
    with_graphs(built, executor, rows=2)
    jobs = [Job(prompt=[n, n + 1], params=GREEDY) for n in (3, 5, 9)]
    run(built, jobs)
    assert executor.replays == 0


@pytest.mark.parametrize("cache", ["auto", "int8"])
def test_padding_writes_nothing_and_reads_nothing(cache: str, tiny_model: TinyModel) -> None:
    """Three rows in a graph of four, whose tables lead nowhere but where the three rows' do."""
    built = on_triton(tiny_model("llama"), kv_cache_dtype=cache)
    store = built.engine._store  # pyright: ignore[reportPrivateUsage]
    caches = [*store.keys, *store.values, *(s for of in store.scales for s in of.values())]
    for cached in caches:
        assert isinstance(cached, Tensor)
        cached.copy_(torch.randint(-3, 4, cached.shape).to(cached.dtype))
    before = [cached.clone() for cached in caches if isinstance(cached, Tensor)]
    graphs = with_graphs(built, Rerun())
    # Before, the graph's memory has held numbers of other steps: here, of none that could exist.
    rows = [(7, 4, 4, 5, [0]), (9, 20, 3 * 16 + 4, 21, [2, 3]), (5, 0, 5 * 16, 1, [5])]
    logits_of(graphs, rows)
    captured = graphs._captured[4, 16]  # pyright: ignore[reportPrivateUsage]
    assert captured is not None
    held = captured.staging.host
    held[4][...] = 2**31 - 1
    for array in held[:3]:
        array[...] = 2**40
    for cached, old in zip(caches, before, strict=True):
        assert isinstance(cached, Tensor)
        cached.copy_(old)
    together = logits_of(graphs, rows).clone()

    written = torch.zeros(store.pages * store.page_size, dtype=torch.bool)
    written[[slot for _, _, slot, _, _ in rows]] = True
    for cached, old in zip(caches, before, strict=True):
        assert isinstance(cached, Tensor)
        same = (cached == old).transpose(0, 1).flatten(1, 2).all(-1).all(0)
        assert bool(same[~written].all())
    # And each row's result is that of a step of its own.
    for row, logits in zip(rows, together, strict=True):
        alone = logits_of(graphs, [row])
        torch.testing.assert_close(alone[0], logits, rtol=1e-4, atol=1e-4)


def test_sizes() -> None:
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(3) == [1, 2, 3]
    assert sizes_up_to(8) == [1, 2, 4, 8]
    assert sizes_up_to(40) == [1, 2, 4, 8, 16, 32, 40]
    assert sizes_up_to(64) == [1, 2, 4, 8, 16, 32, 48, 64]
    assert sizes_up_to(4096)[-1] == 256


class Refusing:
    """Cannot record anything."""

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_a_model_that_cannot_be_captured_runs_without(
    tiny_model: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    built = on_triton(tiny_model("llama"))
    assert built.engine.runner.graphs is None, "there is no CUDA"
    assert usable(with_graphs(built, Refusing())) is None
    assert "cannot be captured (operation not permitted when stream is capturing)" in caplog.text
    graphs = with_graphs(built, Rerun())
    assert usable(graphs) is graphs
    assert graphs.captured == [(1, 16)]


class Forgetting:
    """As CUDA's does, keeps nothing of what it captures, which reads these tensors though."""

    def __init__(self) -> None:
        self.read: list[weakref.ref[Tensor]] = []

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        out, names = call(), inspect.getclosurevars(call).nonlocals
        (ragged,) = names["step"].batch.derived
        tensors = [ragged.firsts, ragged.starts, ragged.parts, ragged.lengths, ragged.tables]
        tensors += [names["step"].batch.slots, names["ids"], names["positions"], names["wanted"]]
        self.read += map(weakref.ref, tensors)
        return lambda: out


def test_what_a_graph_reads_lives_as_long_as_the_graph(tiny_model: TinyModel) -> None:
    executor = Forgetting()
    graphs = with_graphs(on_triton(tiny_model("llama")), executor)
    graphs.prepare()
    gc.collect()
    assert len(executor.read) == 9
    assert all(tensor() is not None for tensor in executor.read)


class Full(Counting):
    """Has memory for graphs of so many captures."""

    def __init__(self, captures: int) -> None:
        super().__init__()
        self.left = captures

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.left -= 1
        if self.left < 0:
            call()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand more")
        return super().capture(call)


def test_a_graph_that_cannot_be_captured_later_is_done_without(
    tiny_model: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [Job(prompt=[7, 8, 9], params=GREEDY), Job(prompt=[5, 6], params=LONGER)]
    expected = run(on_triton(tiny_model("llama")), jobs)
    built = on_triton(tiny_model("llama"))
    executor = Full(captures=1)
    graphs = with_graphs(built, executor)
    assert usable(graphs) is graphs
    assert [one.tokens for one in run(built, jobs)] == [one.tokens for one in expected]
    # Two rows go without, what is left of the longer answer runs in the graph of one row.
    assert graphs.captured == [(1, 16)]
    assert executor.left == -1, "nobody tries again"
    assert executor.replays > 0
    words = "no CUDA graph for 2 rows with up to 256 tokens: it cannot be captured (CUDA out of"
    assert caplog.text.count(words) == 1


def test_all_graphs_share_the_memory_of_their_logits(tiny_model: TinyModel) -> None:
    graphs = with_graphs(on_triton(tiny_model("llama")), Rerun())
    rows = [(7, 0, 0, 1, [0]), (9, 0, 16, 1, [1]), (5, 0, 32, 1, [2])]
    assert len({logits_of(graphs, rows[:count]).data_ptr() for count in (1, 2, 3)}) == 1
    assert len(graphs.captured) == 3


def test_staging_keeps_its_memory_and_its_types() -> None:
    arrays = [
        np.arange(3, dtype=np.int64),
        np.zeros((2, 5), dtype=np.int32),
        np.array([True]),
        np.zeros(0, dtype=np.int32),
    ]
    staging = Staging(arrays, torch.device("cpu"))
    ids, tables, flags, none = staging.device
    assert ids.tolist() == [0, 1, 2]
    assert (ids.dtype, tables.dtype, flags.dtype) == (torch.int64, torch.int32, torch.bool)
    assert tables.shape == (2, 5)
    assert none.numel() == 0
    assert all(tensor.data_ptr() % 16 == 0 for tensor in (ids, tables, flags))
    staging.wait()
    staging.host[0][1] = 9
    staging.host[1][1] = 4
    assert ids.tolist() == [0, 1, 2], "nothing is there before it is sent"
    staging.send()
    assert ids.tolist() == [0, 9, 2]
    assert tables.tolist() == [[0] * 5, [4] * 5]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_same_tokens_on_a_gpu(kind: str, tiny_model: TinyModel) -> None:
    settings = {"device": "cuda", "dtype": "float32"}
    expected = run(build(tiny_model(kind), cuda_graphs=False, **settings), APART)
    built = build(tiny_model(kind), **settings)
    assert built.engine.runner.graphs is not None
    assert [one.tokens for one in run(built, APART)] == [one.tokens for one in expected]
    assert len(built.engine.runner.graphs.captured) > 1
