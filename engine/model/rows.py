"""A step's rows, flattened: tokens, positions, and where keys are and go."""

from ..adapters.store import Prepared
from ..state.step import Chunk, Step
from .picture_rows import PicturedRows


class Rows:
    """The rows of a step, flattened. The layout is that of rows with ordinary attention.

    `in_one_call`: so have all rows; where the keys of contexts in slots go, is known elsewhere.
    """

    def __init__(self, page_size: int, *, in_one_call: bool) -> None:
        self.page_size = page_size
        self._in_one_call = in_one_call
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.ordinary: list[int] = []
        self.slots: list[int] = []
        self.starts = [0]
        self.lengths: list[int] = []
        self.tables: list[list[int]] = []
        self.trees: dict[int, list[int]] = {}
        self.own_attention: list[tuple[int, Chunk]] = []
        self.adapters: list[Prepared | None] = []
        self.pictured: list[PicturedRows] = []

    def add(self, chunk: Chunk) -> None:
        """Add the rows of one context's chunk."""
        row, context = len(self.ids), chunk.context
        self._add(chunk)
        if context.pictures is not None:
            self.positions[row:] = map(context.position, self.positions[row:])
            self.pictured.append(
                PicturedRows(
                    row=row,
                    begin=context.computed,
                    count=chunk.count - chunk.drafted,
                    pictures=context.pictures,
                )
            )

    def _add(self, chunk: Chunk) -> None:
        context, draft = chunk.context, chunk.draft
        row, first = len(self.ids), context.computed
        last = first + chunk.count
        self.adapters += [chunk.sequence.adapter] * chunk.count
        if chunk.count == 1 and not chunk.own_attention:
            self.ids.append(context.tokens[first])
            self.positions.append(first)
            self.ordinary.append(row)
            self.slots.append(context.table.slot(first))
            self.starts.append(self.starts[-1] + 1)
            self.lengths.append(context.table.num_keys(last))
            self.tables.append(context.table.pages)
            return
        if draft is None:
            self.ids += context.tokens[first:last]
            self.positions += range(first, last)
        else:
            newest = len(context.tokens) - 1
            self.ids += (context.tokens[newest], *draft.tokens)
            self.positions += (newest, *(newest + depth for depth in draft.depths))
        if chunk.own_attention and not self._in_one_call:
            self.own_attention.append((row, chunk))
            return
        self.ordinary += range(row, row + chunk.count)
        if draft is not None and draft.parents is not None:
            self.trees[len(self.lengths)] = draft.parents
        self.starts.append(self.starts[-1] + chunk.count)
        self.tables.append(context.table.pages)
        if context.in_slots:
            assert context.eviction_state is not None
            self.slots += [0] * chunk.count
            self.lengths.append(context.eviction_state.held)
            return
        self.slots += context.table.slots(first, last)
        self.lengths.append(context.table.num_keys(last))


def wanted_rows(step: Step) -> list[int]:
    """Rows of a step whose logits are needed, in the order of its chunks.

    Those of a chunk are its last `wanted` rows: newest token and draft tokens, or all for prompt
    logprobs.
    """
    rows: list[int] = []
    start = 0
    for chunk in step.chunks:
        stop = start + chunk.count
        rows += range(stop - chunk.wanted, stop)
        start = stop
    return rows
