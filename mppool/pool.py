"""The policy of a pool, for the threads of one process.

Everything is decided under one lock, in a step that does nothing slow: it appends what is to be done
to a list of `Work`, and `_do` does it when the lock is free again. Factories and hooks run on the
crew's threads, so that nobody waits for a build, check, reset or close that is not for him.
"""

from __future__ import annotations

import heapq
import logging
import os
import random
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar, cast

from .crew import Crew
from .errors import (
    FactoryError,
    LeaseError,
    LeaseLost,
    PoolClosed,
    PoolError,
    PoolTimeout,
    TooManyWaiting,
)
from .options import USE_DEFAULT, Hook, PoolOptions, Timeout, seconds
from .owner import Owner
from .slot import Lease, Reason, Slot, State
from .stats import LeaseInfo, PoolStats
from .waiter import Deliver, Outcome, Waiter

__all__ = ["BUILDS_AT_ONCE", "HOOK_BOUND", "Pool"]

log = logging.getLogger("mppool")

T = TypeVar("T")
Work = list[Callable[[], object]]

BUILDS_AT_ONCE = 4
"""Builds side by side: enough to grow fast, too few to answer a short spike with a row of objects."""

HOOK_BOUND = 10.0
"""Seconds after which a check, reset or close that has not returned no longer counts for the size."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_LIFETIME_SPREAD = 0.05
_STALE_DEADLINES = 100
_UNBOUNDED = float("inf")
_HUNG = "pool %r: a hook (object %s) has not returned; the object no longer counts and is replaced"


class Pool(Generic[T]):
    """Objects made by `factory`, lent to one holder each, first come first served.

    Threads of this process call `acquire`, `release` and `lease`. A server calls `request`, which
    never blocks, and is told the outcome by a callback. Somebody calls `tend` now and then (the
    watchdog does): it lets time pass, for all that depends on it.

    Options are those of `PoolOptions`, by keyword.
    """

    def __init__(
        self,
        factory: Callable[[], T],
        *,
        name: str = "pool",
        clock: Callable[[], float] = time.monotonic,
        crew: Crew | None = None,
        **options: Any,
    ) -> None:
        if not callable(factory):
            raise TypeError(f"factory must be callable: {factory!r}")
        self.name = name
        self.options = PoolOptions(**options)
        self._factory = factory
        self._clock = clock
        self._crew = crew or Crew(f"mppool {name}")
        # Guards all that follows, and every slot, lease and waiter. Held for short steps that never
        # call out: no factory, hook, callback or I/O. Helpers that need it end in `_locked`.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # notified while closing only
        self._slots: set[Slot[T]] = set()  # all that count against max_size
        self._strays: set[Slot[T]] = set()  # abandoned: their code still runs, they do not count
        self._idle: deque[Slot[T]] = deque()  # longest idle first
        self._leases: dict[int, Lease[T]] = {}
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()
        self._deadlines: list[tuple[float, int, Waiter]] = []  # a heap
        self._tickets = count()
        self._at_work: set[Slot[T]] = set()  # those whose factory or hook runs, up to HOOK_BOUND
        self._building = 0
        self._stuck = 0  # of those: builds that nobody counts on any more
        self._checking = 0
        self._closing = 0
        self._generation = 0
        self._closed = False
        self._pause = _FIRST_PAUSE
        self._retry_at = 0.0
        self._last_failure: BaseException | None = None
        self._retired: Counter[str] = Counter()
        self._acquired = self._built = self._reused = self._timeouts = self._exhausted = 0
        self._reclaimed = self._failed_builds = self._late_releases = 0
        self._wait_seconds = self._wait_longest = self._hold_seconds = self._hold_longest = 0.0
        work: Work = []
        with self._lock:
            self._plan_locked(work)
        self._do(work)

    def __repr__(self) -> str:
        now = self.stats()
        return f"<Pool {self.name!r} idle={now.idle} leased={now.leased} waiting={now.waiting}>"

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

        where = _caller() if self.options.traced else None
        got = self.request(Owner(os.getpid(), None), deliver, timeout, where)
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

    # -- lending, as a server sees it ---------------------------------------------------------------

    def request(
        self,
        owner: Owner,
        deliver: Deliver,
        timeout: Timeout = USE_DEFAULT,
        where: str | None = None,
    ) -> Lease[T] | Waiter:
        """Ask for an object without blocking: a lease at once, or a place in the queue.

        `deliver` is called once for a waiter, from any thread, with the lease or with the error that
        `acquire` names; if it returns False the lease goes to the next.
        """
        work: Work = []
        with self._lock:
            got = self._request_locked(owner, deliver, self._patience(timeout), where, work)
        if work:
            self._do(work)
        if isinstance(got, PoolError):
            raise got
        return got

    def _patience(self, timeout: Timeout) -> float | None:
        if timeout is USE_DEFAULT:
            return self.options.timeout
        seconds("timeout", timeout, zero=True)
        return timeout  # type: ignore[return-value]  # the default, by its identity, is out

    def cancel(self, waiter: Waiter) -> bool:
        """Take a waiter out of the queue; False if its outcome is on its way already."""
        with self._lock:
            return self._leave_locked(waiter)

    def expire(self, waiter: Waiter) -> None:
        """Give a waiter its `PoolTimeout`, unless it has been served."""
        work: Work = []
        with self._lock:
            self._expire_locked(waiter, work)
        self._do(work)

    def held(self, lease_id: int) -> Lease[T]:
        """The lease with this id, as long as it lasts; `LeaseLost` after that."""
        try:
            return self._leases[lease_id]
        except KeyError:
            raise self.lost(lease_id) from None

    def lost(self, lease_id: int) -> LeaseLost:
        """The error for a lease that is over."""
        return LeaseLost(
            f"pool {self.name!r}: lease {lease_id} is over: it was released, expired or taken back"
        )

    def give_back(self, lease_id: int, *, discard: bool = False) -> bool:
        """End a lease as its holder asks; False (and counted) if it had ended before."""
        work: Work = []
        with self._lock:
            lease = self._leases.get(lease_id)
            if lease is None:
                self._late_releases += 1
            else:
                self._end_lease_locked(lease, Reason.DISCARDED if discard else None, work)
        self._do(work)
        if lease is not None and lease.late:
            held = self._clock() - lease.granted_at
            log.warning("pool %r: %s gave back lease %d after %.1f s", self.name, lease.owner, lease.id, held)
        return lease is not None

    def call_ended(self, lease: Lease[T]) -> None:
        """A call returned: if its lease ended meanwhile, the object can be closed now."""
        if not lease.over:
            return
        work: Work = []
        with self._lock:
            slot = lease.slot
            if slot.state is State.ABANDONED and slot.lease is lease:
                slot.kept = lease.kept
                self._close_locked(slot, work)
        self._do(work)

    # -- time and death -----------------------------------------------------------------------------

    def reclaim(self, owner: Owner) -> int:
        """Take back all that a process held and waited for; how many leases that were."""
        work: Work = []
        with self._lock:
            for waiter in [each for each in self._waiting if each.owner == owner]:
                self._leave_locked(waiter)
            leases = [each for each in self._leases.values() if each.owner == owner]
            for lease in leases:
                self._reclaimed += 1
                closing = self.options.on_reclaim == "close"
                self._end_lease_locked(lease, Reason.RECLAIMED if closing else None, work)
        self._do(work)
        for lease in leases:
            log.warning("pool %r: took back lease %d of %s, which has ended", self.name, lease.id, owner)
        return len(leases)

    def owners(self) -> set[Owner]:
        """Everyone who holds or waits for an object."""
        with self._lock:
            return {each.owner for each in self._leases.values()} | {each.owner for each in self._waiting}

    def tend(self) -> float | None:
        """Let time pass: time out waiters, end overdue leases, retire what is old, refill.

        Returns when it is next needed for a waiter, on the pool's clock; None: for no waiter.
        """
        work: Work = []
        with self._lock:
            now = self._clock()
            while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].waiting):
                self._expire_locked(heapq.heappop(self._deadlines)[2], work)
            due = self._deadlines[0][0] if self._deadlines else None
            self._overdue_locked(now, work)
            self._retire_old_locked(now, work)
            self._write_off_locked(now, work)
            self._plan_locked(work)
        self._do(work)
        return due

    # -- control ------------------------------------------------------------------------------------

    def resize(self, min_size: int | None = None, max_size: int | None = None) -> None:
        """Change the bounds; what is too much goes when it is idle. Errors as of `PoolOptions`."""
        work: Work = []
        with self._lock:
            now = self.options
            self.options = replace(
                now,
                min_size=now.min_size if min_size is None else min_size,
                max_size=now.max_size if max_size is None else max_size,
            )
            while self._idle and self._surplus_locked() > 0:
                self._retire_locked(self._idle.popleft(), Reason.SHRUNK, work)
            self._plan_locked(work)
        self._do(work)

    def refresh(self) -> None:
        """Retire every present object: the idle ones now, a held one as it comes home."""
        work: Work = []
        with self._lock:
            self._generation += 1
            while self._idle:
                self._retire_locked(self._idle.popleft(), Reason.REFRESHED, work)
            self._plan_locked(work)
        self._do(work)

    def stats(self) -> PoolStats:
        """How things stand."""
        with self._lock:
            return PoolStats(
                name=self.name,
                size=len(self._slots),
                idle=len(self._idle),
                leased=len(self._leases),
                building=self._building,
                waiting=len(self._waiting),
                acquired=self._acquired,
                built=self._built,
                reused=self._reused,
                timeouts=self._timeouts,
                exhausted=self._exhausted,
                reclaimed=self._reclaimed,
                failed_builds=self._failed_builds,
                late_releases=self._late_releases,
                retired=dict(self._retired),
                wait_seconds=self._wait_seconds,
                wait_longest=self._wait_longest,
                hold_seconds=self._hold_seconds,
                hold_longest=self._hold_longest,
            )

    def leases(self) -> list[LeaseInfo]:
        """Who holds what, the longest held first."""
        with self._lock:
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

        Returns when every `close` hook has, or `HOOK_BOUND` seconds after the last began. A lease that
        is still held then is over. Closing again waits in the same way.
        """
        patience = self._patience(timeout)
        work: Work = []
        with self._lock:
            self._closed = True
            for waiter in list(self._waiting):
                self._fail_locked(waiter, self._closed_error(), work)
            while self._idle:
                self._retire_locked(self._idle.popleft(), Reason.CLOSED, work)
        self._do(work)
        with self._lock:
            bound = None if patience is None else _bounded(patience)
            self._changed.wait_for(lambda: not self._leases, bound)
            for lease in list(self._leases.values()):
                self._end_lease_locked(lease, Reason.CLOSED, work)
        self._do(work)
        with self._lock:
            self._changed.wait_for(lambda: not (self._slots or self._strays), HOOK_BOUND)

    # -- steps under the lock -----------------------------------------------------------------------

    def _request_locked(
        self, owner: Owner, deliver: Deliver, timeout: float | None, where: str | None, work: Work
    ) -> Lease[T] | Waiter | PoolError:
        if self._closed:
            return self._closed_error()
        now = self._clock()
        if self._idle and not self._waiting and self.options.check is None:
            slot = self._pop_idle_locked(now, work)
            if slot is not None:
                return self._grant_locked(slot, owner, now, where)
        patience = _UNBOUNDED if timeout is None else timeout or self.options.timeout or 30.0
        waiter = Waiter(owner, deliver, now, now + patience, where)
        self._waiting[waiter] = None
        self._plan_locked(work)
        unserved = len(self._waiting) - self._supply_locked()
        if unserved > 0:
            self._exhausted += 1
            refusal = self._refusal_locked(timeout, unserved, now)
            if refusal is not None:
                self._leave_locked(waiter)
                return refusal
        if waiter.deadline < _UNBOUNDED:
            self._remember_deadline_locked(waiter)
        return waiter

    def _remember_deadline_locked(self, waiter: Waiter) -> None:
        if len(self._deadlines) > 2 * len(self._waiting) + _STALE_DEADLINES:  # those served long ago
            self._deadlines = [each for each in self._deadlines if each[2].waiting]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (waiter.deadline, next(self._tickets), waiter))

    def _refusal_locked(self, timeout: float | None, unserved: int, now: float) -> PoolError | None:
        """The error for one who has just come and must wait for a holder, but will not or may not."""
        limit = self.options.max_waiting
        if timeout == 0:
            self._timeouts += 1
            return self._timeout_error_locked(0.0, now)
        if limit is None or unserved <= limit:
            return None
        return TooManyWaiting(
            f"pool {self.name!r}: {unserved - 1} wait already, max_waiting={limit}; "
            f"{len(self._leases)} of at most {self.options.max_size} objects are held"
        )

    def _pop_idle_locked(self, now: float, work: Work) -> Slot[T] | None:
        """The idle object whose turn it is; those past their lifetime are retired on the way."""
        while self._idle:
            slot = self._idle.pop() if self.options.order == "lifo" else self._idle.popleft()
            if slot.expires_at > now:
                return slot
            self._retire_locked(slot, Reason.LIFETIME, work)
        return None

    def _grant_locked(self, slot: Slot[T], owner: Owner, now: float, where: str | None) -> Lease[T]:
        slot.move(State.LEASED)
        lease = slot.lease = Lease(slot, owner, now, where)
        self._leases[lease.id] = lease
        self._acquired += 1
        if slot.uses:
            self._reused += 1
        slot.uses += 1
        return lease

    def _end_lease_locked(self, lease: Lease[T], reason: Reason | None, work: Work) -> None:
        """End a lease; its object goes home, or leaves the pool if there is a reason."""
        slot, now = lease.slot, self._clock()
        lease.over = True  # before `busy` is tried: a call that gets `busy` after us sees it
        del self._leases[lease.id]
        held = now - lease.granted_at
        self._hold_seconds += held
        self._hold_longest = max(self._hold_longest, held)
        if self._closed:
            self._changed.notify_all()
        if not lease.busy.acquire(blocking=False):
            self._abandon_locked(slot, reason or Reason.INTERRUPTED, work)
            return
        lease.busy.release()
        slot.lease, slot.kept, lease.kept = None, lease.kept or None, None
        slot.move(State.RETURNING)
        if reason is None:
            self._come_home_locked(slot, now, work)
        else:
            self._retire_locked(slot, reason, work)

    def _come_home_locked(self, slot: Slot[T], now: float, work: Work) -> None:
        reason = self._worn_out_locked(slot, now)
        if reason is not None:
            self._retire_locked(slot, reason, work)
        elif self.options.reset is not None or slot.kept is not None:
            self._begin_work_locked(slot, now)
            work.append(partial(self._crew.submit, partial(self._reset, slot)))
        else:
            self._ready_locked(slot, now, work)

    def _worn_out_locked(self, slot: Slot[T], now: float) -> Reason | None:
        if self._closed:
            return Reason.CLOSED
        if slot.generation != self._generation:
            return Reason.REFRESHED
        if self.options.max_uses is not None and slot.uses >= self.options.max_uses:
            return Reason.USES
        if slot.expires_at <= now:
            return Reason.LIFETIME
        if self._surplus_locked() > 0:
            return Reason.SHRUNK
        return None

    def _ready_locked(self, slot: Slot[T], now: float, work: Work, *, checked: bool = False) -> None:
        """An object is free: hand it to the first who takes it, or lay it with the idle ones."""
        if checked or self.options.check is None:
            while self._waiting:
                waiter, _ = self._waiting.popitem(last=False)
                if waiter.offer():
                    self._waited_locked(now - waiter.since)
                    lease = self._grant_locked(slot, waiter.owner, now, waiter.where)
                    work.append(partial(self._deliver, waiter, lease, work))
                    return
        slot.move(State.IDLE)
        slot.idle_since = now
        self._idle.append(slot)
        if self._waiting:
            self._plan_locked(work)

    def _waited_locked(self, waited: float) -> None:
        self._wait_seconds += waited
        self._wait_longest = max(self._wait_longest, waited)

    def _plan_locked(self, work: Work) -> None:
        """Begin the checks and builds that are wanted: for those who wait, then up to `min_size`."""
        if self._closed:
            return
        now = self._clock()
        # An idle object is quicker than a build that is under way: it does not wait for that.
        while self._idle and len(self._waiting) > self._checking:
            slot = self._pop_idle_locked(now, work)
            if slot is not None:
                self._begin_check_locked(slot, now, work)
        unserved = len(self._waiting) - (self._building - self._stuck) - self._checking
        while unserved > 0 and self._may_build_locked(self.options.max_size):
            self._begin_build_locked(self._next_without_build_locked(), now, work)
            unserved -= 1
        while now >= self._retry_at and self._may_build_locked(self.options.min_size):
            self._begin_build_locked(None, now, work)

    def _may_build_locked(self, bound: int) -> bool:
        return len(self._slots) < bound and self._building - self._stuck < BUILDS_AT_ONCE

    def _next_without_build_locked(self) -> Waiter | None:
        return next((each for each in self._waiting if not each.has_build), None)

    def _supply_locked(self) -> int:
        """How many who wait will be served without any holder's giving back.

        An object that is being reset or closed has no holder, so nobody is refused for its sake.
        """
        return max(0, self.options.max_size - len(self._leases))

    def _present_locked(self) -> int:
        """Objects that are there or in the making, without those on their way out."""
        return len(self._slots) - self._closing

    def _surplus_locked(self) -> int:
        return self._present_locked() - self.options.max_size

    def _begin_build_locked(self, waiter: Waiter | None, now: float, work: Work) -> None:
        slot: Slot[T] = Slot(self._generation, wanted_by=waiter)
        if waiter is not None:
            waiter.has_build = True
        self._slots.add(slot)
        self._building += 1
        self._begin_work_locked(slot, now)
        work.append(partial(self._crew.submit, partial(self._build, slot)))

    def _end_build_locked(self, slot: Slot[T]) -> None:
        self._at_work.discard(slot)
        self._building -= 1
        self._stuck -= slot.stuck
        if slot.wanted_by is not None:
            slot.wanted_by.has_build = False

    def _begin_check_locked(self, slot: Slot[T], now: float, work: Work) -> None:
        slot.move(State.CHECKING)
        self._checking += 1
        self._begin_work_locked(slot, now)
        work.append(partial(self._crew.submit, partial(self._check, slot)))

    def _begin_work_locked(self, slot: Slot[T], now: float) -> None:
        slot.busy_since = now
        self._at_work.add(slot)

    def _retire_locked(self, slot: Slot[T], reason: Reason, work: Work) -> None:
        self._retired[reason.value] += 1
        slot.reason = reason
        self._close_locked(slot, work)

    def _close_locked(self, slot: Slot[T], work: Work) -> None:
        """Have the object closed; it counts for the size until its `close` has returned."""
        slot.move(State.CLOSING)
        self._closing += slot in self._slots
        self._begin_work_locked(slot, self._clock())
        work.append(partial(self._crew.submit, partial(self._close, slot)))

    def _abandon_locked(self, slot: Slot[T], reason: Reason, work: Work) -> None:
        """Code runs in the object that nobody waits for: replace it now, close it when that returns."""
        self._retired[reason.value] += 1
        slot.reason = reason
        slot.move(State.ABANDONED)
        self._slots.discard(slot)
        self._strays.add(slot)
        self._plan_locked(work)

    def _uncount_locked(self, slot: Slot[T]) -> None:
        self._closing -= slot.state is State.CLOSING and slot in self._slots
        self._slots.discard(slot)

    def _forget_locked(self, slot: Slot[T], work: Work) -> None:
        self._uncount_locked(slot)
        self._strays.discard(slot)
        slot.move(State.GONE)
        if self._closed:
            self._changed.notify_all()
        self._plan_locked(work)

    def _overdue_locked(self, now: float, work: Work) -> None:
        limit, warn = self.options.max_hold, self.options.warn_hold
        if limit is None and warn is None:
            return
        for lease in list(self._leases.values()):
            age = now - lease.granted_at
            if limit is not None and age >= limit:
                self._end_lease_locked(lease, Reason.EXPIRED, work)
                work.append(partial(self._tell_held, "took back", lease, age))
            elif warn is not None and age >= warn and not lease.late:
                lease.late = True
                work.append(partial(self._tell_held, "still out is", lease, age))

    def _tell_held(self, what: str, lease: Lease[T], age: float) -> None:
        text = "pool %r: %s lease %d of %s, held for %.1f s, acquired at %s"
        log.warning(text, self.name, what, lease.id, lease.owner, age, lease.where)

    def _retire_old_locked(self, now: float, work: Work) -> None:
        for slot in list(self._idle):
            if slot.expires_at <= now and self._may_renew_locked():
                self._idle.remove(slot)
                self._retire_locked(slot, Reason.LIFETIME, work)
        longest = self.options.max_idle
        while longest is not None and self._idle and self._present_locked() > self.options.min_size:
            if now - self._idle[0].idle_since < longest:
                return
            self._retire_locked(self._idle.popleft(), Reason.IDLE, work)

    def _may_renew_locked(self) -> bool:
        """Those that `min_size` asks for are renewed one by one, so that never all are away at once."""
        spare = self._present_locked() > self.options.min_size
        return spare or len(self._idle) + len(self._leases) == len(self._slots)

    def _write_off_locked(self, now: float, work: Work) -> None:
        for slot in [each for each in self._at_work if now - each.busy_since >= HOOK_BOUND]:
            if slot.state is State.BUILDING:
                self._give_up_on_locked(slot)
                continue
            self._at_work.discard(slot)
            work.append(partial(log.error, _HUNG, self.name, slot.state.name.lower()))
            if slot.state is State.CLOSING:
                self._uncount_locked(slot)
                self._strays.add(slot)
                continue
            if slot.state is State.CHECKING:
                self._checking -= 1
            self._abandon_locked(slot, Reason.HUNG, work)

    def _give_up_on_locked(self, slot: Slot[T]) -> None:
        """A build may take long: it keeps its place, and goes on for the one whom it was begun for.

        When he is gone nobody else counts on it, lest a factory that hangs hold up all who come later.
        """
        if slot.wanted_by is None or not slot.wanted_by.waiting:
            self._at_work.discard(slot)
            self._stuck += 1
            slot.stuck = True

    def _leave_locked(self, waiter: Waiter) -> bool:
        self._waiting.pop(waiter, None)
        return waiter.leave()

    def _expire_locked(self, waiter: Waiter, work: Work) -> None:
        if waiter.waiting:
            self._timeouts += 1
            now = self._clock()
            self._fail_locked(waiter, self._timeout_error_locked(now - waiter.since, now), work)

    def _fail_locked(self, waiter: Waiter, error: PoolError, work: Work) -> None:
        self._waiting.pop(waiter, None)
        if waiter.offer():
            work.append(partial(self._deliver, waiter, error, work))

    def _timeout_error_locked(self, waited: float, now: float) -> PoolTimeout:
        longest = min(self._leases.values(), key=lambda each: each.granted_at, default=None)
        held = f"{len(self._leases)} held"
        if longest is not None:
            held += f" (longest by {longest.owner}, {now - longest.granted_at:.1f} s)"
        text = (
            f"pool {self.name!r}: no object came free in {waited:.3g} s: {held}, "
            f"{self._building} being built, {len(self._waiting)} waiting, max_size={self.options.max_size}"
        )
        if self._last_failure is not None:
            text += f"; the last build failed: {self._last_failure!r}"
        return PoolTimeout(text)

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(f"pool {self.name!r} is closed")

    # -- slow work, with the lock free ----------------------------------------------------------------

    def _do(self, work: Work) -> None:
        while work:
            work.pop(0)()

    def _deliver(self, waiter: Waiter, outcome: Outcome, work: Work) -> None:
        try:
            taken = waiter.deliver(outcome)
        except Exception:
            log.exception("pool %r: an outcome could not be delivered", self.name)
            taken = False
        if not taken and isinstance(outcome, Lease):
            with self._lock:
                if outcome.id in self._leases:
                    self._end_lease_locked(outcome, None, work)

    def _build(self, slot: Slot[T]) -> None:
        try:
            made = self._factory()
        except BaseException as error:
            self._build_failed(slot, error)
            return
        work: Work = []
        with self._lock:
            now = self._clock()
            slot.object = made
            self._end_build_locked(slot)
            self._built += 1
            self._pause, self._retry_at, self._last_failure = _FIRST_PAUSE, 0.0, None
            if self.options.max_lifetime is not None:
                early = random.random() * _LIFETIME_SPREAD
                slot.expires_at = now + self.options.max_lifetime * (1 - early)
            reason = self._worn_out_locked(slot, now)
            if reason is None:
                self._ready_locked(slot, now, work, checked=True)
            else:
                self._retire_locked(slot, reason, work)
            self._plan_locked(work)
        self._do(work)

    def _build_failed(self, slot: Slot[T], error: BaseException) -> None:
        """Tell the one it was for; a build ahead is tried again after a pause that grows."""
        told = False
        work: Work = []
        with self._lock:
            self._end_build_locked(slot)
            self._failed_builds += 1
            self._last_failure = error
            waiter = slot.wanted_by
            now = self._clock()
            if waiter is None and now >= self._retry_at:  # else another of this round has failed already
                self._retry_at = now + self._pause * random.uniform(0.9, 1.1)
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            if waiter is not None and waiter.waiting:
                told = True
                refusal = FactoryError(f"pool {self.name!r}: the factory failed: {error!r}")
                refusal.__cause__ = error
                self._fail_locked(waiter, refusal, work)
            self._forget_locked(slot, work)
        if not told:
            log.error("pool %r: an object could not be built", self.name, exc_info=error)
        self._do(work)

    def _check(self, slot: Slot[T]) -> None:
        fine = self._hook_says_yes(self.options.check, slot.object)
        work: Work = []
        with self._lock:
            if slot.state is State.ABANDONED:
                self._close_locked(slot, work)
            else:
                now = self._clock()
                self._checking -= 1
                self._at_work.discard(slot)
                reason = self._stale_locked(slot) if fine else Reason.CHECK
                if reason is None:
                    self._ready_locked(slot, now, work, checked=True)
                else:
                    self._retire_locked(slot, reason, work)
                    self._plan_locked(work)
        self._do(work)

    def _reset(self, slot: Slot[T]) -> None:
        self._let_go(slot)
        fine = self._hook_returns("reset", self.options.reset, slot.object)
        work: Work = []
        with self._lock:
            if slot.state is State.ABANDONED:
                self._close_locked(slot, work)
            else:
                now = self._clock()
                self._at_work.discard(slot)
                reason = self._worn_out_locked(slot, now) if fine else Reason.RESET
                if reason is None:
                    self._ready_locked(slot, now, work)
                else:
                    self._retire_locked(slot, reason, work)
        self._do(work)

    def _stale_locked(self, slot: Slot[T]) -> Reason | None:
        if self._closed:
            return Reason.CLOSED
        return Reason.REFRESHED if slot.generation != self._generation else None

    def _let_go(self, slot: Slot[T]) -> None:
        """What the last lease kept goes before the object is used again or closed."""
        kept, slot.kept = slot.kept, None
        if kept is not None:
            self._hook_returns("letting go of what a lease kept", lambda _: kept.clear(), slot.object)

    def _close(self, slot: Slot[T]) -> None:
        self._let_go(slot)
        leaving = slot.take_object()
        if self.options.close is not None:
            self._hook_returns("close", self.options.close, leaving)
        del leaving  # a destructor can be slow, too
        work: Work = []
        with self._lock:
            self._at_work.discard(slot)
            self._forget_locked(slot, work)
        self._do(work)

    def _hook_says_yes(self, hook: Hook | None, lent: T) -> bool:
        try:
            return hook is None or hook(lent) is not False
        except BaseException as error:
            log.info("pool %r: check: %r; the object is closed", self.name, error)
            return False

    def _hook_returns(self, what: str, hook: Hook | None, lent: T) -> bool:
        try:
            if hook is not None:
                hook(lent)
        except BaseException:
            log.exception("pool %r: %s failed", self.name, what)
            return False
        return True


def _caller() -> str:
    """File and line of the code outside of this module that asks."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "contextlib"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _bounded(wait: float) -> float | None:
    """Seconds as `threading` takes them: none below 0, and None for more than it can count."""
    return max(0.0, wait) if wait < threading.TIMEOUT_MAX else None
