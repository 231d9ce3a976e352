"""What objects hold and use, and what becomes of those that hold too much."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import pytest
from actors import Diary, Tool, Witness, all_idle, lives, manager_in
from eater import HUGE, LARGE, MIB, Eater, make_and_hang, overeat_once
from helpers import Beside, do_without_linux, promptly, wait_until
from standins import ApartRunner, Call, Caller, ManualThreads, ThingPool

from mppool import FactoryError, LeaseLost, ObjectPool, PoolManager
from mppool._server import gauge as gauging
from mppool._server.gauge import Gauge
from mppool._system import PORTABLE
from mppool._system.processes import ProcessId
from mppool._system.usage import ProcessTable, Usage

SOFT, HARD = 80 * MIB, 200 * MIB
IN_HARD = f"{HARD:,}"

# Spawned: what is forked from here begins with all that this process holds, which may be more than a bound.
pytestmark = pytest.mark.manager(start_method="spawn", watch_interval=0.05)


@pytest.fixture(params=["linux", "portable"])
def _platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to measure; named before what starts the manager."""
    if request.param == "portable":
        do_without_linux(monkeypatch)


@pytest.fixture
def new_pool(manager: PoolManager, diary: Diary) -> Callable[..., ObjectPool[Any]]:
    """Make a pool of one eater of some size, with a process of its own, or as the options say."""

    def new_pool(size: int = 0, **options: Any) -> ObjectPool[Any]:
        make = partial(Eater, diary.path, size)
        return manager.create_pool(make, **{"isolation": "process", "max_size": 1, **options})

    return new_pool


NewPool = Callable[..., ObjectPool[Any]]


def wait_for_look(new_pool: NewPool) -> None:
    """Wait until what there is now has been measured: a large object that is made now is gone by then."""
    with new_pool(LARGE, min_size=1, max_memory=SOFT) as pool:
        wait_until(lambda: pool.stats().retired)


# -- replaced -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_platform")
def test_a_large_object_is_replaced_when_it_comes_home(new_pool: NewPool, diary: Diary) -> None:
    pool = new_pool(max_memory=SOFT, close=Witness.close)
    with pool.lease() as eater:
        name = eater.name()
        eater.grow(LARGE)
        wait_for_look(new_pool)
        assert eater.name() == name, "its holder keeps it"
    with pool.lease() as eater:
        assert eater.name() != name
    assert pool.stats().retired == {"memory": 1}
    wait_until(lambda: name in diary.closed())


def test_one_that_was_large_for_a_while_stays(new_pool: NewPool) -> None:
    pool = new_pool(max_memory=SOFT)
    with pool.lease() as eater:
        eater.grow(LARGE)
        wait_for_look(new_pool)
        eater.shrink()
        wait_for_look(new_pool)
    with pool.lease():
        assert pool.stats().retired == {}


@pytest.mark.parametrize("bound", ["memory", "memory_hard"])
def test_one_that_becomes_large_while_it_lies_idle_goes(bound: str, new_pool: NewPool, diary: Diary) -> None:
    pool = new_pool(min_size=1, **{f"max_{bound}": SOFT})
    with pool.lease() as eater:
        eater.grow_when_told(LARGE)
    diary.path.with_name("go").touch()
    wait_until(lambda: pool.stats().retired == {bound: 1})
    wait_until(lambda: all_idle(pool, 1))


# -- killed -------------------------------------------------------------------------------------------

TOLD = f"lease .* is over: its object held [0-9,]{{11}} bytes, more than max_memory_hard={IN_HARD}"


@pytest.mark.usefixtures("_platform")
def test_a_huge_object_is_killed_in_a_call(new_pool: NewPool, beside: Beside, diary: Diary) -> None:
    pool = new_pool(max_memory=SOFT, max_memory_hard=HARD, close=Witness.close)
    eater = pool.acquire()
    process = psutil.Process(eater.pid())
    waiter = beside(pool.acquire)
    for call in (eater.grow_and_hang, eater.echo_true):
        with promptly(), pytest.raises(LeaseLost, match=TOLD):
            call()
    pool.release(eater)
    pool.release(waiter.result())
    wait_until(lambda: not lives(process))
    assert pool.stats().retired == {"memory_hard": 1}
    assert diary.closed() == []


