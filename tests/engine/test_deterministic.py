"""`--deterministic` with Triton's kernels, interpreted: nothing around a request changes a bit."""

from pathlib import Path
from typing import Any

import pytest

from penstock import SamplingParams
from penstock.engine.build import Built
from penstock.errors import ConfigurationError
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, Job, build, run
from tests.tiny import save_tiny

pytest.importorskip("triton")

GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=4, temperature=0.9, top_p=0.8, seed=5, ignore_eos=True)
JOBS = [
    Job(prompt=[5 + 7 * i % 280 for i in range(40)], params=GREEDY, logprobs=4),
    Job(prompt=[9, 11, 9, 11, 9, 11], params=SEEDED, logprobs=4),
    Job(prompt=[3], params=GREEDY, logprobs=4),
]
SHORT = [
    Job(
        prompt=prompt,
        params=SamplingParams(max_tokens=3, temperature=0, ignore_eos=True),
        logprobs=4,
    )
    for prompt in ([5 + 7 * i for i in range(11)], [3, 9])
]
"""For a model of experts, whose products are interpreted one by one."""
DRAFTS: list[Any] = [
    {"jacobi": {"window": 3, "init": "random", "adaptive": False}},
    {"lookahead": {"window": 3, "ngram": 3, "adaptive": False}},
]
SETTINGS: dict[str, Any] = {"attention_backend": "triton", "deterministic": True}


def seen(answers: list[Answer]) -> list[Any]:
    """Tokens and every logprob that was told, as they are."""
    return [(answer.tokens, answer.logprobs) for answer in answers]


def alone(built: Built, jobs: list[Job] = JOBS) -> list[Any]:
    return [seen(run(built, [job]))[0] for job in jobs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "jobs", "chunk_tokens", "drafts"),
    [
        pytest.param("llama", JOBS, 23, DRAFTS, id="llama"),
        pytest.param("gpt_oss", SHORT, 7, DRAFTS[:1], id="gpt_oss"),
    ],
)
def test_company_chunks_drafts_and_prefixes(
    kind: str, jobs: list[Job], chunk_tokens: int, drafts: list[Any], tiny_model: TinyModel
) -> None:
    expected = alone(build(tiny_model(kind), prefix_cache=False, **SETTINGS), jobs)
    built = build(tiny_model(kind), chunk_tokens=chunk_tokens, **SETTINGS)
    assert seen(run(built, jobs)) == expected
    for drafting in drafts:
        found = run(built, [job.with_decoding(drafting) for job in jobs])
        assert seen(found) == expected
        assert "jacobi" not in drafting or all(answer.usage.counters.drafted for answer in found)


@pytest.mark.slow
def test_prompts_longer_than_a_split(tmp_path: Path) -> None:
    """Chunks of above and below 65 rows, which `ragged.py` has in two classes outside this mode."""
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "head_dim": 8,
    }
    heads: dict[str, Any] = {"num_attention_heads": 1, "num_key_value_heads": 1}
    folder = save_tiny("llama", tmp_path, **small, **heads)
    job = Job(prompt=[5 + 7 * i % 280 for i in range(290)], params=GREEDY, logprobs=4)
    whole = build(folder, max_batch_tokens=290, **SETTINGS)
    pieces = build(folder, chunk_tokens=60, **SETTINGS)
    assert seen(run(pieces, [job, JOBS[0]]))[0] == seen(run(whole, [job]))[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_text_of_other_kernels(kind: str, tiny_model: TinyModel) -> None:
    expected = run(build(tiny_model(kind), attention_backend="torch"), JOBS)
    found = run(build(tiny_model(kind), **SETTINGS), JOBS)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]


def test_compiled_kernels_draft_single_lines_then(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"), deterministic=True)
    if built.engine.runner.kernels.backend != "native":
        pytest.skip("needs the compiled kernels")
    expected = alone(built)
    for drafting in DRAFTS:
        jobs = [job.with_decoding(drafting) for job in JOBS]
        assert seen(run(built, jobs)) == expected


def test_a_model_with_products_of_torchs_is_refused_on_a_cpu(tiny_model: TinyModel) -> None:
    if build(tiny_model("gpt2"), deterministic=True).engine.runner.kernels.backend != "native":
        pytest.skip("needs the compiled kernels")
    with pytest.raises(ConfigurationError, match="some of its products"):
        build(tiny_model("qwen3_moe"), deterministic=True)


def test_other_kernels_are_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ConfigurationError, match="--deterministic needs kernels"):
        build(tiny_model("llama"), attention_backend="torch", deterministic=True)
