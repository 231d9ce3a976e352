"""A manager that dies gets a successor: what comes back with it, what does not, and when there is none."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import ProcessError, util
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import (
    FORK,
    START_METHODS,
    Diary,
    Gate,
    Tool,
    Witness,
    Worker,
    acquire,
    all_idle,
    echo,
    home_of,
    lives,
    manager_in,
    process_of,
    release,
    wait_at_gate,
)
from helpers import PROMPT, promptly, stress_times, wait_until
from programs import Program

import mppool._server.supervisor
from mppool import FactoryError, LeaseLost, ManagerLost, ObjectPool, PoolClosed, PoolError, PoolManager

Pools = ObjectPool[Any]

IN_EVERY_WAY = pytest.mark.parametrize("start_method", START_METHODS)
ON_UNIX_AND_TCP = pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])


def supervisors() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "mppool supervisor"]


def end(pool: Pools, how: signal.Signals = signal.SIGKILL) -> psutil.Process:
    """Send the pool's manager this signal, and wait for its end."""
    process = psutil.Process(pool.apply(Tool.pid))
    process.send_signal(how)
    wait_until(lambda: not process.is_running())  # reaped: all its threads have ended, its connections too
    return process


def first_and_next(pool: Pools, how: Callable[[], object]) -> tuple[int, int]:
    """The pids of the manager before and after it was ended in some way."""
    before = psutil.Process(pool.apply(Tool.pid))
    how()
    wait_until(lambda: not before.is_running())
    return before.pid, pool.apply(Tool.pid)


@pytest.fixture(autouse=True)
def _nobody_keeps_anything() -> Iterator[None]:
    yield
    wait_until(lambda: not supervisors())


pytestmark = pytest.mark.manager(restart=True)


MANY_DEATHS = pytest.mark.bounds(restarts_within=0.0, restart_pause=0.0)
"""A manager may die as often as it likes."""

HOPELESS_SOON = pytest.mark.bounds(restarts=2)


# -- a worker ---------------------------------------------------------------------------------------------


@IN_EVERY_WAY
def test_a_worker_goes_on_with_the_successor(start_method: str) -> None:
    with manager_in(start_method, restart=True) as manager, Worker() as worker:
        address, home = manager.address, home_of(manager)
        pool = manager.create_pool(Tool, max_size=1)
        worker.do(acquire, pool)
        before = end(pool_beside(manager))
        with pytest.raises(LeaseLost):
            worker.do(echo, 1)
        worker.do(release, pool)
        worker.do(acquire, pool)
        assert worker.do(pid_of_object) not in {before.pid, os.getpid(), worker.pid}
        assert worker.do(echo, 2) == 2
        worker.do(release, pool)
        wait_until(lambda: all_idle(pool, 1))
        assert manager.address == address
        last = process_of(manager)
    assert not home.exists()
    assert not lives(last)


def pool_beside(manager: PoolManager) -> Pools:
    return manager.create_pool(Tool, max_size=1)


def pid_of_object(things: dict[str, Any]) -> int:
    return things["handle"].pid()


@pytest.mark.bounds(silence=60)  # the end of a connection tells it, no silence
@ON_UNIX_AND_TCP
def test_everybody_who_waits_or_calls_learns_at_once(gate: Gate, address: Any) -> None:
    with manager_in(restart=True, address=address) as manager, contextlib.ExitStack() as stack:
        pool = manager.create_pool(Tool, max_size=1)
        holder, waiter, patient, applier = (stack.enter_context(Worker()) for _ in range(4))
        holder.do(acquire, pool)
        holder.begin(wait_at_gate)
        gate.wait_for_somebody()
        waiter.begin(acquire, pool)
        patient.begin(acquire, pool, None)
        applier.begin(apply, pool)
        wait_until(lambda: pool.stats().waiting == 3)
        process_of(manager).kill()
        for worker in (holder, waiter, patient, applier):
            with pytest.raises(ManagerLost):
                worker.result(PROMPT)
        with pytest.raises(LeaseLost):
            holder.do(echo, 1)
        for worker in (waiter, patient):
            worker.do(acquire, pool)
            worker.do(release, pool)


def apply(things: dict[str, Any], pool: Pools) -> Any:
    return pool.apply(Tool.pid)


