"""Objects whose processes share no memory with their manager: it asks them, and they end by themselves.

And what has to hold most of all there, in every place: a holder that is called dead though it lives.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.managers import dispatch  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from actors import (
    Diary,
    Tool,
    Traveller,
    Witness,
    Worker,
    acquire,
    all_idle,
    lives,
    process_of,
    stop,
    stopped,
)
from far import FarManager, MistakenManager
from helpers import PROMPT, Beside, promptly, wait_until
from wire import ERROR, KEY, CallAgain, Stranger, connect

from mppool import FactoryError, LeaseLost, ManagerLost, ObjectPool, PoolManager, PoolTimeout
from mppool._process.far import FarFence, Floor
from mppool._process.runner import ObjectProcess, ProcessRunner
from mppool._system.processes import ProcessId
from mppool._wire.connection import Connection, beside

SECOND = 1.0


class Ledger(Tool):
    """Writes down whose calls reach it, and when."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, float]] = []

    def step(self, who: str) -> None:
        self._entries.append((who, time.monotonic()))

    def read(self) -> list[tuple[str, float]]:
        return self._entries

    def leave_something(self) -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            self.step("end of what was left")


def calls_since(ledger: Any, moment: float) -> list[str]:
    return [who for who, when in ledger.read() if when > moment]


@contextlib.contextmanager
def manager_for(home: str, watch_interval: float = 60.0) -> Iterator[PoolManager]:
    kind = FarManager if home == "far" else MistakenManager
    manager = kind(authkey=KEY, watch_interval=watch_interval)
    manager.start()
    with manager:
        yield manager


@pytest.fixture
def far(request: pytest.FixtureRequest) -> Iterator[PoolManager]:
    mark = request.node.get_closest_marker("manager")
    with manager_for("far", **(mark.kwargs if mark else {})) as manager:
        yield manager


def far_pool(manager: PoolManager, factory: Any = Ledger, **options: Any) -> ObjectPool[Any]:
    return manager.create_pool(factory, **{"isolation": "process", "max_size": 1, **options})


def home_in(pool: ObjectPool[Any]) -> psutil.Process:
    (info,) = pool.objects()
    return psutil.Process(info.pid)


# -- a holder wrongly called dead ---------------------------------------------------------------------

CALLERS = 4


def keep_calling(things: dict[str, Any]) -> None:
    """Call the object from many threads, also past what the handle knows of its lease."""
    things["refused"], things["stop"] = [0] * CALLERS, threading.Event()
    again = CallAgain(things["handle"])
    calls: list[Callable[[], object]] = [partial(again, "step", "old") for _ in range(CALLERS - 1)]
    for index, call in enumerate([partial(things["handle"].step, "old"), *calls]):
        threading.Thread(target=_call, args=(call, things, index), daemon=True).start()


def _call(call: Callable[[], object], things: dict[str, Any], index: int) -> None:
    stop, refused = things["stop"], things["refused"]
    while not stop.wait(random.random() / 1000):
        try:
            call()
        except (LeaseLost, ManagerLost):  # the latter of a process that was replaced, as it was called
            refused[index] += 1


def be_refused(things: dict[str, Any], times: int) -> None:
    """Return when each thread was refused so often, from now on."""
    before = [*things["refused"]]
    wait_until(lambda: all(now - was >= times for now, was in zip(things["refused"], before, strict=True)))


def stop_calling(things: dict[str, Any]) -> None:
    things["stop"].set()


@pytest.mark.parametrize("home", ["none", "thread", "process", "far"])
def test_a_holder_wrongly_called_dead_reaches_no_other_holders_object(home: str, worker: Worker) -> None:
    with manager_for(home) as manager:
        isolation = "process" if home == "far" else home
        pool = manager.create_pool(Ledger, isolation=isolation, max_size=1, on_reclaim="reset")
        shared = 0  # rounds in which both had the same object
        for _ in range(40):
            worker.do(acquire, pool)
            worker.do(keep_calling)
            with contextlib.closing(connect(manager.address, KEY)) as connection:
                dispatch(connection, None, "bury", (worker.pid,))
            with pool.lease(PROMPT) as ledger:
                granted = time.monotonic()
                ledger.step("new")
                worker.do(be_refused, 3)
                ledger.step("new")
                assert calls_since(ledger, granted) == ["new", "new"]
                shared += len(ledger.read()) > 2
            worker.do(stop_calling)
            if shared == 3:
                break
        assert shared
        assert pool.stats().reclaimed >= shared


# -- the end of a lease -------------------------------------------------------------------------------


def test_a_far_object_is_lent_again_and_again(far: PoolManager) -> None:
    pool = far_pool(far, max_size=4)
    with pool.lease() as ledger:
        home = ledger.pid()
    for _ in range(20):
        assert pool.apply(Tool.pid) == home
    wait_until(lambda: all_idle(pool, 1))
    assert pool.stats().built == 1


