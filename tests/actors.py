"""Pooled objects and worker processes for the tests of faults. Light: every child process imports it."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from helpers import wait_until

from mppool import ObjectPool, PoolManager

FORK = multiprocessing.get_context("fork")
START_METHODS = ["fork", "spawn", "forkserver"]


class Interrupted(Exception):
    """What `interrupt` raises."""


def interrupt(signum: int, frame: object) -> None:
    """A signal handler that ends what the main thread does."""
    raise Interrupted


class Tool:
    """A pooled object that can do what the tests need."""

    def echo(self, value: Any) -> Any:
        return value

    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def echo_true(self) -> bool:
        return True

    def pid(self) -> int:
        return os.getpid()

    def fail_with(self, error: type[BaseException]) -> None:
        raise error

    def wait_at_gate(self) -> None:
        Gate.of_this_process().pass_through()


def print_to_nobody(_: object, hung_up: bool = True) -> None:
    """Leave something to be written when the process ends, where nobody reads, or has hung up."""
    reading, writing = os.pipe()
    if hung_up:
        os.close(reading)
    sys.stdout = open(writing, "w", buffering=2**20)  # noqa: SIM115  # it is to be open then
    sys.stdout.write("nobody hears me\n" * 10_000)  # more than a pipe holds


class Gate:
    """Where calls and hooks wait until the test lets them pass.

    Set up before the manager is forked, which inherits it. What is not forked from the test finds it in a
    directory.
    """

    DIRECTORY = "MPPOOL_TESTS_GATE"
    """The environment variable that names it."""

    present: Gate | None = None

    def __init__(self, directory: Path | None = None) -> None:
        # Pipes: a process that is killed at the gate leaves nothing locked.
        if directory is None:
            self._arrivals, self._arrive = os.pipe()
            self._closed, self._open = os.pipe()
        else:
            self._arrivals, self._arrive = named_pipe(directory / "arrivals")
            self._closed, self._open = named_pipe(directory / "closed")

    @classmethod
    def of_this_process(cls) -> Gate:
        return cls.present or cls(Path(os.environ[cls.DIRECTORY]))

    @classmethod
    @contextlib.contextmanager
    def set_up(cls, directory: Path | None = None) -> Iterator[Gate]:
        cls.present = gate = cls(directory)
        try:
            yield gate
        finally:
            gate.open()
            cls.present = None
            gate.close()

    def close(self) -> None:
        for end in (self._arrivals, self._arrive, self._closed, self._open):
            os.close(end)

    def wait_for_somebody(self) -> None:
        """Wait until one (more) has come to the gate."""
        assert select.select([self._arrivals], [], [], 20)[0], "nobody came to the gate"
        os.read(self._arrivals, 1)

    def open(self) -> None:
        os.write(self._open, b"!")

    def pass_through(self) -> None:
        os.write(self._arrive, b"!")
        assert select.select([self._closed], [], [], 60)[0], "nobody opened the gate"


def named_pipe(path: Path) -> tuple[int, int]:
    """Both ends of it, for the first process that asks and for others."""
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return reading, os.open(path, os.O_WRONLY)


class Witness(Tool):
    """Writes down when it was made and when it was closed."""

    def __init__(self, diary: Path) -> None:
        self._diary = diary
        self._name = uuid.uuid4().hex
        self._note("made")

    def name(self) -> str:
        return self._name

    def start_a_child(self) -> int:
        """Of the manager's, that ignores whatever can be ignored."""
        return subprocess.Popen(["/bin/sh", "-c", "trap '' HUP INT TERM; exec sleep 1000"]).pid

    def close(self) -> None:
        self._note("closed")

    def close_slowly(self) -> None:
        time.sleep(0.15)
        self._note("closed")

    def close_when_told(self) -> None:
        """Ends when there is a file `go` beside the diary."""
        self._note("closing")
        wait_until(self._diary.with_name("go").exists)
        self._note("closed")

    def _note(self, what: str) -> None:
        with self._diary.open("a") as diary:  # a short line is appended in one piece
            diary.write(f"{what} {self._name}\n")