def test_a_huge_object_is_killed_between_two_calls(new_pool: NewPool) -> None:
    with new_pool(max_memory_hard=HARD).lease() as eater:
        process = psutil.Process(eater.pid())
        with contextlib.suppress(LeaseLost):  # it may be seen before this has returned
            eater.grow(HUGE)
        wait_until(lambda: not lives(process))
        with pytest.raises(LeaseLost, match=TOLD):
            eater.echo_true()


def test_a_huge_object_is_killed_in_apply(new_pool: NewPool) -> None:
    with promptly(), pytest.raises(LeaseLost, match=TOLD):
        new_pool(max_memory_hard=HARD).apply(Eater.grow_and_hang)


@pytest.mark.parametrize("hook", ["check", "reset"])
def test_a_huge_object_is_killed_in_a_hook(hook: str, new_pool: NewPool, diary: Diary) -> None:
    pool = new_pool(max_memory_hard=HARD, **{hook: partial(overeat_once, diary.path.with_name("once"))})
    with promptly():
        for _ in range(2):
            with pool.lease() as eater:
                assert eater.echo_true()
    wait_until(lambda: pool.stats().retired == {"memory_hard": 1})


def test_a_huge_object_is_killed_in_its_close(new_pool: NewPool) -> None:
    pool = new_pool(max_memory_hard=HARD, close=Eater.grow_and_hang)
    pool.release(pool.acquire(), discard=True)
    with promptly(), pool.lease():
        assert pool.stats().retired == {"discarded": 1}


def test_a_huge_object_is_killed_while_it_is_built(manager: PoolManager, diary: Diary) -> None:
    make = partial(make_and_hang, diary.path)
    pool = manager.create_pool(make, isolation="process", max_size=1, max_memory_hard=HARD)
    with promptly(), pytest.raises(FactoryError, match=f"more than max_memory_hard={IN_HARD}") as caught:
        pool.acquire()
    assert isinstance(caught.value.__cause__, MemoryError)
    wait_until(lambda: not pool.objects())
    assert (pool.stats().failed_builds, pool.stats().retired) == (1, {})


# -- what is counted ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_platform")
@pytest.mark.parametrize("way", ["child", "session", "orphan", "daemon"])
def test_what_it_has_started_counts_until_both_links_are_cut(way: str, new_pool: NewPool) -> None:
    pool = new_pool()
    with pool.lease() as eater:
        process = psutil.Process(eater.start(way))
        (found,) = pool.objects()
        process.kill()
    assert found.memory is not None
    assert (found.memory > LARGE) == (way != "daemon")


@pytest.mark.skipif(PORTABLE or sys.platform != "linux", reason="elsewhere a page counts in each process")
def test_a_page_that_several_have_counts_once(new_pool: NewPool) -> None:
    pool = new_pool(LARGE, max_memory=HARD)
    with pool.lease() as eater:
        eater.start_twins(2)
        (found,) = pool.objects()
        assert found.memory is not None
        assert LARGE < found.memory < HARD
        wait_for_look(new_pool)
    with pool.lease():
        assert pool.stats().retired == {}


# -- what is told -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_platform")
@pytest.mark.manager(start_method="spawn", watch_interval=60.0)
def test_figures_are_of_the_moment(new_pool: NewPool) -> None:
    pool = new_pool(max_size=2)
    with pool.lease() as eater, pool.lease():
        pid = eater.pid()
        eater.burn(0.2)
        eater.grow(LARGE)
        wait_until(lambda: any((each.memory or 0) > LARGE for each in pool.objects()))
        large, small = sorted(pool.objects(), key=lambda each: each.pid != pid)
        (lease, _) = pool.leases()
    assert {large.number, small.number} == {0, 1}
    assert (large.state, large.uses, large.pid) == ("leased", 1, pid)
    assert large.memory is not None
    assert small.memory is not None
    assert large.memory > LARGE > small.memory > MIB
    assert large.cpu_seconds is not None
    assert large.cpu_seconds >= 0.2
    assert lease.memory == large.memory
    assert lease.cpu_seconds == large.cpu_seconds
    assert lease.object_age > lease.age
    wait_until(lambda: all_idle(pool, 2))
    assert {each.state for each in pool.objects()} == {"idle"}


