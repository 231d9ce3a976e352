"""Objects that are lent to one holder at a time: one lock, and every decision that is made under it.

A method marked `@step` takes the lock; one with an underscore has it. No step does anything slow: no factory,
hook, callback, thread or I/O. What is to be done is kept for `later`, when the lock is free again.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from mppool._system.processes import ProcessId
from mppool.errors import (
    FactoryError,
    LeaseError,
    LeaseLost,
    PoolClosed,
    PoolError,
    PoolTimeout,
    TooManyWaiting,
)
from mppool.options import USE_DEFAULT, PoolOptions, Timeout, seconds
from mppool.stats import LeaseInfo, PoolStats

from .entry import Lease, PoolEntry, Reason, State
from .hooks import Hooks
from .runner import InlineRunner, Runner, ThreadRunner
from .threads import ThreadCache
from .waiters import OnOutcome, Outcome, Waiter, Waiters

log = logging.getLogger("mppool")

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
Work = list[Callable[[], object]]

BUILDS_AT_ONCE = 4
"""Builds side by side: enough to grow fast, too few to answer a short spike with a row of objects."""

HOOK_BOUND = 10.0
"""Seconds after which a check, reset or close that has not returned no longer counts for the size."""

LAST_CALL = 2.0
"""Seconds that closing a pool waits for code in it that nobody can stop: builds, abandoned calls."""

# Seconds that code which nobody waits for gets to end, where it can be stopped: else as a hook.
_PATIENCE = dict.fromkeys((Reason.CALL, Reason.RECLAIMED, Reason.HUNG, Reason.DIED), 0.0)
_PATIENCE[Reason.CLOSED] = LAST_CALL

# What became of a lease that its holder did not end himself.
_FATES = {
    Reason.CALL: "a call on it took longer than call_timeout",
    Reason.EXPIRED: "it was held longer than max_hold",
    Reason.CLOSED: "the pool was closed",
}

_MOST_FATES = 1000
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_LIFETIME_SPREAD = 0.05
_UNBOUNDED = float("inf")
_UNCOUNTED = frozenset({State.ABANDONED, State.WRITTEN_OFF, State.GONE})
_HUNG = "pool %r: a hook (object %s) has not returned; the object no longer counts and is replaced"


def step(method: Callable[Concatenate[Pool[Any], P], R]) -> Callable[Concatenate[Pool[Any], P], R]:
    """A step under the pool's lock, and then, with the lock free, the work that it brought about."""

    @functools.wraps(method)
    def locked(self: Pool[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with self._lock:
                return method(self, *args, **kwargs)
        finally:
            if self._work or self.closed:
                self._do_work()

    return locked


class Pool(Generic[T]):
    """Objects made by `factory`, lent to one holder each, first come first served.

    Threads of this process call `acquire`, `release` and `lease`. A server calls `request`, which
    never blocks, and is told the outcome by a callback. Somebody calls `tend` now and then (the
    watchdog does): it lets time pass, for all that depends on it.

    `new_place` is where the next object is to live, for a server with processes to offer. Options are
    those of `PoolOptions`, by keyword.
    """

    def __init__(
        self,
        factory: Callable[[], T],
        *,
        name: str = "pool",
        clock: Callable[[], float] = time.monotonic,
        crew: ThreadCache | None = None,
        new_place: Callable[[], Runner[T]] | None = None,
        **options: Any,
    ) -> None:
        if not callable(factory):
            raise TypeError(f"factory must be callable: {factory!r}")
        self.name = name
        self.options = PoolOptions(**options)
        self.closed = False
        self._clock = clock
        # Guards all that follows, and with it every slot, lease and waiter. Held for short steps only.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # notified while the pool is being closed
        self._work: Work = []
        self._objects: dict[State, dict[PoolEntry[T], None]] = {
            each: {} for each in State
        }  # longest there first
        self._idle = self._objects[State.IDLE]
        self._size = 0  # of those that count against max_size
        self._leases: dict[int, Lease[T]] = {}
        self._fates: dict[int, str] = {}  # of leases that were taken away, the latest last
        self._queue = Waiters()
        self._stats = PoolStats(name=name)
        self._generation = 0
        # Never met again in a pool that is made once more after its manager died: from a random start.
        self._lease_ids = itertools.count(secrets.randbits(62))
        self._pause = _FIRST_PAUSE
        self._retry_at = 0.0
        self._last_failure: str | None = None
        self._hooks = Hooks(
            factory, new_place or self._new_place(), name, self.options, crew or ThreadCache(f"mppool {name}")
        )
        self._fill()

    def __repr__(self) -> str:
        now = self.stats()
        return f"<Pool {self.name!r} idle={now.idle} leased={now.leased} waiting={now.waiting}>"

    def held(self, lease_id: int) -> Lease[T]:
        """The lease with this id, as long as it lasts; `LeaseLost` after that."""
        try:
            return self._leases[lease_id]
        except KeyError:
            raise self.lost(lease_id) from None

    def lost(self, lease_id: int) -> LeaseLost:
        """The error for a lease that is over."""
        how = self._fates.get(lease_id, "it was released or taken back")
        return LeaseLost(f"pool {self.name!r}: lease {lease_id} is over: {how}")

    def homes(self) -> set[ProcessId]:
        """The processes in which objects live."""
        return {each.runner.owner for each in self._snapshot() if each.runner.owner is not None}

    def owners(self) -> set[ProcessId]:
        """Everyone who holds or waits for an object."""
        with self._lock:
            return {each.owner for each in self._leases.values()} | {each.owner for each in self._queue}

    # -- lending, as threads of this process see it ------------------------------------------------

    def acquire(self, timeout: Timeout = USE_DEFAULT) -> Lease[T]:
        """Wait for an object, `timeout` seconds at most (0: not for another holder; None: for ever).

        Raises `PoolTimeout`, `TooManyWaiting`, `PoolClosed`, or `FactoryError` if the object that
        was to be built for this call could not be.
        """
        answer: list[Outcome] = []
        arrived = threading.Event()

        def deliver(outcome: Outcome) -> bool:
            answer.append(outcome)
            arrived.set()
            return True

        where = _caller() if self.options.records_caller else None
        got = self.request(ProcessId(os.getpid(), None), deliver, timeout, where)
        if isinstance(got, Lease):
            return got
        try:
            if not arrived.wait(_bounded(got.deadline - self._clock())):
                self.expire(got)
                arrived.wait()  # the outcome is certain now, and on its way
        except BaseException:
            if not self.cancel(got):
                arrived.wait()
                if isinstance(answer[0], Lease):
                    self.give_back(answer[0].id)
            raise
        if isinstance(answer[0], PoolError):
            raise answer[0]
        return cast("Lease[T]", answer[0])

    @contextmanager
    def lease(self, timeout: Timeout = USE_DEFAULT) -> Iterator[T]:
        """`acquire`, the object itself for the length of a block, `release`."""
        lease = self.acquire(timeout)
        try:
            yield lease.object
        except BaseException:
            self.give_back(lease.id)  # never an error of its own, which would mask the block's
            raise
        self.release(lease)

    def release(self, lease: Lease[T], *, discard: bool = False) -> None:
        """Give the object back; `discard=True` closes it. `LeaseError` if the lease is over."""
        if not self.give_back(lease.id, discard=discard):
            raise LeaseError(f"pool {self.name!r}: lease {lease.id} was released or taken back before")

    def count(self, *states: State) -> int:
        """How many objects are in one of these states."""
        return sum([len(self._objects[each]) for each in states])

    def all_objects(self) -> list[PoolEntry[T]]:
        """Every object, those that count for nothing too."""
        return [entry for entries in self._objects.values() for entry in entries]

    def _move(self, entry: PoolEntry[T], state: State, now: float) -> None:
        """The one place where an object changes its state: whatever is counted is counted here."""
        self._objects[entry.state].pop(entry, None)
        self._size += (state not in _UNCOUNTED) - (entry.state not in _UNCOUNTED)
        entry.move(state)
        entry.since = now
        if state is not State.GONE:
            self._objects[state][entry] = None

    # -- what is asked for ------------------------------------------------------------------------

    @step
    def request(
        self, owner: ProcessId, deliver: OnOutcome, timeout: Timeout = USE_DEFAULT, where: str | None = None
    ) -> Lease[T] | Waiter:
        """Ask for an object without blocking: a lease at once, or a place in the queue.

        `deliver` is called once for a waiter, from any thread, with the lease or with the error that
        `acquire` names; if it returns False the lease goes to the next.
        """
        timeout = self._patience(timeout)
        if self.closed:
            raise self._closed_error()
        now = self._clock()
        if self._idle and not self._queue and self.options.check is None:
            entry = self._pop_idle(now)
            if entry is not None:
                return self._grant(entry, owner, now, where)
        patience = _UNBOUNDED if timeout is None else timeout or self.options.timeout or 30.0
        waiter = Waiter(owner, deliver, now, now + patience, where)
        self._queue.join(waiter)
        self._plan()
        unserved = len(self._queue) - self._supply()
        if timeout == 0:
            unserved += self.count(State.STUCK)  # a build that hangs is as good as a holder
        if unserved > 0:
            self._stats.exhausted += 1
            refusal = self._refusal(timeout, unserved, now)
            if refusal is not None:
                self._queue.remove(waiter)
                raise refusal
        return waiter

    @step
    def give_back(self, lease_id: int, *, discard: bool = False) -> bool:
        """End a lease as its holder asks; False (and counted) if it had ended before."""
        lease = self._leases.get(lease_id)
        if lease is None:
            self._stats.late_releases += 1
            return False
        if lease.late:
            text = "pool %r: %s gave back lease %d after %.1f s"
            self._later(log.warning, text, self.name, lease.owner, lease.id, self._clock() - lease.granted_at)
        self._end_lease(lease, Reason.DISCARDED if discard else None)
        return True

    @step
    def give_up(self, lease_id: int) -> None:
        """End a lease on which a call takes too long, unless it has ended."""
        if lease_id in self._leases:
            self._end_lease(self._leases[lease_id], Reason.CALL)

    @step
    def cancel(self, waiter: Waiter) -> bool:
        """Take a waiter out of the queue; False if its outcome is on its way already."""
        return self._queue.remove(waiter)

    @step
    def expire(self, waiter: Waiter) -> None:
        """Give a waiter its `PoolTimeout`, unless it has been served."""
        self._expire(waiter)

    def _end_lease(self, lease: Lease[T], reason: Reason | None) -> None:
        """End a lease; its object goes home, or leaves the pool if there is a reason."""
        entry, now = lease.entry, self._clock()
        lease.over = True  # before `busy` is tried: a call that gets `busy` after us sees it
        del self._leases[lease.id]
        if reason in _FATES:
            self._note_fate(lease, _FATES[reason])
        self._count_hold(now - lease.granted_at)
        hangs = reason is Reason.CALL and entry.runner.owner is not None  # wherever in the call it does
        if hangs or not lease.busy.acquire(blocking=False):
            self._abandon(entry, reason or (Reason.INTERRUPTED if entry.runner.lives else Reason.DIED))
            return
        lease.busy.release()
        entry.lease, entry.kept, lease.kept = None, lease.kept or None, None
        self._move(entry, State.RESETTING, now)
        if reason is None:
            self._come_home(entry, now)
        else:
            self._retire(entry, reason)

    def _expire(self, waiter: Waiter) -> None:
        """A waiter's time is over, unless it has been served."""
        if waiter in self._queue:
            self._stats.timeouts += 1
            now = self._clock()
            self._fail(waiter, self._timeout_error(now - waiter.since, now))

    @step
    def _fill(self) -> None:
        self._plan()

    def _plan(self) -> None:
        """Begin the checks and builds that are wanted: for those who wait, then up to `min_size`."""
        if self.closed:
            return
        now = self._clock()
        # An idle object is quicker than a build that is under way: it does not wait for that.
        while self._idle and len(self._queue) > self.count(State.CHECKING):
            entry = self._pop_idle(now)
            if entry is not None:
                self._begin_check(entry, now)
        unserved = len(self._queue) - self.count(State.BUILDING, State.CHECKING)
        while unserved > 0 and self._may_build(self.options.max_size):
            self._begin_build(self._queue.first_without_build(), now)
            unserved -= 1
        while now >= self._retry_at and self._may_build(self.options.min_size):
            self._begin_build(None, now)

    @step
    def reclaim(self, owner: ProcessId) -> int:
        """Take back all that a process held and waited for; how many leases that were."""
        for waiter in [each for each in self._queue if each.owner == owner]:
            self._queue.remove(waiter)
        leases = [each for each in self._leases.values() if each.owner == owner]
        for lease in leases:
            self._stats.reclaimed += 1
            self._end_lease(lease, Reason.RECLAIMED if self.options.on_reclaim == "close" else None)
            text = "pool %r: took back lease %d of %s, which has ended"
            self._later(log.warning, text, self.name, lease.id, owner)
        return len(leases)

    @step
    def tend(self) -> float | None:
        """Let time pass: time out waiters, end overdue leases, retire what is old, refill.

        Returns when it is next needed for a waiter, on the pool's clock; None: for no waiter.
        """
        now = self._clock()
        for waiter in self._queue.expired(now):
            self._expire(waiter)
        self._end_overdue(now)
        self._retire_old(now)
        self._write_off(now)
        self._plan()
        return self._queue.next_deadline()

    @step
    def resize(self, min_size: int | None = None, max_size: int | None = None) -> None:
        """Change the bounds; idle objects beyond them go now."""
        now = self.options
        self.options = replace(
            now,
            min_size=now.min_size if min_size is None else min_size,
            max_size=now.max_size if max_size is None else max_size,
        )
        while self._idle and self._surplus() > 0:
            self._retire(next(iter(self._idle)), Reason.SHRUNK)
        self._plan()

    @step
    def refresh(self) -> None:
        """From now on all present objects are old."""
        self._generation += 1
        self._retire_idle(Reason.REFRESHED)
        self._plan()

    @step
    def _shut(self) -> None:
        """Lend no more: fail who waits, retire what is idle."""
        self.closed = True
        for waiter in list(self._queue):
            self._fail(waiter, self._closed_error())
        self._retire_idle(Reason.CLOSED)

    @step
    def bury(self, owner: ProcessId) -> None:
        """A process has ended: it may have been one in which an object lived."""
        for entry in [each for each in self.all_objects() if each.runner.owner == owner]:
            how = entry.runner.fate()
            if how is None or entry.state not in (State.LEASED, State.IDLE):
                continue  # it is meant to end, or a factory or hook reports it
            self._later(log.warning, "pool %r: %s", self.name, how)
            if entry.state is State.LEASED and entry.lease is not None:
                self._note_fate(entry.lease, how)
                self._end_lease(entry.lease, Reason.DIED)
            else:
                self._retire(entry, Reason.DIED)

    @step
    def _end_all_leases(self) -> None:
        """The pool is closed: whoever still holds something loses it."""
        for lease in list(self._leases.values()):
            self._end_lease(lease, Reason.CLOSED)

    @step
    def _stop_all(self) -> None:
        """The pool is closed: what still runs that is no `close` is ended, where that is a process."""
        for entry in self.all_objects():
            if self._can_be_stopped(entry):
                self._work.append(self._hooks.stop(entry, 0.0, self._stopped))

    # -- what the hands report --------------------------------------------------------------------

    @step
    def _built(self, entry: PoolEntry[T], error: BaseException | None = None, what: str = "") -> None:
        now = self._clock()
        if entry.wanted_by is not None:
            entry.wanted_by.has_build = False
        if error is not None:
            self._build_failed(entry, error, what, now)
            return
        self._stats.built += 1
        self._pause, self._retry_at, self._last_failure = _FIRST_PAUSE, 0.0, None
        if self.options.max_lifetime is not None:
            early = random.random() * _LIFETIME_SPREAD
            entry.expires_at = now + self.options.max_lifetime * (1 - early)
        self._ready_or_retire(entry, self._worn_out(entry, now), now, checked=True)
        self._plan()

    def _build_failed(self, entry: PoolEntry[T], error: BaseException, what: str, now: float) -> None:
        """Tell the one it was for. A build ahead is tried again after a pause that grows.

        `what` is the error as text: to ask the error itself for it would run the user's code under the lock.
        """
        self._stats.failed_builds += 1
        self._last_failure = what
        waiter = entry.wanted_by
        if waiter is None and now >= self._retry_at:  # else another of this round has failed already
            self._retry_at = now + self._pause * random.uniform(0.9, 1.1)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if waiter is not None and waiter in self._queue:
            refusal = FactoryError(f"pool {self.name!r}: the factory failed: {what}")
            refusal.__cause__ = error
            self._fail(waiter, refusal)
        elif not self.closed:
            self._later(self._log_failure, error)
        self._forget(entry)

    def _log_failure(self, error: BaseException) -> None:
        log.error("pool %r: an object could not be built", self.name, exc_info=error)

    @step
    def _checked(self, entry: PoolEntry[T], fine: bool) -> None:
        if entry.state is State.ABANDONED:
            self._close(entry)
            return
        self._ready_or_retire(
            entry, self._stale(entry) if fine else Reason.CHECK, self._clock(), checked=True
        )
        self._plan()

    @step
    def _was_reset(self, entry: PoolEntry[T], fine: bool) -> None:
        if entry.state is State.ABANDONED:
            self._close(entry)
            return
        now = self._clock()
        self._ready_or_retire(entry, self._worn_out(entry, now) if fine else Reason.RESET, now)

    @step
    def call_ended(self, lease: Lease[T]) -> None:
        """A call returned: if its lease ended meanwhile, the object can be closed now."""
        entry = lease.entry
        if entry.state is State.ABANDONED and entry.lease is lease:
            entry.kept = lease.kept
            self._close(entry)

    def _stopped(self, entry: PoolEntry[T]) -> None:
        if entry.lease is not None:  # else it was a hook, which reports itself
            self.call_ended(entry.lease)

    @step
    def _was_closed(self, entry: PoolEntry[T]) -> None:
        self._forget(entry)

    def _forget(self, entry: PoolEntry[T]) -> None:
        """A slot is empty: its object was closed, or never came to be."""
        self._move(entry, State.GONE, self._clock())
        self._plan()

    # -- steps ------------------------------------------------------------------------------------

    def _later(self, do: Callable[..., object], *args: object) -> None:
        """Something slow: to be done when the lock is free."""
        self._work.append(partial(do, *args))

    def _ready_or_retire(
        self, entry: PoolEntry[T], reason: Reason | None, now: float, *, checked: bool = False
    ) -> None:
        if reason is None:
            self._ready(entry, now, checked=checked)
        else:
            self._retire(entry, reason)

    def _stale(self, entry: PoolEntry[T]) -> Reason | None:
        if self.closed:
            return Reason.CLOSED
        if not entry.runner.lives:
            return Reason.DIED
        return Reason.REFRESHED if entry.generation != self._generation else None

    def _retire_idle(self, reason: Reason) -> None:
        while self._idle:
            self._retire(next(iter(self._idle)), reason)

    def _refusal(self, timeout: float | None, unserved: int, now: float) -> PoolError | None:
        """The error for one who has just come and must wait for a holder, but will not or may not."""
        limit = self.options.max_waiting
        if timeout == 0:
            self._stats.timeouts += 1
            return self._timeout_error(0.0, now)
        if limit is None or unserved <= limit:
            return None
        return TooManyWaiting(
            f"pool {self.name!r}: {unserved - 1} wait already, max_waiting={limit}; "
            f"{len(self._leases)} of at most {self.options.max_size} objects are held"
        )

    def _pop_idle(self, now: float) -> PoolEntry[T] | None:
        """The idle object whose turn it is; those past their lifetime are retired on the way."""
        while self._idle:
            entry = next(reversed(self._idle) if self.options.order == "lifo" else iter(self._idle))
            if entry.runner.lives and entry.expires_at > now:
                return entry
            self._retire(entry, Reason.LIFETIME if entry.runner.lives else Reason.DIED)
        return None

    def _grant(self, entry: PoolEntry[T], owner: ProcessId, now: float, where: str | None) -> Lease[T]:
        self._move(entry, State.LEASED, now)
        lease = entry.lease = Lease(next(self._lease_ids), entry, owner, now, where)
        self._leases[lease.id] = lease
        self._stats.acquired += 1
        if entry.uses:
            self._stats.reused += 1
        entry.uses += 1
        return lease

    def _come_home(self, entry: PoolEntry[T], now: float) -> None:
        reason = self._worn_out(entry, now)
        if reason is not None:
            self._retire(entry, reason)
        elif self.options.reset is not None or entry.kept is not None:
            self._work.append(self._hooks.reset(entry, self._was_reset))
        else:
            self._ready(entry, now)

    def _worn_out(self, entry: PoolEntry[T], now: float) -> Reason | None:
        reason = self._stale(entry)
        if reason is not None:
            return reason
        if self.options.max_uses is not None and entry.uses >= self.options.max_uses:
            return Reason.USES
        if entry.expires_at <= now:
            return Reason.LIFETIME
        if self._surplus() > 0:
            return Reason.SHRUNK
        return None

    def _ready(self, entry: PoolEntry[T], now: float, *, checked: bool = False) -> None:
        """An object is free: hand it to the first who takes it, or lay it with the idle ones."""
        if checked or self.options.check is None:
            waiter = self._queue.pop_first()
            if waiter is not None:
                self._count_wait(now - waiter.since)
                lease = self._grant(entry, waiter.owner, now, waiter.where)
                self._later(self._deliver, waiter, lease)
                return
        self._move(entry, State.IDLE, now)
        if self._queue:
            self._plan()

    def _may_build(self, bound: int) -> bool:
        return self._size < bound and self.count(State.BUILDING) < BUILDS_AT_ONCE

    def _supply(self) -> int:
        """How many who wait will be served without any holder's giving back.

        An object that is being reset or closed has no holder, so nobody is refused for its sake.
        """
        return max(0, self.options.max_size - len(self._leases))

    def _present(self) -> int:
        """Objects that are there or in the making, without those on their way out."""
        return self._size - self.count(State.CLOSING)

    def _surplus(self) -> int:
        return self._present() - self.options.max_size

    def _begin_build(self, waiter: Waiter | None, now: float) -> None:
        entry: PoolEntry[T] = PoolEntry(self._generation, wanted_by=waiter)
        if waiter is not None:
            waiter.has_build = True
        self._objects[State.BUILDING][entry] = None
        self._size += 1
        entry.since = now
        self._work.append(self._hooks.build(entry, self._built))

    def _begin_check(self, entry: PoolEntry[T], now: float) -> None:
        self._move(entry, State.CHECKING, now)
        self._work.append(self._hooks.check(entry, self._checked))

    def _retire(self, entry: PoolEntry[T], reason: Reason) -> None:
        self._stats.retired[reason.value] += 1
        entry.reason = reason
        self._close(entry)

    def _close(self, entry: PoolEntry[T]) -> None:
        """Have the object closed; it counts for the size until its `close` has returned."""
        closing = State.WRITTEN_OFF if entry.state is State.ABANDONED else State.CLOSING
        self._move(entry, closing, self._clock())
        self._work.append(self._hooks.close(entry, self._was_closed))

    def _abandon(self, entry: PoolEntry[T], reason: Reason) -> None:
        """Code runs in the object that nobody waits for: replace it now, close it when that returns."""
        self._stats.retired[reason.value] += 1
        entry.reason = reason
        self._move(entry, State.ABANDONED, self._clock())
        if entry.runner.owner is not None:
            patience = min(HOOK_BOUND, self.options.call_timeout or HOOK_BOUND)
            self._work.append(self._hooks.stop(entry, _PATIENCE.get(reason, patience), self._stopped))
        self._plan()

    def _can_be_stopped(self, entry: PoolEntry[T]) -> bool:
        return (
            entry.state in (State.BUILDING, State.STUCK, State.ABANDONED) and entry.runner.owner is not None
        )

    def _note_fate(self, lease: Lease[T], how: str) -> None:
        if len(self._fates) >= _MOST_FATES:
            del self._fates[next(iter(self._fates))]
        self._fates[lease.id] = how

    def _end_overdue(self, now: float) -> None:
        limit, warn = self.options.max_hold, self.options.warn_hold
        if limit is None and warn is None:
            return
        for lease in list(self._leases.values()):
            age = now - lease.granted_at
            if limit is not None and age >= limit:
                self._end_lease(lease, Reason.EXPIRED)
                self._later(self._tell_held, "took back", lease, age)
            elif warn is not None and age >= warn and not lease.late:
                lease.late = True
                self._later(self._tell_held, "still out is", lease, age)

    def _tell_held(self, what: str, lease: Lease[T], age: float) -> None:
        text = "pool %r: %s lease %d of %s, held for %.1f s, acquired at %s"
        log.warning(text, self.name, what, lease.id, lease.owner, age, lease.where)

    def _retire_old(self, now: float) -> None:
        for entry in list(self._idle):
            if entry.expires_at <= now and self._may_renew():
                self._retire(entry, Reason.LIFETIME)
        longest = self.options.max_idle
        while longest is not None and self._idle and self._present() > self.options.min_size:
            if now - next(iter(self._idle)).since < longest:
                return
            self._retire(next(iter(self._idle)), Reason.IDLE)

    def _may_renew(self) -> bool:
        """Those that `min_size` asks for are renewed one by one, so that never all are away at once."""
        spare = self._present() > self.options.min_size
        return spare or len(self._idle) + len(self._leases) == self._size

    def _write_off(self, now: float) -> None:
        """Nobody counts on a factory or hook any more that has not returned in time."""
        for state in (State.BUILDING, State.CHECKING, State.RESETTING, State.CLOSING):
            for entry in [each for each in self._objects[state] if now - each.since >= HOOK_BOUND]:
                if state is State.BUILDING:
                    # It may take long, and goes on for the one whom it was begun for. When he is gone nobody
                    # else counts on it, lest a factory that hangs hold up all who come later.
                    if entry.wanted_by not in self._queue:
                        self._move(entry, State.STUCK, now)
                    continue
                self._later(log.error, _HUNG, self.name, state.name.lower())
                if state is State.CLOSING:
                    self._move(entry, State.WRITTEN_OFF, now)
                else:
                    self._abandon(entry, Reason.HUNG)

    def _count_wait(self, seconds: float) -> None:
        self._stats.wait_seconds += seconds
        self._stats.wait_longest = max(self._stats.wait_longest, seconds)

    def _count_hold(self, seconds: float) -> None:
        self._stats.hold_seconds += seconds
        self._stats.hold_longest = max(self._stats.hold_longest, seconds)

    def _fail(self, waiter: Waiter, error: PoolError) -> None:
        if self._queue.remove(waiter):
            self._later(self._deliver, waiter, error)

    def _timeout_error(self, waited: float, now: float) -> PoolTimeout:
        longest = min(self._leases.values(), key=lambda each: each.granted_at, default=None)
        held = f"{len(self._leases)} held"
        if longest is not None:
            held += f" (longest by {longest.owner}, {now - longest.granted_at:.1f} s)"
        text = (
            f"pool {self.name!r}: no object came free in {waited:.3g} s: {held}, "
            f"{self.count(State.BUILDING, State.STUCK)} being built, {len(self._queue)} waiting, "
            f"max_size={self.options.max_size}"
        )
        if self._last_failure is not None:
            text += f"; the last build failed: {self._last_failure}"
        return PoolTimeout(text)

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(f"pool {self.name!r} is closed")

    @step
    def stats(self) -> PoolStats:
        """How things stand."""
        return replace(
            self._stats,
            size=self._size,
            idle=len(self._idle),
            leased=len(self._leases),
            building=self.count(State.BUILDING, State.STUCK),
            waiting=len(self._queue),
            retired=dict(self._stats.retired),
        )

    @step
    def leases(self) -> list[LeaseInfo]:
        """Who holds what, the longest held first."""
        now = self._clock()
        return [
            LeaseInfo(
                lease_id=each.id,
                pid=each.owner.pid,
                process_name=each.owner.name,
                age=now - each.granted_at,
                where=each.where,
            )
            for each in self._leases.values()
        ]

    def close(self, timeout: Timeout = USE_DEFAULT) -> None:
        """Lend no more, fail all waiters, await held objects `timeout` seconds, close all objects.

        A lease that is still held then is over. Returns when every `close` hook has, or is past its
        `HOOK_BOUND`; builds and abandoned calls that are still running get `LAST_CALL` seconds to end.
        Closing again waits in the same way.
        """
        patience = self._patience(timeout)
        self._shut()
        self._await(lambda: not self._leases, patience)
        self._end_all_leases()
        self._await(lambda: not self.all_objects(), min(LAST_CALL, HOOK_BOUND))
        self._stop_all()
        self._await(self._all_closed, HOOK_BOUND)

    def _await(self, predicate: Callable[[], bool], seconds: float | None) -> None:
        with self._lock:
            self._changed.wait_for(predicate, None if seconds is None else _bounded(seconds))

    def _all_closed(self) -> bool:
        """Whether every `close` has returned, and every process that can be stopped has ended."""
        return not any(
            each.state in (State.CLOSING, State.WRITTEN_OFF) or self._can_be_stopped(each)
            for each in self.all_objects()
        )

    def _snapshot(self) -> list[PoolEntry[T]]:
        with self._lock:
            return self.all_objects()

    def _new_place(self) -> Callable[[], Runner[T]]:
        isolation = self.options.isolation
        if isolation == "process":
            raise ValueError("isolation='process' needs a PoolManager: this pool is for threads only")
        return InlineRunner if isolation == "none" else partial(ThreadRunner, f"mppool object of {self.name}")

    def _patience(self, timeout: Timeout) -> float | None:
        if timeout is USE_DEFAULT:
            return self.options.timeout
        seconds("timeout", timeout, zero=True)
        return timeout  # type: ignore[return-value]  # the default, by its identity, is out

    def _do_work(self) -> None:
        while work := self._take_work():
            try:
                while work:
                    work[0]()  # nothing in it minds being done twice
                    del work[0]
            except BaseException:  # a signal handler's: whoever makes the next step does the rest
                with self._lock:
                    self._work[:0] = work
                raise

    def _take_work(self) -> Work:
        with self._lock:
            if self.closed:
                self._changed.notify_all()
            work, self._work = self._work, []
            return work

    def _deliver(self, waiter: Waiter, outcome: Outcome) -> None:
        try:
            taken = waiter.deliver(outcome)
        except Exception:
            log.exception("pool %r: an outcome could not be delivered", self.name)
            taken = False
        if not taken and isinstance(outcome, Lease):
            with self._lock:  # `_do`, which called, goes on with what this brings about
                if not outcome.over:
                    self._end_lease(outcome, None)


def _caller() -> str:
    """File and line of the code outside of this module that asks."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "contextlib"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _bounded(wait: float) -> float | None:
    """Seconds as `threading` takes them: none below 0, and None for more than it can count."""
    return max(0.0, wait) if wait < threading.TIMEOUT_MAX else None