class Traveller:
    """A hook that comes as far as the manager, and no further."""

    def __init__(self, trips: int = 0) -> None:
        if trips > 1:
            raise LookupError("far from home")
        self.trips = trips

    def __reduce__(self) -> tuple[Any, ...]:
        return Traveller, (self.trips + 1,)

    def __call__(self, lent: object) -> None:
        raise AssertionError


class Diary:
    """What the witnesses wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def names(self, what: str) -> list[str]:
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return sorted(name for verb, name in lines if verb == what)

    def made(self) -> list[str]:
        return self.names("made")

    def closed(self) -> list[str]:
        return self.names("closed")

    def all_closed_once(self) -> bool:
        return self.made() == self.closed()

    def all_closed_at_most_once(self) -> bool:
        closed = self.closed()
        return len(set(closed)) == len(closed) and set(closed) <= set(self.made())


class Exclusive:
    """Proves from inside that it has one holder at a time, who calls it with a token of his lease."""

    def __init__(self, complaints: Path) -> None:
        self._complaints = complaints
        self._holder: object = None
        self._before: set[object] = set()
        self._inside = threading.Lock()

    def step(self, token: object, seconds: float = 0.0) -> object:
        if not self._inside.acquire(blocking=False):
            self._complain(f"{token} called while a call was running")
            return token
        try:
            if token != self._holder:
                if token in self._before:
                    self._complain(f"{token} called after {self._holder} had come")
                self._before.add(token)
                self._holder = token
            if seconds:
                time.sleep(seconds)
            return token
        finally:
            self._inside.release()

    def echo_of(self, *values: Any) -> Any:
        return values

    def _complain(self, text: str) -> None:
        with self._complaints.open("a") as complaints:
            complaints.write(text + "\n")


@contextlib.contextmanager
def manager_in(
    start_method: str = "fork",
    *,
    kind: type[PoolManager] = PoolManager,
    watch_interval: float = 60.0,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    **options: Any,
) -> Iterator[PoolManager]:
    """A manager whose watchdog sweeps so rarely by itself that only what wakes it can free an object."""
    context = multiprocessing.get_context(start_method)
    manager = kind(ctx=context, watch_interval=watch_interval, **options)
    manager.start(initializer, initargs)
    with manager:
        yield manager


@contextlib.contextmanager
def pool_of(
    factory: Callable[[], Any] = Tool, *, watch_interval: float = 60.0, **options: Any
) -> Iterator[ObjectPool[Any]]:
    """A pool in such a manager."""
    with manager_in(watch_interval=watch_interval) as manager:
        yield manager.create_pool(factory, **options)


def process_of(manager: PoolManager) -> psutil.Process:
    """The manager's process."""
    return psutil.Process(manager._process.pid)  # type: ignore[attr-defined]  # `multiprocessing` has no other name


def home_of(manager: PoolManager) -> Path:
    """The directory of the manager: with an address of the user's own, nothing else tells where it is."""
    return Path(str(manager._runtime_dir))


def untold(pool: ObjectPool[Any]) -> int:
    """How much this process has still to tell the manager, of which the manager knows nothing."""
    return len(pool._channel._unsent)


def hang_up(_: object, pool: ObjectPool[Any]) -> None:
    """Close this thread's connection to the manager, as an interrupted call does."""
    pool._channel.drop()


def my_threads() -> int:
    """All of this process, also those that `threading` does not know."""
    return psutil.Process().num_threads()


def lives(process: psutil.Process) -> bool:
    """Whether it runs, or stands still; a zombie does not live."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # just now
        return False


def stop(process: psutil.Process) -> None:
    """SIGSTOP. Returns when it stands still."""
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP for the length of a block."""
    stop(process)
    try:
        yield
    finally:
        process.resume()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def fill_gaps() -> None:
    """In the manager: leave none among the numbers that it inherited, so that later ones are in a row."""
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while os.open(os.devnull, os.O_RDONLY) < highest:
        pass