def test_those_who_wait_or_call_when_it_is_terminated_lose_the_manager_and_no_pool(gate: Gate) -> None:
    with manager_in(restart=True) as manager, Worker() as holder, Worker() as waiter:
        pool = manager.create_pool(Tool, max_size=1)
        holder.do(acquire, pool)
        holder.begin(wait_at_gate)
        gate.wait_for_somebody()
        waiter.begin(acquire, pool)
        wait_until(lambda: pool.stats().waiting == 1)
        process_of(manager).terminate()
        for worker in (holder, waiter):
            with pytest.raises(ManagerLost):
                worker.result()
        gate.open()
        waiter.do(acquire, pool)


def test_a_lease_of_before_is_lost_even_if_the_object_has_a_new_holder(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    stale = pool.acquire()
    end(pool_beside(manager))
    fresh = pool.acquire()
    for _ in range(2):
        with pytest.raises(LeaseLost):
            stale.echo(1)
    pool.release(stale)
    assert fresh.echo(1) == 1
    assert pool.stats().leased == 1
    pool.release(fresh)


@ON_UNIX_AND_TCP
def test_a_thread_that_was_idle_meanwhile_can_release_for_another(address: Any) -> None:
    with manager_in(restart=True, address=address) as manager, Worker() as worker:
        pool = manager.create_pool(Tool, max_size=1)
        worker.do(apply, pool)  # its main thread has a connection to the first manager
        end(pool)
        worker.do(acquire_in_a_thread, pool)
        worker.do(release, pool)
        wait_until(lambda: all_idle(pool, 1))


def acquire_in_a_thread(things: dict[str, Any], pool: Pools) -> None:
    def acquire_and_call() -> None:
        acquire(things, pool)
        echo(things, 1)  # from now on only a release gives it back

    thread = threading.Thread(target=acquire_and_call)
    thread.start()
    thread.join()


@MANY_DEATHS
def test_whoever_holds_nothing_notices_nothing(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool)
    for _ in range(3):
        assert end(pool).pid != pool.apply(Tool.pid)
        assert manager.get_pool(pool.name).apply(Tool.echo, 1) == 1


@pytest.mark.stress
@MANY_DEATHS
def test_random_deaths_under_load_lose_nothing_for_good(tmp_path: Path) -> None:
    with manager_in(restart=True) as manager, contextlib.ExitStack() as stack:
        pool = manager.create_pool(Tool, min_size=1, max_size=2)
        stop = tmp_path / "stop"
        workers = [stack.enter_context(Worker()) for _ in range(4)]
        for worker in workers:
            worker.begin(work, pool, stop)
        for _ in range(max(10, stress_times(300))):
            with contextlib.suppress(ManagerLost):
                end(pool)
        served = pool.apply(Tool.pid)
        wait_until(lambda: pool.stats().acquired > 100, message="they go on")
        stop.touch()
        assert all(worker.result() for worker in workers)
        assert pool.apply(Tool.pid) == served
        wait_until(lambda: all_idle(pool, pool.stats().size))
        assert pool.leases() == []


def work(things: dict[str, Any], pool: Pools, stop: Path) -> int:
    """Acquire, call and release until told to stop; returns how often it went well."""
    well = 0
    while not stop.exists():
        try:
            with pool.lease(timeout=None) as tool:
                assert tool.echo(well) == well
            assert pool.apply(Tool.echo, well) == well
            well += 1
        except (ManagerLost, LeaseLost):
            continue
    return well


# -- the address ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "start_method"),
    [("home", "fork"), ("path", "fork"), ("tcp", "fork"), ("path", "spawn"), ("tcp", "forkserver")],
)
@pytest.mark.bounds(restart_pause=0.4)
def test_who_comes_while_there_is_no_manager_waits_for_the_next(
    tmp_path_factory: pytest.TempPathFactory, kind: str, start_method: str
) -> None:
    path = str(tmp_path_factory.mktemp("s") / "socket")
    address: Any = {"home": None, "path": path, "tcp": ("127.0.0.1", 0)}[kind]
    with manager_in(start_method, restart=True, address=address) as manager, Worker() as old, Worker() as new:
        where = manager.address
        pool = manager.create_pool(Tool)
        old.do(apply, pool)  # it has a connection, which lies idle
        first = end(pool)
        second = end(pool)
        old.begin(apply, pool)
        new.begin(apply, pool)
        assert not any(map(lives, managers_of_ours())), "this is the pause"
        assert old.result() == new.result() not in {first.pid, second.pid}
        assert manager.address == where
        home = home_of(manager)
    assert not home.exists()
    assert not os.path.exists(path)


