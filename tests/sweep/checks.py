"""One model type through the engine: refused at start, or equal to transformers in everything."""

import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from penstock import LLM, SamplingParams
from penstock.errors import ConfigurationError, RequestError
from penstock.kvcache.pages import PagePool
from penstock.registry import Spec
from tests.sweep.oracle import Oracle, open_oracle
from tests.sweep.outcome import Kind, Outcome
from tests.sweep.shrink import BOS, CONTEXT, EOS, WINDOW
from tests.sweep.tiny_models import UnbuildableError, make
from tests.tiny import byte_tokenizer

LENGTHS: Final = (5, 60, 400, 1500)
NEW_TOKENS: Final = 20
BEAM_TOKENS: Final = 12
SPARE: Final = 8
PAGE: Final = 16
NEGATIVE: Final = "not this"
SCALE: Final = 1.5
ENDS: Final = (EOS, 256, 17, 101, 230)
"""Several, so that beams of a random model end."""
LOGPROB_ERROR: Final = 2e-3
LEAST_DISTINCT: Final = 6
"""A model that repeats one token would be equal to anything."""

Answers = list[list[int]]


class UnequalError(Exception):
    """Answers differ; the message says under what."""


def run(model_type: str) -> Outcome:
    """Build, load and compare one type. Never raises but for what kills the process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            make(model_type, folder)
        except UnbuildableError as error:
            return Outcome(model_type=model_type, kind=Kind.UNBUILDABLE, reason=str(error))
        return try_folder(model_type, folder)


def try_folder(model_type: str, folder: Path) -> Outcome:
    """Load and compare what is in a folder."""

    def ended(kind: Kind, reason: str = "") -> Outcome:
        return Outcome(model_type=model_type, kind=kind, reason=reason)

    try:
        llm = LLM(str(folder), chunk_tokens=7, kv_cache_memory=0.01)
    except ConfigurationError as error:
        return ended(Kind.REFUSED, _because(str(error).replace(str(folder), "the folder")))
    except Exception as error:
        return ended(Kind.FAULT, f"start failed: {_told(error)}")
    try:
        oracle = open_oracle(folder)
    except UnbuildableError as error:
        return ended(Kind.UNBUILDABLE, str(error))
    try:
        remarks = Comparison(folder, llm, oracle).run()
    except UnequalError as error:
        return ended(Kind.FAULT, str(error))
    except Exception as error:
        return ended(Kind.FAULT, f"failed after it was accepted: {_told(error)}")
    return ended(Kind.SERVED, "; ".join(remarks))


class Comparison:
    """All that is compared for one checkpoint. `llm`: in chunks of 7, with room for everything."""

    def __init__(self, folder: Path, llm: LLM, oracle: Oracle) -> None:
        self._folder, self._llm, self._oracle = folder, llm, oracle
        self._chooser = random.Random(7)
        self._context = llm.info.max_length_tokens
        self._remarks: list[str] = []

    def run(self) -> list[str]:
        """Compare everything; returns remarks.

        Raises:
            UnequalError: something differs.
        """
        room = self._context - NEW_TOKENS - SPARE
        lengths = [n for n in LENGTHS if n <= room]
        if self._context < CONTEXT:
            windowed = self._context == WINDOW
            end = "its sliding window" if windowed else f"{self._context} tokens"
            self._remarks.append(f"its context ends with {end}")
            lengths.append(room)
        prompts = [self._tokens(n) for n in lengths]
        expected = [self._oracle.greedy(prompt, NEW_TOKENS) for prompt in prompts]
        if len({token for answer in expected for token in answer}) < LEAST_DISTINCT:
            raise UnequalError("the tiny checkpoint repeats one token: nothing can be compared")
        self._greedy("chunks of 7", self._llm, prompts, expected)
        self._logprobs(prompts)
        self._prefixes(prompts, expected)
        short = [prompt for prompt in prompts if len(prompt) <= 400]
        self._greedy(
            "jacobi",
            self._llm,
            short,
            expected[: len(short)],
            {"jacobi": {"window": 6, "adaptive": False}},
        )
        self._guided(short[:2])
        self._beams(short[:2])
        other = self._open(chunk_tokens=64, kv_cache_memory=0.01)
        self._greedy("chunks of 64", other, prompts, expected)
        self._several(other, short[-1])
        self._preempted(short, expected[: len(short)])
        return self._remarks

    def _open(self, **settings: Any) -> LLM:
        return LLM(str(self._folder), **settings)

    def _logprobs(self, prompts: Answers) -> None:
        """Finer than tokens, which may be the same by chance."""
        params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, logprobs=1)
        for prompt, out in zip(
            prompts, self._llm.generate(prompts, params, use_tqdm=False), strict=True
        ):
            answer, logprobs = out.outputs[0].token_ids, out.outputs[0].logprobs
            assert logprobs is not None
            ours = [at[token].logprob for token, at in zip(answer, logprobs, strict=True)]
            theirs = self._oracle.logprobs(prompt, answer)
            error = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
            if error > LOGPROB_ERROR:
                raise UnequalError(
                    f"prompt of {len(prompt)} tokens: logprobs differ by up to {error:.2g}"
                )

    def _prefixes(self, prompts: Answers, expected: Answers) -> None:
        longer = [[*p, *answer[:3], 9, 8] for p, answer in zip(prompts, expected, strict=True)]
        continued = [self._oracle.greedy(prompt, NEW_TOKENS - 5) for prompt in longer]
        before = self._llm.stats().prefix_hit_tokens
        self._greedy("the same prompts again", self._llm, prompts, expected)
        self._greedy("longer prompts", self._llm, longer, continued)
        if self._llm.stats().prefix_hit_tokens == before:
            self._remarks.append("no prefix cache")

    def _preempted(self, prompts: Answers, expected: Answers) -> None:
        """Prompts that fit while they are read, and not when their answers grow."""
        several = [self._tokens(len(prompts[min(1, len(prompts) - 1)])) for _ in range(5)]
        answers = [self._oracle.greedy(prompt, NEW_TOKENS) for prompt in several]
        longest = max(map(len, prompts)) + NEW_TOKENS
        read = sum(-(-len(prompt) // PAGE) for prompt in several)
        pages = max(-(-longest // PAGE), read + 1)
        small = self._open(max_model_len=longest, kv_cache_memory=0.01)
        pool: PagePool = vars(small)["_engine"].pool  # no setting gives pages beside states
        taken = pool.allocate(pool.count - pages)
        self._greedy("preempted", small, several + prompts, answers + expected)
        pool.release(taken)
        if not small.stats().preemptions:
            raise UnequalError("nothing was preempted: the sweep's page pool is too large")

    def _several(self, other: LLM, prompt: list[int]) -> None:
        """Three answers of one prompt: equal whatever the chunks; the first is the single one."""
        params = SamplingParams(max_tokens=NEW_TOKENS, temperature=1.0, seed=11, ignore_eos=True)
        three = params.model_copy(update={"n": 3})
        found = [self._sampled(llm, prompt, three) for llm in (self._llm, other)]
        if found[0] != found[1] or found[0][:1] != self._sampled(other, prompt, params):
            raise UnequalError("n = 3: seeded answers depend on chunks or on each other")
        if len({tuple(answer) for answer in found[0]}) < 3:
            raise UnequalError("n = 3: answers are the same")

    def _sampled(self, llm: LLM, prompt: list[int], params: SamplingParams) -> Answers:
        (out,) = llm.generate([prompt], params, use_tqdm=False)
        return [choice.token_ids for choice in out.outputs]

    def _guided(self, prompts: Answers) -> None:
        negative = byte_tokenizer().encode(NEGATIVE)
        expected = [self._oracle.guided(prompt, negative, SCALE, NEW_TOKENS) for prompt in prompts]
        decoding = {"cfg": {"scale": SCALE, "negative_prompt": NEGATIVE}}
        found = self._answers("cfg", self._llm, prompts, decoding)
        if found is not None and found != expected:
            raise UnequalError(f"cfg: {_first(found, expected)}")

    def _beams(self, prompts: Answers) -> None:
        for prompt in prompts:
            expected = self._oracle.beams(prompt, BEAM_TOKENS, 3, ENDS)
            params = SamplingParams(n=3, max_tokens=BEAM_TOKENS, stop_token_ids=list(ENDS), seed=7)
            try:
                (out,) = self._llm.generate(
                    [prompt], params, decoding={"beam": {"width": 3}}, use_tqdm=False
                )
            except RequestError as error:
                self._remarks.append(f"not with beam: {error.message}")
                return
            found = [choice.token_ids for choice in out.outputs]
            if found != expected:
                raise UnequalError(f"beam: {_first(found, expected)}")

    def _greedy(
        self, under: str, llm: LLM, prompts: Answers, expected: Answers, decoding: Spec = None
    ) -> None:
        found = self._answers(under, llm, prompts, decoding)
        if found is None:
            return
        for prompt, ours, theirs in zip(prompts, found, expected, strict=True):
            if ours[: len(theirs)] != theirs and self._oracle.differs(prompt, ours):
                where = _first([ours], [theirs])
                raise UnequalError(f"{under}, prompt of {len(prompt)} tokens: {where}")

    def _answers(
        self, under: str, llm: LLM, prompts: Answers, decoding: Spec = None
    ) -> Answers | None:
        """Greedy answers; None, with a remark, where the method is refused for this model."""
        params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
        try:
            outputs = llm.generate(prompts, params, decoding=decoding, use_tqdm=False)
        except RequestError as error:
            if decoding is None:
                raise
            self._remarks.append(f"not with {under}: {error.message}")
            return None
        for out in outputs:
            if out.error is not None:
                raise UnequalError(f"{under}: a request failed: {out.error}")
        return [out.outputs[0].token_ids for out in outputs]

    def _tokens(self, count: int) -> list[int]:
        """Random bytes, without special tokens."""
        return [self._chooser.randrange(BOS + 1, 256) for _ in range(count)]


def _first(found: Sequence[Any], expected: Sequence[Any]) -> str:
    """Where they differ first."""
    for ours, theirs in zip(found, expected, strict=True):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            if a != b:
                return f"token {i} of the answer is {a} instead of {b}"
    return f"answers of {[*map(len, found)]} tokens instead of {[*map(len, expected)]}"


def _because(message: str) -> str:
    """The reason in a refusal, without the name and what all of them say."""
    reason = re.sub(r"^the architecture '[^']*' is not supported: ", "", " ".join(message.split()))
    return re.sub(r"\. Penstock runs decoders that .*$", "", reason)


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
