"""One step: the rows that the scheduler chose, the runner computes and the engine commits."""

from dataclasses import dataclass, field
from typing import Literal

from ...decoding.drafting.draft import Draft
from ...kvcache.attention_record import AttentionRecord
from ...kvcache.table import PageCopy
from .request import Failure, TokenLogprobs
from .sequence import Context, Sequence


@dataclass(slots=True, kw_only=True)
class Chunk:
    """`count` rows of one context of a sequence: its tokens from `context.computed` on.

    `decodes`: the step has the newest token of this and all other contexts of the sequence, so that
    the sequence gets its next token. `draft`: the last rows are its draft tokens. `copy`: a page to
    copy before the rows are written. `attention_record`: what the rows attended to, if the cache
    policy needs it. `finite`: whether the keys and values of a prompt's rows are finite; known
    once they have been computed."""

    sequence: Sequence
    context: Context
    count: int
    decodes: bool
    draft: Draft | None = None
    copy: PageCopy | None = None
    attention_record: AttentionRecord | None = None
    finite: bool = True

    @property
    def reads(self) -> bool:
        """Whether some of its rows are of a prompt, or computed again after preemption."""
        return self.count > 1 + self.drafted or not self.decodes

    @property
    def drafted(self) -> int:
        """How many rows are draft tokens."""
        return len(self.draft.tokens) if self.draft is not None else 0

    @property
    def wanted(self) -> int:
        """How many rows' logits are needed: its last ones."""
        request, context = self.sequence.request, self.context
        if context is self.sequence and request.prompt_logprobs is not None:
            return max(0, self.count - max(0, request.scored_from - 1 - context.computed))
        return 1 + self.drafted if self.decodes else 0

    @property
    def own_attention(self) -> bool:
        """Whether its rows need an attention function of their own.

        Its keys are in slots, or their attention is scored, or rows see part of them: those of its
        prompt, or those whose sliding windows have a gap. Or rows of a picture see later ones.
        """
        return self.scored or self.sparse or self.gapped or self.ahead

    @property
    def scored(self) -> bool:
        """Whether its keys are in slots, or the attention of its rows counts for the policy."""
        eviction_state = self.context.eviction_state
        return eviction_state is not None and (
            eviction_state.in_slots or eviction_state.counts(self.context.prompt_length, self.count)
        )

    @property
    def in_line(self) -> bool:
        """Whether each row is the newest token or a draft token that continues the row before it,
        with ordinary attention."""
        contexts = self.draft is not None and self.draft.parents is not None
        rows = 1 + self.drafted
        return self.decodes and self.count == rows and not contexts and not self.own_attention

    @property
    def gapped(self) -> bool:
        """Whether keys are missing in a sliding window of some of its rows: a dropped thought's."""
        thought = self.context.thought
        return thought is not None and thought.is_seen_from(self.context.computed)

    @property
    def ahead(self) -> bool:
        """Whether rows of a picture see later ones of the same picture."""
        pictures, begin = self.context.pictures, self.context.computed
        return pictures is not None and pictures.has_ahead(begin, begin + self.count)

    @property
    def sparse(self) -> bool:
        """Whether some rows of a sparse prefill see only part of the keys."""
        sparse_prefill = self.context.sparse_prefill
        return sparse_prefill is not None and sparse_prefill.covers(
            self.context.computed, self.count
        )


@dataclass(slots=True, kw_only=True)
class Step:
    """One ragged batch: what the runner computes and the engine then commits."""

    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    restored: list[Context] = field(default_factory=list)

    @property
    def copies(self) -> list[PageCopy]:
        """Pages to copy before anything is written."""
        return [chunk.copy for chunk in self.chunks if chunk.copy is not None]

    @property
    def only_decodes(self) -> bool:
        """Whether each context has one row beside its draft tokens."""
        return all(chunk.count == 1 + chunk.drafted for chunk in self.chunks)

    @property
    def in_lines(self) -> bool:
        """Whether each row is the newest token or a draft token, and sees its whole context so
        far."""
        return all(chunk.in_line for chunk in self.chunks)

    @property
    def drafts(self) -> int:
        """Contexts in which a draft is verified."""
        return sum(chunk.draft is not None for chunk in self.chunks)

    @property
    def draft_tokens(self) -> int:
        """Rows that are draft tokens, in all contexts."""
        return sum(chunk.drafted for chunk in self.chunks)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return sum(chunk.count for chunk in self.chunks)


@dataclass(slots=True, kw_only=True)
class Decoded:
    """A sequence's next tokens, and their logprobs if asked for.

    `accepted`: indices of the draft tokens that were accepted; `tokens` are these and one more, or
    these alone where `ending` says why there is no next one. `predictions`: what followed the
    newest token and each draft token.
    """

    sequence: Sequence
    tokens: list[int]
    logprobs: tuple[TokenLogprobs, ...] = ()
    draft: Draft | None = None
    accepted: list[int]
    predictions: list[int]
    ending: Failure | Literal["no_allowed_token"] | None = None
