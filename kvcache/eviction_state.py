"""Which keys of a context each head holds, and how much attention each of them has received.

Until more keys are held than the policy keeps, key i is token i and lies where the page table says.
Then the survivors move to slots of their own, and from there on a new key overwrites a victim:

    slot        0    1    2    3    4    5            of one layer and head; S = keep + interval
    position    0    1   17   40   33   41            not in order, and another one in each head
    victims     2    4                                the next token takes slot 2, the one after 4

A victim is attended until it is overwritten. When all victims are, the next ones are chosen: by
ranks, or by a kernel of `kernels/evict` where the caller has one that knows the rule.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from .base import Retention
from .store import Stored

_NEVER = 2**30
_EMPTY = -1

Evict = Callable[..., None]
"""One of `kernels/evict`."""


@dataclass(slots=True, kw_only=True)
class AttentionRecord:
    """What one step's attention said of one context's rows, layer by layer.

    `depths`: how far behind row 0 each row is. `votes`: float32 `[R]`, what a row's attention
    counts, where all rows are certain to stay (a chunk of a prompt); None where some are draft
    tokens.

    `weights`: by layer, `[K, keys]` with votes, `[K, R, keys]` without; the rows' own keys are the
    last R. `stored`: by layer, `[K, R, D]`, of draft tokens of a context in slots, which are
    written when it is known which stay."""

    depths: list[int]
    votes: Tensor | None
    weights: list[Tensor] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)


class EvictionState:
    """The state of one context under an evicting policy. Tensors over `[layers, K, keys]`.

    `length`: tokens whose keys have been computed, evicted ones included. `held`: keys that a head
    has, those included that the next ones will overwrite.
    """

    def __init__(
        self, retention: Retention, layers: int, kv_heads: int, device: torch.device
    ) -> None:
        self.retention = retention
        self.length = 0
        self.mass = torch.zeros(layers, kv_heads, 0, device=device)
        self.positions: Tensor | None = None
        self.held = 0
        self._victims: Tensor | None = None
        self._used = 0
        self._first_vote = 0
        self._windows = torch.full((layers, 1, 1), _NEVER, device=device)
        self._windowed = False

    @property
    def one_at_a_time(self) -> bool:
        """Whether `kernels/evict` has the rule: a victim a token, of the least sum or the oldest.

        It knows no mean, no decay and no sliding window of the model's own.
        """
        retention = self.retention
        return retention.interval == 1 and (
            retention.score is None or (retention.score == "sum" and not self._windowed)
        )

    @property
    def in_slots(self) -> bool:
        """Whether the survivors have moved to slots of their own."""
        return self.positions is not None

    @property
    def room(self) -> int:
        """Tokens that one step may add at most: victims are chosen between steps."""
        if self.in_slots:
            return self.retention.interval - self._used
        return max(1, self.retention.keep - self.length)

    @property
    def must_move(self) -> bool:
        """Whether more keys are held than are kept, for the first time."""
        return not self.in_slots and self.length > self.retention.keep

    def outgrows(self, count: int) -> bool:
        """Whether the survivors move for the first time once `count` more tokens are there."""
        return not self.in_slots and self.length + count > self.retention.keep

    def fork(self) -> "EvictionState":
        """A second one in the same state; only before the survivors have moved."""
        assert not self.in_slots, "choices fork before anything is evicted"
        layers, kv_heads, _ = self.mass.shape
        twin = EvictionState(self.retention, layers, kv_heads, self.mass.device)
        # Tensors are replaced, never changed, until the survivors have moved: they can be shared.
        twin.length, twin.held, twin.mass = self.length, self.held, self.mass
        twin._first_vote, twin._windows = self._first_vote, self._windows
        twin._windowed = self._windowed
        return twin

    def reset(self, cached: int) -> None:
        """Begin anew behind `cached` tokens whose keys are there and have received nothing yet."""
        layers, kv_heads, _ = self.mass.shape
        self.length = self.held = cached
        self.mass = torch.zeros(layers, kv_heads, cached, device=self.mass.device)

    def counts(self, prompt_length: int, count: int) -> bool:
        """Whether the attention of any of the next `count` tokens counts."""
        retention = self.retention
        if retention.score is None:
            return False
        window = retention.score_window
        return window is None or self.length + count > prompt_length - window

    def votes(self, prompt_length: int, count: int) -> Tensor:
        """What the attention of the next `count` tokens counts: float32 `[count]`."""
        retention, device = self.retention, self.mass.device
        at = torch.arange(self.length, self.length + count, device=device)
        votes = torch.ones(count, device=device)
        if retention.score_window is not None:
            self._first_vote = max(0, prompt_length - retention.score_window)
            votes[at < self._first_vote] = 0.0
        if retention.score == "decay":
            votes *= 0.5 ** ((self.length + count - 1 - at) / retention.half_life)
        return votes

    def note_window(self, layer: int, window: int | None) -> None:
        """The model's own sliding window of a layer: what is behind it is never seen again."""
        if window is not None:
            self._windows[layer] = window
            self._windowed = True

    def seen(self, depths: list[int], window: int | None, layer: int) -> Tensor:
        """Boolean `[K, R, held]`: which slots each row sees; the rows' own keys are not among them.

        A row takes a victim's slot, and so do those before it on its path.
        """
        assert self.positions is not None
        positions = self.positions[layer, :, : self.held]
        turns = torch.full_like(self.positions[layer], _NEVER)
        ahead = self._chosen()[layer, :, self._used :]
        turn = torch.arange(ahead.shape[1], dtype=turns.dtype, device=turns.device)
        turns.scatter_(-1, ahead, turn.expand_as(ahead))
        depth_R1 = torch.tensor(depths, device=positions.device)[:, None]
        seen = turns[:, None, : self.held] > depth_R1
        if window is not None:
            seen &= self.length + depth_R1 - positions[:, None] < window
        return seen

    def begin_row(self) -> Tensor:
        """The next token is certain to stay: it takes its victims' slots, int64 `[layers, K, 1]`.

        Its key is written there before it attends; what that counts goes to `end_row`.
        """
        assert self.positions is not None
        slots = self._chosen()[..., self._used : self._used + 1]
        self.positions.scatter_(-1, slots, self.length)
        self.mass = self._decayed(self.mass, 1)
        self.mass.scatter_(-1, slots, 0.0)
        self.length += 1
        self._used += 1
        self.held = min(self.held + 1, self.retention.slots)
        return slots

    def begin_row_by(self, evict: Evict, pages_1W: Tensor, page_size: int) -> Tensor:
        """`begin_row` by a kernel, where they go `one_at_a_time`: int64 `[layers, K, 1]`.

        pages_1W: int32, of this context. Returns page x page_size + offset.
        """
        assert self.positions is not None
        layers, heads, slots = self.mass.shape
        # By age: all have the same mass, and of those the oldest goes.
        mass = self.mass if self.retention.score is not None else torch.zeros_like(self.mass)
        # Each number at a multiple of 16 bytes, or kernels are compiled once more.
        numbers = [self.length, self.retention.recent, self.retention.sink]
        of_all = torch.tensor(
            [[number, 0, 0, 0] for number in numbers], dtype=torch.int32, device=mass.device
        )
        taken = torch.empty(1, layers * heads, dtype=torch.int64, device=mass.device)
        evict(
            mass.view(1, -1, slots),
            self.positions.view(1, -1, slots),
            *(number[:1] for number in of_all),
            pages_1W,
            taken,
            page_size=page_size,
        )
        self._victims = None
        self.length += 1
        self.held = min(self.held + 1, self.retention.slots)
        return taken.view(layers, heads, 1)

    def visible(self, layer: int, window: int | None) -> Tensor | None:
        """Boolean `[K, 1, held]`: which keys the newest token sees, itself included; None: all."""
        assert self.positions is not None
        if window is None:
            return None
        return (self.length - 1 - self.positions[layer, :, None, : self.held]) < window

    def end_row(self, attention_record: AttentionRecord) -> None:
        """All layers have attended; `attention_record.weights` are of the keys held, where they
        count."""
        if attention_record.weights:
            self.mass[..., : self.held] += torch.stack(attention_record.weights)
        self._forget_used_victims()

    def add_unscored(self, count: int) -> None:
        """`count` tokens were read whose attention counts nothing."""
        self.mass = pad(self._decayed(self.mass, count), (0, count))
        self.length += count
        self.held = self.length

    def add_prompt(self, attention_record: AttentionRecord, count: int) -> None:
        """`count` tokens were read, as one chunk."""
        weights = torch.stack(attention_record.weights)
        grown = weights.new_zeros(*weights.shape[:2], self.length + count)
        if self.length:
            grown[:, :, : self.length] = self._decayed(self.mass, count)
        grown += weights
        self.mass = grown
        self.length += count
        self.held = self.length

    def add_rows(self, attention_record: AttentionRecord, rows: list[int]) -> Tensor | None:
        """The rows that stay, in order: the newest token's, and those of right draft tokens.

        Returns the slots that their keys are to be written to, int64 `[layers, K, rows]`; None
        where the page table says it.
        """
        weights = torch.stack(attention_record.weights)[:, :, rows]
        count, held = len(rows), weights.shape[-1] - len(attention_record.depths)
        if self.retention.score == "decay":
            ages = torch.arange(count - 1, -1, -1, device=weights.device)
            weights = weights * (0.5 ** (ages / self.retention.half_life))[:, None]
        received = weights.sum(dim=2)
        mass = self._decayed(self.mass[..., :held], count) + received[..., :held]
        own = received[..., [held + row for row in rows]]
        first = self.length
        self.length += count
        if self.positions is None:
            self.mass = torch.cat([mass, own], dim=-1)
            self.held = self.length
            return None
        slots = self._chosen()[..., self._used : self._used + count]
        self.mass[..., :held] = mass
        self.mass.scatter_(-1, slots, own)
        positions = torch.arange(first, self.length, dtype=torch.int32, device=mass.device)
        self.positions.scatter_(-1, slots, positions.expand_as(slots))
        self._used += count
        self.held = min(self.held + count, self.retention.slots)
        self._forget_used_victims()
        return slots

    def move_to_slots(self) -> Tensor:
        """Choose the first survivors: int64 `[layers, K, keep]`, their positions, ascending.

        They belong into slots 0 to keep - 1 of their head; the slots behind are empty.
        """
        retention, device = self.retention, self.mass.device
        layers, heads, _ = self.mass.shape
        positions = torch.arange(self.length, device=device).expand_as(self.mass)
        ranks = _ranks(self._scores(positions), positions)
        kept = ranks.topk(retention.keep, dim=-1, sorted=False).indices.sort(dim=-1).values
        shape = layers, heads, retention.slots
        self.positions = torch.full(shape, _EMPTY, dtype=torch.int32, device=device)
        self.positions[..., : retention.keep] = kept
        empty = torch.arange(retention.keep, retention.slots, device=device)
        self._victims = empty.expand(layers, heads, -1)
        mass = self.mass.new_zeros(shape)
        mass[..., : retention.keep] = self.mass.gather(-1, kept)
        self.mass = mass
        self.held = retention.keep
        return kept

    def _forget_used_victims(self) -> None:
        if self._used >= self.retention.interval:
            self._victims, self._used = None, 0

    def _chosen(self) -> Tensor:
        """The victims' slots, int64 `[layers, K, interval]`; nothing changes until all are used."""
        if self._victims is None:
            assert self.positions is not None
            ranks = _ranks(self._scores(self.positions), self.positions)
            self._victims = ranks.topk(self.retention.interval, dim=-1, largest=False).indices
        return self._victims

    def _scores(self, positions: Tensor) -> Tensor:
        """What keys are ranked by; infinite for those that must stay."""
        retention = self.retention
        match retention.score:
            case None:
                scores = positions.float()
            case "mean":
                scores = self.mass / (self.length - positions.clamp(min=self._first_vote))
            case _:
                scores = self.mass.clone()
        scores = scores.masked_fill(self.length - positions >= self._windows, -1.0)
        stays = (positions >= self.length - retention.recent) | (positions < retention.sink)
        return scores.masked_fill_(stays, float("inf"))

    def _decayed(self, mass: Tensor, queries: int) -> Tensor:
        if self.retention.score != "decay":
            return mass
        return mass * 0.5 ** (queries / self.retention.half_life)


def _ranks(scores: Tensor, positions: Tensor) -> Tensor:
    """Distinct int64 in the order of float32 scores; of equal scores the older position is lower.

    The bits of floats that are not negative ascend as the floats do; a negative one is below them.
    """
    return (scores.view(torch.int32).long() << 32) + positions
