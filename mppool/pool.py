"""A pool for the threads of one process, and what a server makes one of for many.

`policy.py` decides, under the one lock here and in steps that do nothing slow; the pool does what was
decided when the lock is free again. Factories and hooks run on the crew's threads, so that nobody
waits for a build, check, reset or close that is not for him.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar, cast

from .crew import Crew
from .errors import LeaseError, LeaseLost, PoolError
from .hooks import Hooks
from .options import USE_DEFAULT, PoolOptions, Timeout, seconds
from .owner import Owner
from .place import Here, OwnThread, Place
from .policy import HOOK_BOUND, LAST_CALL, Policy, Work
from .slot import Lease, Reason, Slot
from .stats import LeaseInfo, PoolStats
from .waiter import Deliver, Outcome, Waiter

__all__ = ["Pool"]

log = logging.getLogger("mppool")

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


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
        crew: Crew | None = None,
        new_place: Callable[[], Place[T]] | None = None,
        **options: Any,
    ) -> None:
        if not callable(factory):
            raise TypeError(f"factory must be callable: {factory!r}")
        self.name = name
        self._clock = clock
        # Guards the policy, and with it every slot, lease and waiter. Held for short steps only.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # notified while the pool is being closed
        self._policy: Policy[T] = Policy(name, PoolOptions(**options), clock)
        if new_place is None:
            new_place = self._new_place()
        self._policy.hands = Hooks(
            factory, new_place, self._policy, crew or Crew(f"mppool {name}"), self._decide
        )
        self._policy.deliver = self._deliver
        self._decide(self._policy.plan)

    def __repr__(self) -> str:
        now = self.stats()
        return f"<Pool {self.name!r} idle={now.idle} leased={now.leased} waiting={now.waiting}>"

    @property
    def options(self) -> PoolOptions:
        """What the pool promises."""
        return self._policy.options

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
        patience = self._patience(timeout)
        got = self._decide(self._policy.request, owner, deliver, patience, where)
        if isinstance(got, PoolError):
            raise got
        return got

    def cancel(self, waiter: Waiter) -> bool:
        """Take a waiter out of the queue; False if its outcome is on its way already."""
        with self._lock:
            return self._policy.queue.leave(waiter)

    def expire(self, waiter: Waiter) -> None:
        """Give a waiter its `PoolTimeout`, unless it has been served."""
        self._decide(self._policy.expire, waiter)

    def held(self, lease_id: int) -> Lease[T]:
        """The lease with this id, as long as it lasts; `LeaseLost` after that."""
        try:
            return self._policy.leases[lease_id]
        except KeyError:
            raise self.lost(lease_id) from None

    def lost(self, lease_id: int) -> LeaseLost:
        """The error for a lease that is over."""
        how = self._policy.fates.get(lease_id, "it was released or taken back")
        return LeaseLost(f"pool {self.name!r}: lease {lease_id} is over: {how}")

    def give_back(self, lease_id: int, *, discard: bool = False) -> bool:
        """End a lease as its holder asks; False (and counted) if it had ended before."""
        lease = self._decide(self._policy.give_back, lease_id, Reason.DISCARDED if discard else None)
        if lease is None:
            return False
        if lease.late:
            held = self._clock() - lease.granted_at
            log.warning("pool %r: %s gave back lease %d after %.1f s", self.name, lease.owner, lease.id, held)
        return True

    def give_up(self, lease_id: int) -> None:
        """End a lease on which a call takes too long, unless it has ended."""
        self._decide(self._policy.give_up, lease_id)

    def call_ended(self, lease: Lease[T]) -> None:
        """A call returned: if its lease ended meanwhile, the object can be closed now."""
        if not lease.over:
            return
        self._decide(self._policy.call_ended, lease)

    # -- time and death -----------------------------------------------------------------------------

    def reclaim(self, owner: Owner) -> int:
        """Take back all that a process held and waited for; how many leases that were."""
        leases = self._decide(self._policy.reclaim, owner)
        for lease in leases:
            log.warning("pool %r: took back lease %d of %s, which has ended", self.name, lease.id, owner)
        return len(leases)

    def bury(self, owner: Owner) -> None:
        """A process has ended: it may have been one in which an object lived."""
        for slot in self._slots():
            how = slot.place.fate() if slot.place.owner == owner else None
            if how is not None and self._decide(self._policy.died, slot, how):
                log.warning("pool %r: %s", self.name, how)

    def homes(self) -> set[Owner]:
        """The processes in which objects live."""
        return {each.place.owner for each in self._slots() if each.place.owner is not None}

    def owners(self) -> set[Owner]:
        """Everyone who holds or waits for an object."""
        policy = self._policy
        with self._lock:
            return {each.owner for each in policy.leases.values()} | {each.owner for each in policy.queue}

    def tend(self) -> float | None:
        """Let time pass: time out waiters, end overdue leases, retire what is old, refill.

        Returns when it is next needed for a waiter, on the pool's clock; None: for no waiter.
        """
        return self._decide(self._policy.pass_time)

    # -- control ------------------------------------------------------------------------------------

    def resize(self, min_size: int | None = None, max_size: int | None = None) -> None:
        """Change the bounds; what is too much goes when it is idle. Errors as of `PoolOptions`."""
        self._decide(self._policy.resize, min_size, max_size)

    def refresh(self) -> None:
        """Retire every present object: the idle ones now, a held one as it comes home."""
        self._decide(self._policy.refresh)

    def stats(self) -> PoolStats:
        """How things stand."""
        policy = self._policy
        with self._lock:
            counted = vars(policy.figures) | {"retired": dict(policy.figures.retired)}
            return PoolStats(
                name=self.name,
                size=len(policy.slots),
                idle=len(policy.idle),
                leased=len(policy.leases),
                building=policy.building,
                waiting=len(policy.queue),
                **counted,
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
                for each in self._policy.leases.values()
            ]

    def close(self, timeout: Timeout = USE_DEFAULT) -> None:
        """Lend no more, fail all waiters, await held objects `timeout` seconds, close all objects.

        A lease that is still held then is over. Returns when every `close` hook has, or is past its
        `HOOK_BOUND`; builds and abandoned calls that are still running get `LAST_CALL` seconds to end.
        Closing again waits in the same way.
        """
        patience, policy = self._patience(timeout), self._policy
        self._decide(policy.shut)
        with self._lock:
            self._changed.wait_for(
                lambda: not policy.leases, None if patience is None else _bounded(patience)
            )
        self._decide(policy.end_all_leases)
        with self._lock:
            self._changed.wait_for(lambda: not (policy.slots or policy.strays), min(LAST_CALL, HOOK_BOUND))
        self._decide(policy.stop_all)
        with self._lock:
            self._changed.wait_for(lambda: not policy.any_ending(), HOOK_BOUND)

    def _slots(self) -> set[Slot[T]]:
        with self._lock:
            return self._policy.slots | self._policy.strays

    def _new_place(self) -> Callable[[], Place[T]]:
        isolation = self.options.isolation
        if isolation == "process":
            raise ValueError("isolation='process' needs a PoolManager: this pool is for threads only")
        return Here if isolation == "none" else partial(OwnThread, f"mppool object of {self.name}")

    # -- what was decided, done with the lock free ----------------------------------------------------

    def _patience(self, timeout: Timeout) -> float | None:
        if timeout is USE_DEFAULT:
            return self.options.timeout
        seconds("timeout", timeout, zero=True)
        return timeout  # type: ignore[return-value]  # the default, by its identity, is out

    def _decide(self, decision: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """One step of the policy, and the work that it brings about."""
        with self._lock:
            result = decision(*args, **kwargs)
            work = self._take_work_locked()
        if work:
            self._do(work)
        return result

    def _take_work_locked(self) -> Work:
        policy = self._policy
        if policy.closed:
            self._changed.notify_all()
        if not policy.work:
            return []
        work, policy.work = policy.work, []
        return work

    def _do(self, work: Work) -> None:
        while work:
            try:
                while work:
                    work[0]()  # nothing in it minds being done twice
                    del work[0]
            except BaseException:  # a signal handler's: whoever decides next does the rest
                with self._lock:
                    self._policy.work[:0] = work
                raise
            with self._lock:  # a lease that nobody took brings about more
                work = self._take_work_locked()

    def _deliver(self, waiter: Waiter, outcome: Outcome) -> None:
        try:
            taken = waiter.deliver(outcome)
        except Exception:
            log.exception("pool %r: an outcome could not be delivered", self.name)
            taken = False
        if not taken and isinstance(outcome, Lease):
            with self._lock:  # `_do`, which called, goes on with what this brings about
                if not outcome.over:
                    self._policy.end_lease(outcome, None)


def _caller() -> str:
    """File and line of the code outside of this module that asks."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "contextlib"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _bounded(wait: float) -> float | None:
    """Seconds as `threading` takes them: none below 0, and None for more than it can count."""
    return max(0.0, wait) if wait < threading.TIMEOUT_MAX else None
