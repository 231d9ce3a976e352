"""What a process holds comes back when its program is replaced by exec, and when it ends in order."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import (
    FORK,
    START_METHODS,
    Gate,
    Tool,
    Worker,
    acquire,
    all_idle,
    count_descriptors,
    descriptors_for,
    echo,
    fill_gaps,
    hang_up,
    leave_a_child,
    lives,
    manager_in,
    pool_of,
    process_of,
    stopped,
)
from helpers import PROMPT, RunPython, do_without_linux, wait_until
from programs import Program
from wire import KEY

from mppool import ObjectPool, PoolError, PoolManager, PoolTimeout

SECOND = 0.6
"""Longer than the watchdog waits for a process without connections, and many times a sweep's pause."""


@pytest.fixture(params=["linux", "portable"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "portable":
        do_without_linux(monkeypatch)


@pytest.fixture
def tools(way: None) -> Iterator[ObjectPool[Any]]:
    with pool_of(max_size=1) as pool:
        yield pool


def assert_taken_back(pool: ObjectPool[Any]) -> None:
    wait_until(lambda: pool.stats().reclaimed == 1, PROMPT)
    with pool.lease(PROMPT) as tool:
        assert tool.echo(7) == 7


def assert_not_robbed(pool: ObjectPool[Any], worker: Worker) -> None:
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=SECOND)
    assert pool.stats().reclaimed == 0
    assert worker.do(echo, "still mine") == "still mine"


def assert_its_end_is_known(pool: ObjectPool[Any], worker: Worker) -> None:
    """Of a holder without any connection for requests: by its lifeline, and only when that ends."""
    worker.do(echo, 1)
    worker.do(hang_up, pool)
    assert_not_robbed(pool, worker)
    worker.do(hang_up, pool)
    worker.begin(replace, SLEEP)
    assert_taken_back(pool)


# -- the creating process is replaced by exec -----------------------------------------------------------

RELOADS = """
def run_again():
    os.environ["AGAIN"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv])

if __name__ == "__main__" and "AGAIN" in os.environ:
    print("again", flush=True)
    sleep_long()
elif __name__ == "__main__":
    context = multiprocessing.get_context(START_METHOD)
    manager = PoolManager(ctx=context, restart=RESTART, watch_interval=60.0)
    manager.start()
    pool = manager.create_pool(make_witness, close=Witness.close, min_size=2, max_size=2, isolation=ISOLATION)
    held = pool.acquire()
    held.name()
    sibling = os.fork()
    if not sibling:
        sleep_long()
    siblings = [sibling, subprocess.Popen(["sleep", "1000"], close_fds=False).pid]
    wait_until(lambda: pool.stats().size == 2)
    tell(manager, siblings=siblings)
    sys.stdin.readline()
    THREAD
"""


# How the manager watches does not depend on what starts it.
@pytest.mark.parametrize(
    ("start_method", "restart", "way"),
    [
        ("fork", False, "linux"),
        ("fork", True, "linux"),
        ("fork", True, "portable"),
        ("spawn", False, "portable"),
        ("spawn", True, "linux"),
        ("forkserver", False, "linux"),
        ("forkserver", True, "portable"),
    ],
    indirect=["way"],
)
def test_a_creator_that_runs_itself_again_leaves_nothing(
    tmp_path: Path, way: None, start_method: str, restart: bool
) -> None:
    thread = "threading.Thread(target=run_again).start(); sleep_long()" if restart else "run_again()"
    text = RELOADS.replace("RESTART", str(restart)).replace("THREAD", thread)
    isolation = "process" if restart else "none"
    with Program(tmp_path, text.replace("ISOLATION", repr(isolation)), start_method) as program:
        program.read_facts()
        program.go_on()
        assert program.process.stdout is not None
        assert program.process.stdout.readline() == b"again\n", program.errors()
        wait_until(program.nothing_is_left, PROMPT)
        assert program.process.poll() is None
        assert program.diary.all_closed_once()
        assert all(lives(psutil.Process(pid)) for pid in program.facts["siblings"])


# -- a holder, a waiter is replaced ----------------------------------------------------------------------

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]


def replace(_: object, program: list[str]) -> None:
    os.execv(program[0], program)


@pytest.mark.everywhere
@pytest.mark.parametrize("leave", [None, leave_a_child])
def test_a_holder_that_was_replaced_holds_nothing(
    tools: ObjectPool[Any], worker: Worker, leave: Callable[..., int] | None
) -> None:
    worker.do(acquire, tools)
    worker.do(echo, 1)
    child = worker.do(leave) if leave else None
    worker.begin(replace, SLEEP)
    try:
        assert_taken_back(tools)
        assert lives(psutil.Process(worker.pid))
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def test_a_holder_without_any_other_connection_that_was_replaced(
    tools: ObjectPool[Any], worker: Worker
) -> None:
    worker.do(acquire, tools)
    assert_its_end_is_known(tools, worker)


