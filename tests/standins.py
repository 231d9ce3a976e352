"""Stand-ins for what a pool works with: time, threads, and objects that tell what became of them."""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

from mppool._pool.entry import Lease
from mppool._pool.pool import Pool
from mppool._pool.threads import ThreadCache
from mppool._pool.waiters import Outcome, Waiter
from mppool._system.processes import ProcessId
from mppool.errors import PoolError
from mppool.options import USE_DEFAULT, Timeout

Job = Callable[[], object]


class Clock:
    """Time that stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class InlineThreads(ThreadCache):
    """Does every job at once, in the thread that brings it."""

    def __init__(self) -> None:
        super().__init__("inline")

    def submit(self, job: Job) -> None:
        job()


class ManualThreads(ThreadCache):
    """Keeps the jobs until the test has them done, in any order: each may take as long as it likes."""

    def __init__(self) -> None:
        super().__init__("manual")
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def do(self, index: int = 0) -> None:
        self.jobs.pop(index)()

    def do_all(self) -> None:
        while self.jobs:
            self.do()


class Timeline(ThreadCache):
    """A crew whose jobs take a known time on a clock that jumps from one event to the next."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__("timeline")
        self.clock = clock
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

    def __init__(self, number: int) -> None:
        self.number = number

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

    def make(self) -> Thing:
        with self._lock:
            self._alive += 1  # from the first moment of its making
            self.most = max(self.most, self._alive)
        time.sleep(self._build_seconds)
        with self._lock:
            if self.fail_builds is not None:
                self._alive -= 1
                raise self.fail_builds
            thing = Thing(len(self.made))
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


class Caller:
    """One who asks a pool without a thread of his own, and remembers what he was told."""

    def __init__(self, pool: Pool[Any], timeout: Timeout = USE_DEFAULT, *, pid: int = 1, takes: bool = True):
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
    def lease(self) -> Lease[Any]:
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

    def give_back(self, *, discard: bool = False) -> None:
        self.pool.release(self.lease, discard=discard)


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
