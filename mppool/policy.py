"""The policy of a pool: who gets which object, and what is to be done about it.

A `Policy` is only ever used under its pool's lock, and does nothing slow: no factory, hook, callback,
thread or I/O. What is to be done it appends to `work`, for the pool to do when the lock is free again.
"""

from __future__ import annotations

import itertools
import logging
import random
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from .errors import FactoryError, PoolClosed, PoolError, PoolTimeout, TooManyWaiting
from .options import PoolOptions
from .owner import Owner
from .slot import Lease, Reason, Slot, State
from .stats import Figures
from .waiter import Deliver, Outcome, Queue, Waiter

__all__ = ["BUILDS_AT_ONCE", "HOOK_BOUND", "LAST_CALL", "Hands", "Policy", "Work"]

log = logging.getLogger("mppool")

T = TypeVar("T")
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
_HUNG = "pool %r: a hook (object %s) has not returned; the object no longer counts and is replaced"


class Hands(Protocol):
    """Who does the slow work that a policy decides on. Each method returns what begins it.

    That is called with the lock free; being called twice does no harm.
    """

    def build(self, slot: Slot[Any]) -> Callable[[], object]:
        """The factory's call; then `built` or `build_failed`."""

    def check(self, slot: Slot[Any]) -> Callable[[], object]:
        """A call of `check`; then `checked`."""

    def reset(self, slot: Slot[Any]) -> Callable[[], object]:
        """A call of `reset`; then `was_reset`."""

    def close(self, slot: Slot[Any]) -> Callable[[], object]:
        """A call of `close`; then `forget`."""

    def stop(self, slot: Slot[Any], patience: float) -> Callable[[], object]:
        """The end, after so many seconds, of a process's code that nobody waits for; then `call_ended`."""


