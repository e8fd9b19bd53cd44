"""`--attention-backend triton` in Triton's interpreter: the same text as torch's kernels give."""

from typing import Any

import pytest

from penstock import SamplingParams
from penstock.engine.attention.interface import PagedStep
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, run
from tests.engine.test_drafting import tokens

pytest.importorskip("triton")

PARAMS = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=6, temperature=1.0, seed=3, ignore_eos=True, n=2)
TREES: dict[str, Any] = {"lookahead": {"window": 3, "ngram": 3, "adaptive": False}}
JOBS = [
    Job(prompt=[7 + 5 * i % 290 for i in range(90)], params=PARAMS),
    Job(prompt=[9, 11, 9, 11, 9, 11, 9], params=PARAMS, decoding={"ngram": {"window": 4}}),
    Job(prompt=list(range(20, 50)), params=SEEDED),
    Job(prompt=[31, 8] * 5, params=PARAMS, decoding=TREES),
    Job(prompt=list(range(60, 90)), params=PARAMS, kv_cache={"h2o": {"heavy": 6, "recent": 6}}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cache"),
    [
        ("llama", "auto"),
        ("llama", "fp8"),
        ("gemma2", "auto"),
        ("gpt_oss", "auto"),
    ],
)
def test_the_same_tokens(
    kind: str, cache: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks, drafts as lines and trees, forks, an evicting context; windows, softcap, sinks."""
    used: list[PagedStep] = []
    make = PagedStep.__init__

    def noted(self: PagedStep, **fields: Any) -> None:
        make(self, **fields)
        used.append(self)

    folder = tiny_model(kind)
    settings = {"kv_cache_dtype": cache, "chunk_tokens": 80}
    expected = tokens(run(build(folder, attention_backend="torch", **settings), JOBS))
    built = build(folder, attention_backend="triton", **settings)
    monkeypatch.setattr(PagedStep, "__init__", noted)
    assert tokens(run(built, JOBS)) == expected
    assert {step.kernels.backend for step in used} == {"triton"}
    assert any(step.batch.trees for step in used)
    assert built.engine.pool.in_use == 0
