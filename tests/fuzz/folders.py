"""Model folders: each serves a token, or is refused in one line that names the folder.

Never another exception, a hang, or memory beyond a bound (`crew.py`).
"""

import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz import crew
from tests.fuzz.mutations import mutate
from tests.fuzz.report import Report

OUT_OF_MEMORY = ("allocate memory", "MemoryError", "bad_alloc", "Cannot allocate")
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
}
BASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "gemma2": {},
    "qwen3_moe": {},
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
}
QUANTISED = ("gptq-4", "awq", "packed-4-zeros", "fp8-blocks", "nf4-nested")
"""Published checkpoints among them, by the names of the loader's tests."""


def run(
    report: Report, *, seconds: float, workers: int, cases: Sequence[int] | None = None
) -> None:
    """Run cases for so long, or those given."""
    crew.run(report, make_bases, one, seconds=seconds, workers=workers, cases=cases)


def make_bases(base: Path) -> None:
    from tests.engine.loading.published_cases import CASES
    from tests.engine.loading.published_files import save_published
    from tests.tiny import save_tiny

    for kind, fields in BASES.items():
        save_tiny(kind, base / kind, **fields)
    for name in QUANTISED:
        with tempfile.TemporaryDirectory() as place:
            published, _ = save_published(CASES[name], Path(place))
            shutil.copytree(published, base / name)


def one(case: int, base: Path) -> tuple[str, str | None]:
    """Run a case: its outcome, and what is wrong with it, if anything."""
    source = random.Random(case)
    kind = source.choice(sorted([*BASES, *QUANTISED]))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(base / kind, folder)
        told = f"{kind}, {'; '.join(mutate(source, folder))}"
        outcome, wrong = judge(folder)
    return outcome, None if wrong is None else f"{wrong} [{told:.300}]"


def judge(model: Path) -> tuple[str, str | None]:
    """Serve a token of a model: `served` or `refused`, and what is wrong with that."""
    from penstock import LLM, SamplingParams
    from penstock.errors import ConfigurationError, RequestError

    try:
        llm = LLM(str(model), threads=1, kv_cache_memory=4_000_000, max_running=2)
    except ConfigurationError as error:
        return "refused", _wrong_refusal(str(error), model)
    except BaseException as error:
        return "raised", f"{type(error).__name__}: {str(error)[:200]!r}"
    try:
        params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
        out = llm.generate("abc", params, use_tqdm=False)
    except RequestError:
        return "refused a prompt", None
    except BaseException as error:
        return "raised", f"when serving: {type(error).__name__}: {str(error)[:200]!r}"
    if getattr(out[0].error, "code", None) == "numerical_error":
        return "numbers overflow", None  # in weights that only some prompts reach
    served = len(out[0].outputs[0].token_ids)
    return "served", None if served == 2 else f"{served} of 2 tokens, error {out[0].error}"


def _wrong_refusal(said: str, model: Path) -> str | None:
    if not said.isprintable() or len(said) > 1500:
        return f"no single line: {said[:200]!r}"
    if any(word in said for word in OUT_OF_MEMORY):
        return f"memory: {said}"
    names = (str(model), "the architecture", "the model's logits", "--max-model-len")
    if not any(name in said for name in names):
        return f"names no file: {said}"
    if "the engine cannot be set up" in said or f"{model}: cannot be loaded" in said:
        return f"no stage foresaw it: {said}"
    return None
