"""The objects of a pool by state. Every count is read off here; none is kept beside the objects."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

from mppool._system.processes import ProcessId

from .entry import MOVES, Item, PoolEntry, State

HOT_SECONDS = 0.1
"""A holder that takes an object again so soon is likely to do so once more."""

_LOOKED_AT = 16  # of the last used objects, for that which a holder had

_UNCOUNTED = frozenset({State.HUNG, State.ABANDONED, State.WRITTEN_OFF, State.GONE})
"""Of objects for the end of which no acquire waits."""

_RUNNING = frozenset({State.BUILDING, State.STUCK, State.HUNG, State.REVOKING, State.ABANDONED})


class Objects:
    """Every object that is not gone yet. Used under the pool's lock.

    Those of one state stand in the order in which they came to it. Where objects are made of items, one that
    counts has an item to itself: the next object of that item comes when this one counts no more.
    """

    def __init__(self, items: Sequence[Item] = ()) -> None:
        self.items = items
        self.unused = deque(items)
        """The items of which there is no object, the longest unused first."""
        self.resting: dict[Item, float] = {}
        """Items that `check` refused: until when they are not tried again."""
        self._all: dict[PoolEntry, None] = {}
        self._by_state: dict[State, dict[PoolEntry, None]] = {each: {} for each in State}
        self.idle = self._by_state[State.IDLE]
        self._hung = self._by_state[State.HUNG]
        self._closing = self._by_state[State.CLOSING]
        self._abandoned = self._by_state[State.ABANDONED]
        self._written_off = self._by_state[State.WRITTEN_OFF]

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[PoolEntry]:
        """In the order in which their builds began."""
        return iter(self._all)

    def available(self, now: float) -> list[Item]:
        """The items that can be used for the next object."""
        return [each for each in self.unused if self.resting.get(each, now) <= now]

    def next_idle(self, order: str, holder: ProcessId | None, now: float) -> PoolEntry:
        """The idle one whose turn it is; there is one.

        With "lifo" a holder that comes again at once gets the one it had, if that is among the last used.
        """
        if order == "fifo":
            return next(iter(self.idle))
        latest = next(reversed(self.idle))
        if latest.last_holder == holder:
            return latest
        for entry in itertools.islice(reversed(self.idle), _LOOKED_AT):
            if entry.last_holder == holder and now - entry.since <= HOT_SECONDS:
                return entry
        return latest

    def add(self, entry: PoolEntry) -> None:
        """A build begins."""
        if entry.item is not None:
            self.unused.remove(entry.item)
        taken = {each.number for each in self._all}
        entry.number = next(each for each in itertools.count() if each not in taken)
        self._all[entry] = self._by_state[entry.state][entry] = None

    def move(self, entry: PoolEntry, state: State, now: float) -> None:
        """The one place where an object changes its state.

        A move that is not in the table is a defect of the pool.
        """
        if state not in MOVES[entry.state]:
            raise AssertionError(f"illegal move from {entry.state.name} to {state.name}")
        if entry.item is not None and state in _UNCOUNTED and entry.state not in _UNCOUNTED:
            self.unused.append(entry.item)
        del self._by_state[entry.state][entry]
        entry.state, entry.since = state, now
        if state is State.GONE:
            del self._all[entry]
        else:
            self._by_state[state][entry] = None

    def in_state(self, *states: State) -> list[PoolEntry]:
        """Those in one of these states."""
        return [entry for each in states for entry in self._by_state[each]]

    def count(self, *states: State) -> int:
        """How many are in one of these states."""
        return sum([len(self._by_state[each]) for each in states])

    @property
    def size(self) -> int:
        """How many count against `max_size`: all but those whose end no acquire waits for."""
        return len(self._all) - len(self._hung) - len(self._abandoned) - len(self._written_off)

    @property
    def present(self) -> int:
        """How many are there or being built, without those on their way out."""
        return self.size - len(self._closing)

    @property
    def built(self) -> int:
        """How many are there, lent or not."""
        return self.present - self.count(State.BUILDING, State.STUCK)

    @property
    def hung_threads(self) -> int:
        """How many builds were given up and run on in a thread, which cannot be stopped."""
        return sum([each.runner.process is None for each in self._hung])

    def all_others_lent(self) -> bool:
        """Whether each object that counts is idle or leased: none is on its way to or from that."""
        return len(self.idle) + self.count(State.LEASED) == self.size

    def builds(self) -> list[PoolEntry]:
        """Those that are being built and were not given up."""
        return self.in_state(State.BUILDING, State.STUCK)

    def overdue(self, state: State, before: float) -> list[PoolEntry]:
        """Those that came to this state at `before` or earlier."""
        return [each for each in self._by_state[state] if each.since <= before]

    def living_in(self, process: ProcessId) -> list[PoolEntry]:
        """Those that live in this process."""
        return [each for each in self._all if each.runner.process == process]

    def homes(self) -> dict[ProcessId, PoolEntry]:
        """Those that have a process for themselves, by that."""
        return {each.runner.process: each for each in self._all if each.runner.process is not None}

    def running(self) -> list[PoolEntry]:
        """Those in which code runs that may be ended from outside, where that can be done."""
        return self.in_state(*_RUNNING)

    def closed(self) -> bool:
        """Whether every `close` has returned, and every process that can be killed has ended."""
        stoppable = any(each.runner.stoppable for each in self.running())
        return not (self._closing or self._written_off or stoppable)