class Policy(Generic[T]):
    """The state of one pool and all decisions about it. Every method is called under the pool's lock."""

    def __init__(self, name: str, options: PoolOptions, clock: Callable[[], float]) -> None:
        self.name = name
        self.options = options
        self.clock = clock
        self.hands: Hands
        self.deliver: Callable[[Waiter, Outcome], None]
        self.work: Work = []
        self.slots: set[Slot[T]] = set()  # all that count against max_size
        self.strays: set[Slot[T]] = set()  # abandoned: their code still runs, they do not count
        self.idle: deque[Slot[T]] = deque()  # longest idle first
        self.leases: dict[int, Lease[T]] = {}
        self.fates: dict[int, str] = {}  # of leases that were taken away, the latest last
        self.queue = Queue()
        self.figures = Figures()
        self.building = 0
        self.closed = False
        self._at_work: set[Slot[T]] = set()  # those whose factory or hook runs, up to HOOK_BOUND
        self._stuck = 0  # builds that nobody counts on any more
        self._checking = 0
        self._closing = 0
        self._generation = 0
        # Never met again in a pool that is made once more after its manager died: from a random start.
        self._lease_ids = itertools.count(secrets.randbits(62))
        self._pause = _FIRST_PAUSE
        self._retry_at = 0.0
        self._last_failure: str | None = None

    # -- what is asked for ------------------------------------------------------------------------

    def request(
        self, owner: Owner, deliver: Deliver, timeout: float | None, where: str | None
    ) -> Lease[T] | Waiter | PoolError:
        """Somebody wants an object: a lease, a place in the queue, or the error to raise."""
        if self.closed:
            return self._closed_error()
        now = self.clock()
        if self.idle and not self.queue and self.options.check is None:
            slot = self._pop_idle(now)
            if slot is not None:
                return self._grant(slot, owner, now, where)
        patience = _UNBOUNDED if timeout is None else timeout or self.options.timeout or 30.0
        waiter = Waiter(owner, deliver, now, now + patience, where)
        self.queue.join(waiter)
        self.plan()
        unserved = len(self.queue) - self._supply()
        if timeout == 0:
            unserved += self._stuck  # a build that hangs is as good as a holder
        if unserved > 0:
            self.figures.exhausted += 1
            refusal = self._refusal(timeout, unserved, now)
            if refusal is not None:
                self.queue.leave(waiter)
                return refusal
        return waiter

    def give_back(self, lease_id: int, reason: Reason | None) -> Lease[T] | None:
        """A holder ends its lease; None (and counted) if it had ended before."""
        lease = self.leases.get(lease_id)
        if lease is None:
            self.figures.late_releases += 1
        else:
            self.end_lease(lease, reason)
        return lease

    def give_up(self, lease_id: int) -> None:
        """A call on this lease takes too long: nobody waits for it any more."""
        lease = self.leases.get(lease_id)
        if lease is not None:
            self.end_lease(lease, Reason.CALL)

    def end_lease(self, lease: Lease[T], reason: Reason | None) -> None:
        """End a lease; its object goes home, or leaves the pool if there is a reason."""
        slot, now = lease.slot, self.clock()
        lease.over = True  # before `busy` is tried: a call that gets `busy` after us sees it
        del self.leases[lease.id]
        if reason in _FATES:
            self._note_fate(lease, _FATES[reason])
        self.figures.held(now - lease.granted_at)
        hangs = reason is Reason.CALL and slot.place.owner is not None  # wherever in the call it does
        if hangs or not lease.busy.acquire(blocking=False):
            self._abandon(slot, reason or (Reason.INTERRUPTED if slot.place.lives else Reason.DIED))
            return
        lease.busy.release()
        slot.lease, slot.kept, lease.kept = None, lease.kept or None, None
        slot.move(State.RETURNING)
        if reason is None:
            self._come_home(slot, now)
        else:
            self._retire(slot, reason)

    def expire(self, waiter: Waiter) -> None:
        """A waiter's time is over, unless it has been served."""
        if waiter.waiting:
            self.figures.timeouts += 1
            now = self.clock()
            self._fail(waiter, self._timeout_error(now - waiter.since, now))

    def plan(self) -> None:
        """Begin the checks and builds that are wanted: for those who wait, then up to `min_size`."""
        if self.closed:
            return
        now = self.clock()
        # An idle object is quicker than a build that is under way: it does not wait for that.
        while self.idle and len(self.queue) > self._checking:
            slot = self._pop_idle(now)
            if slot is not None:
                self._begin_check(slot, now)
        unserved = len(self.queue) - (self.building - self._stuck) - self._checking
        while unserved > 0 and self._may_build(self.options.max_size):
            self._begin_build(self.queue.first_without_build(), now)
            unserved -= 1
        while now >= self._retry_at and self._may_build(self.options.min_size):
            self._begin_build(None, now)

    def reclaim(self, owner: Owner) -> list[Lease[T]]:
        """An owner is gone: end its leases and its waits."""
        for waiter in [each for each in self.queue if each.owner == owner]:
            self.queue.leave(waiter)
        leases = [each for each in self.leases.values() if each.owner == owner]
        for lease in leases:
            self.figures.reclaimed += 1
            self.end_lease(lease, Reason.RECLAIMED if self.options.on_reclaim == "close" else None)
        return leases

    def pass_time(self) -> float | None:
        """Do what the clock says. Returns when the next waiter's deadline is."""
        now = self.clock()
        for waiter in self.queue.expired(now):
            self.expire(waiter)
        self._end_overdue(now)
        self._retire_old(now)
        self._write_off(now)
        self.plan()
        return self.queue.next_deadline()

    def resize(self, min_size: int | None, max_size: int | None) -> None:
        """Change the bounds; idle objects beyond them go now."""
        now = self.options
        self.options = replace(
            now,
            min_size=now.min_size if min_size is None else min_size,
            max_size=now.max_size if max_size is None else max_size,
        )
        while self.idle and self._surplus() > 0:
            self._retire(self.idle.popleft(), Reason.SHRUNK)
        self.plan()

    def refresh(self) -> None:
        """From now on all present objects are old."""
        self._generation += 1
        self._retire_idle(Reason.REFRESHED)
        self.plan()

    def shut(self) -> None:
        """Lend no more: fail who waits, retire what is idle."""
        self.closed = True
        for waiter in list(self.queue):
            self._fail(waiter, self._closed_error())
        self._retire_idle(Reason.CLOSED)

    def died(self, slot: Slot[T], how: str) -> bool:
        """An object's own process has ended. False where that was meant, or a factory or hook reports it."""
        if slot.lease is not None and slot.state is State.LEASED:
            self._note_fate(slot.lease, how)
            self.end_lease(slot.lease, Reason.DIED)
            return True
        if slot.state is State.IDLE:
            self.idle.remove(slot)
            self._retire(slot, Reason.DIED)
            return True
        return False

    def end_all_leases(self) -> None:
        """The pool is closed: whoever still holds something loses it."""
        for lease in list(self.leases.values()):
            self.end_lease(lease, Reason.CLOSED)

    def stop_all(self) -> None:
        """The pool is closed: what still runs that is no `close` is ended, where that is a process."""
        for slot in self.slots | self.strays:
            if self._can_be_stopped(slot):
                self.work.append(self.hands.stop(slot, 0.0))

    def any_ending(self) -> bool:
        """Whether some object's `close` has not returned yet, or its process has not ended."""
        return any(
            each.state is State.CLOSING or self._can_be_stopped(each) for each in self.slots | self.strays
        )

    # -- what the hands report --------------------------------------------------------------------

    def built(self, slot: Slot[T]) -> None:
        """A build succeeded."""
        now = self.clock()
        self._end_build(slot)
        self.figures.built += 1
        self._pause, self._retry_at, self._last_failure = _FIRST_PAUSE, 0.0, None
        if self.options.max_lifetime is not None:
            early = random.random() * _LIFETIME_SPREAD
            slot.expires_at = now + self.options.max_lifetime * (1 - early)
        self._ready_or_retire(slot, self._worn_out(slot, now), now, checked=True)
        self.plan()

    def build_failed(self, slot: Slot[T], error: BaseException, what: str) -> bool:
        """A build failed. Tells the one it was for, and returns False if nobody knows who should.

        A build ahead is tried again after a pause that grows. `what` is the error as text: to ask the
        error itself for it would run the user's code under the lock.
        """
        self._end_build(slot)
        self.figures.failed_builds += 1
        self._last_failure = what
        waiter, now = slot.wanted_by, self.clock()
        if waiter is None and now >= self._retry_at:  # else another of this round has failed already
            self._retry_at = now + self._pause * random.uniform(0.9, 1.1)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        told = waiter is not None and waiter.waiting
        if waiter is not None and told:
            refusal = FactoryError(f"pool {self.name!r}: the factory failed: {what}")
            refusal.__cause__ = error
            self._fail(waiter, refusal)
        self.forget(slot)
        return told or self.closed

    def checked(self, slot: Slot[T], fine: bool) -> None:
        """A check returned."""
        if slot.state is State.ABANDONED:
            self._close(slot)
            return
        self._checking -= 1
        self._at_work.discard(slot)
        self._ready_or_retire(slot, self._stale(slot) if fine else Reason.CHECK, self.clock(), checked=True)
        self.plan()

    def was_reset(self, slot: Slot[T], fine: bool) -> None:
        """A reset returned."""
        if slot.state is State.ABANDONED:
            self._close(slot)
            return
        now = self.clock()
        self._at_work.discard(slot)
        self._ready_or_retire(slot, self._worn_out(slot, now) if fine else Reason.RESET, now)

    def call_ended(self, lease: Lease[T]) -> None:
        """A call returned after its lease had ended: the object can be closed now."""
        slot = lease.slot
        if slot.state is State.ABANDONED and slot.lease is lease:
            slot.kept = lease.kept
            self._close(slot)

    def forget(self, slot: Slot[T]) -> None:
        """A slot is empty: its object was closed, or never came to be."""
        self._at_work.discard(slot)
        self._uncount(slot)
        self.strays.discard(slot)
        slot.move(State.GONE)
        self.plan()

    # -- steps ------------------------------------------------------------------------------------

    def _later(self, do: Callable[..., object], *args: object) -> None:
        self.work.append(partial(do, *args))

    def _ready_or_retire(
        self, slot: Slot[T], reason: Reason | None, now: float, *, checked: bool = False
    ) -> None:
        if reason is None:
            self._ready(slot, now, checked=checked)
        else:
            self._retire(slot, reason)

    def _stale(self, slot: Slot[T]) -> Reason | None:
        if self.closed:
            return Reason.CLOSED
        if not slot.place.lives:
            return Reason.DIED
        return Reason.REFRESHED if slot.generation != self._generation else None

    def _retire_idle(self, reason: Reason) -> None:
        while self.idle:
            self._retire(self.idle.popleft(), reason)

    def _refusal(self, timeout: float | None, unserved: int, now: float) -> PoolError | None:
        """The error for one who has just come and must wait for a holder, but will not or may not."""
        limit = self.options.max_waiting
        if timeout == 0:
            self.figures.timeouts += 1
            return self._timeout_error(0.0, now)
        if limit is None or unserved <= limit:
            return None
        return TooManyWaiting(
            f"pool {self.name!r}: {unserved - 1} wait already, max_waiting={limit}; "
            f"{len(self.leases)} of at most {self.options.max_size} objects are held"
        )

    def _pop_idle(self, now: float) -> Slot[T] | None:
        """The idle object whose turn it is; those past their lifetime are retired on the way."""
        while self.idle:
            slot = self.idle.pop() if self.options.order == "lifo" else self.idle.popleft()
            if slot.place.lives and slot.expires_at > now:
                return slot
            self._retire(slot, Reason.LIFETIME if slot.place.lives else Reason.DIED)
        return None

    def _grant(self, slot: Slot[T], owner: Owner, now: float, where: str | None) -> Lease[T]:
        slot.move(State.LEASED)
        lease = slot.lease = Lease(next(self._lease_ids), slot, owner, now, where)
        self.leases[lease.id] = lease
        self.figures.acquired += 1
        if slot.uses:
            self.figures.reused += 1
        slot.uses += 1
        return lease

    def _come_home(self, slot: Slot[T], now: float) -> None:
        reason = self._worn_out(slot, now)
        if reason is not None:
            self._retire(slot, reason)
        elif self.options.reset is not None or slot.kept is not None:
            self._begin_work(slot, now)
            self.work.append(self.hands.reset(slot))
        else:
            self._ready(slot, now)

    def _worn_out(self, slot: Slot[T], now: float) -> Reason | None:
        reason = self._stale(slot)
        if reason is not None:
            return reason
        if self.options.max_uses is not None and slot.uses >= self.options.max_uses:
            return Reason.USES
        if slot.expires_at <= now:
            return Reason.LIFETIME
        if self._surplus() > 0:
            return Reason.SHRUNK
        return None

    def _ready(self, slot: Slot[T], now: float, *, checked: bool = False) -> None:
        """An object is free: hand it to the first who takes it, or lay it with the idle ones."""
        if checked or self.options.check is None:
            waiter = self.queue.take_first()
            if waiter is not None:
                self.figures.waited(now - waiter.since)
                lease = self._grant(slot, waiter.owner, now, waiter.where)
                self._later(self.deliver, waiter, lease)
                return
        slot.move(State.IDLE)
        slot.idle_since = now
        self.idle.append(slot)
        if self.queue:
            self.plan()

    def _may_build(self, bound: int) -> bool:
        return len(self.slots) < bound and self.building - self._stuck < BUILDS_AT_ONCE

    def _supply(self) -> int:
        """How many who wait will be served without any holder's giving back.

        An object that is being reset or closed has no holder, so nobody is refused for its sake.
        """
        return max(0, self.options.max_size - len(self.leases))

    def _present(self) -> int:
        """Objects that are there or in the making, without those on their way out."""
        return len(self.slots) - self._closing

    def _surplus(self) -> int:
        return self._present() - self.options.max_size

    def _begin_build(self, waiter: Waiter | None, now: float) -> None:
        slot: Slot[T] = Slot(self._generation, wanted_by=waiter)
        if waiter is not None:
            waiter.has_build = True
        self.slots.add(slot)
        self.building += 1
        self._begin_work(slot, now)
        self.work.append(self.hands.build(slot))

    def _end_build(self, slot: Slot[T]) -> None:
        self._at_work.discard(slot)
        self.building -= 1
        self._stuck -= slot.stuck
        if slot.wanted_by is not None:
            slot.wanted_by.has_build = False

    def _begin_check(self, slot: Slot[T], now: float) -> None:
        slot.move(State.CHECKING)
        self._checking += 1
        self._begin_work(slot, now)
        self.work.append(self.hands.check(slot))

    def _begin_work(self, slot: Slot[T], now: float) -> None:
        slot.busy_since = now
        self._at_work.add(slot)

    def _retire(self, slot: Slot[T], reason: Reason) -> None:
        self.figures.retired[reason.value] += 1
        slot.reason = reason
        self._close(slot)

    def _close(self, slot: Slot[T]) -> None:
        """Have the object closed; it counts for the size until its `close` has returned."""
        slot.move(State.CLOSING)
        self._closing += slot in self.slots
        self._begin_work(slot, self.clock())
        self.work.append(self.hands.close(slot))

    def _abandon(self, slot: Slot[T], reason: Reason) -> None:
        """Code runs in the object that nobody waits for: replace it now, close it when that returns."""
        self.figures.retired[reason.value] += 1
        slot.reason = reason
        slot.move(State.ABANDONED)
        self.slots.discard(slot)
        self.strays.add(slot)
        if slot.place.owner is not None:
            patience = min(HOOK_BOUND, self.options.call_timeout or HOOK_BOUND)
            self.work.append(self.hands.stop(slot, _PATIENCE.get(reason, patience)))
        self.plan()

    def _can_be_stopped(self, slot: Slot[T]) -> bool:
        return slot.state in (State.BUILDING, State.ABANDONED) and slot.place.owner is not None

    def _note_fate(self, lease: Lease[T], how: str) -> None:
        if len(self.fates) >= _MOST_FATES:
            del self.fates[next(iter(self.fates))]
        self.fates[lease.id] = how

    def _uncount(self, slot: Slot[T]) -> None:
        self._closing -= slot.state is State.CLOSING and slot in self.slots
        self.slots.discard(slot)

    def _end_overdue(self, now: float) -> None:
        limit, warn = self.options.max_hold, self.options.warn_hold
        if limit is None and warn is None:
            return
        for lease in list(self.leases.values()):
            age = now - lease.granted_at
            if limit is not None and age >= limit:
                self.end_lease(lease, Reason.EXPIRED)
                self._later(self._tell_held, "took back", lease, age)
            elif warn is not None and age >= warn and not lease.late:
                lease.late = True
                self._later(self._tell_held, "still out is", lease, age)

    def _tell_held(self, what: str, lease: Lease[T], age: float) -> None:
        text = "pool %r: %s lease %d of %s, held for %.1f s, acquired at %s"
        log.warning(text, self.name, what, lease.id, lease.owner, age, lease.where)

    def _retire_old(self, now: float) -> None:
        for slot in list(self.idle):
            if slot.expires_at <= now and self._may_renew():
                self.idle.remove(slot)
                self._retire(slot, Reason.LIFETIME)
        longest = self.options.max_idle
        while longest is not None and self.idle and self._present() > self.options.min_size:
            if now - self.idle[0].idle_since < longest:
                return
            self._retire(self.idle.popleft(), Reason.IDLE)

    def _may_renew(self) -> bool:
        """Those that `min_size` asks for are renewed one by one, so that never all are away at once."""
        spare = self._present() > self.options.min_size
        return spare or len(self.idle) + len(self.leases) == len(self.slots)

    def _write_off(self, now: float) -> None:
        for slot in [each for each in self._at_work if now - each.busy_since >= HOOK_BOUND]:
            if slot.state is State.BUILDING:
                self._give_up_on(slot)
                continue
            self._at_work.discard(slot)
            self._later(log.error, _HUNG, self.name, slot.state.name.lower())
            if slot.state is State.CLOSING:
                self._uncount(slot)
                self.strays.add(slot)
                continue
            if slot.state is State.CHECKING:
                self._checking -= 1
            self._abandon(slot, Reason.HUNG)

    def _give_up_on(self, slot: Slot[T]) -> None:
        """A build may take long: it keeps its place, and goes on for the one whom it was begun for.

        When he is gone nobody else counts on it, lest a factory that hangs hold up all who come later.
        """
        if slot.wanted_by is None or not slot.wanted_by.waiting:
            self._at_work.discard(slot)
            self._stuck += 1
            slot.stuck = True

    def _fail(self, waiter: Waiter, error: PoolError) -> None:
        if self.queue.take(waiter):
            self._later(self.deliver, waiter, error)

    def _timeout_error(self, waited: float, now: float) -> PoolTimeout:
        longest = min(self.leases.values(), key=lambda each: each.granted_at, default=None)
        held = f"{len(self.leases)} held"
        if longest is not None:
            held += f" (longest by {longest.owner}, {now - longest.granted_at:.1f} s)"
        text = (
            f"pool {self.name!r}: no object came free in {waited:.3g} s: {held}, "
            f"{self.building} being built, {len(self.queue)} waiting, max_size={self.options.max_size}"
        )
        if self._last_failure is not None:
            text += f"; the last build failed: {self._last_failure}"
        return PoolTimeout(text)

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(f"pool {self.name!r} is closed")
