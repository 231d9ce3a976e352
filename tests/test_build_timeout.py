"""Builds that hang: `build_timeout` gives their place back, wherever objects live."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import START_METHODS, Diary, Gate, Tool, Witness, all_idle, lives, manager_in
from helpers import promptly, wait_until
from standins import Caller, Clock, LocalPool, ManualThreads, Things

from mppool import FactoryError, ObjectPool, PoolManager, PoolTimeout
from mppool._process import launched
from mppool._process.launched import LaunchedProcess

BOUND = 20.0

# -- the policy ---------------------------------------------------------------------------------------


class Hanging:
    """A pool whose builds take as long as the test likes, and the time that passes for it."""

    def __init__(self, **options: Any) -> None:
        self.things = Things()
        self.clock = Clock()
        self.builds = ManualThreads()  # and whatever else takes long
        self.pool = LocalPool(
            self.things.make,
            name="db",
            clock=self.clock,
            threads=self.builds,
            build_timeout=BOUND,
            close=self.things.close,
            **options,
        )

    def wait(self, seconds: float) -> float | None:
        self.clock.now += seconds
        return self.pool.tend()

    def told(self, caller: Caller) -> str:
        assert isinstance(caller.error, FactoryError)
        return str(caller.error)


def test_a_build_that_hangs_gives_its_place_back() -> None:
    db = Hanging(max_size=1)
    first = Caller(db.pool, timeout=None)
    db.wait(BOUND - 0.1)
    assert first.waiting
    second = Caller(db.pool, timeout=None)
    assert len(db.builds.jobs) == 1
    db.wait(0.1)
    assert "pool 'db': the factory failed: no object after 20 s (build_timeout): see where" in db.told(first)
    assert isinstance(first.error.__cause__, TimeoutError)
    assert (db.pool.stats().size, db.pool.stats().failed_builds) == (1, 1)
    db.builds.do(1)
    assert second.thing is db.things.made[0]
    assert (db.pool.stats().size, db.pool.stats().building, db.pool.stats().leased) == (1, 0, 1)


def test_the_watchdog_is_told_when_a_build_must_be_over() -> None:
    db = Hanging(max_size=2)
    ends = db.clock.now + BOUND
    Caller(db.pool, timeout=None)
    assert db.pool.wake_ups == [ends]
    assert db.wait(5) == ends
    Caller(db.pool, timeout=1)
    assert db.pool.wake_ups == [ends, ends + 5]
    assert db.wait(0) == db.clock.now + 1
    assert db.wait(1) == ends
    db.builds.do_all()
    assert db.wait(1) is None


def test_what_is_made_too_late_is_closed_and_never_lent() -> None:
    db = Hanging(max_size=1)
    Caller(db.pool, timeout=None)
    db.wait(BOUND)
    second = Caller(db.pool, timeout=None)
    db.builds.do(0)
    assert second.waiting
    db.builds.do_all()
    late, made = db.things.made
    assert db.things.closed == {late: 1}
    assert second.thing is made
    assert (db.pool.stats().size, db.pool.stats().built, dict(db.pool.stats().retired)) == (1, 1, {})


def test_what_fails_too_late_is_told_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    db = Hanging(max_size=1)
    Caller(db.pool, timeout=None)
    db.wait(BOUND)
    second = Caller(db.pool, timeout=None)
    db.things.fail_builds = OSError("no route to host")
    db.builds.do(0)
    assert "a build that was given up has failed: OSError: no route to host" in caplog.text
    db.things.fail_builds = None
    db.builds.do_all()
    assert second.thing is db.things.made[0]
    assert db.pool.stats().failed_builds == 1


def test_a_waiter_that_gives_up_earlier_is_told_what_it_is_told_without_a_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    db = Hanging(max_size=1)
    caller = Caller(db.pool, timeout=BOUND - 1)
    db.wait(BOUND - 1)
    assert isinstance(caller.error, PoolTimeout)
    assert "1 being built" in str(caller.error)
    db.wait(1)
    assert "an object could not be built" in caplog.text
    assert "no object after 20 s (build_timeout)" in caplog.text
    assert db.pool.stats().size == 0
    served = Caller(db.pool, timeout=1)
    db.builds.do(1)
    assert served.thing is db.things.made[0]


def test_a_build_ahead_that_hangs_is_tried_again_after_the_usual_pause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    db = Hanging(min_size=1, max_size=2)
    db.wait(BOUND)
    assert "no object after 20 s (build_timeout)" in caplog.text
    assert (db.pool.stats().size, db.pool.stats().failed_builds) == (0, 1)
    db.wait(0.5)
    assert len(db.builds.jobs) == 1
    db.wait(0.6)
    assert len(db.builds.jobs) == 2
    db.builds.do(1)
    assert db.pool.stats().idle == 1


@pytest.mark.parametrize("well", [True, False])
def test_while_too_many_hang_acquires_that_need_a_build_fail_at_once(well: bool) -> None:
    db = Hanging(max_size=2)
    hung = [Caller(db.pool, timeout=None) for _ in range(2)]
    db.wait(1)
    later = Caller(db.pool, timeout=None)
    db.wait(BOUND - 1)
    assert all("no object after" in db.told(each) for each in hung)
    for each in [later, *(Caller(db.pool, timeout) for timeout in (None, 5.0, 0))]:
        assert "pool 'db': 2 builds hang, for over 20 s (build_timeout), max_size=2" in db.told(each)
    assert (db.pool.stats().size, db.pool.stats().waiting, len(db.builds.jobs)) == (0, 0, 2)
    db.things.fail_builds = None if well else OSError("at last")
    db.builds.do(0)  # one ends after all
    db.things.fail_builds = None
    served = Caller(db.pool, timeout=None)
    db.builds.do(-1)
    assert served.thing is db.things.made[-1]


def test_one_build_that_hangs_does_not_stop_a_pool_of_one_object_but_two_do() -> None:
    db = Hanging(max_size=1)
    for _ in range(2):
        caller = Caller(db.pool, timeout=None)
        db.wait(BOUND)
        assert "no object after" in db.told(caller)
    assert "2 builds hang" in db.told(Caller(db.pool, timeout=None))


def test_what_is_built_ahead_waits_while_too_many_hang() -> None:
    db = Hanging(min_size=2, max_size=2)
    db.wait(BOUND)
    for _ in range(3):
        db.wait(100)
    assert len(db.builds.jobs) == 2
    db.builds.do(0)
    db.wait(0)
    assert db.pool.stats().building == 2


def test_who_can_be_served_by_an_object_that_is_there_is_served_while_builds_hang() -> None:
    db = Hanging(max_size=3)
    holder = Caller(db.pool, timeout=None)
    db.builds.do()
    for _ in range(2):  # two at once, one alone
        hung = [Caller(db.pool, timeout=None) for _ in range(2)]
        db.wait(BOUND)
        assert all("no object after" in db.told(each) for each in hung)
    assert "4 builds hang" in db.told(Caller(db.pool, timeout=None))
    holder.give_back()
    assert Caller(db.pool, timeout=0).thing is holder.thing


@pytest.mark.bounds(last_call=0.05)
def test_a_pool_is_closed_whatever_hangs_and_closes_what_is_made_later() -> None:
    go_on, things = threading.Event(), Things()

    def make() -> Any:
        go_on.wait(30)
        return things.make()

    pool = LocalPool(make, max_size=1, build_timeout=0.01, close=things.close)
    caller = Caller(pool, timeout=None)
    wait_until(lambda: pool.tend() is None)
    assert isinstance(caller.error, FactoryError)
    with promptly():
        pool.close(None)
    assert not things.made
    go_on.set()
    wait_until(lambda: things.made and things.all_closed_once())


# -- where objects live -------------------------------------------------------------------------------


def is_served(pool: ObjectPool[Any]) -> bool:
    """Whether an acquire gets an object. On a busy machine a process may take too long to start."""
    try:
        return bool(pool.apply(Tool.echo_true))
    except FactoryError:
        return False


def is_first_at(place: Path) -> bool:
    try:
        place.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def hang(directory: Path) -> None:
    """Until the test opens the door."""
    wait_until((directory / "door").exists, 60)


class Connection(Witness):
    """The first ones hang, each with a program that it started."""

    def __init__(self, directory: Path, hanging: int = 1) -> None:
        if any(is_first_at(directory / str(number)) for number in range(hanging)):
            program = subprocess.Popen(["sleep", "1000"])
            (directory / "pids").write_text(f"{os.getpid()} {program.pid}")
            hang(directory)
            program.kill()
            program.wait()
        super().__init__(directory / "diary")


def has_ended(pid: int) -> bool:
    try:
        return not lives(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def connect(tmp_path: Path, diary: Diary) -> Callable[[], Connection]:
    return partial(Connection, tmp_path)


# What a manager builds in itself, it builds alike however it was started.
@pytest.mark.parametrize(
    ("isolation", "start_method"),
    [("none", "fork"), ("thread", "fork"), *(("process", each) for each in START_METHODS)],
)
def test_after_one_that_hangs_the_next_acquire_gets_an_object(
    tmp_path: Path, diary: Diary, connect: Callable[[], Connection], isolation: str, start_method: str
) -> None:
    in_process = isolation == "process"
    options: dict[str, Any] = {"isolation": isolation, "max_size": 1, "close": Connection.close}
    with manager_in(start_method) as manager:  # whose watchdog does not come by in time
        pool = manager.create_pool(connect, build_timeout=3.0 if in_process else 2.0, **options)
        with pytest.raises(FactoryError, match=r"no object after \d s \(build_timeout\)"), promptly():
            pool.acquire(timeout=30)
        wait_until(lambda: is_served(pool), 40)
        first, program = map(int, (tmp_path / "pids").read_text().split())
        if in_process:
            wait_until(lambda: has_ended(first) and has_ended(program))
            return
        assert diary.closed() == []
        (tmp_path / "door").touch()
        wait_until(lambda: len(diary.closed()) == 1)
        assert all_idle(pool, 1)
    assert len(diary.made()) == 2
    assert diary.all_closed_once()


@pytest.mark.everywhere
def test_a_pool_is_filled_though_its_first_build_hangs(
    tmp_path: Path, connect: Callable[[], Connection]
) -> None:
    with manager_in(watch_interval=0.1) as manager:
        pool = manager.create_pool(connect, min_size=1, max_size=1, build_timeout=1.0)
        wait_until(lambda: all_idle(pool, 1))
        assert pool.stats().failed_builds >= 1
        (tmp_path / "door").touch()


def test_builds_that_can_be_killed_never_are_too_many(tmp_path: Path, diary: Diary) -> None:
    with manager_in() as manager:
        connect = partial(Connection, tmp_path, hanging=2)
        pool = manager.create_pool(connect, isolation="process", min_size=2, max_size=2, build_timeout=4.0)
        with promptly():
            assert pool.apply(Tool.echo_true)


def hang_in_the_second_process(directory: Path) -> None:
    """The manager's is the first."""
    if not is_first_at(directory / "first") and is_first_at(directory / "second"):
        hang(directory)