def count_descriptors(process: psutil.Process) -> int:
    """Those that it keeps: psutil opens files of /proc for a moment, in a watchdog again and again."""
    if not sys.platform.startswith("linux"):
        return process.num_fds()
    count = 0
    for name in os.listdir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it is closed by now
            count += not os.readlink(f"/proc/{process.pid}/fd/{name}").startswith("/proc/")
    return count


def tokens(process: int | str = "self") -> int:
    """How many leases are delegated to a process: with each it has an event counter of Linux."""
    links = Path(f"/proc/{process}/fd")
    found = 0
    for each in links.iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the directory
            found += os.readlink(each) == "anon_inode:[eventfd]"
    return found


@contextlib.contextmanager
def descriptors_for(manager: PoolManager, more: int) -> Iterator[None]:
    """The manager may open so many descriptors more, and no others."""
    process = process_of(manager)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{process.pid}/fd")))
    process.rlimit(psutil.RLIMIT_NOFILE, (highest + 1 + more, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


def all_idle(pool: ObjectPool[Any], size: int) -> bool:
    """Whether nothing is lent, wanted or under way, and there are `size` objects."""
    now = pool.stats()
    return (now.size, now.idle, now.leased, now.waiting) == (size, size, 0, 0)


@contextlib.contextmanager
def child_process(target: Callable[..., None], *args: Any, context: Any = FORK) -> Iterator[tuple[Any, Any]]:
    """A process that calls `target(pipe, *args)`, and the other end of its pipe; it ends with the block."""
    ours, theirs = context.Pipe()
    with ours:
        process = context.Process(target=target, args=(theirs, *args))
        process.start()
        theirs.close()
        try:
            yield process, ours
        finally:
            process.kill()
            process.join()


class Worker:
    """A forked process that does what it is told, step by step, and is killed when the test ends."""

    def __init__(self, context: Any = FORK) -> None:
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_obey_to_the_end, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.pid: int = self.process.pid
        self._seen = psutil.Process(self.pid)
        self._children: list[int] = []

    def begin(self, job: Callable[..., Any], *args: Any) -> None:
        """Have it call `job(things, *args)`, where `things` is a dict that stays there."""
        self._pipe.send((job, args))

    def result(self, timeout: float = 20) -> Any:
        """What the job returned, or the error that it raised."""
        if not self._pipe.poll(timeout):
            os.kill(self.pid, signal.SIGABRT)  # a fork of pytest shows where it stands, without xdist
            wait_until(self.has_ended)
            raise AssertionError("the worker does not answer")
        failed, value = self._pipe.recv()
        if failed:
            raise value
        return value

    def do(self, job: Callable[..., Any], *args: Any) -> Any:
        self.begin(job, *args)
        return self.result()

    def leave_a_child(self) -> None:
        """Have it fork a child that inherits all files, and sleeps until the test ends."""
        self._children.append(self.do(leave_a_child))

    def kill(self) -> None:
        """`kill -9`; it stays a zombie."""
        os.kill(self.pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        return not lives(self._seen)

    def await_end(self) -> None:
        self.process.join(20)
        assert self.has_ended()

    def idle(self) -> bool:
        """Whether a result is there."""
        return bool(self._pipe.poll())

    def stop(self) -> None:
        stop(self._seen)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def is_zombie(self) -> bool:
        return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE

    def __enter__(self) -> Worker:  # noqa: PYI034  # `Self` came with Python 3.11
        return self

    def __exit__(self, *exc_info: object) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.process.close()
        self._pipe.close()


class Counts:
    """Two numbers that one process writes and another reads. A lock would stay held by one that is killed."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), 16)).cast("q")

    def __getitem__(self, index: int) -> int:
        return self._numbers[index]

    def __setitem__(self, index: int, number: int) -> None:
        self._numbers[index] = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Counts, (self.path,)


class KillStorm(contextlib.AbstractContextManager["KillStorm"]):
    """Workers that are killed at random moments, each followed by another. At its end all of them are killed.

    Each does `work(seed, counts)`, where counts[0] is how often it was served, counts[1] how often refused.
    """

    def __init__(
        self,
        new_worker: Callable[[], Worker],
        work: Callable[[float, Any], None],
        dice: random.Random,
        workers: int,
    ) -> None:
        self._new_worker = new_worker
        self._work = work
        self._dice = dice
        self._number = workers
        self._workers: list[tuple[Worker, Counts]] = []
        self.kills = self.served = self.refused = self.objects = 0

    def __exit__(self, *_: object) -> None:
        while self._workers:
            self._end(self._workers.pop())

    def rage(self, seconds: float, pauses: Sequence[float], *, stops: bool = False) -> None:
        """Kill for so long, and 20 times at least. Those that are left may be stopped meanwhile, one each."""
        end = time.monotonic() + seconds
        while time.monotonic() < end or self.kills < 20:
            self.strike(pauses, stops=stops)

    def strike(
        self, pauses: Sequence[float], *, stops: bool = False, among: Callable[[], set[int]] = set
    ) -> None:
        """Kill one, of those with these pids if there is any."""
        self._wait(pauses)
        pids = among()
        preferred = [each for each in self._workers if each[0].pid in pids]
        victim = self._dice.choice(preferred or self._workers)
        self._workers.remove(victim)
        standing_still, _ = self._dice.choice(self._workers)
        if stops:
            standing_still.stop()
        self._end(victim)
        standing_still.go_on()
        self.kills += 1

    def strike_object(self, pool: ObjectPool[Any], pauses: Sequence[float]) -> None:
        """Kill the process of one of the objects that are there."""
        self._wait(pauses)
        pids = [each.pid for each in pool.objects() if each.pid is not None]
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # it has just ended; none is there
            victim = psutil.Process(self._dice.choice(pids))
            victim.kill()
            wait_until(lambda: not lives(victim))
            self.objects += 1

    def _wait(self, pauses: Sequence[float]) -> None:
        """Have all workers there, and then wait for a random moment, not a safe one."""
        while len(self._workers) < self._number:
            self._workers.append(self._start())
        threading.Event().wait(self._dice.choice(pauses))

    def all_go_on(self, timeout: float) -> None:
        """Wait until each worker that is left was served anew."""
        before = [counts[0] for _, counts in self._workers]
        wait_until(
            lambda: all(counts[0] > was + 5 for (_, counts), was in zip(self._workers, before, strict=True)),
            timeout=timeout,
            message="each of them goes on",
        )

    def _start(self) -> tuple[Worker, Counts]:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(bytes(16))
        worker, counts = self._new_worker(), Counts(file.name)
        worker.begin(_work, self._work, self._dice.random(), counts)
        return worker, counts

    def _end(self, victim: tuple[Worker, Counts]) -> None:
        worker, counts = victim
        assert not worker.idle(), worker.result()
        with worker:
            assert not worker.has_ended(), "it ended by itself"
            worker.kill()
            worker.await_end()
        os.unlink(counts.path)
        self.served += counts[0]
        self.refused += counts[1]


def _work(_: object, work: Callable[[float, Counts], None], seed: float, counts: Counts) -> None:
    work(seed, counts)


def obey(pipe: Connection) -> None:
    """Be a worker, until the test has ended."""
    things: dict[str, Any] = {}
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job, args = pipe.recv()
            try:
                answer = (False, job(things, *args))
            except Exception as error:
                answer = (True, error)
            pipe.send(answer)


def _obey_to_the_end(pipe: Connection) -> None:
    obey(pipe)
    os._exit(0)


# -- jobs for a worker ----------------------------------------------------------------------------


def acquire(things: dict[str, Any], pool: ObjectPool[Any], timeout: float | None = 20) -> None:
    things["handle"] = pool.acquire(timeout)


def echo(things: dict[str, Any], value: Any) -> Any:
    return things["handle"].echo(value)


def wait_at_gate(things: dict[str, Any]) -> None:
    things["handle"].wait_at_gate()


def release(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    pool.release(things.pop("handle"))


def leave_a_child(things: dict[str, Any]) -> int:
    """Fork a child that inherits all files and sleeps; returns its pid."""
    pid = os.fork()
    if not pid:
        time.sleep(1000)
    return pid
