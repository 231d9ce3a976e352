"""Stand-ins for what a pool works with: time, threads, and objects that tell what became of them."""

from __future__ import annotations

import heapq
import os
import pickle
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, cast

from mppool._buckets import BUCKETS
from mppool._pool.entry import Item, Lease, State
from mppool._pool.objects import HOT_SECONDS
from mppool._pool.pool import Pool, step
from mppool._pool.runner import InlineRunner, NewLeftovers, ThreadFence
from mppool._pool.threads import Job, ThreadCache
from mppool._pool.waiters import OnOutcome, Outcome, Waiter
from mppool._system.processes import ProcessId
from mppool._validation import USE_DEFAULT, Timeout
from mppool.errors import LeaseError, PoolError
from mppool.options import PoolOptions


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ManualThreads(ThreadCache):
    """Keeps the jobs until the test has them done, in any order; or does each `at_once`."""

    def __init__(self, *, at_once: bool = False) -> None:
        super().__init__("manual")
        self.jobs: list[Job] = []
        self._at_once = at_once

    def submit(self, job: Job) -> None:
        if self._at_once:
            job()
        else:
            self.jobs.append(job)

    def do(self, index: int = 0) -> None:
        self.jobs.pop(index)()

    def do_all(self) -> None:
        while self.jobs:
            self.do()


class Timeline(ThreadCache):
    """Threads whose jobs take a known time on a clock that jumps from one event to the next."""

    def __init__(self, seconds: float) -> None:
        super().__init__("timeline")
        self.clock = Clock()
        self._seconds = seconds
        self._events: list[tuple[float, int, Job]] = []
        self._numbers = count()

    def submit(self, job: Job) -> None:
        self.after(self._seconds, job)

    def after(self, seconds: float, job: Job) -> None:
        heapq.heappush(self._events, (self.clock.now + seconds, next(self._numbers), job))

    def run(self) -> None:
        while self._events:
            self.clock.now, _, job = heapq.heappop(self._events)
            job()


class Thing:
    """A pooled object."""

    def __init__(self, number: int, item: Any = None) -> None:
        self.number = number
        self.item = item

    def __repr__(self) -> str:
        return f"<Thing {self.number}>"


class Things:
    """Makes and closes things, counts them from inside, and fails where it is told to."""

    def __init__(self, build_seconds: float = 0.0) -> None:
        self.made: list[Thing] = []
        self.closed: Counter[Thing] = Counter()
        self.most = 0
        self.fail_builds: BaseException | None = None
        self._alive = 0
        self._build_seconds = build_seconds
        self._lock = threading.Lock()

    def make(self, item: Any = None) -> Thing:
        with self._lock:
            self._alive += 1  # from the first moment of its making
            self.most = max(self.most, self._alive)
        time.sleep(self._build_seconds)
        with self._lock:
            if self.fail_builds is not None:
                self._alive -= 1
                raise self.fail_builds
            thing = Thing(len(self.made), item)
            self.made.append(thing)
            return thing

    def close(self, thing: Thing) -> None:
        with self._lock:
            self._alive -= 1  # to the last of its end
            self.closed[thing] += 1

    @property
    def alive(self) -> list[Thing]:
        return [each for each in self.made if each not in self.closed]

    def all_closed_once(self) -> bool:
        return dict(self.closed) == dict.fromkeys(self.made, 1)


def nothing_left(_: object) -> list[object]:
    """What the first call of a lease finds, in the simplest form that will do."""
    return []


class OpenFence(ThreadFence):
    """Shows the lock of the present lease."""

    @property
    def lock(self) -> Any:
        return self._calling

    @lock.setter
    def lock(self, lock: Any) -> None:
        self._calling = lock


class AskedFence(OpenFence):
    """Has to be asked for the end of a lease."""

    fails: OSError | None = None
    """What comes instead of the answer."""

    def end(self) -> None:  # type: ignore[override]
        return None

    def revoke(self) -> bool:
        if self.fails is not None:
            raise self.fails
        return super().end()


class SteppedRunner(InlineRunner):
    """The test begins and ends calls."""

    def __init__(self, new_leftovers: NewLeftovers) -> None:
        self.fence = OpenFence()
        super().__init__(new_leftovers, self.fence)

    def begin_call(self, lease_id: int) -> None:
        assert self.fence.enter(lease_id)

    def end_call(self, lease_id: int, leaves: object = None) -> None:
        if leaves is not None:
            self.latest_caller = lease_id
            self.leftovers.append(leaves)
        self.fence.leave(self._leftovers)


