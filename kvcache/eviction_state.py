"""KV cache eviction: which keys each head of a context holds, and the attention they received.

Until a context has more keys than the policy keeps, key i is token i, where the page table says.
Then the survivors move to slots of their own, and from then on each new key overwrites a victim:

    slot        0    1    2    3    4    5            of one layer and head; S = keep + interval
    position    0    1   17   40   33   41            not in order, and another one in each head
    victims     2    4                                the next token takes slot 2, the one after 4

A victim is attended to until it is overwritten. When all victims are, the next ones are chosen: by
the policy's `score`, or by a kernel of `kernels/evict` (see `EvictionState.one_at_a_time`).

`drop` takes the keys of certain tokens from all heads at once. In slots it leaves holes, as many as
each head held of these tokens; no row sees them, and they are overwritten first.
"""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..registry import Choice
from .attention_record import AttentionRecord
from .base import CachePolicy, HeldKeys, Retention
from .ranking import ranks_of, scores_of

logger = logging.getLogger(__name__)

_NEVER = 2**30
_EMPTY = -1

Evict = Callable[..., None]
"""One of `kernels/evict`."""
ReadKeys = Callable[[int], Tensor]
"""Reads the keys that a context holds in one layer: see `HeldKeys.keys`."""


class EvictionState:
    """The state of one context under an evicting policy. Its tensors are `[layers, K, keys]`.

    `length`: tokens whose keys have been computed, evicted ones included. `held`: keys that each
    head has, victims and holes included. `broken`: whether the policy's `score` has raised.

    `windows`: of each layer, tokens that its own sliding window holds; None: it has none.
    """

    def __init__(
        self,
        choice: Choice[CachePolicy[Any]],
        retention: Retention,
        *,
        kv_heads: int,
        windows: Sequence[int | None],
        device: torch.device,
    ) -> None:
        self.choice = choice
        self.retention = retention
        self.observation = choice.method.observe(choice.parameters)
        self.length = 0
        self.mass = torch.zeros(len(windows), kv_heads, 0, device=device)
        self.positions: Tensor | None = None
        self.held = 0
        self.broken = False
        self._victims: Tensor | None = None
        self._used = 0
        self._first_vote = 0
        self._gap = 0, 0
        self._holes_last = 0
        reach = [_NEVER if window is None else window for window in windows]
        self._windows = torch.tensor(reach, device=device)[:, None, None]
        self._windowed = any(window is not None for window in windows)

    @property
    def one_at_a_time(self) -> bool:
        """Whether `kernels/evict` can choose: one victim a token, by least sum or by age.

        The kernel knows no other score, no decay, and no sums in a model with sliding windows.
        """
        observation = self.observation
        return (
            self.retention.interval == 1
            and not self.has_holes
            and self.choice.method.fused(self.choice.parameters)
            and (observation is None or (observation.half_life is None and not self._windowed))
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
        return max(1, self.retention.keep - self.held)

    @property
    def must_move(self) -> bool:
        """Whether the context has outgrown what is kept, so that survivors must move to slots."""
        return not self.in_slots and self.held > self.retention.keep

    def outgrows(self, count: int) -> bool:
        """Whether `count` more tokens will make the survivors move to slots."""
        return not self.in_slots and self.held + count > self.retention.keep

    @property
    def has_holes(self) -> bool:
        """Whether some head may have slots whose key was dropped, so that no row sees them."""
        return self._holes_last > 0

    @property
    def evicted(self) -> int:
        """Tokens whose keys are gone, in an average head."""
        missing = self.length - self.held
        if self.positions is None or not self.has_holes:
            return missing
        layers, heads, _ = self.positions.shape
        holes = (self.positions[..., : self.held] == _EMPTY).sum()
        return missing + int(holes) // (layers * heads)

    def fork(self) -> "EvictionState":
        """A copy; allowed only before the survivors have moved."""
        assert not self.in_slots, "choices fork before anything is evicted"
        # Tensors are replaced, never changed, until the survivors have moved: they can be shared.
        return copy(self)

    def reset(self, cached: int) -> None:
        """Start again after `cached` tokens, whose keys exist but got no attention yet."""
        layers, kv_heads, _ = self.mass.shape
        self.length = self.held = cached
        self._gap = 0, 0
        self.mass = torch.zeros(layers, kv_heads, cached, device=self.mass.device)

    def drop(self, begin: int, end: int) -> None:
        """The keys of tokens `begin` to `end` - 1 are gone, in every head that had them."""
        if self.positions is None:
            self.mass = torch.cat([self.mass[..., :begin], self.mass[..., end:]], dim=-1)
            self.held = self.mass.shape[-1]
            self._gap = begin, end
            return
        here = self.positions[..., : self.held]
        gone = (here >= begin) & (here < end)
        here.masked_fill_(gone, _EMPTY)
        self.mass[..., : self.held].masked_fill_(gone, 0.0)
        holes = int(gone.sum(dim=-1).max())
        # Victims that are chosen already are overwritten before them.
        self._holes_last = holes + self.retention.interval if holes else 0

    def counts(self, prompt_length: int, count: int) -> bool:
        """Whether the attention of any of the next `count` tokens counts towards scores."""
        if self.observation is None:
            return False
        window = self.observation.prompt_window
        return window is None or self.length + count > prompt_length - window

    def reusable(self, prompt_length: int, count: int) -> int:
        """How many of the first `count` tokens may come from a cache.

        What cached tokens attended to is unknown, so those that are observed are computed.
        """
        if self.observation is None:
            return count
        window = self.observation.prompt_window
        return 0 if window is None else max(0, min(count, prompt_length - window))

    def votes(self, prompt_length: int, count: int) -> Tensor:
        """How much the attention of each of the next `count` tokens counts: float32 `[count]`."""
        observation, device = self.observation, self.mass.device
        assert observation is not None
        at = torch.arange(self.length, self.length + count, device=device)
        votes = torch.ones(count, device=device)
        if observation.prompt_window is not None:
            self._first_vote = max(0, prompt_length - observation.prompt_window)
            votes[at < self._first_vote] = 0.0
        if observation.half_life is not None:
            votes *= observation.share(self.length + count - 1 - at)
        return votes

    @property
    def has_victims(self) -> bool:
        """Whether `choose` need not be called before the next row."""
        return self._victims is not None

    def choose(self, keys: ReadKeys) -> None:
        """Choose the next victims among the keys in slots; their slots are used one by one."""
        assert self.positions is not None
        ranks = self._ranks(self.positions, keys)
        self._victims = ranks.topk(self.retention.interval, dim=-1, largest=False).indices

    def seen(self, depths: list[int], window: int | None, layer: int) -> Tensor:
        """Boolean `[K, R, held]`: the slots that each row sees; the rows' own keys are not in them.

        A row does not see the victims whose slots it and the rows before it on its path will take.
        """
        assert self.positions is not None
        positions = self.positions[layer, :, : self.held]
        turns = torch.full_like(self.positions[layer], _NEVER)
        ahead = self._chosen[layer, :, self._used :]
        turn = torch.arange(ahead.shape[1], dtype=turns.dtype, device=turns.device)
        turns.scatter_(-1, ahead, turn.expand_as(ahead))
        depth_R1 = torch.tensor(depths, device=positions.device)[:, None]
        seen = turns[:, None, : self.held] > depth_R1
        if self.has_holes:
            seen &= positions[:, None] != _EMPTY
        if window is not None:
            seen &= self.length + depth_R1 - positions[:, None] < window
        return seen

    def begin_row(self) -> Tensor:
        """Give the next token, which is certain to stay, its slots: int64 `[layers, K, 1]`.

        Its key is written there before it attends; `end_row` takes its attention weights.
        """
        assert self.positions is not None
        slots = self._chosen[..., self._used : self._used + 1]
        self.positions.scatter_(-1, slots, self.length)
        self.mass = self._decayed(self.mass, 1)
        self.mass.scatter_(-1, slots, 0.0)
        self._advance(1)
        return slots

    def begin_row_by(self, evict: Evict, pages_1W: Tensor, page_size: int) -> Tensor:
        """`begin_row` by a kernel, where `one_at_a_time`: int64 `[layers, K, 1]`.

        `pages_1W`: int32, the context's pages. Returns page x page_size + offset.
        """
        assert self.positions is not None
        layers, heads, slots = self.mass.shape
        mass = self._observed
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
        positions = self.positions[layer, :, None, : self.held]
        seen = positions != _EMPTY if self.has_holes else None
        if window is None:
            return seen
        near = (self.length - 1 - positions) < window
        return near if seen is None else near & seen

    def end_row(self, attention_record: AttentionRecord) -> None:
        """After all layers: add the recorded attention, of the keys held, if there is any."""
        weights = attention_record.stacked
        if weights is not None:
            self.mass[..., : self.held] += weights
        self._forget_used_victims()

    def add_unscored(self, count: int) -> None:
        """Add `count` tokens whose attention does not count."""
        self.mass = pad(self._decayed(self.mass, count), (0, count))
        self.length += count
        self.held += count

    def add_prompt(self, attention_record: AttentionRecord, count: int) -> None:
        """Add `count` tokens of the prompt, computed as one chunk."""
        weights = attention_record.stacked
        assert weights is not None
        grown = weights.new_zeros(*weights.shape[:2], self.held + count)
        if self.held:
            grown[:, :, : self.held] = self._decayed(self.mass, count)
        grown += weights
        self.mass = grown
        self.length += count
        self.held += count

    def add_rows(self, attention_record: AttentionRecord, rows: list[int]) -> Tensor | None:
        """Add the rows that stay, in order: the newest token's and those of accepted draft tokens.

        Returns the slots to write their keys to, int64 `[layers, K, rows]`; None while the page
        table says where they are.
        """
        weights = attention_record.stacked
        assert weights is not None
        weights = weights[:, :, rows]
        count, held = len(rows), weights.shape[-1] - len(attention_record.depths)
        if self.observation is not None and self.observation.half_life is not None:
            ages = torch.arange(count - 1, -1, -1, device=weights.device)
            weights = weights * self.observation.share(ages)[:, None]
        received = weights.sum(dim=2)
        mass = self._decayed(self.mass[..., :held], count) + received[..., :held]
        own = received[..., [held + row for row in rows]]
        if self.positions is None:
            self.mass = torch.cat([mass, own], dim=-1)
            self.length += count
            self.held += count
            return None
        slots = self._chosen[..., self._used : self._used + count]
        self.mass[..., :held] = mass
        self.mass.scatter_(-1, slots, own)
        first = self.length
        positions = torch.arange(first, first + count, dtype=torch.int32, device=mass.device)
        self.positions.scatter_(-1, slots, positions.expand_as(slots))
        self._advance(count)
        self._forget_used_victims()
        return slots

    def move_to_slots(self, keys: ReadKeys) -> Tensor:
        """Choose the first survivors: int64 `[layers, K, keep]`, their places in the page table,
        ascending.

        They move to slots 0 to keep - 1 of their head; the slots after these are empty. `keys`:
        those of all tokens that have some, in order.
        """
        retention, device = self.retention, self.mass.device
        layers, heads, _ = self.mass.shape
        begin, end = self._gap
        every = torch.arange(self.length, device=device)
        positions = torch.cat([every[:begin], every[end:]]).expand_as(self.mass)
        ranks = self._ranks(positions, keys)
        kept = ranks.topk(retention.keep, dim=-1, sorted=False).indices.sort(dim=-1).values
        shape = layers, heads, retention.slots
        self.positions = torch.full(shape, _EMPTY, dtype=torch.int32, device=device)
        self.positions[..., : retention.keep] = positions.gather(-1, kept)
        empty = torch.arange(retention.keep, retention.slots, device=device)
        self._victims = empty.expand(layers, heads, -1)
        mass = self.mass.new_zeros(shape)
        mass[..., : retention.keep] = self.mass.gather(-1, kept)
        self.mass = mass
        self.held = retention.keep
        return kept

    def _advance(self, count: int) -> None:
        """Count further tokens in slots."""
        self.length += count
        self._used += count
        self._holes_last -= count
        self.held = min(self.held + count, self.retention.slots)

    def _forget_used_victims(self) -> None:
        if self._used >= self.retention.interval:
            self._victims, self._used = None, 0

    @property
    def _chosen(self) -> Tensor:
        """The victims' slots, int64 `[layers, K, interval]`; they stay until all are used."""
        assert self._victims is not None, "victims are chosen before a row is computed"
        return self._victims

    @property
    def _observed(self) -> Tensor:
        """The attention that the policy asked for; zeros if for none."""
        return torch.zeros_like(self.mass) if self.observation is None else self.mass

    def _ranks(self, positions: Tensor, keys: ReadKeys) -> Tensor:
        """See `ranks_of`; by age if the policy raises."""
        attention = self._observed
        held = HeldKeys(
            length=self.length,
            positions=positions,
            attention=attention,
            first_observed=self._first_vote,
            keys=keys,
        )
        try:
            scores = scores_of(self.choice, held)
        except Exception:  # noqa: BLE001, RUF100 - a plug-in may raise anything; other requests go on
            logger.exception("the cache policy %s cannot score", self.choice.method.name)
            self.broken = True
            scores = torch.zeros_like(attention)
        return ranks_of(
            scores,
            positions,
            length=self.length,
            retention=self.retention,
            windows=self._windows,
        )

    def _decayed(self, mass: Tensor, queries: int) -> Tensor:
        if self.observation is None or self.observation.half_life is None:
            return mass
        return mass * self.observation.share(float(queries))