@pytest.mark.parametrize("isolation", ["none", "thread"])
def test_what_shares_the_managers_process_has_an_age(isolation: str, new_pool: NewPool) -> None:
    pool = new_pool(isolation=isolation)
    with pool.lease():
        (found,), (lease,) = pool.objects(), pool.leases()
    assert (found.pid, found.memory, found.cpu_seconds, found.uses) == (None, None, None, 1)
    assert (lease.memory, lease.cpu_seconds) == (None, None)
    assert lease.object_age > lease.age > 0
    assert lease.object_age > found.age > 0, "which was asked for first"


# -- how it is measured -------------------------------------------------------------------------------


class Machine:
    """Stands in for the processes of a machine, and counts how often they are looked at."""

    def __init__(self) -> None:
        self.resident: dict[ProcessId, int] = {}
        self.shared = 0
        self.looks = self.exact = 0
        self.refuses: BaseException | None = None
        self.fails_for: ProcessId | None = None
        self.meanwhile: Callable[[], object] = bool

    def __call__(self) -> Machine:
        self.looks += 1
        self.meanwhile()
        if self.refuses:
            raise self.refuses
        return self

    def usage(self, home: ProcessId) -> Usage | None:
        if home == self.fails_for:
            raise OSError("no descriptor is free")
        memory = self.resident.get(home)
        return None if memory is None else Usage(memory, 0.0)

    def exact_memory(self, home: ProcessId) -> int:
        self.exact += 1
        return self.resident[home] - self.shared


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(gauging, "process_table", machine)
    monkeypatch.setattr(gauging, "is_gone", lambda _: False)
    return machine


def apart(**options: Any) -> ThingPool:
    return ThingPool(**{"runner": ApartRunner, "isolation": "process", **options})


def home(pool: ThingPool) -> ProcessId:
    (process,) = pool.homes()
    return process


def new_gauge() -> Gauge:
    return Gauge(ManualThreads(at_once=True))


def look(gauge: Gauge, *pools: ThingPool) -> None:
    """Let the gauge look, however soon it is."""
    with pytest.MonkeyPatch.context() as to:
        to.setattr(gauging.time, "monotonic", lambda: float("inf"))
        gauge.look_soon(pools)


def test_the_exact_figure_is_asked_for_where_it_decides(machine: Machine) -> None:
    pool, gauge = apart(max_memory=100, max_memory_hard=1000), new_gauge()
    lease = pool.acquire()
    machine.shared = 50

    def exact_after(resident: int) -> int:
        before = machine.exact
        machine.resident[home(pool)] = resident
        look(gauge, pool)
        return machine.exact - before

    assert exact_after(100) == 0
    assert exact_after(101) == 1, "51 in truth"
    assert exact_after(140) == 0, "90"
    assert exact_after(160) == 1, "110: it is to go"
    assert exact_after(900) == 0, "so it is"
    assert exact_after(130) == 1, "80: it may stay"
    assert sum(exact_after(130) for _ in range(30)) in (2, 3), "now and then: shared pages become its own"
    assert pool.stats().retired == {}
    pool.release(lease)
    assert pool.stats().retired == {}