def test_the_initializer_of_an_objects_process_is_part_of_its_build(tmp_path: Path) -> None:
    manager = PoolManager(ctx=multiprocessing.get_context("spawn"), watch_interval=60.0)
    manager.start(hang_in_the_second_process, (tmp_path,))
    with manager:
        pool = manager.create_pool(Tool, isolation="process", max_size=1, build_timeout=3.0)
        with pytest.raises(FactoryError, match="build_timeout"):
            pool.acquire()
        wait_until(lambda: is_served(pool), 40)
        assert (tmp_path / "second").exists()


class SlowToStart(LaunchedProcess):
    """The start of the first process hangs at the gate."""

    first: Path
    """Where the pid of that process is written."""

    def start(self) -> None:
        if not is_first_at(self.first):
            super().start()
            return
        assert Gate.present is not None
        Gate.present.pass_through()
        super().start()
        self.first.write_text(str(self.id.pid))


def hang_in_the_first(first: Path) -> Tool:
    if first.read_text() == str(os.getpid()):
        hang(first.parent)
    return Tool()


def test_a_process_that_takes_too_long_to_start_is_killed_when_it_is_there(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launched, "LaunchedProcess", SlowToStart)
    SlowToStart.first = tmp_path / "first"
    with manager_in() as manager:
        factory = partial(hang_in_the_first, SlowToStart.first)
        pool = manager.create_pool(factory, isolation="process", max_size=1, build_timeout=2.0)
        with pytest.raises(FactoryError, match="build_timeout"), promptly():
            pool.acquire()
        gate.open()
        wait_until(lambda: is_served(pool))
        first = wait_until(SlowToStart.first.read_text)
        wait_until(lambda: has_ended(int(first)))
