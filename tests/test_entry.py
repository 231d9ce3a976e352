"""One object's life: every legal move, and no other."""

from __future__ import annotations

from itertools import product

import pytest

from mppool._pool.entry import MOVES, Lease, PoolEntry, Reason, State
from mppool._system.processes import ProcessId

EVERY_MOVE = list(product(State, State))


def entry_in(state: State) -> PoolEntry[object]:
    entry: PoolEntry[object] = PoolEntry(0)
    entry.state = state
    return entry


@pytest.mark.parametrize(("before", "after"), [move for move in EVERY_MOVE if move[1] in MOVES[move[0]]])
def test_a_legal_move_is_made(before: State, after: State) -> None:
    entry = entry_in(before)
    entry.move(after)
    assert entry.state is after


@pytest.mark.parametrize(("before", "after"), [move for move in EVERY_MOVE if move[1] not in MOVES[move[0]]])
def test_any_other_move_is_refused_and_changes_nothing(before: State, after: State) -> None:
    entry = entry_in(before)
    with pytest.raises(AssertionError, match=f"from {before.name} to {after.name}"):
        entry.move(after)
    assert entry.state is before


def test_every_state_is_in_the_table_and_only_the_last_is_a_dead_end() -> None:
    assert set(MOVES) == set(State)
    assert [state for state, moves in MOVES.items() if not moves] == [State.GONE]


def test_every_state_can_be_reached_and_every_life_can_end() -> None:
    reached = {State.BUILDING}
    while further := {after for before in reached for after in MOVES[before]} - reached:
        reached |= further
    assert reached == set(State)
    ends = {State.GONE}
    while further := {before for before in State if MOVES[before] & ends} - ends:
        ends |= further
    assert ends == set(State)


def test_only_what_is_on_its_way_out_goes() -> None:
    assert {before for before, moves in MOVES.items() if State.GONE in moves} == {
        State.BUILDING,  # it could not be built
        State.STUCK,
        State.CLOSING,
        State.WRITTEN_OFF,
    }


def test_an_object_is_lent_only_where_nobody_uses_it() -> None:
    lendable = {before for before, moves in MOVES.items() if State.LEASED in moves}
    assert lendable == {State.BUILDING, State.STUCK, State.IDLE, State.CHECKING, State.RESETTING}


def test_a_slot_starts_empty_and_being_built() -> None:
    entry: PoolEntry[object] = PoolEntry(3, wanted_by="somebody")
    assert entry.state is State.BUILDING
    assert (entry.generation, entry.wanted_by, entry.uses, entry.lease) == (3, "somebody", 0, None)
    with pytest.raises(AttributeError):
        _ = entry.object


def test_a_slot_lets_go_of_its_object() -> None:
    entry: PoolEntry[object] = PoolEntry(0)
    entry.runner.make(object)
    seen = [entry.object]
    entry.runner.end(seen.append)
    assert seen[0] is seen[1]
    with pytest.raises(AttributeError):
        _ = entry.object


def test_a_lease_knows_its_object_and_holder() -> None:
    entry: PoolEntry[list[int]] = PoolEntry(0)
    entry.runner.make(lambda: [1])
    owner = ProcessId(7, None, "worker")
    lease = Lease(3, entry, owner, 5.0, "file.py:3")
    assert lease.object is entry.object
    assert (lease.id, lease.owner, lease.granted_at, lease.where) == (3, owner, 5.0, "file.py:3")
    assert not lease.over
    assert not lease.late


def test_the_words_for_reasons_are_fixed() -> None:
    held = "uses call discarded expired reclaimed interrupted reset"
    idle = "idle lifetime check"
    anywhere = "hung refreshed shrunk closed died"
    assert {reason.value for reason in Reason} == set(f"{held} {idle} {anywhere}".split())
