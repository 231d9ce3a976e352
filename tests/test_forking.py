"""What a manager and processes of objects inherit from the program that they are forked from."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from actors import Gate, Tool, lives, manager_in, process_of
from helpers import RunPython, stress_times, wait_until

from mppool import ManagerLost, ObjectPool, PoolError, PoolManager, PoolTimeout

HEADER = """
import atexit, multiprocessing, os, signal, subprocess, sys, threading, time
from functools import partial
from mppool import PoolManager

FORK = multiprocessing.get_context("fork")
"""

RunProgram = Callable[..., str]


@pytest.fixture
def run_program(run_python: RunPython, tmp_path: Path) -> RunProgram:
    """Run a program beside these modules; returns what it has printed, and expects it to print no error."""

    def run(body: str, *options: str, **modules: str) -> str:
        for name, code in {**modules, "program": body}.items():
            (tmp_path / f"{name}.py").write_text(HEADER + textwrap.dedent(code))
        done = run_python(*options, "program.py")
        assert done.stderr == ""
        return done.stdout

    return run


def children_of(manager: PoolManager) -> tuple[psutil.Process, psutil.Process]:
    """The manager's launcher and the only process of an object."""
    (launcher,) = process_of(manager).children()
    (child,) = launcher.children()
    return launcher, child


# -- imports ------------------------------------------------------------------------------------------

APP = """
class Thing:
    def value(self):
        return 42

def make():
    return Thing()

# With spawn the manager imports this module, too: it must not go on for ever.
depth = int(os.environ.get("DEPTH", "0"))
os.environ["DEPTH"] = str(depth + 1)
if depth > 3:
    os._exit(3)
manager = PoolManager(ctx=multiprocessing.get_context({method!r}), restart={restart})
manager.start()
pools = [manager.create_pool({factory}, isolation=each) for each in ("none", "process")]
"""

FACTORIES = ["make", "'app:make'", "Thing"]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("restart", [False, True])
def test_a_pool_can_be_made_while_its_module_is_imported(
    run_program: RunProgram, restart: bool, factory: str
) -> None:
    program = """
        import app
        for pool in app.pools:
            with pool.lease() as thing:
                print(thing.value())
        """
    app = APP.format(method="fork", restart=restart, factory=factory)
    assert run_program(program, app=app) == "42\n42\n"


@pytest.mark.parametrize(
    ("method", "restart", "factory"),
    [
        *(("spawn", False, factory) for factory in FACTORIES),
        ("spawn", True, "make"),
        ("forkserver", False, "make"),
        ("forkserver", True, "'app:make'"),
    ],
)
def test_a_module_that_the_manager_imports_starts_no_manager(
    run_program: RunProgram, method: str, restart: bool, factory: str
) -> None:
    program = """
        if __name__ == "__main__":
            try:
                import app
            except Exception as error:
                print("the module may not start one" in str(error))
        """
    assert run_program(program, app=APP.format(method=method, restart=restart, factory=factory)) == "True\n"


def test_an_import_that_another_thread_has_under_way_begins_anew(run_program: RunProgram) -> None:
    slow = """
        if os.environ.get("SLOW") == str(os.getpid()):
            began.set()
            over.wait()
        class Thing:
            pass
        """
    program = """
        import builtins
        builtins.began, builtins.over = threading.Event(), threading.Event()
        os.environ["SLOW"] = str(os.getpid())
        threading.Thread(target=__import__, args=("slow",), daemon=True).start()
        began.wait()
        with PoolManager(ctx=FORK) as manager:
            with manager.create_pool("slow:Thing").lease() as thing:
                print("lent")
        over.set()
        """
    assert run_program(program, "-W", "ignore", slow=slow) == "lent\n"


@pytest.mark.bounds(answer=0.5)
def test_an_import_that_hangs_in_the_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    (tmp_path / "hanging.py").write_text("import actors; actors.Gate.present.pass_through(); make = list")
    monkeypatch.syspath_prepend(tmp_path)
    with manager_in() as manager:
        with pytest.raises(PoolTimeout, match=r"lives, .* 0\.5 s .* 'hanging:make'.* import"):
            manager.create_pool("hanging:make", name="slow")
        assert manager.create_pool(list).apply(len) == 0, "it goes on"
        gate.open()
        wait_until(lambda: is_known(manager, "slow"))
        assert manager.get_pool("slow").apply(len) == 0


