"""What the methods of a request count."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCounters:
    """Counts of the methods at work, of one step's output or of a whole request.

    `drafted`: draft tokens verified. `accepted`: those that were accepted. `guidance_tokens`: of
    the target's further contexts, prompts and answers. `evicted`: tokens whose keys each head has
    evicted, in all contexts. `held_slots`: slots that each head has allocated for the keys it
    keeps, however long the answer becomes; 0 if nothing was evicted. `sparse_rows`: rows of
    prompts that saw part of their keys. `seen_pairs`, `causal_pairs`: pairs of a query and a key
    that these rows saw, and those of full causal attention, over all layers and heads.
    """

    drafted: int = 0
    accepted: int = 0
    guidance_tokens: int = 0
    evicted: int = 0
    held_slots: int = 0
    sparse_rows: int = 0
    seen_pairs: int = 0
    causal_pairs: int = 0

    def add(self, other: "MethodCounters") -> "MethodCounters":
        """The sums of both."""
        return MethodCounters(
            **{name: getattr(self, name) + getattr(other, name) for name in COUNTER_NAMES}
        )


COUNTER_NAMES = tuple(field.name for field in fields(MethodCounters))
NO_COUNTERS = MethodCounters()
