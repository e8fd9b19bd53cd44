"""States of contexts, and who has which slot: taken, forked, swapped, kept as snapshots."""

import torch

from penstock.kvcache.recurrent_state import RecurrentState
from penstock.kvcache.state_pool import StatePool
from penstock.kvcache.state_store import StateKey, StateShape, StateStore

KEY = StateKey(0, "recurrent", 0)


def pool(slots: int = 4, running: int = 2) -> StatePool:
    shape = StateShape(key=KEY, shape=(3,), dtype=torch.float32)
    return StatePool(StateStore([shape], slots=slots, device=torch.device("cpu")), running=running)


def begun(states: StatePool, value: float, length: int = 5) -> RecurrentState:
    state = RecurrentState(states)
    states.store.tensors[KEY][state.hold()] = value
    state.length = length
    return state


def value(states: StatePool, state: RecurrentState) -> float:
    return float(states.store.tensors[KEY][state.hold()][0])


def test_swapped_out_twice() -> None:
    """A context that was restored and had no row is on the host still."""
    states = pool()
    state = begun(states, 7.0)
    for _ in range(2):
        state.swap_out()
        assert states.in_use == 0
    other = begun(states, 8.0)
    assert (value(states, state), state.length) == (7.0, 5)
    assert value(states, other) == 8.0


def test_forks_are_apart() -> None:
    states = pool()
    state = begun(states, 1.0)
    fork = state.fork()
    states.store.tensors[KEY][fork.hold()] = 2.0
    assert (value(states, state), value(states, fork)) == (1.0, 2.0)
    state.free()
    fork.free()
    assert states.free == 4


def test_the_snapshot_used_longest_ago_gives_way() -> None:
    states = pool(slots=3, running=2)
    for number in range(3):
        begun(states, float(number)).hand_over(number)
    assert states.find(0) is not None
    state = begun(states, 9.0)
    assert [states.has(number) for number in range(3)] == [True, False, True]
    again = RecurrentState(states)
    assert again.adopt(0, 16)
    assert (value(states, again), again.length) == (0.0, 16)
    assert not RecurrentState(states).adopt(1, 16)
    state.free()
    again.free()


def test_a_snapshot_that_gives_way_to_who_adopts_it() -> None:
    """With no slot free, the only snapshot's own slot is the one that is taken."""
    states = pool(slots=2, running=2)
    begun(states, 3.0).hand_over("kept")
    other = begun(states, 4.0)
    state = RecurrentState(states)
    assert state.adopt("kept", 8)
    assert (value(states, state), value(states, other)) == (3.0, 4.0)
    assert states.snapshots == 0


def test_new_snapshots_leave_the_sequences_their_slots() -> None:
    states = pool(slots=3, running=2)
    state = begun(states, 5.0)
    assert state.begin_snapshot(16) is not None
    assert state.begin_snapshot(32) is None
    begun(states, 6.0)
    state.free()
    assert states.free == 2