def is_known(manager: PoolManager, name: str) -> bool:
    try:
        return bool(manager.get_pool(name))
    except PoolError:
        return False


# -- signals ------------------------------------------------------------------------------------------


def test_a_signal_to_the_manager_is_none_to_the_program(run_program: RunProgram) -> None:
    program = """
        import asyncio

        async def main():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print, "the program was told")
            manager = PoolManager(ctx=FORK)
            manager.start()
            os.kill(manager.create_pool(list).apply(pid), signal.SIGTERM)
            manager.join()
            await asyncio.sleep(0.2)
            print("over")
            manager.shutdown()

        def pid(_):
            return os.getpid()

        asyncio.run(main())
        """
    assert run_program(program) == "over\n"


def test_a_handler_of_the_program_runs_in_the_program_only(run_program: RunProgram) -> None:
    program = """
        def handle(*_):
            print("handled", flush=True)

        signal.signal(signal.SIGUSR1, handle)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])

        def look(_):
            os.kill(os.getpid(), signal.SIGUSR1)
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            return subprocess.run(["false"]).returncode, sorted(masked)

        with PoolManager(ctx=FORK) as manager:
            for isolation in ("none", "process"):
                print(manager.create_pool(list, isolation=isolation).apply(look), flush=True)
        """
    assert run_program(program) == "(1, [])\n(1, [])\n"


def test_programs_that_objects_start_can_be_interrupted(run_program: RunProgram) -> None:
    program = """
        ASK = "import signal; print(*(signal.getsignal(n) == signal.SIG_IGN for n in (1, 2, 15)))"

        def ask(_):
            return subprocess.check_output([sys.executable, "-c", ASK], text=True).strip()

        with PoolManager(ctx=FORK) as manager:
            for isolation in ("none", "process"):
                print(manager.create_pool(list, isolation=isolation).apply(ask))
        """
    assert run_program(program) == "False False False\n" * 2


# -- processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_forked_worker_ends_in_silence(run_program: RunProgram, restart: bool, method: str) -> None:
    program = """
        if __name__ == "__main__":
            with PoolManager(ctx=multiprocessing.get_context(METHOD), restart=RESTART) as manager:
                if os.fork() == 0:
                    sys.exit()
                os.wait()
                print("over")
        """
    body = program.replace("RESTART", str(restart)).replace("METHOD", repr(method))
    # With restart the program has a thread of ours, and Python warns of forks of its own.
    assert run_program(body, "-W", "ignore::DeprecationWarning") == "over\n"


def test_no_fork_beside_threads_is_warned_of(run_program: RunProgram) -> None:
    program = """
        with PoolManager(ctx=FORK, restart=True) as manager:
            pool = manager.create_pool(list, isolation="process", max_size=2)
            for number in range(3):
                pool.release(pool.acquire(), discard=True)
            print("built")
        """
    assert run_program(program, "-W", "always::DeprecationWarning") == "built\n"


def note_pid(path: Path) -> None:
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_initializer_runs_in_managers_and_objects_processes_only(tmp_path: Path, method: str) -> None:
    manager = PoolManager(ctx=multiprocessing.get_context(method))
    manager.start(note_pid, (tmp_path / "pids",))
    pool = manager.create_pool(Tool, isolation="process", max_size=1)
    pids = [process_of(manager).pid]
    for _ in range(2):
        with pool.lease() as handle:
            pids.append(handle.pid())
        pool.refresh()
    manager.shutdown()
    assert [int(line) for line in (tmp_path / "pids").read_text().split()] == pids


