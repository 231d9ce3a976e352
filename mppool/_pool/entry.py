"""One object's life: the states it goes through, the legal moves between them, and its leases.

No lock and no I/O here: `pool.py` makes every move, under its own lock.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Any

from mppool._system.processes import ProcessId
from mppool.errors import LeaseLost

from .delegation import Delegation
from .runner import Runner


class State(IntEnum):  # an int, because a plain Enum is hashed by Python code, at each move
    """Where an object stands in its life."""

    BUILDING = auto()
    STUCK = auto()  # being built for so long that no acquire counts on it
    HUNG = auto()  # its build took longer than `build_timeout`; closed if it is made after all
    IDLE = auto()
    CHECKING = auto()
    LEASED = auto()
    REVOKING = auto()  # its lease is over, and where it lives is asked whether a call of that runs
    RESETTING = auto()  # home again, being reset
    ABANDONED = auto()  # its lease or its hook ended badly; closed when the code in it returns
    CLOSING = auto()
    WRITTEN_OFF = auto()  # being closed, but no longer counted
    GONE = auto()


MOVES: dict[State, frozenset[State]] = {
    State.BUILDING: frozenset({State.STUCK, State.HUNG, State.IDLE, State.LEASED, State.CLOSING, State.GONE}),
    State.STUCK: frozenset({State.HUNG, State.IDLE, State.LEASED, State.CLOSING, State.GONE}),
    State.HUNG: frozenset({State.WRITTEN_OFF, State.GONE}),
    State.IDLE: frozenset({State.LEASED, State.CHECKING, State.CLOSING}),
    State.CHECKING: frozenset({State.IDLE, State.LEASED, State.ABANDONED, State.CLOSING}),
    State.LEASED: frozenset({State.IDLE, State.REVOKING, State.RESETTING, State.ABANDONED, State.CLOSING}),
    State.REVOKING: frozenset({State.IDLE, State.RESETTING, State.ABANDONED, State.CLOSING}),
    State.RESETTING: frozenset({State.IDLE, State.ABANDONED, State.CLOSING}),
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
    MEMORY = "memory"  # held more than max_memory
    MEMORY_HARD = "memory_hard"  # held more than max_memory_hard


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One of the given things of which a pool makes an object each. It is pickled once."""

    number: int
    pickled: bytes
    text: str  # for people

    def __reduce__(self) -> tuple[Any, ...]:
        """It arrives as the thing itself; where that is not known as its text."""
        return _thing_or_text, (self.pickled, self.text)


def _thing_or_text(pickled: bytes, text: str) -> Any:
    try:
        return pickle.loads(pickled)
    except Exception:
        return text


@dataclass(slots=True, eq=False)
class Lease:
    """One holder's exclusive time with one object. Made under the pool's lock."""

    id: int
    entry: PoolEntry
    holder: ProcessId
    granted_at: float
    where: str | None  # file and line that asked
    late: bool = False  # warn_hold has named it
    over: bool = False  # set once, under the pool's lock
    is_delegable: bool = False  # its holder takes the same object again and again
    delegation: Delegation | None = None  # as long as it is delegated, and not over
    parked_at: float | None = None  # when its holder gave the object back, if it lay parked at its end

    @property
    def held_since(self) -> float | None:
        """Since when its holder has the object; None while that lies parked."""
        return self.granted_at if self.delegation is None else self.delegation.granted_at

    @property
    def object(self) -> Any:
        """The object; `LeaseLost` when the lease is over: another holder may have it by then."""
        if self.over:
            raise LeaseLost(f"lease {self.id} is over: it was released or taken back")
        return self.entry.runner.object

    def __str__(self) -> str:
        return f"lease {self.id}{self.entry.of_item}"


@dataclass(slots=True, eq=False)
class PoolEntry:
    """A place in the pool and the object that fills it."""

    runner: Runner
    generation: int
    since: float  # when it came to its state; while it is being built, stuck or not, when that began
    item: Item | None = None  # of which the object is made
    wanted_by: Any = None  # the `Waiter` whose acquire began the build; None: a build ahead
    state: State = State.BUILDING
    lease: Lease | None = None
    last_holder: ProcessId | None = None
    uses: int = 0
    expires_at: float = float("inf")  # when its build must be over, and then its life
    began: float = 0.0  # when its build began
    number: int = 0  # the lowest that no other object of the pool has
    memory: int = 0  # bytes that it held when this was measured last
    is_large: bool = False  # that was more than max_memory
    is_killed: bool = False  # it was once more than max_memory_hard

    @property
    def is_parked(self) -> bool:
        """Whether its holder has given it back, and may take it again by itself."""
        return self.lease is not None and self.lease.held_since is None

    @property
    def uses_so_far(self) -> int:
        """How many times it was lent, with those of which only its holder knows."""
        again = 0 if self.lease is None or self.lease.delegation is None else self.lease.delegation.uses
        return self.uses + again

    @property
    def of_item(self) -> str:
        """What is added where logs and errors name the object."""
        return "" if self.item is None else f" (item {self.item.text})"