class ApartRunner(SteppedRunner):
    """As if the object had a process of its own."""

    stoppable = True
    _pids = count(1000)

    def __init__(self, new_leftovers: NewLeftovers) -> None:
        super().__init__(new_leftovers)
        self.alive = True

    def create(self, factory: Callable[[], Any]) -> None:
        super().create(factory)
        self.process = ProcessId(next(self._pids), None)

    def run(self, do: Callable[[Any], Any]) -> Any:
        if not self.alive:
            raise ChildProcessError("killed")
        return super().run(do)

    def destroy(self, do: Callable[[Any], Any]) -> None:
        super().destroy(do if self.alive else lambda *_: None)

    def kill_after(self, timeout: float) -> None:
        self.alive = timeout > 0


class FarRunner(ApartRunner):
    """As if that process shared no memory with the pool."""

    def __init__(self, new_leftovers: NewLeftovers) -> None:
        super().__init__(new_leftovers)
        self.fence = self.gate = AskedFence()


ME = ProcessId(os.getpid(), None)


class LocalPool(Pool):
    """A pool for the threads of one process, which wait, instead of being told."""

    def __init__(
        self,
        factory: Callable[[], Any] | None,
        *,
        name: str = "pool",
        clock: Callable[[], float] = time.monotonic,
        threads: ThreadCache | None = None,
        new_leftovers: NewLeftovers = nothing_left,
        items: Iterable[Any] = (),
        runner: Callable[[NewLeftovers], InlineRunner] = SteppedRunner,
        **options: Any,
    ) -> None:
        self.wake_ups: list[float] = []
        super().__init__(
            factory,
            PoolOptions(**options),
            name=name,
            items=[Item(number, cast(bytes, item), repr(item)) for number, item in enumerate(items)],
            new_runner=partial(runner, new_leftovers),
            threads=threads or ThreadCache(name),
            wake_at=self.wake_ups.append,
            clock=clock,
        )

    def _chosen(self, timeout: Timeout) -> Any:
        return self.options.timeout if timeout is USE_DEFAULT else timeout

    def request(
        self, holder: ProcessId, deliver: OnOutcome, timeout: Timeout = USE_DEFAULT, where: str | None = None
    ) -> Lease | Waiter:
        return super().request(holder, deliver, self._chosen(timeout), where)

    def acquire(self, timeout: Timeout = USE_DEFAULT, holder: ProcessId = ME) -> Lease:
        answer: list[Outcome] = []
        arrived = threading.Event()

        def deliver(outcome: Outcome) -> bool:
            answer.append(outcome)
            arrived.set()
            return True

        got = self.request(holder, deliver, timeout)
        if isinstance(got, Lease):
            return got
        left = got.deadline - self._clock()
        if not arrived.wait(max(0.0, left) if left < threading.TIMEOUT_MAX else None):
            self.expire(got)
            arrived.wait()  # the outcome is certain now, and on its way
        if isinstance(answer[0], PoolError):
            raise answer[0]
        return answer[0]

    @contextmanager
    def lease(self, timeout: Timeout = USE_DEFAULT) -> Iterator[Any]:
        lease = self.acquire(timeout)
        yield lease.object
        self.release(lease)

    def release(self, lease: Lease, *, discard: bool = False) -> None:
        if not self.give_back(lease.id, discard=discard):
            raise LeaseError(f"pool {self.name!r}: lease {lease.id} was released or taken back before")

    @step
    def expire(self, waiter: Waiter) -> None:
        """The time of a waiter is over, whatever the clock says."""
        self._expire(waiter)

    def stuck(self) -> int:
        """How many builds hang."""
        return self._objects.count(State.STUCK)

    def close(self, timeout: Timeout = USE_DEFAULT) -> None:
        super().close(self._chosen(timeout))


class ThingPool(LocalPool):
    """A pool of things. Time stands still; slow work is done at once, or `by_hand`: when the test does it."""

    def __init__(
        self,
        *,
        by_hand: bool = False,
        line: Timeline | None = None,
        fails: Any = None,
        values: Iterable[Any] = (),
        **options: Any,
    ) -> None:
        self.things = Things()
        self.things.fail_builds = fails
        self.clock = line.clock if line else Clock()
        self.threads = ManualThreads(at_once=not by_hand)
        super().__init__(
            None if values else self.things.make,
            name="db",
            clock=self.clock,
            threads=line or self.threads,
            **{"close": self.things.close, "max_size": 1, "items": map(pickle.dumps, values), **options},
        )

    def after(self, seconds: float) -> None:
        """Let so much time pass."""
        self.clock.now += seconds
        self.tend()


