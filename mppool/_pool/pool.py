"""Objects that are lent to one holder at a time: one lock, and every decision that is made under it.

A method marked `@step` takes the lock; another with an underscore needs it held, unless it says otherwise.
No step does anything slow: no factory, hook, callback, thread or I/O. What is slow is put aside by
`_work.later` and `_on_thread`, and done when the lock is free again.

What is decided about is kept by `Objects`, `Leases`, `Delegated`, `Waiters` and `Failures`; what the pool
tells is counted by `Figures`, and said by `Refusals`. None of them knows the pool.
"""

from __future__ import annotations

import functools
import logging
import pickle
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Concatenate, ParamSpec, TypeVar

from mppool._system.processes import ProcessId
from mppool._validation import seconds
from mppool.errors import LeaseLost, PoolError, PoolTimeout
from mppool.options import HOOK_BOUND, PoolOptions, is_coroutine_function
from mppool.stats import LeaseInfo, ObjectInfo, PoolStats

from .delegated import Delegated
from .delegation import Delegation
from .entry import Item, Lease, PoolEntry, Reason, State
from .failures import Failures
from .figures import NOTHING_TOLD, Figures, UsageOf, lease_infos, object_infos
from .hooks import Failure, Hooks, Task
from .leases import Leases
from .objects import Objects
from .refusals import Refusals, no_object_in_time, too_large
from .runner import Runner
from .threads import ThreadCache
from .waiters import OnBuilt, OnOutcome, Waiter, Waiters
from .work import Work

log = logging.getLogger("mppool")

R = TypeVar("R")
P = ParamSpec("P")

BUILDS_AT_ONCE = 4
"""Builds side by side: enough to grow fast, too few to answer a short spike with a row of objects."""

LAST_CALL = 2.0
"""Seconds that closing a pool waits for code in it that cannot be stopped: builds, abandoned calls."""

# Seconds that abandoned code in a process gets to end before it is killed: else as a hook.
_GRACE = dict.fromkeys((Reason.CALL, Reason.RECLAIMED, Reason.HUNG, Reason.DIED, Reason.MEMORY_HARD), 0.0)
_GRACE[Reason.CLOSED] = LAST_CALL

_KILLED = frozenset({Reason.CALL, Reason.MEMORY_HARD})  # in a process, whether a call is running or not
_UNASKED = _KILLED | {Reason.DIED}  # for these a process is not asked whether one is

_REST = 1.0  # seconds in which a value that `check` refused is not tried again
_LIFETIME_SPREAD = 0.05
_DEFAULT_TIMEOUT = 30.0  # seconds; of an acquire that does not wait for a holder, but for a build


