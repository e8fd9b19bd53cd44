"""Texts through the engine: their own tokens are fed as if generated, and what was expected noted.

The engine is the one that serves, with its policies, its pages and its eviction; only the sampler
is another one, which chooses what the text says.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock import SamplingParams
from penstock.decoding.constraint.masks import Masks
from penstock.decoding.sampler import Drawn, Sampler
from penstock.decoding.sampling import Row
from penstock.engine.build import Built
from penstock.engine.requests.input import Input
from penstock.kvcache.eviction_state import EvictionState
from penstock.registry import Spec


class GivenTokens(Sampler):
    """Chooses the next token of the text whose number is the row's seed."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._texts = texts

    def draw(self, logits: Tensor, rows: Sequence[Row], masks: Masks | None = None) -> Drawn:
        """See `Sampler`; the logits do not matter."""
        tokens = [self._texts[row.sampling.seed][len(row.tokens)] for row in rows]
        ids = torch.tensor(tokens, device=logits.device)
        return Drawn(ids=ids, logits=logits, limited=[], largest=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A prompt to continue by `tokens`. `kv_cache`, `decoding`: as in a request's body.

    `eviction_state`: what takes the place of the policy's own state (None: nothing is evicted).
    """

    prompt: Sequence[int]
    tokens: int
    kv_cache: Spec = None
    decoding: Spec = None
    eviction_state: Callable[[EvictionState | None], EvictionState | None] = lambda own: own


@dataclass(slots=True, kw_only=True)
class Continued:
    """A job's tokens, and their log-probabilities (natural log).

    `seen`, `causal`: pairs of a query and a key in rows that saw a part of the keys, and as many as
    there would be.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    seen: int = 0
    causal: int = 0


def greedy(built: Built, jobs: Sequence[Job]) -> list[Continued]:
    """What the model says; ends with its own end or after the job's tokens."""
    return _run(built, jobs, ignore_eos=False)


def forced(built: Built, jobs: Sequence[Job], texts: Sequence[Sequence[int]]) -> list[Continued]:
    """What the model thinks of the texts, which begin with the jobs' prompts."""
    with _sampler(built, GivenTokens(texts)):
        return _run(built, jobs, ignore_eos=True)


@contextmanager
def _sampler(built: Built, sampler: Sampler) -> Generator[None]:
    decoder = built.engine.decoder
    own, decoder.sampler = decoder.sampler, sampler
    try:
        yield
    finally:
        decoder.sampler = own


def _run(built: Built, jobs: Sequence[Job], *, ignore_eos: bool) -> list[Continued]:
    engine = built.engine
    found = [Continued() for _ in jobs]
    for number, job in enumerate(jobs):
        request = built.input_processor.prepare(
            Input(
                request_id=str(number),
                prompt=list(job.prompt),
                params=SamplingParams(
                    max_tokens=job.tokens, temperature=0, seed=number, ignore_eos=ignore_eos
                ),
                kv_cache=job.kv_cache,
                decoding=job.decoding,
                logprobs=0,
            )
        )
        engine.add(request)
        (sequence,) = (s for s in engine.scheduler.all() if s.request is request)
        sequence.eviction_state = job.eviction_state(sequence.eviction_state)
    while engine.has_work:
        for output in engine.step():
            continued = found[int(output.request_id)]
            continued.tokens += output.token_ids
            continued.logprobs += [token.logprob for token in output.logprobs]
            if output.counters is not None:
                continued.seen += output.counters.seen_pairs
                continued.causal += output.counters.causal_pairs
    return found
