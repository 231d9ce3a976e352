"""A manager that dies gets a successor, if it was started with `restart=True`."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import (
    FORK,
    Diary,
    Tool,
    Witness,
    Worker,
    acquire,
    echo,
    manager_in,
    process_of,
    release,
)
from helpers import ROOT, stress_seconds, stress_seed, wait_until

from mppool import LeaseLost, ManagerLost, ObjectPool, PoolClosed, PoolError, PoolManager, keeper

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@contextlib.contextmanager
def kept(start_method: str = "fork", **options: Any) -> Iterator[PoolManager]:
    with manager_in(start_method, restart=True, **options) as manager:
        yield manager


@pytest.fixture
def manager() -> Iterator[PoolManager]:
    with kept() as manager:
        yield manager


def kill(manager: PoolManager, how: int = signal.SIGKILL) -> int:
    """Kill the manager that is there now. Returns its pid, when it has ended with all its threads."""
    process = manager._process  # type: ignore[attr-defined]
    os.kill(process.pid, how)
    wait_until(lambda: process.exitcode is not None)
    return int(process.pid)


def lost(call: Callable[[], Any]) -> None:
    """The call is lost with the manager, if it met its death; then, and for ever, with the lease."""
    with contextlib.suppress(ManagerLost), pytest.raises(LeaseLost):
        call()
    for _ in range(2):
        with pytest.raises(LeaseLost):
            call()


def pid_of_object(things: dict[str, Any], pool: ObjectPool[Tool]) -> int:
    return pool.apply(Tool.pid)


def lose(things: dict[str, Any], pool: ObjectPool[Tool]) -> None:
    lost(lambda: things["handle"].echo(1))
    release(things, pool)


# -- it comes back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_the_next_acquire_works_and_leases_of_before_are_lost(start_method: str) -> None:
    with kept(start_method) as manager, Worker() as worker:
        pool, address = manager.create_pool(Tool, max_size=2), manager.address
        mine = pool.acquire()
        worker.do(acquire, pool)
        for _ in range(2):
            before = kill(manager)
            assert worker.do(pid_of_object, pool) not in (before, os.getpid(), worker.pid)
            worker.do(lose, pool)
            worker.do(acquire, pool)
            assert worker.do(echo, "new") == "new"
            lost(partial(mine.echo, 1))
            pool.release(mine)  # told to nobody, and no error
            mine = pool.acquire()
            assert mine.echo(2) == 2
        assert manager.address == address
        pool.release(mine)
        worker.do(release, pool)
        wait_until(lambda: pool.stats().idle == pool.stats().size == 2)


@pytest.mark.parametrize("address", [("127.0.0.1", 0), "path"], ids=["tcp", "path"])
def test_it_comes_back_at_whatever_address(address: Any, tmp_path: Path) -> None:
    where = str(tmp_path / "socket") if address == "path" else address
    with kept(address=where, authkey=b"secret") as manager, Worker() as worker:
        pool, address = manager.create_pool(Tool, max_size=1), manager.address
        for _ in range(2):
            worker.do(pid_of_object, pool)  # leaves a connection that lies idle
            before = kill(manager)
            assert worker.do(pid_of_object, pool) != before
            assert pool.apply(Tool.echo, 1) == 1
        assert manager.address == address
        other = PoolManager(manager.address, b"secret")
        other.connect()
        assert other.get_pool(pool.name).apply(Tool.echo, 2) == 2
    assert not (tmp_path / "socket").exists()


def ask(answers: list[Any], question: Callable[[], Any]) -> None:
    try:
        answers.append(question())
    except PoolError as error:
        answers.append(error)


def test_who_waited_or_was_in_a_call_learns_that_it_died(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    answers: list[Any] = []
    with pool.lease() as held:
        asking = [
            threading.Thread(target=ask, args=(answers, question))
            for question in (lambda: held.nap(1000), pool.acquire, partial(pool.apply, Tool.pid))
        ]
        for each in asking:
            each.start()
        wait_until(lambda: pool.stats().waiting == 2)
        kill(manager)
        for each in asking:
            each.join(10)
        assert [type(answer) for answer in answers] == [ManagerLost] * 3
    assert pool.apply(Tool.echo, 1) == 1


def test_who_comes_while_there_is_no_manager_waits_for_the_next(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    kill(manager)
    assert pool.apply(Tool.echo, 1) == 1  # the first successor comes at once
    monkeypatch.setattr(keeper, "_FIRST_PAUSE", 0.7)
    kill(manager)
    began = time.monotonic()
    assert pool.apply(Tool.echo, 2) == 2
    assert time.monotonic() - began > 0.5


class Fragile(Witness):
    def leave(self) -> None:
        os._exit(0)

    def abort(self) -> None:
        os.abort()


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGSEGV", "leave", "abort"])
def test_whatever_it_dies_of(how: str, tmp_path: Path) -> None:
    diary = Diary(tmp_path / "diary")
    with kept() as manager:
        pool = manager.create_pool(partial(Fragile, diary.path), min_size=2, max_size=2, close=Witness.close)
        wait_until(lambda: pool.stats().idle == 2)
        if how.startswith("SIG"):
            kill(manager, getattr(signal, how))
        else:
            with pool.lease() as fragile, pytest.raises(ManagerLost):
                getattr(fragile, how)()
        assert pool.apply(Tool.echo, 1) == 1
        if how == "SIGTERM":
            wait_until(lambda: len(diary.closed()) == 2)
        wait_until(lambda: pool.stats().idle == 2)
    assert len(diary.closed()) == (4 if how == "SIGTERM" else 2)


# -- the pools ----------------------------------------------------------------------------------------


def test_pools_come_back_as_they_were(manager: PoolManager) -> None:
    manager.create_pool(Tool, name="closed").close()
    manager.create_pool(Tool, name="again").close()
    again = manager.create_pool(Tool, name="again", max_size=3)
    resized = manager.create_pool(Tool, name="resized", min_size=1, max_size=2)
    resized.resize(min_size=2, max_size=5)
    named = manager.create_pool("actors:Tool", name="named", timeout=0.25, max_size=1)
    for _ in range(2):
        kill(manager)
        wait_until(lambda: resized.stats().idle == 2)
        assert manager.get_pool("resized").apply(Tool.echo, 1) == 1
        assert again.apply(Tool.echo, 2) == 2
        with pytest.raises(PoolError, match=r"known: 'again', 'named', 'resized'"):
            manager.get_pool("closed")
        with named.lease(), pytest.raises(PoolError, match=r"in 0\.25\d* s"):
            named.acquire()
        held = [resized.acquire() for _ in range(5)]
        for handle in held:
            resized.release(handle)
    named.close()
    kill(manager)
    with pytest.raises(PoolClosed):
        named.acquire()
    assert manager.create_pool(Tool, name="named").apply(Tool.echo, 3) == 3


def test_one_pool_that_cannot_be_made_again_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "here_for_a_while.py"
    module.write_text("class Thing:\n    def echo(self, value): return value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with kept("spawn") as manager:
        lost_one = manager.create_pool("here_for_a_while:Thing")
        other = manager.create_pool(Tool)
        with lost_one.lease() as thing:
            assert thing.echo(1) == 1
        module.unlink()
        for cached in (tmp_path / "__pycache__").glob("*"):
            cached.unlink()
        kill(manager)
        assert other.apply(Tool.echo, 1) == 1
        with pytest.raises(PoolClosed):
            lost_one.acquire()


# -- it does not --------------------------------------------------------------------------------------


def test_one_that_dies_again_and_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "_FIRST_PAUSE", 0.01)
    with caplog.at_level(logging.ERROR), kept() as manager, Worker() as worker:
        pool = manager.create_pool(Tool)
        home = Path(str(manager.address)).parent
        for _ in range(keeper.MOST_DEATHS):
            assert pool.apply(Tool.echo, 1) == 1
            last = kill(manager)
        wait_until(lambda: "given up" in caplog.text)
        for question in (pool.acquire, pool.stats, lambda: manager.create_pool(Tool)):
            with pytest.raises(ManagerLost, match=r"died 5 times within 60 s and was given up.*exit code -9"):
                question()
        with pytest.raises(ManagerLost, match="given up"):
            worker.do(acquire, pool)
        assert manager._process.pid == last  # type: ignore[attr-defined]
    assert not home.exists()
    assert not keepers()


def test_one_that_cannot_start_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "_FIRST_PAUSE", 0.01)
    with kept() as manager:
        pool = manager.create_pool(Tool)

        def refuse(*_: object) -> None:
            raise OSError("no more processes")

        monkeypatch.setattr(FORK.Process, "start", refuse)
        kill(manager)
        wait_until(lambda: "could not be started" in caplog.text and "given up" in caplog.text)
        with pytest.raises(ManagerLost, match=r"given up; the last one could not be started"):
            pool.acquire()
        monkeypatch.undo()
    assert not keepers()


def keepers() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "mppool keeper"]


@pytest.mark.parametrize("when", ["before it died", "as it dies", "when another is there"])
def test_a_shutdown_is_the_end(when: str) -> None:
    manager = PoolManager(ctx=FORK, restart=True)
    manager.start()
    home = Path(str(manager.address)).parent
    pool = manager.create_pool(Tool)
    before = psutil.Process().children()
    if when == "as it dies":
        process_of(manager).kill()
    if when == "when another is there":
        kill(manager)
        assert pool.apply(Tool.echo, 1) == 1
    manager.shutdown()
    wait_until(lambda: not keepers())
    assert not home.exists()
    assert len(psutil.Process().children()) == len(before) - 1
    with pytest.raises(PoolClosed):
        pool.acquire()
    with pytest.raises(PoolClosed):
        manager.create_pool(Tool)


def test_a_manager_that_is_forgotten_ends() -> None:
    manager = PoolManager(ctx=FORK, restart=True)
    manager.start()
    home, pool = Path(str(manager.address)).parent, manager.create_pool(Tool)
    kill(manager)
    process = psutil.Process(pool.apply(Tool.pid))
    del manager
    gc.collect()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: not home.exists() and not keepers())


def test_without_restart_it_stays_dead() -> None:
    with manager_in() as manager:
        pool = manager.create_pool(Tool)
        kill(manager)
        for _ in range(2):
            with pytest.raises(ManagerLost):
                pool.acquire()


@pytest.mark.parametrize("wrong", [None, 1, "yes"])
def test_restart_is_yes_or_no(wrong: Any) -> None:
    with pytest.raises(TypeError, match="restart must be True or False"):
        PoolManager(restart=wrong)


def test_an_address_that_is_taken_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.touch()
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("mppool-*"))
    manager = PoolManager(str(path), restart=True)
    with pytest.raises(OSError, match="in use"):
        manager.start()
    assert set(Path(os.environ.get("TMPDIR", "/tmp")).glob("mppool-*")) == before
    assert path.exists()


# -- nothing is left ----------------------------------------------------------------------------------

PROGRAM = """
import json, multiprocessing, os, sys, time
from actors import Tool
from mppool import ManagerLost, PoolClosed, PoolManager