def step(method: Callable[Concatenate[Pool, P], R]) -> Callable[Concatenate[Pool, P], R]:
    """A step under the pool's lock, and then, with the lock free, the work that it brought about."""

    @functools.wraps(method)
    def locked(self: Pool, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with self._lock:
                return method(self, *args, **kwargs)
        finally:
            if self.closed:
                with self._lock:
                    self._changed.notify_all()  # first: what `close` waits for may have come about
            if self._work.tasks:
                self._work.do()

    return locked


class Pool:
    """Objects made by `factory`, lent to one holder each, first come first served.

    With `items` there is an object for each, at most: the factory gets its pickle. Without a factory the
    items themselves are lent.

    A server calls `request`, which never blocks, and is told the outcome by a callback. It also calls `tend`
    now and then, which lets time pass for all that depends on it.

    `new_runner` gives the next object the place where it is to live. `wake_at` is told when a build must be
    over: `tend` is needed then. `clock` gives seconds.
    """

    def __init__(
        self,
        factory: Callable[..., Any] | None,
        options: PoolOptions,
        *,
        name: str,
        items: Sequence[Item] = (),
        new_runner: Callable[[], Runner],
        threads: ThreadCache,
        wake_at: Callable[[float], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.options = options
        self.closed = False
        self.lends_values = factory is None
        self.is_asynchronous = is_coroutine_function(factory)
        self._checks_values = self.lends_values and options.check is not None
        self._hooks = Hooks(factory or pickle.loads, name, options)
        self._new_runner = new_runner
        self._threads = threads
        self._wake_at = wake_at
        self._clock = clock
        # Guards all that follows, and with it every entry, lease and waiter. Held for short steps only; the
        # lock of a fence is the only one that is touched (never waited for) under it.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # notified while the pool is being closed
        self._work = Work(name, self._lock)
        self._objects = Objects(items)
        self._leases = Leases()
        self._delegated = Delegated(options, self.lends_values)
        self._waiters = Waiters()
        self._expectant = Waiters()  # those that wait until `min_size` objects are there
        self._failures = Failures()
        self._figures = Figures(name)
        self._refusals = Refusals(name, self._objects, self._leases, self._waiters, self._failures)
        self._generation = 0
        self.resize()  # from nothing to its bounds

    # -- what is asked for ------------------------------------------------------------------------

    @step
    def request(
        self, holder: ProcessId, deliver: OnOutcome, timeout: float | None, where: str | None = None
    ) -> Lease | Waiter:
        """Ask for an object without blocking: a lease at once, or a place in the queue.

        Args:
            holder: the process that asks.
            deliver: is called once for a waiter, from any thread, with the lease or the error; if it returns
                False the lease goes to the next waiter.
            timeout: seconds; 0 does not wait for another holder, None waits for ever.
            where: file and line that asks.

        Raises:
            PoolTimeout: `timeout` is 0 and all objects are held.
            TooManyWaiting: `max_waiting` others wait.
            PoolClosed: the pool is closed.
        """
        seconds("timeout", timeout, zero=True)
        if self.closed:
            raise self._refusals.closed()
        now = self._clock()
        if not self._waiters and self.options.check is None and (entry := self._next_idle(now, holder)):
            is_delegable = self._delegated.is_worthwhile(entry, holder, now)
            lease = self._grant(entry, holder, now, where, waited=0.0)
            lease.is_delegable = is_delegable
            return lease
        bound = inf if timeout is None else timeout or self.options.timeout or _DEFAULT_TIMEOUT
        waiter = Waiter(holder, deliver, now, now + bound, where)
        self._waiters.append(waiter)
        self._plan()
        refusal = self._refusal(waiter, timeout)
        if refusal is not None:
            self._waiters.remove(waiter)
            raise refusal
        return waiter

    @step
    def await_min_size(self, holder: ProcessId, deliver: OnBuilt, timeout: float | None) -> Waiter | None:
        """Wait until `min_size` objects are there; None if they are.

        `deliver` is called once for a waiter, from any thread, when they are, or with the error.

        Raises:
            PoolTimeout: `timeout` is 0 and they are not there.
            PoolClosed: the pool is closed.
        """
        seconds("timeout", timeout, zero=True)
        if self.closed:
            raise self._refusals.closed()
        if self._objects.built >= self.options.min_size:
            return None
        now = self._clock()
        waiter = Waiter(holder, deliver, now, now + (inf if timeout is None else timeout))
        if timeout == 0:
            raise self._refusals.not_built(waiter, now, self.options)
        self._expectant.append(waiter)
        return waiter

    @step
    def delegate(self, lease: Lease, delegation: Delegation) -> bool:
        """Let the holder of a lease, which is about to learn of it, give it back and take it again by itself.

        False if it has ended since it was granted, another waits, or its object is to leave the pool.
        """
        if lease.over or self._waiters or self._worn_out(lease.entry, self._clock()) is not None:
            return False
        self._delegated.add(lease, delegation)
        return True

    @step
    def give_back(self, lease_id: int, *, discard: bool = False) -> bool:
        """End a lease as its holder asks; False (and counted) if it had ended before."""
        lease = self._leases.get(lease_id)
        if lease is None:
            self._figures.counts["late_releases"] += 1
            return False
        if lease.delegation is not None:
            lease.delegation.recall()
            lease.delegation.is_home = True  # as its holder says, wherever the token is
        if lease.late:
            held_for = self._clock() - lease.granted_at
            self._work.log(logging.WARNING, "%s gave back %s after %.1f s", lease.holder, lease, held_for)
        self._end_lease(lease, Reason.DISCARDED if discard else None)
        return True

    @step
    def give_up(self, lease_id: int, reason: Reason = Reason.CALL) -> None:
        """End a lease, unless it has ended: a call on it takes too long, or there is another reason."""
        if lease_id in self._leases:
            self._end_lease(self._leases[lease_id], reason)

    @step
    def cancel(self, waiter: Waiter) -> bool:
        """Take a waiter out of its queue; False if its outcome is on its way already."""
        return self._remove(waiter)

    @step
    def resize(self, min_size: int | None = None, max_size: int | None = None) -> None:
        """Change the bounds; idle objects beyond them go now."""
        now, items = self.options, len(self._objects.items)
        smallest = now.min_size if min_size is None else min_size
        largest = now.max_size if max_size is None else max_size
        options = replace(now, min_size=smallest, max_size=largest)  # which checks them
        if items and largest > items:
            raise ValueError(f"max_size={largest} is more than the {items} items of each")
        self.options = options
        self._recall_all()
        self._retire_idle(Reason.SHRUNK, keep=self.options.max_size)
        self._plan()

    @step
    def refresh(self) -> None:
        """From now on all present objects are old."""
        self._generation += 1
        self._recall_all()
        self._retire_idle(Reason.REFRESHED)
        self._plan()

    # -- what happens -----------------------------------------------------------------------------

    @step
    def tend(self) -> float | None:
        """Let time pass: time out waiters, end overdue leases, retire what is old, refill.

        Returns when it is next needed for a waiter or a build, on the pool's clock; None: for neither.
        """
        now = self._clock()
        for waiter in self._waiters.expired(now):
            self._expire(waiter)
        for waiter in self._expectant.expired(now):
            self._fail(waiter, self._refusals.not_built(waiter, now, self.options))
        self._end_overdue(now)
        self._retire_old(now)
        self._write_off(now)
        self._plan()
        due = [each.expires_at for each in self._objects.builds()]
        deadlines = self._waiters.next_deadline(), self._expectant.next_deadline()
        return min((each for each in (*due, *deadlines) if each is not None), default=None)

    @step
    def reclaim(self, holder: ProcessId) -> int:
        """Take back all that a process held and waited for; how many objects it held."""
        for waiter in [each for each in (*self._waiters, *self._expectant) if each.holder == holder]:
            self._remove(waiter)
        held = 0
        for lease in [each for each in self._leases.values() if each.holder == holder]:
            if lease.over:
                continue  # it was recalled meanwhile
            if self._delegated.recall(lease):
                self._end_lease(lease, None)  # it lay parked: nothing was held
                continue
            held += 1
            self._end_lease(lease, Reason.RECLAIMED if self.options.on_reclaim == "close" else None)
            self._work.log(logging.WARNING, "took back %s of %s, which has ended", lease, holder)
        self._figures.counts["reclaimed"] += held
        return held

    def process_died(self, process: ProcessId) -> None:
        """A process has ended: it may have been one in which an object lived. Takes the lock by itself."""
        with self._lock:
            lost = self._objects.living_in(process)
        for entry in lost:
            how = entry.runner.exit_reason()  # which may take a moment
            if how is not None:
                self._object_died(entry, how)

    @step
    def _object_died(self, entry: PoolEntry, how: str) -> None:
        if entry.state not in (State.LEASED, State.REVOKING, State.IDLE):
            return  # it is meant to end, or a factory or hook reports it
        self._work.log(logging.WARNING, "%s%s", how, entry.of_item)
        if entry.state is State.REVOKING:
            self._abandon(entry, Reason.DIED)
        elif entry.lease is not None:
            self._leases.remember(entry.lease, how)
            self._end_lease(entry.lease, Reason.DIED)
        else:
            self._retire(entry, Reason.DIED)

    @step
    def call_ended(self, lease: Lease) -> None:
        """A call returned, or was refused: if its lease is over and no other call runs, close the object."""
        entry = lease.entry
        if entry.state is State.ABANDONED and entry.lease is lease and entry.runner.fence.end():
            self._close(entry)

    @step
    def measured(self, memory: Mapping[ProcessId, int]) -> None:
        """So many bytes do the objects in these processes hold: those that hold too many go."""
        homes = self._objects.homes()
        soft, hard = self.options.max_memory or inf, self.options.max_memory_hard or inf
        for process in memory.keys() & homes.keys():
            entry = homes[process]
            entry.memory = memory[process]
            entry.is_large = entry.memory > soft
            if entry.memory > hard and not entry.is_killed:
                self._kill_large(entry)
        self._retire_old(self._clock())
        self._plan()

    # -- the policy -------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Begin what is wanted: idle objects to waiters, then builds for waiters, then up to `min_size`.

        - A waiter may be served by an idle object sooner than by the build that was begun for it: the idle
          one does not wait for that.
        - An object of which the lease is being revoked is back in a moment: nothing is built in its stead.
        - With a `check` the object comes to the waiter when it is found fine.
        - A build ahead that failed is tried again after a pause, one for a waiter at once.
        - While too many builds hang no other is begun: waiters that need one are told so.
        """
        if self.closed:
            return
        objects, idle, now = self._objects, self._objects.idle, self._clock()
        if self._waiters:
            self._delegated.waited_at = now
            self._recall_all()
        while idle and len(self._waiters) > objects.count(State.CHECKING) and (entry := self._next_idle(now)):
            if self.options.check is None:
                self._serve(entry, now)
            else:
                objects.move(entry, State.CHECKING, now)
                self._on_thread(self._hooks.check, self._ready, entry)
        unserved = len(self._waiters) - objects.count(State.BUILDING, State.CHECKING, State.REVOKING)
        while unserved > 0 and self._may_build(self.options.max_size, now):
            waiter = self._first_without_build()
            if self._too_many_hang():
                self._fail(waiter, self._refusals.builds_hang(self.options))
            else:
                self._begin_build(waiter, now)
            unserved -= 1
        ahead = self.options.min_size if now >= self._failures.retry_at else 0
        while self._may_build(ahead, now) and not self._too_many_hang():
            self._begin_build(None, now)
        if self._expectant and objects.built >= self.options.min_size:
            for waiter in list(self._expectant):
                self._remove(waiter)
                self._work.later(self._deliver, waiter, None)

    def _first_without_build(self) -> Waiter:
        """The first waiter for which no build is under way; there is one."""
        built_for = {each.wanted_by for each in self._objects.in_state(State.BUILDING)}
        return next(each for each in self._waiters if each not in built_for)

    def _refusal(self, waiter: Waiter, timeout: float | None) -> PoolError | None:
        """The error for the waiter that came last, if it must wait for a holder, but will not or may not.

        - An object that is being built, reset or closed has no holder: no acquire is refused for its sake.
        - With `timeout=0` a build that hangs is as good as a holder, and so is a value that was refused.
        """
        unserved = len(self._waiters) - max(0, self.options.max_size - len(self._leases))
        if timeout == 0:
            unserved += self._objects.count(State.STUCK)
            unserved += len(self._objects.unused) - len(self._objects.available(waiter.since))
        if unserved <= 0:
            return None
        self._figures.counts["exhausted"] += 1
        if timeout == 0:
            return self._timed_out(waiter, waiter.since)
        limit = self.options.max_waiting
        if limit is None or unserved <= limit:
            return None
        self._figures.counts["rejected"] += 1
        return self._refusals.too_many_waiting(unserved - 1, self.options)

    def _next_idle(self, now: float, holder: ProcessId | None = None) -> PoolEntry | None:
        """The idle object whose turn it is; those that may not be lent any more go on the way.

        Where none is idle, one that lies parked comes home.
        """
        idle = self._objects.idle
        while idle or self._recall_parked():
            if not idle:
                continue  # what came home was not fit to be lent
            entry = self._objects.next_idle(self.options.order, holder, now)
            reason = self._worn_out(entry, now)
            if reason is None:
                return entry
            self._retire(entry, reason)
        return None

    def _grant(
        self, entry: PoolEntry, holder: ProcessId, now: float, where: str | None, waited: float
    ) -> Lease:
        """Lend an object: it leaves its state in the same step that records its holder."""
        self._objects.move(entry, State.LEASED, now)
        lease = self._leases.begin(entry, holder, now, where)
        self._figures.waits.add(waited)
        self._figures.counts["reused"] += entry.uses > 0
        entry.uses += 1
        return lease

    def _serve(self, entry: PoolEntry, now: float) -> None:
        """Lend an object to the first waiter; there is one. If that is gone, the lease comes back."""
        waiter, _ = self._waiters.popitem(last=False)
        lease = self._grant(entry, waiter.holder, now, waiter.where, now - waiter.since)
        self._work.later(self._deliver, waiter, lease)

    def _remove(self, waiter: Waiter) -> bool:
        """Take a waiter out of its queue; False if it is in none any more."""
        return self._waiters.remove(waiter) or self._expectant.remove(waiter)

    def _fail(self, waiter: Waiter, error: PoolError) -> None:
        if self._remove(waiter):
            self._work.later(self._deliver, waiter, error)

    def _end_lease(self, lease: Lease, reason: Reason | None) -> None:
        """End a lease. Its object comes home, or leaves the pool if there is a reason.

        - It is free: no call is running.
        - The object's process has to be asked for that, on a thread. Up to its answer an old handle may
          call, and no other lease begins.
        - A call is running, or takes too long in a process, wherever in the call it hangs, or the process
          holds too much: nothing waits for it. The object is replaced now, and closed when the call ends.
        """
        entry, now = lease.entry, self._clock()
        self._leases.end(lease, reason)
        if (delegation := lease.delegation) is not None:
            self._delegated.end(lease, delegation, self._figures)
            self._work.later(delegation.close)
        if lease.parked_at is None:
            self._figures.holds.add(now - lease.granted_at)
        idle = entry.runner.fence.end()
        if idle and not (reason in _KILLED and entry.runner.stoppable):
            self._ready(entry, reason)
        elif idle is None and reason not in _UNASKED:
            self._objects.move(entry, State.REVOKING, now)
            self._on_thread(self._hooks.revoke, partial(self._revoked, reason), entry)
        else:
            self._abandon(entry, reason)

    def _recall(self, lease: Lease) -> None:
        """Have a delegated lease end: now, if it is parked, or when its holder gives the object back."""
        if self._delegated.recall(lease):
            self._end_lease(lease, None)
        elif lease.delegation is not None:  # else it is over, as of an object that was retired on the way
            self._work.later(lease.delegation.await_home, partial(self._come_home, lease))

    def _recall_all(self) -> None:
        for lease in self._delegated.take_all():
            self._recall(lease)

    def _recall_parked(self) -> bool:
        """Have a parked object come home; False if there is none."""
        lease = self._delegated.parked()
        if lease is not None:
            self._recall(lease)
        return lease is not None

    @step
    def _come_home(self, lease: Lease) -> None:
        """The holder of a recalled lease has given the object back, unless it has just taken it again."""
        if self._delegated.recall(lease):
            self._end_lease(lease, None)

    def _revoked(self, reason: Reason | None, entry: PoolEntry, idle: bool) -> None:
        if entry.state is not State.REVOKING:
            return  # it was abandoned meanwhile
        if idle:
            self._ready(entry, reason)
        else:
            self._abandon(entry, reason)

    def _ready(self, entry: PoolEntry, reason: Reason | None) -> None:
        """An object was built, checked or reset, or came home without a need for that.

        - It was abandoned while a hook hung in it, which has returned now.
        - There is a reason why it is not to be lent again.
        - It comes from a holder whose calls left something behind, or there is a `reset`: that goes first,
          on a thread.
        - It is fit to be lent as it is, being new or just checked: the first waiter gets it. A value that is
          given again is not new: it is checked.
        """
        if entry.state is State.ABANDONED:
            self._close(entry)
            return
        now = self._clock()
        home_since = now
        if entry.lease is not None:
            entry.last_holder, home_since = entry.lease.holder, entry.lease.parked_at or now
        entry.lease = None
        reason = reason or self._worn_out(entry, now)
        used = entry.state is State.LEASED or entry.state is State.REVOKING
        fit = not used and entry.state is not State.RESETTING
        fit = fit and (entry.state is State.CHECKING or not self._checks_values)
        if reason is not None:
            self._retire(entry, reason)
        elif used and (self.options.reset is not None or entry.runner.fence.has_leftovers):
            self._objects.move(entry, State.RESETTING, now)
            self._on_thread(self._hooks.reset, self._ready, entry)
        elif fit and self._waiters:
            self._serve(entry, now)
        else:
            self._objects.move(entry, State.IDLE, home_since)
        if fit or self._waiters:  # a build or check ended: another can begin
            self._plan()

    def _worn_out(self, entry: PoolEntry, now: float) -> Reason | None:
        """Why an object that no holder has is not to be lent; None if it may be."""
        options = self.options
        reason = None
        if self.closed:
            reason = Reason.CLOSED
        elif not entry.runner.alive:
            reason = Reason.DIED
        elif entry.generation != self._generation:
            reason = Reason.REFRESHED
        elif options.max_uses is not None and entry.uses >= options.max_uses:
            reason = Reason.USES
        elif entry.expires_at <= now:
            reason = Reason.LIFETIME
        elif entry.is_large:
            reason = Reason.MEMORY
        elif len(self._objects) > options.max_size and self._objects.present > options.max_size:
            reason = Reason.SHRUNK
        return reason

    def _may_build(self, bound: int, now: float) -> bool:
        objects = self._objects
        if objects.size >= bound or objects.count(State.BUILDING) >= BUILDS_AT_ONCE:
            return False
        return not objects.items or bool(objects.available(now))

    def _too_many_hang(self) -> bool:
        """Whether builds that were given up keep so many threads that another build would only add to them.

        One alone does not stop a pool of one object.
        """
        return self._objects.hung_threads >= max(2, self.options.max_size)

    def _begin_build(self, waiter: Waiter | None, now: float) -> None:
        ends = now + (self.options.build_timeout or inf)
        item = self._objects.available(now)[0] if self._objects.items else None
        entry = PoolEntry(self._new_runner(), self._generation, now, item, waiter, expires_at=ends, began=now)
        self._objects.add(entry)
        self._on_thread(self._hooks.build, self._built, entry)
        self._work.later(self._wake_at, ends)

    def _built(self, entry: PoolEntry, failure: Failure | None) -> None:
        if entry.state is State.HUNG:
            self._built_too_late(entry, failure)
            return
        if failure is not None:
            self._build_failed(entry, *failure)
            self._forget(entry, None)
            return
        now = self._clock()
        self._figures.builds.add(now - entry.since)
        self._failures.clear()
        early = random.random() * _LIFETIME_SPREAD
        entry.expires_at = now + (self.options.max_lifetime or inf) * (1 - early)
        self._ready(entry, None)

    def _build_hangs(self, entry: PoolEntry) -> None:
        """A build has taken longer than it may: it has failed, and its place is free."""
        error = no_object_in_time(self.options)
        self._build_failed(entry, error, str(error))
        self._leave(entry, State.HUNG, 0.0)

    def _built_too_late(self, entry: PoolEntry, failure: Failure | None) -> None:
        """A build that was given up has ended after all."""
        if failure is None:
            self._close(entry)
            return
        if not entry.runner.stoppable:  # else it was killed
            what = "a build%s that was given up has failed: %s"
            self._work.log(logging.WARNING, what, entry.of_item, failure[1])
        self._forget(entry, None)

    def _build_failed(self, entry: PoolEntry, error: BaseException, text: str) -> None:
        """Tell the waiter it was for, or the log."""
        self._figures.counts["failed_builds"] += 1
        waiter = entry.wanted_by
        self._failures.add(text + entry.of_item, self._clock(), ahead=waiter is None)
        if waiter in self._waiters:
            self._fail(waiter, self._refusals.build_failed(entry, error, text))
        elif not self.closed:
            self._work.log(logging.ERROR, "an object%s could not be built", entry.of_item, exc_info=error)

    def _retire(self, entry: PoolEntry, reason: Reason) -> None:
        """An object leaves the pool. One that is to be made of the same value is no better: not at once."""
        if reason is Reason.CHECK and self.lends_values and entry.item is not None:
            self._objects.resting[entry.item] = self._clock() + _REST
        if reason is Reason.MEMORY:
            self._tell_memory(entry, logging.INFO if entry.uses else logging.WARNING)
        self._figures.counts["retired"][reason.value] += 1
        self._close(entry)

    def _retire_idle(self, reason: Reason, keep: int = 0) -> None:
        """Retire idle objects until none is left, or so many objects are present."""
        for entry in list(self._objects.idle):
            if self._objects.present > keep:
                self._retire(entry, reason)

    def _close(self, entry: PoolEntry, close: Callable[[PoolEntry], None] | None = None) -> None:
        """Have the object closed, by its hook or as said; it counts for the size until that has returned."""
        uncounted = entry.state is State.ABANDONED or entry.state is State.HUNG
        closing = State.WRITTEN_OFF if uncounted else State.CLOSING
        self._objects.move(entry, closing, self._clock())
        self._on_thread(close or self._hooks.close, self._forget, entry)

    def _forget(self, entry: PoolEntry, _: None) -> None:
        """The object was closed, or never came to be: there is room for another."""
        self._objects.move(entry, State.GONE, self._clock())
        self._plan()

    def _abandon(self, entry: PoolEntry, reason: Reason | None) -> None:
        """Code runs in the object that nothing waits for: replace it now, close it when that returns.

        In a process it has so many seconds: the time of a call or hook, if what ended its lease was no sign
        that it hangs.
        """
        reason = reason or (Reason.INTERRUPTED if entry.runner.alive else Reason.DIED)
        self._figures.counts["retired"][reason.value] += 1
        grace = _GRACE.get(reason, min(HOOK_BOUND, self.options.call_timeout or HOOK_BOUND))
        self._leave(entry, State.ABANDONED, grace)
        self._plan()

    def _leave(self, entry: PoolEntry, state: State, grace: float) -> None:
        """Count no more on code that runs; in a process it has so many seconds to end."""
        self._objects.move(entry, state, self._clock())
        self._stop(entry, grace)

    def _stop(self, entry: PoolEntry, timeout: float) -> None:
        """Have the process of an object killed, or what its event loop awaits cancelled, after that time.

        What runs in another thread goes on.
        """
        if entry.runner.stoppable:
            self._on_thread(lambda each: each.runner.kill_after(timeout), self._killed, entry)
        else:
            self._work.later(entry.runner.cancel_after, timeout)

    def _killed(self, entry: PoolEntry, _: None) -> None:
        """The process has done what it was at, or is dead."""
        if entry.state is State.ABANDONED and entry.lease is not None:  # else a hook, which reports itself
            self._close(entry)

    def _kill_large(self, entry: PoolEntry) -> None:
        """Have the process of an object killed that holds more than any may, whatever runs there."""
        entry.is_killed = True
        state, error = entry.state, self._tell_memory(entry, logging.WARNING)
        if state is State.BUILDING or state is State.STUCK:
            self._build_failed(entry, error, str(error))
            self._leave(entry, State.HUNG, 0.0)
        elif state is State.LEASED and entry.lease is not None:
            self._leases.remember(entry.lease, str(error))
            self._end_lease(entry.lease, Reason.MEMORY_HARD)
        elif state is State.IDLE:
            self._figures.counts["retired"][Reason.MEMORY_HARD.value] += 1
            self._close(entry, self._hooks.kill)
        elif state in (State.CHECKING, State.REVOKING, State.RESETTING):  # what is asked there ends with it
            self._abandon(entry, Reason.MEMORY_HARD)
        else:  # it was counted when it left the pool, and has not ended yet
            self._stop(entry, 0.0)

    def _tell_memory(self, entry: PoolEntry, level: int) -> MemoryError:
        """Log how much an object holds that holds too much; returns this as an error."""
        error = too_large(entry, self.options)
        where = f"{entry.state.name.lower()}, lent {entry.uses_so_far} times, {entry.runner.process}"
        self._work.log(level, "%s (%s)%s", error, where, entry.of_item)
        return error

    # -- time -------------------------------------------------------------------------------------

    def _expire(self, waiter: Waiter) -> None:
        if waiter in self._waiters:
            self._fail(waiter, self._timed_out(waiter, self._clock()))

    def _timed_out(self, waiter: Waiter, now: float) -> PoolTimeout:
        self._figures.counts["timeouts"] += 1
        return self._refusals.timed_out(waiter, now, self.options)

    @step
    def timed_out(self, waiter: Waiter) -> PoolTimeout:
        """The error for one that waits in no queue here, but with others for an object. It is counted."""
        return self._timed_out(waiter, self._clock())

    def _end_overdue(self, now: float) -> None:
        limit, warn = self.options.max_hold or inf, self.options.warn_hold or inf
        for lease in list(self._leases.values()):
            age = now - lease.granted_at
            if age >= limit:
                self._end_lease(lease, Reason.EXPIRED)
                what = "took back"
            elif age >= warn and not lease.late:
                lease.late = True
                what = "still out is"
            else:
                continue
            text = "%s %s of %s, held for %.1f s, acquired at %s"
            self._work.log(logging.WARNING, text, what, lease, lease.holder, age, lease.where)

    def _retire_old(self, now: float) -> None:
        """Retire idle objects past `max_lifetime` or `max_memory`, those above `min_size` past `max_idle`.

        What `min_size` asks for is renewed one by one, so that never all are away at once.
        """
        objects, options = self._objects, self.options
        for lease in self._delegated.unfit(now):
            self._recall(lease)
        for entry in list(objects.idle):
            spare = objects.present > options.min_size
            if (entry.expires_at <= now or entry.is_large) and (spare or objects.all_others_lent()):
                self._retire(entry, Reason.LIFETIME if entry.expires_at <= now else Reason.MEMORY)
        for entry in list(objects.idle):
            too_long = options.max_idle is not None and now - entry.since >= options.max_idle
            if too_long and objects.present > options.min_size:
                self._retire(entry, Reason.IDLE)

    def _write_off(self, now: float) -> None:
        """What has not returned in time no longer counts.

        - A build, after `build_timeout`: it has failed. Until then it goes on for the waiter that it was
          begun for. When that is gone no other acquire counts on it, so that one that hangs does not hold up
          all that come later.
        - A check or reset, or an answer about a lease: the object is abandoned. A close: it is replaced.
        """
        for entry in self._objects.builds():
            if entry.expires_at <= now:
                self._build_hangs(entry)
        before = now - HOOK_BOUND
        hung = "a hook or answer (object %s)%s has not returned; the object no longer counts and is replaced"
        for entry in self._objects.overdue(State.BUILDING, before):
            if entry.wanted_by not in self._waiters:
                self._objects.move(entry, State.STUCK, entry.since)  # when its build began
        for state in (State.CHECKING, State.REVOKING, State.RESETTING, State.CLOSING):
            for entry in self._objects.overdue(state, before):
                self._work.log(logging.ERROR, hung, state.name.lower(), entry.of_item)
                if state is State.CLOSING:
                    self._objects.move(entry, State.WRITTEN_OFF, now)
                else:
                    self._abandon(entry, Reason.HUNG)

    # -- the end ----------------------------------------------------------------------------------

    def close(self, timeout: float | None) -> None:
        """Lend no more, fail all waiters, await held objects `timeout` seconds, close all objects.

        A lease that is still held then is over. Returns when every `close` hook has, or is past its
        `HOOK_BOUND`; builds and abandoned calls that are still running get `LAST_CALL` seconds to end.
        Closing again waits in the same way. Takes the lock by itself.
        """
        seconds("timeout", timeout, zero=True)
        self._shut()
        self._await(lambda: not self._leases, timeout)
        for lease_id in list(self._leases):
            self.give_up(lease_id, Reason.CLOSED)
        self._await(lambda: not self._objects, min(LAST_CALL, HOOK_BOUND))
        self._stop_all()
        self._await(self._objects.closed, HOOK_BOUND)

    @step
    def _shut(self) -> None:
        """Lend no more: fail all waiters, retire what is idle."""
        self.closed = True
        for waiter in [*self._waiters, *self._expectant]:
            self._fail(waiter, self._refusals.closed())
        self._recall_all()
        self._retire_idle(Reason.CLOSED)

    @step
    def _stop_all(self) -> None:
        """The code that still runs, but for `close` hooks, is ended where that can be done."""
        for entry in self._objects.running():
            self._stop(entry, 0.0)

    def _await(self, predicate: Callable[[], bool], timeout: float | None) -> None:
        """Wait until something is so, `timeout` seconds at most. Takes the lock by itself."""
        bounded = timeout if timeout is None or timeout < threading.TIMEOUT_MAX else None
        with self._lock:
            self._changed.wait_for(predicate, bounded)

    # -- with the lock free -----------------------------------------------------------------------

    def _on_thread(
        self, do: Callable[[PoolEntry], R], then: Callable[[PoolEntry, R], None], entry: PoolEntry
    ) -> None:
        """Something that may take long, to be done on a thread, and what comes then, under the lock."""
        self._work.later(self._threads.submit, Task(do, partial(self._go_on, then), entry))

    @step
    def _go_on(self, then: Callable[[PoolEntry, R], None], entry: PoolEntry, outcome: R) -> None:
        then(entry, outcome)

    def _deliver(self, waiter: Waiter, outcome: Any) -> None:
        try:
            taken = waiter.deliver(outcome)
        except Exception:
            log.exception("pool %r: an outcome could not be delivered", self.name)
            taken = False
        if not taken and isinstance(outcome, Lease):
            with self._lock:  # the work, of which this is a part, goes on with what this brings about
                if not outcome.over:
                    self._end_lease(outcome, None)
                    self._changed.notify_all()

    # -- what is told -----------------------------------------------------------------------------

    @step
    def stats(self) -> PoolStats:
        """How things stand, and what happened."""
        return self._figures.stats(self._objects, self._leases, len(self._waiters), self.options)

    @step
    def leases(self, usage: UsageOf = NOTHING_TOLD) -> list[LeaseInfo]:
        """Who holds what, the longest held first; with what the objects' processes use."""
        return lease_infos(self._leases, usage, self._clock())

    @step
    def objects(self, usage: UsageOf = NOTHING_TOLD) -> list[ObjectInfo]:
        """What objects there are, the oldest first; with what their processes use."""
        return object_infos(self._objects, usage, self._clock())

    @step
    def processes(self) -> set[ProcessId]:
        """The processes that hold or wait for an object, or in which one lives."""
        asking = [each.holder for each in (*self._leases.values(), *self._waiters, *self._expectant)]
        return {*self._objects.homes(), *asking}

    def homes(self) -> set[ProcessId]:
        """The processes that objects have for themselves. Takes the lock by itself."""
        with self._lock:
            return set(self._objects.homes())

    def held(self, lease_id: int) -> Lease:
        """The lease with this id, as long as it lasts; `LeaseLost` after that. Needs no lock."""
        try:
            return self._leases[lease_id]
        except KeyError:
            raise self.lost(lease_id) from None

    def lost(self, lease_id: int) -> LeaseLost:
        """The error for a lease that is over. Needs no lock."""
        return self._refusals.lost(lease_id)