def test_without_a_bound_nothing_is_measured(diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    def note() -> None:
        diary.path.write_text("looked")
        raise PermissionError

    monkeypatch.setattr(gauging, "process_table", note)
    with manager_in(watch_interval=0.02) as manager:
        pool = manager.create_pool(Tool, isolation="process", max_size=1, max_idle=0.2)
        pool.apply(Tool.pid)
        wait_until(lambda: pool.stats().retired == {"idle": 1})
        assert diary.path.read_text() == "", "it was tended several times"
        pool = manager.create_pool(Tool, isolation="process", max_size=1, max_memory=SOFT)
        wait_until(diary.path.read_text)
        assert pool.apply(Tool.echo, 1) == 1, "all else goes on"


def test_looks_take_a_small_share_of_a_core(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, gauge = apart(min_size=1, max_memory=100), new_gauge()
    machine.resident[home(pool)] = 50
    spent = iter([0.0, 3.0])
    monkeypatch.setattr(gauging.time, "thread_time", lambda: next(spent))
    gauge.look_soon([pool])
    for later, looks in ((100, 1), (3 / 0.015 + 1, 2)):
        now = time.monotonic() + later
        with pytest.MonkeyPatch.context() as to:
            to.setattr(gauging.time, "monotonic", lambda now=now: now)
            to.setattr(gauging.time, "thread_time", float)
            gauge.look_soon([pool])
        assert machine.looks == looks


@pytest.mark.parametrize(
    "refuses", [None, psutil.AccessDenied(1), PermissionError("/proc"), psutil.NoSuchProcess(1)]
)
def test_where_nothing_can_be_told_a_warning_says_so_once(
    refuses: BaseException | None, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.refuses = refuses
    pool, gauge = apart(max_memory=100, max_memory_hard=200), new_gauge()
    lease = pool.acquire()
    for _ in range(3):
        look(gauge, pool)
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "cannot be measured, and max_memory is no bound" in caplog.text
    assert gauge.usage(pool) == {}
    pool.release(lease)
    assert pool.stats().idle == 1


@pytest.mark.parametrize("what", ["to measure", "to tell"])
def test_what_fails_for_one_pool_does_so_for_no_other(
    what: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gauge, pools = new_gauge(), [apart(min_size=1, max_memory=100) for _ in range(3)]
    machine.resident = {home(each): 200 for each in pools}
    if what == "to tell":
        monkeypatch.setattr(pools[1], "measured", lambda _: 1 / 0)
    else:
        machine.fails_for = home(pools[1])
    for _ in range(2):
        look(gauge, *pools)
    assert [each.stats().retired for each in pools] == [{"memory": 1}, {}, {"memory": 1}]
    assert "ZeroDivisionError" in caplog.text or "no descriptor is free" in caplog.text


def test_a_process_that_begins_meanwhile_is_looked_at_later(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    pool, gauge = apart(max_size=2, max_memory=100), new_gauge()
    machine.meanwhile = pool.acquire
    look(gauge, pool)
    assert len(pool.homes()) == 1
    gauge.usage(pool)
    assert caplog.text == ""


def test_of_a_process_that_ends_meanwhile_nothing_is_said(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauging, "is_gone", lambda _: True)
    pool, gauge = apart(min_size=1, max_memory_hard=100), new_gauge()
    look(gauge, pool)
    machine.resident[home(pool)] = 200  # another process with its pid
    look(gauge, pool)
    assert gauge.usage(pool) == {}
    assert (pool.stats().idle, caplog.text) == (1, "")


@pytest.mark.parametrize("error", [psutil.AccessDenied, psutil.ZombieProcess, psutil.NoSuchProcess])
def test_a_process_that_refuses_counts_nothing(
    error: type[psutil.Error], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(process: psutil.Process) -> Any:
        if process.pid in refusing:
            raise error(process.pid)
        return oneshot(process)

    oneshot = psutil.Process.oneshot
    monkeypatch.setattr(psutil.Process, "oneshot", refuse)
    me = ProcessId.of(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        table, refusing = ProcessTable(), set[int]()
        of_both = table.usage(me)
        refusing.add(child.pid)
        of_one = table.usage(me)
        refusing.add(os.getpid())
        assert table.usage(me) is None
        child.kill()
    assert of_both is not None
    assert of_one is not None
    assert MIB < of_one.memory < of_both.memory


@pytest.mark.bounds(figures_of_objects=0.05)
def test_figures_that_do_not_come_are_not_waited_for(machine: Machine) -> None:
    gauge, pool = Gauge(ManualThreads()), apart(min_size=1)  # no thread does it
    with promptly():
        for _ in range(2):
            assert gauge.usage(pool) == {}
    (found,) = pool.objects(gauge.usage(pool))
    assert found.memory is None


# -- what the pool makes of it ------------------------------------------------------------------------


def test_a_large_object_goes_when_it_comes_home() -> None:
    pool = apart(max_memory=100)
    lease = pool.acquire()
    pool.measured({home(pool): 101})
    assert not lease.over
    pool.release(lease)
    assert pool.stats().retired == {"memory": 1}
    assert pool.things.all_closed_once()


def test_a_large_object_counts_once_whatever_else_there_is_against_it() -> None:
    pool = apart(max_memory=100, max_uses=1, max_size=2)
    one, other = Caller(pool), Caller(pool)
    first, second = (each.entry.runner.process for each in (one.lease, other.lease))
    pool.measured({first: 200, second: 200})
    pool.refresh()
    one.give_back()
    other.give_back()
    pool.measured({first: 200, second: 200})
    assert pool.stats().retired == {"refreshed": 2}
    assert pool.things.all_closed_once()


def test_large_idle_objects_are_replaced_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    pool = apart(by_hand=True, min_size=3, max_size=3, max_memory=100)
    pool.threads.do_all()
    old = pool.homes()
    for replaced in (1, 2, 3):
        pool.measured(dict.fromkeys(old, 200))
        pool.measured(dict.fromkeys(old, 200))
        assert pool.stats().idle == 2
        pool.threads.do_all()
        assert pool.stats().retired == {"memory": replaced}
    assert not pool.homes() & old
    assert (
        "its object held 200 bytes, more than max_memory=100, and is replaced (idle, lent 0 times"
        in caplog.text
    )


@pytest.mark.parametrize("calls", [True, False])
def test_a_huge_object_is_killed_and_its_holder_told(calls: bool, caplog: pytest.LogCaptureFixture) -> None:
    pool = apart(by_hand=True, max_memory_hard=1000, reset=print)
    one, other = Caller(pool), Caller(pool)
    pool.threads.do_all()
    call = Call(one.lease) if calls else None
    process = one.lease.entry.runner.process
    for _ in range(2):
        pool.measured({process: 2000})
    assert one.lease.over
    text = "its object held 2,000 bytes, more than max_memory_hard=1,000, and is killed"
    with pytest.raises(LeaseLost, match=text):
        pool.held(one.lease.id)
    assert caplog.text.count(text) == caplog.text.count(f"{text} (leased, lent 1 times, {process})") == 1
    pool.threads.do_all()
    if call:
        call.end()
    assert not other.waiting
    assert pool.stats().retired == {"memory_hard": 1}
    assert pool.things.closed == {}, "no hook was called"
    other.give_back()
    pool.threads.do_all()
    assert pool.stats().idle == pool.stats().size == 1


def test_a_huge_object_is_killed_wherever_it_stands() -> None:
    pool = apart(by_hand=True, min_size=1, max_memory_hard=1000, reset=print, check=print)
    pool.threads.do_all()
    pool.measured({home(pool): 2000})
    pool.threads.do_all()
    caller = Caller(pool)  # its object is being checked
    pool.measured({home(pool): 2000})
    pool.threads.do_all()
    caller.give_back()  # it is being reset
    pool.measured({home(pool): 2000})
    pool.threads.do_all()
    assert pool.stats().retired == {"memory_hard": 3}
    assert (pool.stats().idle, pool.stats().size, pool.things.closed) == (1, 1, {})
    Caller(pool)
    pool.threads.do_all()
    pool.release(pool.leases and pool.held(pool.leases()[0].lease_id), discard=True)
    pool.measured(dict.fromkeys(pool.homes(), 2000))  # it is being closed
    pool.threads.do_all()
    assert pool.stats().retired == {"memory_hard": 3, "discarded": 1}


def test_what_is_measured_of_an_object_that_is_gone_says_nothing() -> None:
    pool = apart(max_memory=100, max_memory_hard=1000)
    lease = pool.acquire()
    process = home(pool)
    pool.release(lease, discard=True)
    pool.measured({process: 2000})
    assert pool.stats().retired == {"discarded": 1}


def test_numbers_are_used_again() -> None:
    pool = apart(max_size=3)
    leases = [pool.acquire() for _ in range(3)]
    assert [each.number for each in pool.objects()] == [0, 1, 2]
    pool.release(leases[1], discard=True)
    pool.acquire()
    assert [each.number for each in pool.objects()] == [0, 2, 1]
