"""The process that forks others: what it tells of them, what they inherit, and how all come to an end."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import psutil
import pytest
from actors import no_descriptors
from helpers import ROOT, stress_times, wait_until

from mppool._process.fence import LeaseFence
from mppool._process.launcher import ForkLauncher, new_launcher

pytestmark = pytest.mark.bounds(orphaned=0.0)

FORK = multiprocessing.get_context("fork")


def call(function: Callable[..., object], *args: object) -> None:
    """The main function of most tests' processes."""
    function(*args)


def exit_with(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


def fail() -> None:
    raise ValueError("of the child")


def sleep() -> None:
    signal.pause()


Launch = Callable[..., ForkLauncher]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Makes launchers, and closes them."""
    made = []

    def launch(main: Callable[..., object] = call) -> ForkLauncher:
        made.append(ForkLauncher(main))
        return made[-1]

    yield launch
    for each in made:
        each.close()


@pytest.fixture
def launcher(launch: Launch) -> ForkLauncher:
    return launch()


def pid_of(launcher: ForkLauncher) -> int:
    assert launcher.id is not None
    return launcher.id.pid


def ask(launcher: ForkLauncher, function: Callable[..., object], *args: object) -> Any:
    """What this function returns in a process of its own."""
    ours, theirs = Pipe()
    child = launcher.start("asked", answer, theirs, function, *args)
    theirs.close()
    with ours:
        result = ours.recv()
    child.join()
    return result


def answer(connection: Connection, function: Callable[..., object], *args: object) -> None:
    connection.send(function(*args))


# -- what is told of a process ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "args", "code"),
    [(exit_with, (None,), 0), (exit_with, (3,), 3), (exit_with, ("text",), 1), (fail, (), 1), (int, (), 0)],
)
def test_an_exit_code_is_as_multiprocessing_has_it(
    launcher: ForkLauncher, function: Callable[..., object], args: tuple[object, ...], code: int
) -> None:
    reference = FORK.Process(target=call, args=(function, *args))
    reference.start()
    reference.join()
    child = launcher.start("ends", function, *args)
    child.join()
    assert (child.exitcode, reference.exitcode) == (code, code)


def test_an_end_by_a_signal_is_told(launcher: ForkLauncher) -> None:
    before = count_descriptors()
    child = launcher.start("killed", sleep)
    assert child.exitcode is None
    child.join(0.01)
    child.send_signal(signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert psutil.pid_exists(child.pid) is False  # nothing is left of it, a zombie neither
    child.send_signal(signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert count_descriptors() == before


def test_every_thread_that_waits_for_an_end_is_told(launcher: ForkLauncher) -> None:
    child = launcher.start("awaited", sleep)
    with ThreadPoolExecutor(4) as threads:
        joining = [threads.submit(child.join) for _ in range(4)]
        child.send_signal(signal.SIGKILL)
        for each in joining:
            each.result(10)
    assert child.exitcode == -signal.SIGKILL


def test_ends_are_told_while_the_children_of_a_process_live(launcher: ForkLauncher) -> None:
    child = launcher.start("parent", fork_one_that_stays)
    child.join(10)
    assert child.exitcode == 0


def fork_one_that_stays() -> None:
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)


def test_many_threads_start_processes_at_once(launcher: ForkLauncher) -> None:
    def start_some(number: int) -> list[int | None]:
        children = [launcher.start("one of many", exit_with, number + i) for i in range(10)]
        for each in children:
            each.join()
        return [each.exitcode for each in children]

    with ThreadPoolExecutor(8) as threads:
        numbers = range(0, 80, 10)
        assert list(threads.map(start_some, numbers)) == [[n + i for i in range(10)] for n in numbers]


def test_a_fork_that_is_refused_is_an_error(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork
    made = threading.Event()

    def fork_once() -> int:
        if made.is_set():
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        made.set()
        return fork()

    monkeypatch.setattr(os, "fork", fork_once)
    launcher = launch()
    with pytest.raises(BlockingIOError, match="temporarily"):
        launcher.start("refused", int)


def test_arguments_that_do_not_pickle_are_an_error_and_leave_nothing(launcher: ForkLauncher) -> None:
    before = count_descriptors()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        launcher.start("refused", lambda: None)
    assert count_descriptors() == before
    launcher.start("next", int).join()


# -- what a process gets ------------------------------------------------------------------------------


def test_arguments_of_any_size_get_there(launcher: ForkLauncher) -> None:
    assert ask(launcher, len, bytes(5_000_000)) == 5_000_000


def test_the_main_function_and_what_it_holds_need_not_pickle(launch: Launch) -> None:
    held = threading.Lock()
    launcher = launch(lambda: exit_with(7 if held.acquire(timeout=0) else 8))
    with held:  # in this process, and after the launcher was made
        child = launcher.start("inherits")
        child.join()
    assert child.exitcode == 7


@pytest.mark.parametrize("portable", ["", "1"])
def test_sockets_and_fences_get_there(
    launcher: ForkLauncher, portable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPPOOL_PORTABLE", portable)
    fence = LeaseFence()
    fence.begin(3)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = launcher.start("uses them", take, theirs, fence)
        assert ours.recv(100) == b"True"
        assert ours.recv(100) == b""  # no other process has it
        child.join()
    assert not fence.end(), "the call goes on"
    fence.close()


def take(sock: socket.socket, fence: LeaseFence) -> None:
    sock.sendall(str(fence.enter(3)).encode())


def test_processes_have_no_descriptors_of_each_other_or_of_the_launcher(launcher: ForkLauncher) -> None:
    first = ask(launcher, count_descriptors)
    siblings = [launcher.start("sibling", sleep) for _ in range(5)]
    assert ask(launcher, count_descriptors) == first
    for each in siblings:
        each.send_signal(signal.SIGKILL)
        each.join()


def test_descriptors_are_not_passed_on_to_programs(launcher: ForkLauncher) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert ask(launcher, inheritable, theirs) == inheritable(theirs)


def inheritable(_: socket.socket) -> list[int]:
    return [each for each in descriptors() if each > 2 and os.get_inheritable(each)]


def descriptors() -> list[int]:
    found = []
    for each in map(int, os.listdir("/dev/fd")):
        try:
            os.fstat(each)
        except OSError:
            continue  # of the listing itself
        found.append(each)
    return found


def count_descriptors() -> int:
    return len(descriptors())


def test_signals_mean_what_they_mean_to_a_process(launcher: ForkLauncher) -> None:
    assert ask(launcher, signal.getsignal, signal.SIGTERM) == signal.SIG_DFL
    assert ask(launcher, signal.getsignal, signal.SIGCHLD) == signal.SIG_DFL
    assert ask(launcher, signal.set_wakeup_fd, -1) == -1
    assert ask(launcher, signal.pthread_sigmask, signal.SIG_BLOCK, ()) == set()
    child = launcher.start("terminated", sleep)
    os.kill(child.pid, signal.SIGTERM)
    child.join()
    assert child.exitcode == -signal.SIGTERM


def test_what_is_collected_is_not_looked_for_in_what_was_there_before(launcher: ForkLauncher) -> None:
    assert ask(launcher, gc.get_freeze_count) > 1000


def test_the_launcher_imports_nothing_of_what_is_passed_on(launcher: ForkLauncher) -> None:
    assert ask(launcher, imported_here, "this") is False
    assert ask(launcher, imported_here, "this") is False


def imported_here(name: str) -> bool:
    known = name in sys.modules
    sys.modules[name] = sys
    return known


# -- a child in the sense of multiprocessing ----------------------------------------------------------


class Hooked:
    """Has a hook of `multiprocessing` and one of `os`."""

    ran = 0

    def __call__(self, *_: object) -> None:
        Hooked.ran += 1


HOOK = Hooked()
util.register_after_fork(HOOK, HOOK)


def describe() -> dict[str, Any]:
    """What a child knows of itself that a parent's would not be the same."""
    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    assert parent is not None
    return {
        "type": type(me),
        "name": me.name,
        "daemon": me.daemon,
        "authkey": bytes(me.authkey),
        "pid": me.pid == os.getpid(),
        "parent": (parent.pid == os.getppid(), parent.is_alive()),
        "children": multiprocessing.active_children(),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "stdin": sys.stdin.read(),
        "hooks": Hooked.ran,
        "native id": threading.main_thread().native_id == threading.get_native_id(),
        "threads": [type(each) for each in threading.enumerate()],
    }


def test_a_process_knows_of_itself_what_multiprocessing_would_tell_it(launcher: ForkLauncher) -> None:
    ours, theirs = Pipe()
    finalizer = util.Finalize(HOOK, int, exitpriority=0)
    reference = FORK.Process(target=answer, args=(theirs, describe), name="asked")
    reference.start()
    with ours, theirs:
        expected = ours.recv()
    reference.join()
    finalizer.cancel()
    seen = ask(launcher, describe)
    assert seen.pop("hooks") == 2 * expected.pop("hooks")  # in the launcher, and in its child
    assert seen == expected


def test_processes_are_of_different_minds(launcher: ForkLauncher) -> None:
    assert len({ask(launcher, draw) for _ in range(5)}) == 5


def draw() -> float:
    return random.random()


def test_the_end_of_the_launcher_is_the_end_of_the_parent(launcher: ForkLauncher) -> None:
    ours, theirs = Pipe()
    older = launcher.start("older", tell_of_the_end_of_the_parent, theirs)
    younger = launcher.start("younger", sleep)
    theirs.close()
    with ours:
        assert ours.recv() == "begun"
        os.kill(pid_of(launcher), signal.SIGKILL)
        assert ours.recv() == "over"
    younger.send_signal(signal.SIGKILL)
    for each in (older, younger):
        each.join()


def tell_of_the_end_of_the_parent(connection: Connection) -> None:
    connection.send("begun")
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    connection.send("over")


def way_to_the_tracker() -> int:
    return os.fstat(resource_tracker.getfd()).st_ino


def test_a_child_shares_the_resource_tracker(launch: Launch) -> None:
    here = way_to_the_tracker()  # which is started, if need be, before the launcher is
    assert ask(launch(), way_to_the_tracker) == here


# -- ends ---------------------------------------------------------------------------------------------


def test_a_launcher_that_is_closed_kills_what_does_not_end(launch: Launch) -> None:
    launcher = launch()
    child = launcher.start("stays", sleep)
    launcher.close()
    child.join(10)
    assert not psutil.pid_exists(child.pid) or is_zombie(child.pid)
    assert not psutil.pid_exists(pid_of(launcher))
    with pytest.raises(OSError, match="descriptor"):
        launcher.start("too late", int)


def is_zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_child_is_killed_where_no_descriptor_is_free(launch: Launch) -> None:
    child = launch().start("stays", sleep)
    with no_descriptors():
        child.send_signal(signal.SIGKILL)
    child.join(10)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.bounds(orphaned=10)
def test_a_launcher_that_is_closed_grants_time(launcher: ForkLauncher) -> None:
    ours, theirs = Pipe()
    child = launcher.start("ends by itself", end_with, theirs)
    theirs.close()
    with ThreadPoolExecutor() as threads:
        closing = threads.submit(launcher.close)
        ours.close()
        closing.result(9)
    child.join()
    assert child.exitcode == 4


def end_with(connection: Connection) -> None:
    wait([connection])
    sys.exit(4)


def test_a_launcher_that_was_killed(launcher: ForkLauncher) -> None:
    child = launcher.start("orphan", sleep)
    os.kill(pid_of(launcher), signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="has ended"):
        launcher.start("too late", int)
    assert child.exitcode is None
    child.send_signal(signal.SIGKILL)
    child.join(10)
    assert child.exitcode is None, "nothing will ever be known of its end"
    assert not psutil.pid_exists(child.pid) or is_zombie(child.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_for_all_of_a_group_leave_the_launcher_alone(
    launcher: ForkLauncher, number: signal.Signals
) -> None:
    assert ask(launcher, int) == 0
    os.kill(pid_of(launcher), number)
    assert ask(launcher, int) == 0


PROGRAM = """
import multiprocessing, os, subprocess, sys, time
from mppool._process.launcher import new_launcher

def tell(*pids):
    os.write(1, (" ".join(map(str, pids)) + "\\n").encode())  # in one piece

def main():
    os.setpgid(0, 0)
    tell(os.getpid(), subprocess.Popen(["sleep", "100"]).pid)
    time.sleep(100)

if __name__ == "__main__":
    launcher = new_launcher(multiprocessing.get_context("fork"), main)
    tell(launcher.id.pid)
    children = [launcher.start(str(number)) for number in range(3)]
    {end}
"""


@pytest.mark.parametrize("end", ["time.sleep(100)", "os.execv('/bin/sleep', ['sleep', '100'])"])
def test_nothing_is_left_when_the_process_that_asks_is_gone(end: str) -> None:
    code = PROGRAM.replace("{end}", end)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(4)]
        pids = [int(each) for line in lines for each in line.split()]
        assert len(pids) == 7
        if "exec" not in end:
            program.kill()
        wait_until(lambda: not any(psutil.pid_exists(pid) and not is_zombie(pid) for pid in pids))
        program.kill()


def test_a_program_that_forgets_its_launcher_ends() -> None:
    code = PROGRAM.replace("{end}", "pass")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, timeout=30, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- other start methods ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods_are_served_alike(method: str) -> None:
    launcher = new_launcher(multiprocessing.get_context(method), call)
    children = [launcher.start(f"number {code}", exit_with, code) for code in range(3)]
    for each in children:
        each.join(30)
    assert [each.exitcode for each in children] == [0, 1, 2]
    stays = launcher.start("stays", sleep)
    assert stays.exitcode is None
    stays.send_signal(signal.SIGKILL)
    stays.join(30)
    assert stays.exitcode in (-signal.SIGKILL, 255)  # what a forkserver tells
    launcher.close()


# -- what it is for -----------------------------------------------------------------------------------


@pytest.mark.stress
def test_no_lock_of_another_thread_is_inherited(launch: Launch, tmp_path: Any) -> None:
    """Threads of the process that asks are in locks of C code nearly all the time."""
    stream = (tmp_path / "log").open("w", buffering=1)
    launcher = launch(stream.write)
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            stream.write("a line of a log\n")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for each in threads:
        each.start()
    try:
        for number in range(5 + stress_times(1000)):
            child = launcher.start("writes", f"line {number}\n")
            child.join(20)
            assert child.exitcode == 0
    finally:
        over.set()
        for each in threads:
            each.join()
        stream.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="USS is measured there")
def test_what_the_program_has_loaded_stays_shared() -> None:
    code = """
import gc, multiprocessing, psutil
from mppool._process.launcher import new_launcher

DATA = [bytes(1000) + bytes([i % 256]) for i in range(60_000)]
NODES = [[each] for each in DATA]  # which the collector looks at

def main(connection):
    gc.collect()
    connection.send(psutil.Process().memory_full_info().uss)

if __name__ == "__main__":
    launcher = new_launcher(multiprocessing.get_context("fork"), main)
    for _ in range(2):
        ours, theirs = multiprocessing.Pipe()
        child = launcher.start("measured", theirs)
        print(ours.recv())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, timeout=50, capture_output=True, text=True, check=True
    )
    assert all(int(line) < 20_000_000 for line in done.stdout.split()), done.stdout
