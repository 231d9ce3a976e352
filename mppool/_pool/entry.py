"""One object's life: the states it goes through, the legal moves between them, and its leases.

No lock and no I/O here: `pool.py` makes every move, under its own lock.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from typing import Any, Generic, TypeVar

from mppool._system.processes import ProcessId
from mppool.errors import LeaseLost

from .runner import InlineRunner, Keepsakes, Runner

T = TypeVar("T")


class State(IntEnum):  # an int, because a plain Enum is hashed by Python code, at each move
    """Where an object stands in its life."""

    BUILDING = auto()
    STUCK = auto()  # being built for so long that nobody counts on it
    IDLE = auto()
    CHECKING = auto()
    LEASED = auto()
    RESETTING = auto()  # home again, being reset
    ABANDONED = auto()  # its lease or its hook ended badly; closed when the code in it returns
    CLOSING = auto()
    WRITTEN_OFF = auto()  # being closed, but counts for nothing any more
    GONE = auto()


MOVES: dict[State, frozenset[State]] = {
    State.BUILDING: frozenset({State.STUCK, State.IDLE, State.LEASED, State.CLOSING, State.GONE}),
    State.STUCK: frozenset({State.IDLE, State.LEASED, State.CLOSING, State.GONE}),
    State.IDLE: frozenset({State.LEASED, State.CHECKING, State.CLOSING}),
    State.CHECKING: frozenset({State.IDLE, State.LEASED, State.ABANDONED, State.CLOSING}),
    State.LEASED: frozenset({State.RESETTING, State.ABANDONED}),
    State.RESETTING: frozenset({State.IDLE, State.LEASED, State.ABANDONED, State.CLOSING}),
    State.ABANDONED: frozenset({State.WRITTEN_OFF}),
    State.CLOSING: frozenset({State.WRITTEN_OFF, State.GONE}),
    State.WRITTEN_OFF: frozenset({State.GONE}),
    State.GONE: frozenset(),
}


class Reason(str, Enum):
    """Why an object left the pool; the same word in log and statistics."""

    IDLE = "idle"  # lay idle longer than max_idle
    LIFETIME = "lifetime"  # older than max_lifetime
    USES = "uses"  # lent max_uses times
    CHECK = "check"  # check raised or returned False
    RESET = "reset"  # reset raised
    HUNG = "hung"  # check or reset did not return
    DISCARDED = "discarded"  # released with discard=True
    CALL = "call"  # a call on it took longer than call_timeout
    EXPIRED = "expired"  # held longer than max_hold
    RECLAIMED = "reclaimed"  # its holder's process ended
    INTERRUPTED = "interrupted"  # its lease ended while a call on it was running
    REFRESHED = "refreshed"  # refresh()
    SHRUNK = "shrunk"  # resize()
    CLOSED = "closed"  # the pool was closed
    DIED = "died"  # its own process ended


class Lease(Generic[T]):
    """One holder's exclusive time with one object. Made under the pool's lock."""

    __slots__ = ("busy", "entry", "granted_at", "id", "kept", "late", "over", "owner", "where")

    def __init__(
        self, lease_id: int, entry: PoolEntry[T], owner: ProcessId, granted_at: float, where: str | None
    ) -> None:
        self.id = lease_id
        self.entry = entry
        self.owner = owner
        self.granted_at = granted_at
        self.where = where
        self.late = False  # warn_hold has named it
        self.over = False  # set once, under the pool's lock
        self.busy, self.kept = entry.runner.lend(lease_id)

    @property
    def object(self) -> T:
        """The object that was lent; `LeaseLost` when the lease is over: it may be somebody else's."""
        if self.over:
            raise LeaseLost(f"lease {self.id} is over: it was released or taken back")
        return self.entry.object


class PoolEntry(Generic[T]):
    """A place in the pool and the object that fills it."""

    __slots__ = (
        "expires_at",
        "generation",
        "kept",
        "lease",
        "reason",
        "runner",
        "since",
        "state",
        "uses",
        "wanted_by",
    )

    def __init__(self, generation: int, wanted_by: Any = None) -> None:
        self.state = State.BUILDING
        self.generation = generation
        self.wanted_by = wanted_by  # the waiter whose acquire began the build
        self.lease: Lease[T] | None = None
        self.runner: Runner[T] = InlineRunner()
        self.kept: Keepsakes | None = None  # by the last lease, until it is let go of
        self.uses = 0
        self.since = 0.0  # when it came to its state
        self.expires_at = float("inf")
        self.reason: Reason | None = None  # why it is leaving

    @property
    def object(self) -> T:
        """The object; there is none while it is being built or after it is gone."""
        return self.runner.lent

    def take_kept(self) -> Keepsakes | None:
        """What the last lease kept, which the slot lets go of."""
        kept, self.kept = self.kept, None
        return kept

    def move(self, state: State) -> None:
        """Go on to another state; a move that is not in the table is a defect of the pool."""
        if state not in MOVES[self.state]:
            raise AssertionError(f"illegal move from {self.state.name} to {state.name}")
        self.state = state
