"""The rows of a step as modules with states need them: in parts that are each one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kvcache.recurrent_state import RecurrentState
from ...kvcache.state_store import StateKey, StateStore
from .bound import Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows that a module with states takes as one batch: `rows` holds sequence after sequence.

    `count`: rows of each sequence. `slots`: of each sequence. `fresh`: they have no states yet.
    `snapshot`: a further slot for the states behind these rows. `draft`: whose draft the rows are;
    the states must not read them before it is known which of them stay.
    """

    rows: slice | Tensor
    count: int
    slots: Sequence[int]
    fresh: bool
    snapshot: int | None = None
    draft: RecurrentState | None = None


class PartStates:
    """The states of a part's sequences during one call of a module, as transformers' caches."""

    def __init__(self, store: StateStore, part: Part) -> None:
        self._store = store
        self._part = part
        self._index = store.indices(part.slots)
        self._found: dict[StateKey, Tensor] = {}

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The last inputs of a convolution, `[B, C, K]`; None: nothing has been read."""
        return self._get(StateKey(layer_idx, "conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The state of a recurrence, `[B, ...]`; None: nothing has been read."""
        return self._get(StateKey(layer_idx, "recurrent", state_idx))

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> Tensor:
        """Keep the last K of the new inputs `[B, C, n]`; returns them behind the earlier ones."""
        key = StateKey(layer_idx, "conv", state_idx)
        size = self._size(key, conv_kernel_size or conv_states.shape[-1])
        before = self._get(key)
        if before is not None:
            whole = torch.cat([before, conv_states], dim=-1)
        else:
            missing = max(0, size - conv_states.shape[-1])
            whole = torch.nn.functional.pad(conv_states, (missing, 0))
        self._found[key] = whole[..., -size:]
        return whole

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0
    ) -> Tensor:
        """Keep the state of a recurrence, `[B, ...]`."""
        self._found[StateKey(layer_idx, "recurrent", state_idx)] = recurrent_states
        return recurrent_states

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """Whether anything has been read."""
        return not self._part.fresh

    def is_recording_past(self, layer_idx: int) -> bool:
        """Whether states of earlier rows are kept: never."""
        return False

    def recurrent(self) -> Tensor | None:
        """The recurrence's state that the module has asked for; None: nothing has been read."""
        found = (state for key, state in self._found.items() if key.kind == "recurrent")
        return next(found, None)

    def finish(self) -> None:
        """Write the states that the module has left into the slots."""
        if self._part.draft is not None:
            return
        for key, state in self._found.items():
            tensor = self._store.tensors[key]
            # Consecutive slots are given to modules as they are, which write into some states.
            in_place = isinstance(self._index, slice)
            if not (in_place and state.data_ptr() == tensor[self._index].data_ptr()):
                tensor[self._index] = state
            if self._part.snapshot is not None:
                tensor[self._part.snapshot] = state[-1]

    def _get(self, key: StateKey) -> Tensor | None:
        found = self._found.get(key)
        if found is None and not self._part.fresh:
            found = self._store.tensors[key][self._index]
            if isinstance(self._index, slice) and self._part.draft is not None:
                found = found.clone()
            self._found[key] = found
        return found

    def _size(self, key: StateKey, otherwise: int) -> int:
        """How many inputs of a convolution are kept."""
        tensor = self._store.tensors.get(key)
        return otherwise if tensor is None else tensor.shape[-1]


class KeysElsewhere:
    """What attention layers and the model itself ask of a cache, where keys and values are not in
    it."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Keys and values go to attention as they are."""
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens came before: said by the positions, not here."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """See `get_seq_length`."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Sizes of a mask, which is not made."""
        return query_length, 0

    def has_previous_state(self, *_: Any, **__: Any) -> bool:
        """Whether there is padding in front: never."""
        return False


class StepStates(KeysElsewhere):
    """The states of all sequences of a step; given to a model as its cache.

    `rows`: of the step.
    """

    def __init__(self, store: StateStore, parts: Sequence[Part], rows: int) -> None:
        self.store = store
        self._parts = parts
        self.rows = rows
        self._layer: int | None = None

    def layer_of(self, reported: int) -> int:
        """The index of the layer whose attention is being computed, which reports `reported`."""
        return reported if self._layer is None else self._layer

    def call(self, bound: Bound, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a module with states for all rows, which is called once for each part.

        `args`, `kwargs`: its inputs, of which those of shape `[1, T, ...]` are split.
        """
        results: list[tuple[Part, Any]] = []
        for part in self._parts:
            if part.draft is not None:
                taken = [_take(each, part, self.rows) for each in args]
                named = {name: _take(each, part, self.rows) for name, each in kwargs.items()}
                part.draft.drafted.append((bound, taken, named, part.count))
            results.append((part, _call(self, part, bound, args, kwargs)))
        return _joined(results, self.rows)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Note the layer, since layers may share an attention module, which reports one of them.

        Keys and values go to its attention as they are.
        """
        self._layer = layer_idx
        return key, value


def read_kept(store: StateStore, state: RecurrentState, kept: int) -> None:
    """Let a context's states read the first `kept` rows of a draft, which are known to stay."""
    assert state.slot is not None
    part = Part(rows=slice(0, kept), count=kept, slots=[state.slot], fresh=not state.length)
    for bound, args, kwargs, rows in state.drafted:
        _call(StepStates(store, [part], rows), part, bound, args, kwargs)
    state.drafted.clear()
    state.length += kept


def _call(
    states: StepStates, part: Part, bound: Bound, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Call a module for one part, with the part's rows of its inputs, and the part's states."""
    of_part = PartStates(states.store, part)

    def given(value: Any) -> Any:
        return of_part if isinstance(value, StepStates) else _take(value, part, states.rows)

    bound.states = of_part
    named = {name: given(each) for name, each in kwargs.items()}
    output = bound.forward(*map(given, args), **named)
    bound.states = None
    of_part.finish()
    return output


def _take(value: Any, part: Part, rows: int) -> Any:
    """A part's rows of an input `[1, T, ...]`, as `[B, count, ...]`; other inputs as they are."""
    if isinstance(value, tuple):
        return tuple(_take(each, part, rows) for each in value)
    if not (isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == (1, rows)):
        return value
    return value[0, part.rows].reshape(len(part.slots), part.count, *value.shape[2:])


def _joined(results: Sequence[tuple[Part, Any]], rows: int) -> Any:
    """The outputs of the parts `[B, count, ...]` as one `[1, T, ...]`."""
    first = results[0][1]
    if isinstance(first, tuple):
        return tuple(
            _joined([(part, output[i]) for part, output in results], rows)
            for i in range(len(first))
        )
    if not isinstance(first, Tensor):
        return first
    if len(results) == 1 and isinstance(results[0][0].rows, slice):
        return first.reshape(1, rows, *first.shape[2:])
    whole = first.new_empty(1, rows, *first.shape[2:])
    for part, output in results:
        whole[0, part.rows] = output.reshape(-1, *output.shape[2:])
    return whole