class Delegated:
    """Both sides of a delegated lease, in one process: the token is a flag, and the record are fields.

    What the holder does has its steps, so that a test can have other things happen between them.
    """

    granted_at: float | None

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.is_home = False
        self.is_recalled = False
        self.is_over = False
        self._token: list[None] = []  # while it lies there, and neither side has it
        self.parked_at = 0.0
        self.uses = 0
        self.held: list[float] = []
        self.come_home: Callable[[], object] | None = None

    # -- what the pool relies on ----------------------------------------------------------------------

    def begin(self, granted_at: float, uses: int, until: float) -> None:
        self.granted_at, self.uses_left, self._until = granted_at, uses, until

    def recall(self) -> bool:
        self.is_recalled = True
        self.is_home = self.take() or self.is_home
        return self.is_home

    def await_home(self, come_home: Callable[[], object]) -> None:
        self.come_home = come_home

    def close(self) -> None:
        self.is_over, self.come_home = True, None

    @property
    def holds(self) -> tuple[list[int], float, float]:
        fell = Counter(bisect_left(BUCKETS, each) for each in self.held)
        return [fell[each] for each in range(len(BUCKETS) + 1)], sum(self.held), max(self.held, default=0.0)

    # -- what the holder does -------------------------------------------------------------------------

    def park(self) -> bool:
        if not self.may_park:
            return False
        self.record_parked()
        self.put()
        return True

    def resume(self) -> bool:
        if not (self.may_resume and self.take()):
            return False
        self.record_resumed()
        return True

    @property
    def may_park(self) -> bool:
        return not self.is_recalled and self.uses_left > 0

    def record_parked(self) -> None:
        assert self.granted_at is not None
        self.parked_at = self._clock()
        self.held.append(self.parked_at - self.granted_at)
        self.granted_at = None

    def put(self) -> None:
        self._token.append(None)

    @property
    def may_resume(self) -> bool:
        return not self.is_recalled and self._clock() < self._until

    @property
    def has_token(self) -> bool:
        """Whether it lies there."""
        return bool(self._token)

    def take(self) -> bool:
        try:
            self._token.pop()
        except IndexError:
            return False
        return True

    def record_resumed(self) -> None:
        self.uses_left -= 1
        self.uses += 1
        self.granted_at = self._clock()


class Call:
    """A call under a lease that runs until the test ends it; it may leave something behind."""

    def __init__(self, lease: Lease) -> None:
        self._lease_id = lease.id
        self._runner = cast("SteppedRunner", lease.entry.runner)
        self._runner.begin_call(lease.id)

    def end(self, *, leaves: object = None) -> None:
        """The call returns. To tell the pool is another step."""
        self._runner.end_call(self._lease_id, leaves)


@contextmanager
def calling(lease: Lease) -> Iterator[None]:
    """A call under a lease runs as long as the block."""
    call = Call(lease)
    yield
    call.end()


class Caller:
    """A process that asks a pool, and remembers what it was told."""

    def __init__(
        self, pool: LocalPool, timeout: Timeout = USE_DEFAULT, *, pid: int = 1, takes: bool = True
    ) -> None:
        self.pool = pool
        self.takes = takes
        self.told: list[Outcome] = []
        self.thing: Any = None
        self.waiter: Waiter | None = None
        got = pool.request(ProcessId(pid, None, f"worker-{pid}"), self._deliver, timeout, "here.py:1")
        if isinstance(got, Lease):
            self._deliver(got)
        else:
            self.waiter = got

    def _deliver(self, outcome: Outcome) -> bool:
        if self.takes:
            self.told.append(outcome)
            self.thing = outcome.object if isinstance(outcome, Lease) else None
        return self.takes

    @property
    def lease(self) -> Lease:
        (outcome,) = self.told
        assert isinstance(outcome, Lease)
        return outcome

    @property
    def error(self) -> PoolError:
        (outcome,) = self.told
        assert isinstance(outcome, PoolError)
        return outcome

    @property
    def waiting(self) -> bool:
        return not self.told

    def cancel(self) -> bool:
        assert self.waiter
        return self.pool.cancel(self.waiter)

    def give_back(self, *, discard: bool = False) -> None:
        self.pool.release(self.lease, discard=discard)


class Regular(Caller):
    """A process that has taken the same object again at once, and to which its lease is delegated."""

    def __init__(self, pool: ThingPool, *, pid: int = 1) -> None:
        Caller(pool, pid=pid).give_back()
        pool.clock.now += 2 * HOT_SECONDS  # if that was built, it had to be waited for
        Caller(pool, pid=pid).give_back()
        super().__init__(pool, pid=pid)
        assert self.lease.is_delegable
        self.delegated = Delegated(pool.clock)
        assert pool.delegate(self.lease, self.delegated)

    @classmethod
    def parked(cls, pool: ThingPool, *, pid: int = 1) -> Regular:
        """One that has given the object back by itself."""
        regular = cls(pool, pid=pid)
        assert regular.delegated.park()
        return regular


def side_by_side(number: int, target: Callable[[int], object], timeout: float = 30.0) -> None:
    """Run `target(0)`, `target(1)`, ... in threads that start together; raise the first error of any."""
    errors: list[BaseException] = []
    start = threading.Barrier(number)

    def run(index: int) -> None:
        try:
            start.wait(timeout)
            target(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
