"""Retained KV: keys and values of ended sequences that will be continued, while there is room."""

from collections.abc import Hashable
from collections.abc import Sequence as List
from dataclasses import dataclass

from ...kvcache.state_pool import StatePool
from ...kvcache.table import PageTable
from ..state.sequence import Context, Sequence


@dataclass(frozen=True, slots=True)
class _Retained:
    """One context: the tokens whose keys and values its pages hold, as the prefix cache knows them.

    `exact_from`: position of the answer's first token after a sparse prefill; None without one.
    """

    tokens: List[Hashable]
    table: PageTable
    exact_from: int | None


class RetainedKV:
    """Page tables by name (`Request.retained_name`); each holds its pages until it is released.

    No result depends on them: a request that continues a sequence brings all of its tokens, and
    those that are not retained are computed. So the oldest are released when pages run out.
    `states`: where the states beside keys and values stay, as long as there is a slot for them.
    """

    def __init__(self, states: StatePool | None = None) -> None:
        self._states = states
        self._retained: dict[str, tuple[_Retained, ...]] = {}

    def put(self, name: str, sequence: Sequence) -> None:
        """Retain what a sequence has computed, in all contexts; nothing if any of them evicts or
        drops its thought."""
        kept: list[_Retained] = []
        for context in sequence.contexts:
            if context.eviction_state is not None or context.thought is not None:
                return
            table = context.page_table.fork()
            table.truncate(min(table.length, context.computed))
            kept.append(_Retained(context.names[: table.length], table, _exact_from(context)))
            if context.recurrent is not None and context.recurrent.length == table.length:
                context.recurrent.hand_over((name, len(kept) - 1))
        self._retained[name] = tuple(kept)

    def adopt(self, name: str, number: int, context: Context, usable: int) -> None:
        """Give context `number` as many of its first `usable` tokens as are retained under `name`.

        Its table is empty, or holds what the prefix cache gave; the longer of the two stays.
        """
        kept = self._retained.get(name, ())
        if number >= len(kept):
            return
        source = kept[number]
        if source.exact_from != _exact_from(context):
            return
        length = _shared(source.tokens, context.names, usable)
        if length > context.computed:
            if context.recurrent is not None and not (
                length == len(source.tokens) and context.recurrent.adopt((name, number), length)
            ):
                return  # a state cannot be cut
            context.table.free()
            context.table = source.table.fork()
            context.table.truncate(length)
            context.computed = length

    def release(self, names: tuple[str, ...]) -> None:
        """Release the tables of these names; unknown names are ignored."""
        for name in names:
            for number, kept in enumerate(self._retained.pop(name, ())):
                kept.table.free()
                if self._states is not None:
                    self._states.drop((name, number))

    def release_oldest(self) -> bool:
        """Release the oldest table to make room; False: nothing is retained."""
        oldest = next(iter(self._retained), None)
        if oldest is None:
            return False
        self.release((oldest,))
        return True

    def clear(self) -> None:
        """Release everything."""
        self.release(tuple(self._retained))


def _exact_from(context: Context) -> int | None:
    return None if context.sparse_prefill is None else context.sparse_prefill.until


def _shared(some: List[Hashable], others: List[Hashable], limit: int) -> int:
    """The length of their common beginning, at most `limit`."""
    limit = min(limit, len(some), len(others))
    if some[:limit] == others[:limit]:
        return limit
    return next(at for at in range(limit) if some[at] != others[at])
