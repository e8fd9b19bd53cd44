"""KV cache eviction: which keys each head of a context holds, and the attention they received.

Until a context has more keys than the policy keeps, key i is token i, where the page table says.
Then the survivors move to slots of their own, and from then on each new key overwrites a victim:

    slot        0    1    2    3    4    5            of one layer and head; S = keep + interval
    position    0    1   17   40   33   41            not in order, and another one in each head
    victims     2    4                                the next token takes slot 2, the one after 4

A victim is attended to until it is overwritten. When all victims are, the next ones are chosen: by
ranking the keys, or by a kernel of `kernels/evict` (see `EvictionState.one_at_a_time`).
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
    """The attention weights of one context's rows in one step, layer by layer.

    `depths`: how many tokens each row is after row 0. `votes`: float32 `[R]`, the weight of each
    row's attention, if all rows are certain to stay (a chunk of a prompt); None if some are draft
    tokens.

    `weights`: by layer, `[K, keys]` with votes, `[K, R, keys]` without; the rows' own keys are the
    last R. `stored`: by layer, `[K, R, D]`, keys and values of draft tokens of a context in slots;
    they are written once it is known which are accepted."""

    depths: list[int]
    votes: Tensor | None
    weights: list[Tensor] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)


class EvictionState:
    """The state of one context under an evicting policy. Its tensors are `[layers, K, keys]`.

    `length`: tokens whose keys have been computed, evicted ones included. `held`: keys that each
    head has, victims included.
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
        """Whether `kernels/evict` can choose: one victim a token, by least sum or by age.

        The kernel knows no mean, no decay, and no sums in a model with sliding windows.
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
        """Most tokens that one step may add: victims are chosen between steps."""
        if self.in_slots:
            return self.retention.interval - self._used
        return max(1, self.retention.keep - self.length)

    @property
    def must_move(self) -> bool:
        """Whether the context has outgrown what is kept, so that survivors must move to slots."""
        return not self.in_slots and self.length > self.retention.keep

    def outgrows(self, count: int) -> bool:
        """Whether `count` more tokens will make the survivors move to slots."""
        return not self.in_slots and self.length + count > self.retention.keep

    def fork(self) -> "EvictionState":
        """A copy; allowed only before the survivors have moved."""
        assert not self.in_slots, "choices fork before anything is evicted"
        layers, kv_heads, _ = self.mass.shape
        twin = EvictionState(self.retention, layers, kv_heads, self.mass.device)
        # Tensors are replaced, never changed, until the survivors have moved: they can be shared.
        twin.length, twin.held, twin.mass = self.length, self.held, self.mass
        twin._first_vote, twin._windows = self._first_vote, self._windows
        twin._windowed = self._windowed
        return twin

    def reset(self, cached: int) -> None:
        """Start again after `cached` tokens, whose keys exist but got no attention yet."""
        layers, kv_heads, _ = self.mass.shape
        self.length = self.held = cached
        self.mass = torch.zeros(layers, kv_heads, cached, device=self.mass.device)

    def counts(self, prompt_length: int, count: int) -> bool:
        """Whether the attention of any of the next `count` tokens counts towards scores."""
        retention = self.retention
        if retention.score is None:
            return False
        window = retention.score_window
        return window is None or self.length + count > prompt_length - window

    def votes(self, prompt_length: int, count: int) -> Tensor:
        """How much the attention of each of the next `count` tokens counts: float32 `[count]`."""
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
        """Record a layer's own sliding window: keys outside it are never seen again."""
        if window is not None:
            self._windows[layer] = window
            self._windowed = True

    def seen(self, depths: list[int], window: int | None, layer: int) -> Tensor:
        """Boolean `[K, R, held]`: the slots that each row sees; the rows' own keys are not in them.

        A row does not see the victims whose slots it and the rows before it on its path will take.
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
        """Give the next token, which is certain to stay, its slots: int64 `[layers, K, 1]`.

        Its key is written there before it attends; `end_row` takes its attention weights.
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
        """`begin_row` by a kernel, where `one_at_a_time`: int64 `[layers, K, 1]`.

        `pages_1W`: int32, the context's pages. Returns page x page_size + offset.
        """
        assert self.positions is not None
        layers, heads, slots = self.mass.shape
        # By age: with equal masses the oldest is evicted.
        mass = self.mass if self.retention.score is not None else torch.zeros_like(self.mass)
        # Each number is 16-byte aligned; else Triton would compile the kernel once more.
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
        """Boolean `[K, 1, held]`: the keys that the newest token sees, its own too; None: all."""
        assert self.positions is not None
        if window is None:
            return None
        return (self.length - 1 - self.positions[layer, :, None, : self.held]) < window

    def end_row(self, attention_record: AttentionRecord) -> None:
        """After all layers: add `attention_record.weights`, of the keys held, if there are any."""
        if attention_record.weights:
            self.mass[..., : self.held] += torch.stack(attention_record.weights)
        self._forget_used_victims()

    def add_unscored(self, count: int) -> None:
        """Add `count` tokens whose attention does not count."""
        self.mass = pad(self._decayed(self.mass, count), (0, count))
        self.length += count
        self.held = self.length

    def add_prompt(self, attention_record: AttentionRecord, count: int) -> None:
        """Add `count` tokens of the prompt, computed as one chunk."""
        weights = torch.stack(attention_record.weights)
        grown = weights.new_zeros(*weights.shape[:2], self.length + count)
        if self.length:
            grown[:, :, : self.length] = self._decayed(self.mass, count)
        grown += weights
        self.mass = grown
        self.length += count
        self.held = self.length

    def add_rows(self, attention_record: AttentionRecord, rows: list[int]) -> Tensor | None:
        """Add the rows that stay, in order: the newest token's and those of accepted draft tokens.

        Returns the slots to write their keys to, int64 `[layers, K, rows]`; None while the page
        table says where they are.
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

        They move to slots 0 to keep - 1 of their head; the slots after these are empty.
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
        """The victims' slots, int64 `[layers, K, interval]`; they stay until all are used."""
        if self._victims is None:
            assert self.positions is not None
            ranks = _ranks(self._scores(self.positions), self.positions)
            self._victims = ranks.topk(self.retention.interval, dim=-1, largest=False).indices
        return self._victims

    def _scores(self, positions: Tensor) -> Tensor:
        """Scores that rank the keys; infinite for those that must stay."""
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

    The bits of non-negative floats, as integers, have the order of the floats; the negative score
    (-1) is below them.
    """
    return (scores.view(torch.int32).long() << 32) + positions
