"""Which tokens need no computing: keys in the prefix cache, retained, or being computed now.

Where layers have states beside keys and values, a prefix can be used up to a snapshot of the states
at its end. One is taken at the end of each prompt, and where another prompt has turned out to begin
alike.
"""

from collections.abc import Hashable
from collections.abc import Sequence as List

from ...kvcache.prefix import Chain, PrefixCache, Salt
from ...kvcache.recurrent_state import RecurrentState
from ...kvcache.state_pool import StatePool
from ..state.sequence import Context, Sequence
from ..state.sparse_prefill import salt_of
from .retained_kv import RetainedKV


class PromptReuse:
    """Finds keys in the prefix cache and the retained KV, and sequences that compute them now."""

    def __init__(
        self, prefix: PrefixCache, retained_kv: RetainedKV, states: StatePool | None = None
    ) -> None:
        self._prefix = prefix
        self._states = states
        self._retained_kv = retained_kv

    def is_read_by_another(self, sequence: Sequence, running: list[Sequence]) -> bool:
        """Whether a running sequence computes this one's beginning, so that waiting for it pays."""
        if not self._prefix.enabled:
            return False
        if sequence.awaits is not None:
            reader, length = sequence.awaits
            if reader.table.pages and reader.computed < length:
                return True
        sequence.awaits = self._reader_for(sequence, running)
        return sequence.awaits is not None

    def _reader_for(
        self, sequence: Sequence, running: list[Sequence]
    ) -> tuple[Sequence, int] | None:
        """A sequence that computes whole pages of the same beginning, and their tokens."""
        usable = min(self._usable(sequence, sequence), sequence.shareable)
        size = sequence.table.page_size
        found, length = None, 0
        for reader in running:
            if reader.remaining <= 1 or reader.eviction_state is not None:
                continue
            if _salt(reader) != _salt(sequence):
                continue
            # Readers of other owners may be slow, and so may searches beside other requests.
            if reader.request.flow not in (sequence.request.flow, (sequence.request.owner, False)):
                continue
            known = min(usable, reader.shareable)
            shared = self._prefix.shared(reader.names, sequence.names[:known])
            if shared > max(length, reader.computed):
                found, length = reader, shared
        if found is None:
            return None
        if len(self._usable_chains(sequence.names[:length], _salt(sequence))) >= length // size:
            return None
        if found.recurrent is not None:
            found.recurrent.wanted.add(length)
        return found, length

    def _usable_chains(self, tokens: List[Hashable], salt: Salt) -> list[Chain]:
        """Chains of the cached prefixes of `tokens`, up to the longest that can be used."""
        chains = self._prefix.chains(tokens, salt)
        if self._states is not None:
            while chains and not self._states.has(chains[-1]):
                chains.pop()
        return chains

    def adopt(self, sequence: Sequence) -> None:
        """Take the keys that exist for its tokens, in all contexts, whose tables are empty."""
        for number, context in enumerate(sequence.contexts):
            if context.swapped is None:
                self._adopt(sequence, number, context)

    def count(self, sequence: Sequence) -> None:
        """Count what was found in the prefix cache's statistics, once the sequence is admitted."""
        for context in sequence.contexts:
            if context.swapped is None:
                self._prefix.count(queried=len(context.tokens), hit=context.computed)

    def _adopt(self, sequence: Sequence, number: int, context: Context) -> None:
        """Take the usable cached or retained keys of a context's tokens."""
        usable = self._usable(sequence, context)
        shareable = min(usable, context.shareable)
        if context.recurrent is None:
            context.computed = context.page_table.adopt_prefix(context.names[:shareable])
        else:
            shareable = self._adopt_states(context, context.recurrent, shareable, _salt(sequence))
            context.computed = context.page_table.adopt_prefix(context.names[:shareable])
        if context.eviction_state is not None:
            context.eviction_state.reset(context.computed)
        elif sequence.request.source is not None and context.thought is None:
            self._retained_kv.adopt(sequence.request.source, number, context, usable)

    def _adopt_states(
        self, context: Context, state: RecurrentState, shareable: int, salt: Salt
    ) -> int:
        """Start from the longest snapshot of a cached prefix; returns its length in tokens.

        Says where snapshots are to be taken: at the end of what others have read too, and where the
        last whole page of what is read ends.
        """
        size = context.table.page_size
        tokens = context.names[:shareable]
        chains = self._usable_chains(tokens, salt)
        length = len(chains) * size
        if chains and not state.adopt(chains[-1], length):
            length = 0
        if self._prefix.enabled:
            alike = self._prefix.cached(tokens, salt)
            state.wanted = {at for at in (alike, shareable // size * size) if at > length}
        return length

    def _usable(self, sequence: Sequence, context: Context) -> int:
        """How many of a context's first tokens need not be computed if they are cached.

        The last token is computed for its logits, and so is every token with prompt logprobs.
        """
        usable = len(context.tokens) - 1
        if sequence.request.prompt_logprobs is not None and context is sequence:
            usable = min(usable, sequence.request.scored_from - 1)
        if context.eviction_state is not None:
            usable = context.eviction_state.reusable(context.prompt_length, usable)
        return usable


def _salt(sequence: Sequence) -> Salt:
    """The salt within which its prefix is shared."""
    return salt_of(sequence.request, sequence.sparse_prefill)
