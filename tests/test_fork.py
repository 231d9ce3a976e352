"""`os.fork()` with a live connection, handles that are stale, threads that share one: right answers only."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import Exclusive, Tool, all_idle, pool_of
from helpers import ROOT, stress_times, wait_until
from standins import side_by_side

from mppool import LeaseError, LeaseLost, ManagerLost, ObjectPool, PoolClosed, PoolManager, PoolTimeout
from mppool._system import fork


def in_a_fork(check: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Run a check in a child that plain `os.fork()` makes; it fails here with what it raised there."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        text = ""
        try:
            check()
            gc.collect()
        except BaseException:
            text = traceback.format_exc()
        finally:
            os.write(writing, text.encode())
            os._exit(bool(text))
    os.close(writing)
    try:
        meanwhile()
    finally:
        with open(reading, "rb") as pipe:
            complaint = pipe.read().decode()
        os.waitpid(pid, 0)
    assert not complaint, complaint


# -- fork -------------------------------------------------------------------------------------------


def test_every_step_of_a_fork_is_done_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    assert set(fork.actions) == set(fork.Step)
    for step in fork.Step:
        monkeypatch.setitem(fork.actions, step, partial(done.append, step.name))
    before, in_parent = ["BLOCK_SIGTERM", "DETACH_WINDOWS"], ["UNBLOCK_SIGTERM_IN_PARENT"]

    def child() -> None:
        assert done[:2] == before
        assert done[2:] == [step.name for step in fork.Step if step.name not in before + in_parent]
        assert (done[2], done[-1]) == ("CLOSE_SOCKETS", "UNBLOCK_SIGTERM")

    in_a_fork(child)
    assert done == before + in_parent


def test_a_step_that_fails_keeps_no_other_from_being_done(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("of whatever")

    done: list[int] = []
    monkeypatch.setitem(fork.actions, fork.Step.BLOCK_SIGTERM, fail)
    monkeypatch.setitem(fork.actions, fork.Step.DETACH_WINDOWS, partial(done.append, 1))
    in_a_fork(lambda: None)
    assert done == [1]
    assert "BLOCK_SIGTERM failed" in capfd.readouterr().err


@pytest.mark.everywhere
def test_parent_and_child_go_on_with_right_answers(pool: ObjectPool[Any]) -> None:
    handle = pool.acquire()
    assert handle.echo("before") == "before"

    def ask_often(who: str) -> None:
        for number in range(500):
            assert pool.apply(Tool.echo, (who, number)) == (who, number)

    def child() -> None:
        ask_often("child")

    def parent() -> None:
        for number in range(500):
            assert handle.echo(number) == number

    in_a_fork(child, parent)
    assert handle.echo("after") == "after"
    pool.release(handle)
    wait_until(lambda: pool.stats().leased == 0)


@pytest.mark.everywhere
def test_an_inherited_handle_is_refused_and_stays_good_in_the_parent(pool: ObjectPool[Any]) -> None:
    handle = pool.acquire()

    def child() -> None:
        for use in (lambda: handle.echo(1), lambda: pool.release(handle)):
            with pytest.raises(LeaseError, match="forked child"):
                use()

    in_a_fork(child)
    assert handle.echo(1) == 1
    pool.release(handle)


@pytest.mark.everywhere
def test_a_child_that_forgets_the_handle_releases_nothing(pool: ObjectPool[Any]) -> None:
    handles = [pool.acquire()]

    def child() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            handles.clear()
            gc.collect()

    in_a_fork(child)
    assert handles[0].echo(1) == 1
    pool.release(handles[0])
    assert pool.stats().late_releases == 0


@pytest.mark.everywhere
@pytest.mark.parametrize(("leaving", "seen"), [(None, LeaseError), (SystemExit(), SystemExit)])
def test_a_child_that_leaves_its_parents_lease_releases_nothing(
    pool: ObjectPool[Any], leaving: BaseException | None, seen: type[BaseException]
) -> None:
    lease = pool.lease()
    with lease as handle:

        def child() -> None:
            with pytest.raises(seen), contextlib.ExitStack() as stack:  # noqa: PT012
                stack.push(lease.__exit__)
                if leaving is not None:
                    raise leaving

        in_a_fork(child)
        assert handle.echo(2) == 2
    assert pool.stats().late_releases == 0


@pytest.mark.everywhere
def test_the_end_of_the_child_ends_no_lease_of_the_parent(pool: ObjectPool[Any]) -> None:
    pool.resize(max_size=1)
    handle = pool.acquire()
    handle.echo(0)
    in_a_fork(pool.stats)
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.1)
    assert handle.echo(1) == 1
    pool.release(handle)


@pytest.mark.everywhere
def test_the_end_of_the_parent_ends_no_lease_of_the_child(pool: ObjectPool[Any]) -> None:
    pool.resize(max_size=1)
    reading, writing = os.pipe()
    go_on, let_go = os.pipe()
    parent = os.fork()
    if not parent:
        pool.stats()
        if os.fork():
            os._exit(0)
        os.close(let_go)
        with pool.lease() as handle:
            os.write(writing, b"holds")
            os.read(go_on, 1)
            os.write(writing, handle.echo(b"right"))
        os._exit(0)
    os.close(writing)
    os.waitpid(parent, 0)
    assert os.read(reading, 5) == b"holds"
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.1)
    os.close(let_go)
    assert os.read(reading, 5) == b"right"
    assert os.read(reading, 5) == b""
    for end in (reading, go_on):
        os.close(end)
    wait_until(lambda: all_idle(pool, 1))


@pytest.mark.everywhere("none", "process")
@pytest.mark.stress
def test_fork_while_other_threads_are_in_calls(pool: ObjectPool[Any]) -> None:
    done = threading.Event()
    errors: list[BaseException] = []

    def ask_until_done() -> None:
        try:
            while not done.is_set():
                assert pool.apply(Tool.echo, 1) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask_until_done) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(2 + stress_times(80)):
            in_a_fork(lambda number=number: pool.apply(Tool.echo, number))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not errors


# -- stale handles ------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_a_released_handle_is_refused(pool: ObjectPool[Any]) -> None:
    handle = pool.acquire()
    pool.release(handle)
    for use in (lambda: handle.echo(1), lambda: pool.release(handle)):
        with pytest.raises(LeaseError, match="was released"):
            use()


LONG_ENOUGH = 1.0
"""Seconds of `max_hold` in which a busy machine, too, gets a call done."""


@pytest.mark.everywhere
def test_an_expired_handle_reaches_nobody_elses_object() -> None:
    with pool_of(max_size=1, max_hold=LONG_ENOUGH, watch_interval=0.02) as pool:
        stale = pool.acquire()
        stale.echo(1)
        with pool.lease(timeout=5) as fresh:
            with pytest.raises(LeaseLost):
                stale.echo(1)
            assert fresh.echo(2) == 2
        pool.release(stale)  # no error: that it was taken back is not its holder's fault
        wait_until(lambda: pool.stats().late_releases == 1)


@pytest.mark.everywhere
def test_a_late_release_ends_nobody_elses_lease() -> None:
    with pool_of(max_size=1, max_hold=LONG_ENOUGH, watch_interval=0.02) as pool:
        stale = pool.acquire()
        stale.echo(1)
        with pool.lease(timeout=5) as fresh:
            pool.release(stale)
            wait_until(lambda: pool.stats().late_releases == 1)
            assert fresh.echo(2) == 2


@pytest.mark.everywhere
def test_a_handle_survives_a_refresh(pool: ObjectPool[Any]) -> None:
    with pool.lease() as handle:
        pool.refresh()
        assert handle.echo(1) == 1
    wait_until(lambda: pool.stats().retired == {"refreshed": 1})


@pytest.mark.everywhere
def test_a_handle_of_a_closed_pool_is_lost(pool: ObjectPool[Any]) -> None:
    handle = pool.acquire()
    pool.close(timeout=0)
    with pytest.raises((LeaseLost, PoolClosed)):
        handle.echo(1)
    pool.release(handle)


@pytest.mark.everywhere
def test_a_handle_reaches_nothing_in_the_next_manager_on_its_address(tmp_path: Path) -> None:
    address = str(tmp_path / "socket")
    with PoolManager(address, b"key") as manager:
        stale_pool = manager.create_pool(Tool, name="tools", max_size=1)
        stale = stale_pool.acquire()
        assert stale.echo(1) == 1
    with PoolManager(address, b"key") as manager:
        pool = manager.create_pool(Tool, name="tools", max_size=1)
        with pool.lease() as fresh:
            with pytest.raises((LeaseLost, PoolClosed, ManagerLost)):
                stale.echo(1)
            stale_pool.release(stale)
            with pytest.raises((PoolClosed, ManagerLost)):
                stale_pool.acquire()
            assert fresh.echo(2) == 2


# -- threads ------------------------------------------------------------------------------------------


@pytest.fixture
def complaints(tmp_path: Path) -> Path:
    path = tmp_path / "complaints"
    path.touch()
    return path


class Careful(Exclusive):
    def __init__(self) -> None:
        super().__init__(Path(os.environ["COMPLAINTS"]))


@pytest.mark.everywhere
def test_several_threads_share_a_handle(complaints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLAINTS", str(complaints))
    with pool_of(Careful, max_size=1) as pool, pool.lease() as handle:

        def use(index: int) -> None:
            for number in range(300):
                assert handle.echo_of(index, number) == (index, number)
                assert handle.step("all of us") == "all of us"

        side_by_side(4, use)
    assert complaints.read_text() == ""


@pytest.mark.everywhere
def test_threads_churn_through_many_handles(complaints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLAINTS", str(complaints))
    with pool_of(Careful, max_size=3) as pool:

        def use(index: int) -> None:
            for number in range(150):
                with pool.lease() as handle:
                    for _ in range(2):
                        assert handle.step((index, number)) == (index, number)

        side_by_side(8, use)
        wait_until(lambda: pool.stats().leased == 0)
        assert pool.stats().acquired == 8 * 150
    assert complaints.read_text() == ""


@pytest.mark.everywhere
def test_a_handle_passes_from_a_thread_that_ends(pool: ObjectPool[Any]) -> None:
    pool.resize(max_size=1)
    handles: list[Any] = []
    thread = threading.Thread(target=lambda: handles.append(pool.acquire()))
    thread.start()
    thread.join()
    del thread
    gc.collect()
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.1)
    assert handles[0].echo(1) == 1
    pool.release(handles.pop())
    wait_until(lambda: all_idle(pool, 1))


@pytest.mark.everywhere
def test_two_threads_release_one_handle(pool: ObjectPool[Any]) -> None:
    pool.resize(max_size=1)
    for _ in range(50):
        handle = pool.acquire()
        refused: list[LeaseError] = []

        def release(index: int, handle: Any = handle, refused: list[LeaseError] = refused) -> None:
            try:
                pool.release(handle)
            except LeaseError as error:
                refused.append(error)

        side_by_side(2, release)
        assert len(refused) < 2
    wait_until(lambda: all_idle(pool, 1))


# -- objects that fork ------------------------------------------------------------------------------------


class Forking(Tool):
    """Every child goes on in the code that called it, as after a careless `os.fork()`."""

    def __init__(self, raises: bool = False) -> None:
        self.children = [os.fork()]
        if raises and not self.children[0]:
            sys.exit(3)

    def fork(self, raises: bool) -> None:
        child = os.fork()
        if raises and not child:
            sys.exit(3)
        self.children.append(child)

    def reap(self) -> list[int]:
        """How the children have ended."""
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in self.children]
        self.children.clear()
        return ends

    def reset(self) -> None:
        self.fork(raises=False)


@pytest.mark.everywhere
@pytest.mark.parametrize("raises", [False, True])
def test_a_child_that_an_object_forks_never_takes_its_place(raises: bool) -> None:
    factory = partial(Forking, raises)
    with pool_of(factory, max_size=1, reset=Forking.reset, call_timeout=10) as pool:
        for _ in ("after the factory", "after reset"):
            with pool.lease() as handle:
                handle.fork(raises)
                assert handle.echo("right") == "right"
                assert handle.reap() == [1, 1]
        assert pool.stats().built == 1


def start_and_stop(_: Tool) -> bool:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,), daemon=True)
    child.start()
    child.terminate()
    child.join(10)
    return not child.is_alive()


@pytest.mark.everywhere
def test_an_object_can_terminate_what_it_forks(pool: ObjectPool[Any]) -> None:
    assert pool.apply(start_and_stop)


# -- forgotten handles ----------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_a_forgotten_handle_is_released_with_a_warning(pool: ObjectPool[Any]) -> None:
    pool.resize(max_size=1)
    handle = pool.acquire()
    assert handle.echo(1) == 1
    with pytest.warns(ResourceWarning, match="never released"):
        del handle
    with pool.lease(timeout=5) as handle:
        assert handle.echo(2) == 2


def forget_in_a_cycle(pool: ObjectPool[Any]) -> None:
    cycle: list[Any] = [pool.acquire()]
    cycle.append(cycle)
    del cycle
    gc.collect()  # which may also have come by itself just before


def test_a_handle_that_is_forgotten_in_a_cycle(pool: ObjectPool[Any]) -> None:
    pool.resize(max_size=1)
    with pytest.warns(ResourceWarning):
        forget_in_a_cycle(pool)
    with pool.lease(timeout=5) as handle:
        assert handle.echo(2) == 2


def test_a_handle_that_is_forgotten_after_the_end_of_its_manager() -> None:
    with pool_of(max_size=1) as pool:
        handle = pool.acquire()
        handle.echo(1)
    before = threading.active_count()
    with pytest.warns(ResourceWarning):
        del handle
    wait_until(lambda: threading.active_count() == before)  # and no complaint of a thread's, see pyproject


def test_a_program_that_ends_with_a_handle_says_so_and_nothing_else(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from mppool import PoolManager\n"
        "from collections import Counter\n"
        "if __name__ == '__main__':\n"
        "    with PoolManager() as manager:\n"
        "        handle = manager.create_pool(Counter).acquire()\n"
        "        print(len(handle))\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (0, "0\n")
    lines = [line for line in done.stderr.splitlines() if not line.startswith(" ")]
    assert len(lines) <= 1, done.stderr
    assert all("ResourceWarning: pool 'pool-1': a handle was never released" in line for line in lines)