def managers_of_ours() -> list[psutil.Process]:
    """What the launchers of ours have forked."""
    return [child for each in psutil.Process().children() for child in each.children()]


@ON_UNIX_AND_TCP
def test_a_manager_that_was_connected_finds_the_successor(address: Any) -> None:
    with manager_in(restart=True, address=address, authkey=b"ours, and no other") as manager:
        visitor = PoolManager(manager.address, b"ours, and no other")
        visitor.connect()
        pool = manager.create_pool(Tool, name="tools")
        assert visitor.get_pool("tools").apply(Tool.echo, 1) == 1
        end(pool)
        assert visitor.get_pool("tools").apply(Tool.echo, 2) == 2
        assert visitor.create_pool(Tool, name="others").apply(Tool.echo, 3) == 3


@pytest.mark.parametrize("restart", [False, True])
def test_an_address_in_use_is_a_lost_manager(private: Path, restart: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        manager = PoolManager(taken.getsockname(), restart=restart)
        with pytest.raises(ManagerLost):
            manager.start()
    assert not list(private.iterdir())
    with manager:
        assert manager.create_pool(Tool).apply(Tool.echo, 1) == 1


# -- what ends it -----------------------------------------------------------------------------------------


class Fatal(Tool):
    """Ends the process that it is in."""

    def leave(self) -> None:
        os._exit(0)

    def abort(self) -> None:
        import faulthandler

        faulthandler.disable()  # pytest's would print a page
        os.abort()


WAYS = {"os._exit": Fatal.leave, "os.abort": Fatal.abort}


@pytest.mark.parametrize("way", list(WAYS))
def test_an_object_that_ends_its_process_ends_only_that(manager: PoolManager, way: str) -> None:
    pool = manager.create_pool(Fatal)

    def die() -> None:
        with pytest.raises(ManagerLost):
            pool.apply(WAYS[way])

    first, second = first_and_next(pool, die)
    assert first != second


@pytest.mark.bounds(silence=30)  # a newcomer waits for a successor that is slow to start
@IN_EVERY_WAY
def test_sigterm_closes_the_objects_and_then_there_is_a_successor(diary: Diary, start_method: str) -> None:
    with manager_in(start_method, restart=True) as manager:
        pool = manager.create_pool(
            partial(Witness, diary.path), min_size=2, max_size=2, close=Witness.close_slowly
        )
        for round_ in (1, 2):
            wait_until(lambda: all_idle(pool, 2))
            end(pool, signal.SIGTERM)
            assert len(diary.closed()) == 2 * round_
        wait_until(lambda: all_idle(pool, 2))
    assert len(diary.made()) == 6
    assert diary.all_closed_once()


def test_a_creator_that_does_not_care_for_its_children_notices_all_the_same(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them: nobody can wait for them
    try:
        first, second = first_and_next(pool, process_of(manager).kill)
        assert first != second
        manager.shutdown()
        wait_until(lambda: not supervisors())
    finally:
        signal.signal(signal.SIGCHLD, before)


def count_finalizers() -> int:
    return sum(type(each) is util.Finalize for each in gc.get_objects())  # isinstance asks what may not tell


@IN_EVERY_WAY
@pytest.mark.bounds(restarts=100, restart_pause=0)
def test_a_successor_costs_nothing_where_the_ends_of_children_are_not_told(
    start_method: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with manager_in(start_method, restart=True) as manager:
            pool = manager.create_pool(Tool)
            end(pool)
            pool.apply(Tool.pid)
            open_files, finalizers = psutil.Process().num_fds(), count_finalizers()
            for _ in range(4):
                end(pool)
            pool.apply(Tool.pid)
            assert psutil.Process().num_fds() < open_files + 4
            assert count_finalizers() <= finalizers  # some of what came before may go meanwhile
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "None" not in caplog.text
    assert "how is not known" in caplog.text or start_method != "spawn"


def test_the_death_of_the_forkserver_makes_no_second_manager_beside_the_first() -> None:
    with manager_in("forkserver", restart=True) as manager:
        pool = manager.create_pool(Tool)
        first = psutil.Process(pool.apply(Tool.pid))
        parent = first.parent()
        assert parent is not None
        parent.kill()
        wait_until(lambda: not lives(parent))
        assert pool.apply(Tool.pid) == first.pid
        _, last = first_and_next(pool, first.kill)
    assert not psutil.pid_exists(last)


def test_without_restart_a_killed_manager_stays_dead() -> None:
    with manager_in() as manager:
        pool = manager.create_pool(Tool)
        pool.apply(Tool.echo, 1)
        process_of(manager).kill()
        for ask in (pool.stats, pool.acquire, lambda: manager.get_pool("x")):
            with pytest.raises(ManagerLost):
                ask()
        assert not supervisors()


@pytest.mark.parametrize("wrong", [None, 1, 0, "yes", 3.0])
def test_restart_is_true_or_false(wrong: Any) -> None:
    with pytest.raises(TypeError, match="restart"):
        PoolManager(restart=wrong)


# -- pools ------------------------------------------------------------------------------------------------


def test_pools_come_back_as_they_were(manager: PoolManager) -> None:
    plain = manager.create_pool(Tool)
    sized = manager.create_pool(Tool, name="sized", min_size=1, max_size=1)
    closed = manager.create_pool(Tool, name="closed")
    sized.resize(2, 3)
    closed.close()
    wait_until(lambda: all_idle(sized, 2))
    end(plain)
    wait_until(lambda: all_idle(sized, 2))
    handles = [sized.acquire(timeout=0) for _ in range(3)]
    with pytest.raises(PoolError, match="3 held"):
        sized.acquire(timeout=0)
    for handle in handles:
        sized.release(handle)
    assert manager.get_pool(plain.name).apply(Tool.pid) == plain.apply(Tool.pid)
    with pytest.raises(PoolClosed):
        closed.acquire()
    with pytest.raises(PoolError, match="no pool named"):
        manager.get_pool("closed")


def test_a_name_is_taken_after_a_death_and_free_after_a_close(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, name="tools")
    end(pool)
    with pytest.raises(ValueError, match="exists"):
        manager.create_pool(Tool, name="tools")
    assert manager.create_pool(Tool).name != manager.create_pool(Tool).name
    pool.close()
    again = manager.create_pool(Tool, name="tools", max_size=1)
    end(again)
    assert manager.get_pool("tools").apply(Tool.echo, 1) == 1
    with pytest.raises(PoolClosed):
        pool.acquire()


def test_options_and_hooks_come_back(diary: Diary, manager: PoolManager) -> None:
    pool = manager.create_pool(partial(Witness, diary.path), max_size=1, max_uses=1, close=Witness.close)
    end(pool)
    assert len({pool.apply(Witness.name) for _ in range(3)}) == 3
    pool.close()
    assert len(diary.closed()) >= 3


def test_a_pool_that_is_being_closed_is_not_brought_back_by_a_resize(manager: PoolManager) -> None:
    pool, other = manager.create_pool(Tool, name="closing", max_size=1), pool_beside(manager)
    held = pool.acquire()
    closing = threading.Thread(target=pool.close, kwargs={"timeout": 20})
    closing.start()
    wait_until(lambda: is_closed(pool))
    with contextlib.suppress(PoolClosed):
        pool.resize(0, 2)
    pool.release(held)
    closing.join()
    end(other)
    with pytest.raises(PoolError, match="no pool named"):
        manager.get_pool("closing")


def is_closed(pool: Pools) -> bool:
    try:
        pool.release(pool.acquire(timeout=0))
    except PoolClosed:
        return True
    except PoolError:
        pass
    return False


def log_to(path: Path) -> None:
    logging.getLogger("mppool").addHandler(logging.FileHandler(path))


def test_a_pool_that_cannot_be_made_again_keeps_no_other_from_coming_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = tmp_path / "a_module_that_vanishes.py"
    module.write_text("from actors import Tool\n")
    log = tmp_path / "log"
    manager = PoolManager(ctx=FORK, restart=True)
    manager.start(log_to, (log,))
    with manager:
        lost = manager.create_pool("a_module_that_vanishes:Tool", name="lost")
        assert lost.apply(Tool.echo, 1) == 1
        other = manager.create_pool(Tool, name="other")
        module.unlink()
        end(other)
        assert other.apply(Tool.echo, 2) == 2
        assert manager.get_pool("other").stats().size == 1
        with pytest.raises(PoolClosed):
            lost.acquire()
        with pytest.raises(PoolError, match="no pool named"):
            manager.get_pool("lost")
        assert "'lost': it cannot be made once more" in log.read_text()
        with pytest.raises(FactoryError):
            manager.create_pool("a_module_that_vanishes:Tool", name="lost")


# -- it is given up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start_method", "address"),
    [("fork", None), ("fork", ("127.0.0.1", 0)), ("spawn", ("127.0.0.1", 0)), ("forkserver", None)],
)
@HOPELESS_SOON
def test_one_that_dies_again_and_again_is_given_up(start_method: str, address: Any) -> None:
    with manager_in(start_method, restart=True, address=address) as manager, Worker() as worker:
        pool, home = manager.create_pool(Tool), home_of(manager)
        worker.do(apply, pool)
        end(pool)
        worker.do(apply, pool)
        last = end(pool)
        of_worker = partial(worker.do, apply, pool)
        for ask in (pool.acquire, pool.stats, partial(manager.get_pool, "x"), of_worker):
            with promptly(), pytest.raises(ManagerLost, match="died 2 times within 60 s and was given up"):
                ask()
        wait_until(lambda: not supervisors())
        assert not lives(last)
    assert not home.exists()
    assert not managers_of_ours()
    with pytest.raises(PoolClosed):
        manager.get_pool("x")


@HOPELESS_SOON
def test_who_waits_for_a_manager_that_is_given_up_is_told(gate: Gate) -> None:
    manager = PoolManager(ctx=FORK, restart=True)
    Doomed.starts.value = 0
    manager.start(Doomed.wait_from_the_second_on)
    with manager, Worker() as worker:
        pool = manager.create_pool(Tool)
        end(pool)
        worker.begin(apply, pool)
        gate.wait_for_somebody()
        (second,) = wait_until(managers_of_ours)  # its parent notes it down after it has begun to run
        second.kill()
        with pytest.raises(ManagerLost, match="given up"):
            worker.result()


class Doomed:
    starts = FORK.Value("i", 0)

    @classmethod
    def wait_from_the_second_on(cls) -> None:
        with cls.starts:
            cls.starts.value += 1
            number = cls.starts.value
        if number > 1:
            Tool().wait_at_gate()


@MANY_DEATHS
def test_deaths_that_lie_far_apart_are_no_reason_to_give_up(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool)
    pids = {end(pool).pid for _ in range(mppool._server.supervisor.MAX_RESTARTS + 2)}
    assert len(pids) == mppool._server.supervisor.MAX_RESTARTS + 2
    assert pool.apply(Tool.echo, 1) == 1


def is_listening(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


@HOPELESS_SOON
def test_who_was_given_up_can_be_started_as_a_new_one_at_the_same_address(tmp_path: Path) -> None:
    # A port of TCP could be given to another program meanwhile.
    with manager_in(restart=True, address=str(tmp_path / "manager")) as manager:
        pool, address = manager.create_pool(Tool), manager.address
        end(pool)
        end(pool)
        wait_until(lambda: not supervisors())
        # A process that the last one forked just before its end has its socket for a moment more.
        wait_until(lambda: not is_listening(address))
        with manager_in(restart=True, address=address) as another:
            assert another.create_pool(Tool).apply(Tool.echo, 1) == 1


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in which all managers of the test have theirs."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        monkeypatch.setenv("MPPOOL_RUNTIME_DIR", directory)
        yield Path(directory)


# -- starting and ending ----------------------------------------------------------------------------------


def test_a_manager_is_started_once(manager: PoolManager) -> None:
    with pytest.raises(ProcessError):
        manager.start()
    assert manager.create_pool(Tool).apply(Tool.echo, 1) == 1
    manager.shutdown()
    with pytest.raises(ProcessError):
        manager.start()


@pytest.mark.parametrize("restart", [False, True])
def test_a_start_that_failed_leaves_nothing_and_can_be_tried_again(private: Path, restart: bool) -> None:
    manager = PoolManager(ctx=FORK, restart=restart)
    with pytest.raises(ManagerLost):
        manager.start(os._exit, (1,))
    assert not supervisors()
    assert not list(private.iterdir())
    with manager:
        assert manager.create_pool(Tool).apply(Tool.echo, 1) == 1


@pytest.mark.bounds(restart_pause=30)  # for which it does not wait
def test_shutdown_right_after_a_death_ends_it_for_good() -> None:
    manager = PoolManager(ctx=FORK, restart=True)
    manager.start()
    pool, home = manager.create_pool(Tool), home_of(manager)
    end(pool)
    end(pool)
    with promptly():
        manager.shutdown()
    wait_until(lambda: not supervisors())
    assert not managers_of_ours()
    assert not home.exists()
    manager.shutdown()
    for ask in (pool.stats, partial(manager.get_pool, "x")):
        with pytest.raises(PoolClosed):
            ask()


@pytest.mark.parametrize("round_", range(10))
def test_shutdown_and_a_death_at_once_leave_nothing(round_: int) -> None:
    manager = PoolManager(ctx=FORK, restart=True)
    manager.start()
    home, process = home_of(manager), process_of(manager)

    def strike() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()

    killer = threading.Timer(round_ * 0.001, strike)
    killer.start()
    manager.shutdown()
    killer.join()
    wait_until(lambda: not supervisors())
    assert not managers_of_ours()
    assert not lives(process)
    assert not home.exists()


def test_shutdown_while_a_successor_starts_ends_that_one(gate: Gate) -> None:
    manager = PoolManager(ctx=FORK, restart=True)
    Doomed.starts.value = 0
    manager.start(Doomed.wait_from_the_second_on)
    home = home_of(manager)
    process_of(manager).kill()
    gate.wait_for_somebody()
    (second,) = wait_until(managers_of_ours)  # its parent notes it down after it has begun to run
    ending = threading.Thread(target=manager.shutdown)
    ending.start()
    gate.open()
    ending.join(10)
    assert not ending.is_alive()
    wait_until(lambda: not supervisors())
    assert not lives(second)
    assert not home.exists()


def test_a_manager_that_is_forgotten_leaves_nothing() -> None:
    manager = PoolManager(ctx=FORK, restart=True)
    manager.start()
    end(manager.create_pool(Tool))
    pool = manager.create_pool(Tool)
    home, process = home_of(manager), psutil.Process(pool.apply(Tool.pid))
    del manager
    gc.collect()
    wait_until(lambda: not supervisors())
    assert not lives(process)
    assert not home.exists()
    with pytest.raises(PoolClosed):
        pool.acquire()


@ON_UNIX_AND_TCP
def test_a_manager_forgotten_while_a_successor_starts_leaves_nothing(gate: Gate, address: Any) -> None:
    managers = [PoolManager(address, ctx=FORK, restart=True)]
    Doomed.starts.value = 0
    managers[0].start(Doomed.wait_from_the_second_on)
    home, where = home_of(managers[0]), managers[0].address
    process_of(managers[0]).kill()
    gate.wait_for_somebody()
    (second,) = wait_until(managers_of_ours)  # its parent notes it down after it has begun to run
    forgetting = threading.Thread(target=managers.clear)  # its end is waited for, as with `shutdown`
    forgetting.start()
    gate.open()
    forgetting.join(10)
    assert not forgetting.is_alive()
    wait_until(lambda: not supervisors())
    assert not lives(second)
    assert not home.exists()
    assert is_refused(where)


def is_refused(address: Any) -> bool:
    """Whether nobody listens there."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        try:
            sock.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
    return False


def test_a_process_forked_while_a_manager_starts_does_not_keep_the_door_open(gate: Gate) -> None:
    manager = PoolManager(("127.0.0.1", 0), ctx=FORK, restart=True)
    starting = threading.Thread(target=manager.start, args=(Tool().wait_at_gate,))
    starting.start()
    gate.wait_for_somebody()
    with Worker() as worker:
        gate.open()
        starting.join()
        manager.shutdown()
        assert is_refused(manager.address)
        assert not worker.idle()


@HOPELESS_SOON
def test_a_child_of_an_object_keeps_neither_connections_nor_the_door_open() -> None:
    with manager_in(restart=True, address=("127.0.0.1", 0)) as manager:
        pool = manager.create_pool(Breeder)
        children = []
        try:
            for _ in range(2):
                children.append(pool.apply(Breeder.fork))
                end(pool)
            wait_until(lambda: not supervisors())
            assert is_refused(manager.address)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)


class Breeder(Tool):
    def fork(self) -> int:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(writing, b"!")  # by now it has closed what is not for children
            time.sleep(1000)
        os.read(reading, 1)
        os.close(reading)
        os.close(writing)
        return pid


# -- the creating process is killed -----------------------------------------------------------------------

KEPT = """
from mppool import PoolClosed

def acquire_when_all_is_gone(pool, home):
    pool.apply(Witness.name)
    (DIARY.parent / f"ready-{os.getpid()}").touch()
    while os.path.exists(home):
        time.sleep(0.01)
    try:
        while True:  # the manager may be ending still
            pool.release(pool.acquire())
    except (ManagerLost, PoolClosed) as error:
        told = repr(error)
    os.write(1, json.dumps(told).encode() + b"\\n")  # in one piece
    sleep_long()

if __name__ == "__main__":
    os.setpgid(0, 0)
    context = multiprocessing.get_context(START_METHOD)
    manager = PoolManager(ADDRESS, ctx=context, restart=True)
    manager.start()
    pool = manager.create_pool(make_witness, close=Witness.close, min_size=1, max_size=3)
    siblings = []
    for number in range(SIBLINGS):  # the second one is forked beside the first successor
        sibling = context.Process(target=acquire_when_all_is_gone, args=(pool, manager._runtime_dir))
        sibling.start()
        siblings.append(sibling.pid)
        wait_until((DIARY.parent / f"ready-{sibling.pid}").exists)
        process = manager._process
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    wait_until(lambda: pool.stats().idle)
    where = manager._runtime_dir + "/socket"
    facts = {"manager": pool.apply(Witness.pid), "address": where, "siblings": siblings}
    print(json.dumps(facts), flush=True)
    sleep_long()
"""


@pytest.mark.parametrize(
    ("start_method", "address"),
    [("fork", None), ("fork", ("127.0.0.1", 0)), ("spawn", None), ("forkserver", ("127.0.0.1", 0))],
)
def test_a_killed_creator_leaves_no_manager_and_no_open_door(
    tmp_path: Path, start_method: str, address: Any
) -> None:
    text = KEPT.replace("ADDRESS", repr(address)).replace("SIBLINGS", "2")
    with Program(tmp_path, text, start_method) as program:
        program.read_facts()
        program.process.kill()
        wait_until(program.nothing_is_left, PROMPT)
        assert program.process.stdout is not None
        for _ in program.facts["siblings"]:
            told = json.loads(program.process.stdout.readline())
            assert re.match("ManagerLost|PoolClosed", told)
            assert "no answer" not in told, "somebody still listens"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    text = KEPT.replace("ADDRESS", "None").replace("SIBLINGS", "0")
    with Program(tmp_path, text, "fork") as program:
        program.read_facts()
        os.killpg(program.process.pid, how)
        program.process.wait(10)
        wait_until(program.nothing_is_left, PROMPT)
        assert program.diary.all_closed_once()


STARTING = """
def tell_and_sleep(pid):
    facts = {"manager": os.getpid(), "address": os.environ["MPPOOL_RUNTIME_DIR"] + "/any/socket"}
    os.write(1, json.dumps(facts).encode() + b"\\n")
    sleep_long()

if __name__ == "__main__":
    os.setpgid(0, 0)
    context = multiprocessing.get_context(START_METHOD)
    PoolManager(ctx=context, restart=RESTART).start(tell_and_sleep, (os.getpid(),))
"""


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_sigterm_to_the_whole_group_while_a_manager_starts_leaves_nothing(
    tmp_path: Path, private: Path, start_method: str, restart: bool
) -> None:
    with Program(tmp_path, STARTING.replace("RESTART", str(restart)), start_method) as program:
        program.read_facts()
        assert list(private.iterdir())
        os.killpg(program.process.pid, signal.SIGTERM)
        program.process.wait(10)
        wait_until(lambda: not lives(program.manager))
        assert not list(private.iterdir())
