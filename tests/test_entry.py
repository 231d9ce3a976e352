"""One object's life: every legal move, and no other."""

from __future__ import annotations

import pytest
from standins import nothing_left

from mppool._pool.entry import MOVES, PoolEntry, Reason, State
from mppool._pool.objects import Objects
from mppool._pool.runner import InlineRunner


def new_entry(state: State = State.BUILDING) -> PoolEntry:
    entry = PoolEntry(InlineRunner(nothing_left), 0, 1.0)
    entry.state = state
    return entry


@pytest.mark.parametrize("before", [*State])
@pytest.mark.parametrize("after", [*State])
def test_a_legal_move_is_made_and_any_other_is_refused_and_changes_nothing(
    before: State, after: State
) -> None:
    objects, entry = Objects(), new_entry(before)
    objects.add(entry)
    if after in MOVES[before]:
        objects.move(entry, after, 7.0)
        assert (entry.state, entry.since) == (after, 7.0)
    else:
        with pytest.raises(AssertionError, match=f"from {before.name} to {after.name}"):
            objects.move(entry, after, 7.0)
        assert (entry.state, entry.since) == (before, 1.0)
        assert objects.in_state(before) == [entry]


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
        State.HUNG,
        State.CLOSING,
        State.WRITTEN_OFF,
    }


def test_an_object_is_lent_only_where_it_is_not_in_use() -> None:
    lendable = {before for before, moves in MOVES.items() if State.LEASED in moves}
    assert lendable == {State.BUILDING, State.STUCK, State.IDLE, State.CHECKING}


# -- counts ---------------------------------------------------------------------------------------


def objects_in(*states: State) -> Objects:
    objects = Objects()
    for state in states:
        entry = new_entry()
        objects.add(entry)
        while entry.state is not state:
            objects.move(entry, step_towards(state, entry.state), 0.0)
    return objects


def step_towards(end: State, start: State) -> State:
    """The first of the fewest moves from one state to another."""
    ways = [[after] for after in MOVES[start]]
    return next(
        way[0] for way in ways if way[-1] is end or ways.extend([*way, after] for after in MOVES[way[-1]])
    )


@pytest.mark.parametrize("state", [state for state in State if state is not State.GONE])
def test_counts_are_read_off_the_objects(state: State) -> None:
    objects = objects_in(state, State.IDLE)
    counted = state not in {State.HUNG, State.ABANDONED, State.WRITTEN_OFF}
    assert objects.count(state) == (2 if state is State.IDLE else 1)
    assert objects.size == 1 + counted
    assert objects.present == 1 + (counted and state is not State.CLOSING)
    assert len(objects) == 2
    assert len(objects.idle) == objects.count(State.IDLE)


def test_what_is_gone_is_counted_nowhere() -> None:
    objects = objects_in(State.GONE)
    assert (len(objects), objects.size, objects.count(*State)) == (0, 0, 0)


def test_the_words_for_reasons_are_fixed() -> None:
    held = "uses call discarded expired reclaimed interrupted reset memory memory_hard"
    idle = "idle lifetime check"
    anywhere = "hung refreshed shrunk closed died"
    assert {reason.value for reason in Reason} == set(f"{held} {idle} {anywhere}".split())