def test_the_same_on_tcp_where_no_socket_is_passed_along(way: None, worker: Worker) -> None:
    with manager_in(address=("127.0.0.1", 0), authkey=KEY) as manager:
        pool = manager.create_pool(Tool, max_size=1)
        worker.do(acquire, pool)
        assert_its_end_is_known(pool, worker)


def test_a_successor_learns_of_the_end_of_those_it_lends_to(way: None, worker: Worker) -> None:
    with manager_in(restart=True) as manager:
        pool = manager.create_pool(Tool, max_size=1)
        worker.do(acquire, pool)
        process_of(manager).kill()
        wait_until(lambda: worker.do(acquired, pool), 2 * PROMPT)
        assert_its_end_is_known(pool, worker)


def acquired(things: dict[str, Any], pool: ObjectPool[Any]) -> bool:
    try:
        acquire(things, pool)
    except PoolError:
        return False
    return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no way to limit another process here")
@pytest.mark.parametrize("more", range(4), ids="nothing connection and_lifeline and_pidfd".split())
def test_a_full_manager_lends_to_those_alone_whose_end_it_will_learn_of(
    way: None, worker: Worker, more: int
) -> None:
    with manager_in(initializer=fill_gaps) as manager:
        pool = manager.create_pool(Tool, max_size=1)
        with pool.lease() as tool:
            tool.echo(1)
        with descriptors_for(manager, more):
            lent = worker.do(acquired, pool)
        if not lent:
            worker.do(acquire, pool)
        assert_its_end_is_known(pool, worker)