def test_what_a_lease_left_beside_a_far_object_goes_with_it(far: PoolManager) -> None:
    pool = far_pool(far)
    with pool.lease() as ledger:
        assert next(ledger.leave_something()) == 0
    with pool.lease() as ledger:
        assert [who for who, _ in ledger.read()] == ["end of what was left"]


def test_a_call_that_was_under_way_at_the_release_comes_before_the_next_lease_or_not_at_all(
    far: PoolManager,
) -> None:
    pool = far_pool(far)
    refused = 0
    for _ in range(10):
        handle = pool.acquire(PROMPT)
        handle.step("old")
        again = CallAgain(handle)
        with contextlib.closing(connect(again.channel.address, KEY)) as connection:
            with stopped(home_in(pool)):
                connection.send(again.request("step", "late"))
                pool.release(handle)
                wait_until(lambda: not pool.leases())
            refused += connection.recv()[0] == ERROR
        with pool.lease(PROMPT) as ledger:
            granted = time.monotonic()
            ledger.step("new")
            assert calls_since(ledger, granted) == ["new"]
    assert pool.stats().retired.get("interrupted", 0) <= 10 - refused


@pytest.mark.parametrize("calls", [False, True])
def test_a_grant_whose_arrival_is_in_doubt_is_kept_if_its_holder_has_called(
    far: PoolManager, calls: bool
) -> None:
    pool = far_pool(far)
    holder, lifeline = (Stranger(far, os.getpid()) for _ in range(2))
    lease_id, _, _, address, _ = holder.ask("acquire", pool, 5, None)
    with contextlib.closing(connect(address, KEY)) as connection:
        if calls:
            connection.send(("call", 0, lease_id, 0, "step", ("old",), {}))
            connection.recv()
        holder.hang_up()
        if calls:
            with pytest.raises(PoolTimeout):
                pool.acquire(SECOND)
        else:
            assert pool.apply(Ledger.read, timeout=PROMPT) == []
    lifeline.hang_up()


@pytest.mark.bounds(far=0.5)
def test_a_process_that_stands_still_at_the_end_of_a_lease_is_replaced(far: PoolManager) -> None:
    pool = far_pool(far, call_timeout=SECOND)
    handle = pool.acquire()
    home = home_in(pool)
    stop(home)
    with promptly():
        pool.release(handle)
        wait_until(lambda: [each.state for each in pool.objects()] == ["revoking"])
        assert pool.apply(Tool.pid) != home.pid
        wait_until(lambda: not lives(home))
    assert pool.stats().retired == {"interrupted": 1}


@pytest.mark.manager(watch_interval=0.1)
def test_a_call_that_runs_at_the_end_of_its_lease_ends_and_no_other_lease_waits_for_it(
    far: PoolManager, beside: Beside
) -> None:
    pool = far_pool(far, max_hold=SECOND)
    handle = pool.acquire()
    home = home_in(pool)
    napping = beside(handle.nap, 2 * SECOND)
    with pool.lease(PROMPT) as ledger:
        assert ledger.pid() != home.pid
        assert not napping.done()
    assert napping.result(PROMPT) == 2 * SECOND
    pool.release(handle)
    wait_until(lambda: not lives(home))
    assert pool.stats().retired == {"expired": 1}


# -- the end of processes -----------------------------------------------------------------------------

alone = pytest.mark.bounds(orphaned=60)
"""Nothing ends a far process whose manager is gone but itself: its launcher is patient."""


@alone
def test_a_far_object_closes_itself_when_its_manager_is_killed(far: PoolManager, diary: Diary) -> None:
    pool = far_pool(far, partial(Witness, diary.path), close=Witness.close)
    child = psutil.Process(pool.apply(Witness.start_a_child))
    home = home_in(pool)
    process_of(far).kill()
    with promptly():
        wait_until(lambda: not lives(home))
    assert diary.all_closed_once()
    wait_until(lambda: not lives(child))


@alone
def test_a_far_object_that_is_called_when_its_manager_is_killed_ends_at_once(
    far: PoolManager, diary: Diary, beside: Beside
) -> None:
    pool = far_pool(far, partial(Witness, diary.path), close=Witness.close)
    handle = pool.acquire()
    child = psutil.Process(handle.start_a_child())
    home, napping = home_in(pool), beside(handle.nap, 60)
    wait_until(lambda: home.status() == psutil.STATUS_SLEEPING)
    process_of(far).kill()
    with promptly():
        assert isinstance(napping.exception(), (LeaseLost, ConnectionError))
        wait_until(lambda: not lives(home) and not lives(child))
    pool.release(handle)


@alone
@pytest.mark.bounds(hook_of_orphan=0.5)
def test_a_close_hook_that_hangs_keeps_no_orphan_alive(far: PoolManager, diary: Diary) -> None:
    pool = far_pool(far, partial(Witness, diary.path), close=Witness.close_when_told)
    pool.apply(Witness.name)
    home = home_in(pool)
    process_of(far).kill()
    wait_until(lambda: diary.names("closing"))
    with promptly():
        wait_until(lambda: not lives(home))
    assert diary.closed() == []


