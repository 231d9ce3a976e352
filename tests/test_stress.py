"""Everything at once that can hang or harm a manager. MPPOOL_STRESS_SECONDS is the length of it.

Workers are killed at random moments; objects fork, log and import; threads of the manager and of objects'
processes log to a file and import modules; a crowd takes the manager's descriptors; cleaners of temporary
directories go through its files; processes of another user try to get in.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import random
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import FORK, Diary, Exclusive, KillStorm, Witness, Worker, home_of
from helpers import do_without_linux, stress_seconds, stress_seed, wait_until
from standins import side_by_side

from mppool import FactoryError, LeaseLost, ManagerLost, ObjectPool, PoolError, PoolManager

DESCRIPTORS = 150
"""Of the manager: enough for its work, and less than the crowd wants."""

NOBODY = 65534  # the uid

MODULES = [f"imported_under_stress_{number}" for number in range(8)]

log = logging.getLogger("stress")


# -- in the manager, and in the processes of objects --------------------------------------------------


def disturb(directory: Path) -> None:
    """An initializer: threads that hold the locks of logging and of imports as often as not."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    handler = logging.FileHandler(directory / "log")
    handler.setFormatter(logging.Formatter("%(process)d %(threadName)s %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    for work in (log_something, log_something, import_modules, import_modules):
        threading.Thread(target=again_and_again, args=(work,), daemon=True).start()


def again_and_again(work: Callable[[], object]) -> None:
    while True:
        with contextlib.suppress(OSError):  # no descriptor is free
            work()
        threading.Event().wait(0.005)


def log_something() -> None:
    log.warning("something")


def import_modules() -> None:
    for name in MODULES:
        sys.modules.pop(name, None)
        import_one(name)


def import_one(name: str) -> None:
    """While other threads import it, and take it out of what is imported: then the import fails."""
    with contextlib.suppress(KeyError, ImportError):
        importlib.import_module(name)


class Disturbed(Exclusive, Witness):
    """Logs, imports and forks. Proves from inside that it has one holder at a time, and is closed once."""

    def __init__(self, directory: Path) -> None:
        import_one(random.choice(MODULES))
        log.warning("made")
        Exclusive.__init__(self, directory / "complaints")
        Witness.__init__(self, directory / "diary")

    def fork(self) -> None:
        """Its child comes back from the call, as one does that was not thought of."""
        pid = os.fork()
        if not pid:
            return
        deadline = time.monotonic() + 30
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                self._complain(f"the child {pid} of a fork hangs")
                os.kill(pid, signal.SIGKILL)
            threading.Event().wait(0.001)


# -- workers --------------------------------------------------------------------------------------------


def work_until_killed(pool: ObjectPool[Any], seed: float, counts: Any) -> None:
    dice = random.Random(seed)
    for number in range(10**9):
        token = (os.getpid(), number)
        try:
            with pool.lease(timeout=None) as thing:
                for _ in range(dice.randrange(1, 4)):
                    assert thing.step(token, dice.choice((0.0, 0.0, 0.002))) == token
                if dice.random() < 0.02:
                    thing.fork()
        except (ManagerLost, LeaseLost, FactoryError):  # no descriptor for us, or the cleaner was there
            counts[1] += 1
            threading.Event().wait(0.05)
        else:
            counts[0] += 1


# -- others -----------------------------------------------------------------------------------------------


def crowd_in(address: str, parent: int) -> None:
    """Take descriptors of the manager, and give them back."""
    while os.getppid() == parent:
        with contextlib.ExitStack() as stack:
            for _ in range(2 * DESCRIPTORS):
                newcomer = stack.enter_context(socket.socket(socket.AF_UNIX))
                newcomer.setblocking(False)
                with contextlib.suppress(OSError):  # its queue is full, or the cleaner was there
                    newcomer.connect(address)
            threading.Event().wait(0.2)
        threading.Event().wait(1)


def break_in(pool: ObjectPool[Any], complaints: Path, parent: int) -> None:
    """As another user, which gave up its privileges after the fork."""
    with complaints.open("a") as stream:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        while os.getppid() == parent:
            try:
                pool.acquire(timeout=1)
            except PoolError:
                pass
            else:
                stream.write("another user has an object\n")
                stream.flush()
            threading.Event().wait(0.5)


def clean_politely(home: Path, seed: int, parent: int) -> None:
    """As systemd-tmpfiles: a directory that another process has locked is left alone."""
    del seed
    while os.getppid() == parent:
        with contextlib.suppress(OSError):
            descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home)
            finally:
                os.close(descriptor)
        threading.Event().wait(0.2)


def clean_rudely(home: Path, seed: int, parent: int) -> None:
    """As others, which remove what they find."""
    dice = random.Random(seed)
    while os.getppid() == parent:
        threading.Event().wait(dice.uniform(2, 6))
        with contextlib.suppress(OSError):
            dice.choice(
                (home.joinpath("key").unlink, home.joinpath("socket").unlink, partial(shutil.rmtree, home))
            )()


@contextlib.contextmanager
def beside(*jobs: Callable[[int], None]) -> Iterator[None]:
    """Processes that do these jobs for the length of the block, each told whose child it is."""
    processes = [FORK.Process(target=job, args=(os.getpid(),), daemon=True) for job in jobs]
    for process in processes:
        process.start()
    try:
        yield
        assert all(process.is_alive() for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


# -- together ---------------------------------------------------------------------------------------------


@pytest.mark.everywhere("none", "process")
@pytest.mark.parametrize(("portable", "clean"), [(False, clean_rudely), (True, clean_politely)])
@pytest.mark.stress
def test_all_of_it_at_once(
    tmp_path: Path, portable: bool, clean: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        do_without_linux(monkeypatch)
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text("import time\ntime.sleep(0.001)\n")
    monkeypatch.syspath_prepend(tmp_path)
    complaints, diary = tmp_path / "complaints", Diary(tmp_path / "diary")
    complaints.touch()
    seed = stress_seed()
    dice = random.Random(seed)
    manager = PoolManager(ctx=FORK)
    manager.start(disturb, (tmp_path,))
    with manager:
        options = {"close": Witness.close}
        pool = manager.create_pool(partial(Disturbed, tmp_path), max_size=4, **options)
        home = home_of(manager)
        key = home.joinpath("key").stat().st_ino
        others = [partial(crowd_in, manager.address), partial(clean, home, seed)]
        if os.getuid() == 0:
            others.append(partial(break_in, pool, complaints))
        with KillStorm(Worker, partial(work_until_killed, pool), dice, workers=12) as storm:
            with beside(*others):
                storm.rage(stress_seconds(), pauses=(0.0, 0.02, 0.1))
            storm.all_go_on(timeout=60)
        wait_until(lambda: (pool.stats().leased, pool.stats().waiting) == (0, 0))
        wait_until(lambda: pool.stats().idle == pool.stats().size)
        side_by_side(4, lambda index: pool.apply(Exclusive.step, index, 0.1))
        assert pool.stats().size <= 4
        assert clean is clean_rudely or home.joinpath("key").stat().st_ino == key
    print(f"{storm.kills} kills, {storm.served} leases that were given back, {storm.refused} refused")
    assert complaints.read_text() == ""
    assert diary.all_closed_at_most_once()