def wait_in_a_thread(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    threading.Thread(target=pool.acquire, args=(None,), daemon=True).start()


def test_a_waiter_that_was_replaced_is_out_of_the_queue(tools: ObjectPool[Any], worker: Worker) -> None:
    with tools.lease():
        worker.do(wait_in_a_thread, tools)
        wait_until(lambda: tools.stats().waiting == 1)
        worker.begin(replace, SLEEP)
        wait_until(lambda: tools.stats().waiting == 0, PROMPT)
    wait_until(lambda: all_idle(tools, 1))
    assert tools.stats().acquired == 1


HOLD = """
import pickle, sys, time
handle = pickle.loads(bytes.fromhex(sys.argv[1])).acquire()
handle.echo(1)
time.sleep(1000)
"""


def test_the_next_program_of_a_process_keeps_what_it_acquires(
    tools: ObjectPool[Any], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.resize(max_size=2)
    worker.do(acquire, tools)
    worker.do(echo, 1)
    (before,) = tools.leases()
    worker.begin(replace, [sys.executable, "-c", HOLD, pickle.dumps(tools).hex()])
    wait_until(lambda: tools.stats().reclaimed == 1, PROMPT)
    wait_until(lambda: [each.pid for each in tools.leases()] == [before.pid], PROMPT)
    for _ in range(2):
        with tools.lease(), pytest.raises(PoolTimeout):
            tools.acquire(timeout=SECOND / 2)
    assert tools.stats().reclaimed == 1


AGAIN = """
import mppool, os, pickle, sys
pool = pickle.loads(bytes.fromhex(sys.argv[2]))
pool.stats()
if int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], str(int(sys.argv[1]) - 1), sys.argv[2]])
input()
"""


def test_a_process_that_is_replaced_again_and_again_leaves_no_descriptor(tools: ObjectPool[Any]) -> None:
    tools.stats()
    manager = psutil.Process(tools.apply(Tool.pid))
    before = count_descriptors(manager)
    command = [sys.executable, "-c", AGAIN, "5", pickle.dumps(tools).hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as program:
        wait_until(lambda: count_descriptors(manager) > before, PROMPT)
        most = before + len(["a connection", "the lifeline", "a pidfd"])
        wait_until(lambda: psutil.Process(program.pid).cmdline()[3:4] == ["0"], 4 * PROMPT)
        wait_until(lambda: before < count_descriptors(manager) <= most, PROMPT)
        program.communicate(b"\n")
    wait_until(lambda: count_descriptors(manager) == before, PROMPT)


def start_programs(_: object) -> None:
    subprocess.run(["true"], check=True)
    subprocess.run(["true"], check=True, close_fds=False, preexec_fn=bool)
    os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", "true"], {}), 0)
    pid = os.fork()
    if not pid:
        os.execv("/bin/sh", ["sh", "-c", "true"])
    os.waitpid(pid, 0)


def test_programs_that_a_process_starts_are_no_end_of_it(tools: ObjectPool[Any], worker: Worker) -> None:
    worker.do(acquire, tools)
    worker.do(echo, 1)
    worker.do(start_programs)
    assert_not_robbed(tools, worker)


def hold_in_threads(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    for name in ("handle", "other"):
        thread = threading.Thread(target=lambda name=name: things.update({name: pool.acquire()}))
        thread.start()
        thread.join()


def test_a_process_whose_threads_have_ended_is_not_robbed(tools: ObjectPool[Any], worker: Worker) -> None:
    tools.resize(max_size=2)
    worker.do(hold_in_threads, tools)
    assert_not_robbed(tools, worker)
    worker.begin(replace, SLEEP)
    wait_until(lambda: not tools.leases(), PROMPT)


def test_a_stopped_process_is_not_replaced(tools: ObjectPool[Any], worker: Worker) -> None:
    worker.do(acquire, tools)
    worker.do(echo, 1)
    worker.do(hang_up, tools)
    with stopped(psutil.Process(worker.pid)), pytest.raises(PoolTimeout):
        tools.acquire(timeout=SECOND)
    assert_not_robbed(tools, worker)


# -- its pid means nothing --------------------------------------------------------------------------------


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectPool[Any]]:
    """A pool in a manager that sees no process behind a connection, as on another machine."""
    monkeypatch.setattr(psutil.Process, "net_connections", lambda *_: [])
    with manager_in(address=("127.0.0.1", 0), authkey=KEY) as manager:
        monkeypatch.undo()
        yield manager.create_pool(Tool, max_size=1)


@pytest.mark.parametrize("end", [Worker.kill, lambda worker: worker.begin(replace, SLEEP)])
def test_a_forked_child_does_not_hold_what_its_parent_far_away_held(
    far: ObjectPool[Any], worker: Worker, end: Callable[[Worker], None]
) -> None:
    worker.do(acquire, far)
    worker.do(echo, 1)
    child = worker.do(leave_a_child)
    try:
        assert_not_robbed(far, worker)
        end(worker)
        assert_taken_back(far)
        assert lives(psutil.Process(child))
    finally:
        os.kill(child, signal.SIGKILL)


# -- an end in order -----------------------------------------------------------------------------------------

kept: list[Any] = []


def keep(pool: ObjectPool[Any], _: object = None) -> int:
    """Hold an object to the end."""
    handle = pool.acquire()
    handle.echo(1)
    kept.append(handle)
    return os.getpid()


def keep_in_a_cycle(pool: ObjectPool[Any]) -> None:
    cycle = [pool.acquire()]
    cycle[0].echo(1)
    cycle.append(cycle)


def keep_in_a_local(pool: ObjectPool[Any]) -> None:
    handle = pool.acquire()
    handle.echo(1)


def keep_and_exit(pool: ObjectPool[Any]) -> None:
    keep(pool)
    sys.exit(3)


def keep_what_a_thread_acquired(pool: ObjectPool[Any]) -> None:
    thread = threading.Thread(target=keep, args=(pool,))
    thread.start()
    thread.join()


def by_an_executor(pool: ObjectPool[Any], context: Any, _: Any) -> None:
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(keep, pool).result()


def by_a_pool(pool: ObjectPool[Any], context: Any, _: Any) -> None:
    with context.Pool(1) as workers:
        workers.map(keep, [pool])
        workers.close()
        workers.join()


def by_a_process(pool: ObjectPool[Any], context: Any, job: Callable[..., Any]) -> None:
    process = context.Process(target=job, args=(pool,))
    process.start()
    process.join()


@pytest.fixture(scope="module", params=START_METHODS)
def started(request: pytest.FixtureRequest) -> Iterator[tuple[PoolManager, Any]]:
    """A manager for all whose workers end in order, and the context of both."""
    with manager_in(request.param) as manager:
        yield manager, multiprocessing.get_context(request.param)


@pytest.mark.parametrize(
    ("way_to_end", "job"),
    [
        (by_an_executor, keep),
        (by_a_pool, keep),
        *(
            (by_a_process, job)
            for job in (keep, keep_in_a_cycle, keep_in_a_local, keep_and_exit, keep_what_a_thread_acquired)
        ),
    ],
)
def test_a_worker_that_ends_in_order_gives_back(
    started: tuple[PoolManager, Any], way_to_end: Callable[..., None], job: Callable[..., Any]
) -> None:
    manager, context = started
    pool = manager.create_pool(Tool, max_size=1)
    way_to_end(pool, context, job)
    wait_until(lambda: all_idle(pool, 1), PROMPT)
    now = pool.stats()
    assert (now.acquired, now.built, now.reclaimed, now.late_releases) == (1, 1, 0, 0)


PROGRAM = """
import atexit, mppool._client.pool, pickle, sys
atexit.register(lambda: print(handle.echo("at exit")))
handle = pickle.loads(bytes.fromhex(sys.argv[1])).acquire()
handle.echo(1)
"""


@pytest.mark.parametrize("end", ["", "sys.exit()", "cycle = [handle]; cycle.append(cycle)"])
def test_a_program_that_ends_in_order_gives_back(
    shared_manager: PoolManager, run_python: RunPython, end: str
) -> None:
    pool = shared_manager.create_pool(Tool, max_size=1)
    done = run_python("-c", PROGRAM + end, pickle.dumps(pool).hex())
    assert (done.stdout, done.stderr) == ("at exit\n", "")
    wait_until(lambda: all_idle(pool, 1), PROMPT)
    now = pool.stats()
    assert (now.acquired, now.built, now.reclaimed) == (1, 1, 0)


def keep_and_die(pool: ObjectPool[Any]) -> None:
    keep(pool)
    os._exit(0)


def test_what_does_not_end_in_order_counts_as_dead(tools: ObjectPool[Any]) -> None:
    by_a_process(tools, FORK, keep_and_die)
    assert_taken_back(tools)


def call_in_a_daemon(pool: ObjectPool[Any], gate: Gate) -> None:
    Gate.present = gate
    threading.Thread(target=lambda: pool.acquire().wait_at_gate(), daemon=True).start()
    gate.wait_for_somebody()


def test_a_call_that_is_under_way_at_the_end_holds_up_nothing(gate: Gate, tools: ObjectPool[Any]) -> None:
    process = FORK.Process(target=call_in_a_daemon, args=(tools, gate))
    process.start()
    process.join()
    with tools.lease(PROMPT) as tool:
        assert tool.echo(7) == 7


def leave_to_a_thread(pool: ObjectPool[Any], pipe: Pipe) -> None:
    def use(handle: Any) -> None:
        pipe.recv()
        pipe.send(handle.echo("still mine"))
        pool.release(handle)

    threading.Thread(target=lambda: use(pool.acquire())).start()
    wait_until(lambda: pool.stats().leased)


def test_what_a_thread_needs_for_which_the_end_waits_stays_its_own(tools: ObjectPool[Any]) -> None:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=leave_to_a_thread, args=(tools, theirs))
    process.start()
    wait_until(lambda: tools.stats().leased)
    with pytest.raises(PoolTimeout):
        tools.acquire(timeout=SECOND)
    ours.send(None)
    assert ours.recv() == "still mine"
    process.join()
    wait_until(lambda: all_idle(tools, 1), PROMPT)
    assert tools.stats().reclaimed == 0


@pytest.mark.parametrize("job", [keep_and_exit, keep_what_a_thread_acquired])
def test_a_manager_that_stands_still_does_not_hold_up_the_end(job: Callable[..., Any]) -> None:
    ours, theirs = FORK.Pipe()

    def keep_until_told(pool: ObjectPool[Any]) -> None:
        try:
            job(pool)
        finally:
            theirs.send(None)
            theirs.recv()

    with manager_in() as manager:
        pool = manager.create_pool(Tool, max_size=1)
        process = FORK.Process(target=keep_until_told, args=(pool,))
        process.start()
        ours.recv()
        with stopped(process_of(manager)):
            ours.send(None)
            theirs.close()
            process.join(PROMPT / 2)
            assert process.exitcode is not None
        with pool.lease(PROMPT):
            pass


# -- only the main thread ends ----------------------------------------------------------------------------


def outlive_main(pool: ObjectPool[Any], pipe: Pipe) -> None:
    def work() -> None:
        handle = pool.acquire()
        handle.echo(1)
        while value := pipe.recv():
            pipe.send(handle.echo(value))
        os._exit(0)

    threading.Thread(target=work).start()
    ctypes.CDLL(None).pthread_exit(None)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the process does not look like a zombie")
def test_a_process_of_which_only_the_main_thread_has_ended_lives(tools: ObjectPool[Any]) -> None:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=outlive_main, args=(tools, theirs))
    process.start()
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: tools.stats().leased)
    with pytest.raises(PoolTimeout):
        tools.acquire(timeout=SECOND)  # which looks for the dead
    ours.send("still mine")
    assert ours.recv() == "still mine"
    ours.send(None)
    assert_taken_back(tools)
    process.join()