@pytest.mark.parametrize("restart", [False, True])
def test_a_manager_ends_with_its_launcher(restart: bool) -> None:
    with manager_in(restart=restart) as manager:
        pool = manager.create_pool(list, isolation="process")
        with contextlib.suppress(PoolError), pool.lease() as handle:
            launcher, child = children_of(manager)
            launcher.kill()
            wait_until(lambda: not lives(child))
            with pytest.raises(PoolError):
                handle.append(1)
        if restart:
            assert wait_until(lambda: size_or_none(pool)) == 1
        else:
            with pytest.raises(ManagerLost):
                pool.acquire()


def size_or_none(pool: ObjectPool[list[int]]) -> int | None:
    with contextlib.suppress(ManagerLost), pool.lease() as handle:
        handle.append(1)
        return len(handle)
    return None


class StuckStream(io.StringIO):
    """Another thread is in the middle of writing to it, and so holds its lock."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            return super().write(text)

    def get_stuck(self) -> None:
        self._lock.acquire()


class Logging(Tool):
    """Logs to a stream that is locked when it forks."""

    def __init__(self) -> None:
        self._stream = StuckStream()
        logging.getLogger("mppool").addHandler(logging.StreamHandler(self._stream))

    def fork(self) -> int:
        self._stream.get_stuck()
        return os.fork()

    def await_end(self, pid: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.everywhere
def test_a_child_that_an_object_forks_beside_a_log_ends(manager: PoolManager) -> None:
    pool = manager.create_pool(Logging, call_timeout=10)
    with pool.lease() as handle:
        assert handle.await_end(handle.fork()) == 1


# -- ends ---------------------------------------------------------------------------------------------


def test_a_manager_that_is_started_while_the_program_ends_closes_its_objects(
    run_program: RunProgram, tmp_path: Path
) -> None:
    program = """
        from concurrent.futures import ThreadPoolExecutor
        from mppool import PoolError

        def make(path):
            return path

        def close(path):
            with open(path, "a") as file:
                file.write("closed")

        def pid(_):
            return os.getpid()

        def have_a_successor():  # no executor takes anything any more
            old = pool.apply(pid)
            os.kill(old, signal.SIGKILL)
            while True:
                try:
                    if pool.apply(pid) != old:
                        return
                except PoolError:
                    pass

        manager = PoolManager(ctx=FORK, restart=True)
        manager.start()
        pool = manager.create_pool(partial(make, "diary"), close=close)
        atexit.register(have_a_successor)
        import logging
        logging.disable()
        """
    run_program(program)
    assert (tmp_path / "diary").read_text() == "closed"


# -- proof --------------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize("restart", [False, True])
def test_builds_do_not_hang_while_threads_of_the_manager_hold_locks(
    run_program: RunProgram, restart: bool
) -> None:
    """A fork of the manager would come at a moment when a thread of its own writes a log, or imports."""
    noise = """
        import importlib, logging

        LOG = logging.getLogger("noise")

        def configure():
            LOG.addHandler(logging.FileHandler("noise.log"))
            LOG.propagate = False

        class Noise:
            def __init__(self):
                for number in range(4):
                    threading.Thread(target=self.make, args=(number,), daemon=True).start()

            def make(self, number):
                while True:
                    for _ in range(20):
                        LOG.warning("a line of a log that is rather long, so that writing takes its time")
                    sys.modules.pop(f"noisy{number}", None)
                    importlib.import_module(f"noisy{number}")

        class Quiet:
            def __init__(self):
                LOG.warning("an object")
                for number in range(4):
                    importlib.import_module(f"noisy{number}")
        """
    program = """
        import noise

        manager = PoolManager(ctx=FORK, restart=RESTART)
        manager.start(noise.configure)
        loud = manager.create_pool(noise.Noise)
        held = loud.acquire()
        pool = manager.create_pool(noise.Quiet, isolation="process", max_size=2, timeout=20)
        for number in range(50):
            pool.release(pool.acquire(), discard=True)
        print("built")
        manager.shutdown()
        """
    noisy = {f"noisy{number}": "time.sleep(0.002)" for number in range(4)}
    for _ in range(1 + stress_times(19)):
        assert run_program(program.replace("RESTART", str(restart)), noise=noise, **noisy) == "built\n"