def wait_and_ask(pool, parent):
    while os.getppid() == parent:
        time.sleep(0.01)
    while os.path.exists(pool._channel.home):
        time.sleep(0.01)
    began = time.monotonic()
    try:
        pool.acquire()
    except (ManagerLost, PoolClosed) as error:
        print(json.dumps([type(error).__name__, time.monotonic() - began]), flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    address = ("127.0.0.1", 0) if sys.argv[1] == "tcp" else None
    manager = PoolManager(address, ctx=context, restart=True)
    manager.start()
    pool = manager.create_pool(Tool, min_size=1)
    pool.apply(Tool.echo, 1)
    first = manager._process.pid
    sibling = context.Process(target=wait_and_ask, args=(pool, os.getpid()))
    sibling.start()
    os.kill(first, 9)
    while manager._process.pid == first:
        time.sleep(0.01)
    pool.apply(Tool.echo, 1)
    print(json.dumps([manager._process.pid, pool._channel.home]), flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("address", ["path", "tcp"])
def test_a_creator_that_is_killed_leaves_nothing_and_nobody_hangs(address: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "NO_COLOR": "1"}
    program = subprocess.Popen([sys.executable, script, address], stdout=subprocess.PIPE, env=environment)
    assert program.stdout is not None
    pid, home = json.loads(program.stdout.readline())
    manager = psutil.Process(pid)
    program.kill()
    program.wait()
    wait_until(lambda: not manager.is_running() or manager.status() == psutil.STATUS_ZOMBIE, timeout=2)
    assert not os.path.exists(home)
    error, seconds = json.loads(program.stdout.readline())  # its sibling's, which has inherited much
    assert error == ("PoolClosed" if address == "path" else "ManagerLost")
    assert seconds < 1
    program.stdout.close()


# -- storm ----------------------------------------------------------------------------------------------


def work_on(pool: ObjectPool[Tool], served: Any) -> None:
    while True:
        with contextlib.suppress(ManagerLost, LeaseLost), pool.lease(timeout=20) as tool:
            assert tool.echo(served.value) == served.value
            served.value += 1


@pytest.mark.stress
def test_a_storm_of_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "SPAN", 0.0)
    monkeypatch.setattr(keeper, "_FIRST_PAUSE", 0.001)
    dice = random.Random(stress_seed())
    with kept() as manager:
        pool = manager.create_pool(Tool, min_size=1, max_size=2)
        counts = [FORK.Value("q", 0) for _ in range(4)]
        workers = [FORK.Process(target=work_on, args=(pool, served)) for served in counts]
        for worker in workers:
            worker.start()
        end, deaths = time.monotonic() + stress_seconds(), 0
        try:
            while time.monotonic() < end or deaths < 5:
                threading.Event().wait(dice.uniform(0.0, 0.1))  # a random moment, not a safe one
                kill(manager)
                deaths += 1
                before = [served.value for served in counts]
                wait_until(lambda before=before: all(map(int.__gt__, [s.value for s in counts], before)))  # type: ignore[misc]
            assert all(worker.is_alive() for worker in workers)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
        wait_until(lambda: pool.stats().leased == 0)
        wait_until(lambda: pool.stats().idle == pool.stats().size)
        assert pool.apply(Tool.echo, 1) == 1