@alone
def test_a_close_hook_that_is_not_known_far_away_keeps_no_orphan_alive(far: PoolManager) -> None:
    pool = far_pool(far, close=Traveller())
    pool.apply(Ledger.pid)
    home = home_in(pool)
    process_of(far).kill()
    with promptly():
        wait_until(lambda: not lives(home))


def test_a_shutdown_closes_far_objects_and_leaves_no_process(diary: Diary) -> None:
    with manager_for("far") as manager:
        pool = far_pool(manager, partial(Witness, diary.path), max_size=2, close=Witness.close)
        with pool.lease() as one, pool.lease() as other:
            homes = [psutil.Process(each.pid()) for each in (one, other)]
    assert diary.all_closed_once()
    assert len(diary.made()) == 2
    assert not any(lives(each) for each in homes)


def fail(pids: Path) -> None:
    pids.write_text(str(psutil.Process().pid))
    raise LookupError("not today")


def test_a_factory_that_fails_far_away_leaves_no_process(far: PoolManager, tmp_path: Path) -> None:
    pool = far_pool(far, partial(fail, tmp_path / "pid"))
    with pytest.raises(FactoryError, match="not today"):
        pool.acquire()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


class Lost(ObjectProcess):
    """A process that no kill reaches any more."""

    def __init__(self) -> None:
        self.control, self.there = connected()
        self.id, self.fence = ProcessId(1, None, elsewhere=True, node="far away"), FarFence(self.control)

    def start(self) -> None:
        self.there.send((True, "stands for the object"))  # the answer to the order to make it

    def exit_reason(self, timeout: float) -> str | None:
        return "cannot be reached" if self.control.has_ended() else None

    def kill(self) -> None:
        """In vain."""

    def clean_up(self) -> None:
        self.control.close()
        self.there.close()


@pytest.mark.bounds(hook_in_process=0.1)
def test_what_waits_for_a_process_goes_on_where_no_kill_reaches_it() -> None:
    runner = ProcessRunner(Lost(), cast("Any", None), has_loop=False, watch=bool)
    runner.create(Ledger)
    with promptly(), pytest.raises(ChildProcessError, match="its object cannot be reached"):
        runner.run(bool)
    assert not runner.alive
    runner.destroy(bool)


# -- both halves of the fence -------------------------------------------------------------------------


def test_a_floor_lets_calls_pass_until_their_lease_is_ended_by_an_answer() -> None:
    floor = Floor()
    assert floor.answer("called", 7) is False
    assert floor.enter(7)
    assert floor.answer("called", 7) is True
    floor.leave(None)
    assert floor.answer("revoke", 7) == (True, False)
    assert not floor.enter(7)
    assert not floor.enter(6)
    assert floor.enter(9)
    assert floor.answer("revoke", 9) == (False, False)
    floor.leave("a cursor")
    assert not floor.enter(9)


def test_a_floor_tells_what_the_calls_of_a_lease_left_and_of_no_other() -> None:
    floor = Floor()
    assert floor.enter(7)
    floor.leave("a cursor")
    assert floor.answer("revoke", 7) == (True, True)
    assert floor.answer("revoke", 8) == (True, False)


def connected() -> tuple[Connection, Connection]:
    ours, theirs = (Connection(each, "") for each in socket.socketpair())
    return ours, theirs


@contextlib.contextmanager
def sides() -> Iterator[tuple[FarFence, Connection]]:
    ours, theirs = connected()
    fence = FarFence(ours)
    fence.begin(7)
    with contextlib.closing(fence), contextlib.closing(theirs):
        yield fence, theirs


@pytest.mark.bounds(far=0.1)
def test_without_an_answer_a_holder_may_have_called_and_a_late_one_is_not_taken_for_the_next() -> None:
    with sides() as (fence, place):
        assert fence.called
        with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
            fence.revoke()
        questions = [place.recv(), place.recv()]
        assert [question for _, *question in questions] == [["called", 7], ["revoke", 7]]
        place.send((questions[0][0], False))
        place.send((questions[1][0], (False, False)))
        place.send((questions[1][0] + 1, (True, True)))
        assert fence.revoke()
        assert fence.has_leftovers


def test_a_place_that_hung_up_was_not_called_and_cannot_be_asked() -> None:
    with sides() as (fence, place):
        place.close()
        assert not fence.called
        with pytest.raises(ChildProcessError, match="hung up"):
            fence.revoke()
    with pytest.raises(ChildProcessError):  # a thread that comes too late
        fence.revoke()


def test_an_object_without_a_host_of_its_own_is_where_its_manager_is() -> None:
    assert beside(("host", 1), ("", 5)) == ("host", 5)
    assert beside(("host", 1), ("other", 5)) == ("other", 5)
    assert beside("/path", ("other", 5)) == ("other", 5)
    assert beside("/path", "/other") == "/other"
