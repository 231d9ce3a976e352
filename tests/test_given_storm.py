"""Values under `kill -9`: none is held twice, none is lost. In the same program a queue loses them.

Each value has a file that its user locks: whether two processes ever hold it shows at once.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from actors import FORK, manager_in
from helpers import do_without_linux, stress_seed, stress_times, wait_until

from mppool import ObjectPool

VALUES = 4
WORKERS = 16

Borrow = Callable[[], Any]
"""Gives a block that holds a value."""


@contextmanager
def from_queue(queue: Any) -> Iterator[int]:
    """What is used where there is no pool."""
    value = queue.get()
    try:
        yield value
    finally:
        queue.put(value)


def use_values(borrow: Borrow, directory: Path, seed: float) -> None:
    """Borrow a value, lock its file, give it back, until killed."""
    dice = random.Random(seed)
    while True:
        with borrow() as value, (directory / f"value-{value}").open("a") as user:
            try:
                fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                (directory / "complaints").open("a").write(f"{value} is held twice\n")
            threading.Event().wait(dice.choice((0.0, 0.001, 0.003)))
            user.write(f"{os.getpid()}\n")


def storm(borrow: Borrow, directory: Path, kills: int) -> None:
    """Workers that use values, and are killed at random moments."""
    dice = random.Random(stress_seed())

    def start() -> Any:
        worker = FORK.Process(target=use_values, args=(borrow, directory, dice.random()))
        worker.start()
        return worker

    workers = [start() for _ in range(WORKERS)]
    wait_until(lambda: uses(directory) > 0)
    try:
        for _ in range(kills):
            threading.Event().wait(dice.choice((0.0, 0.005, 0.02)))  # a random moment, not a safe one
            victim = workers.pop(dice.randrange(WORKERS))
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            workers.append(start())
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()


def uses(directory: Path) -> int:
    """How often a value was used, from start to end."""
    return sum(len(path.read_text().splitlines()) for path in directory.glob("value-*"))


def weather(tmp_path: Path, kills: int) -> None:
    """A storm over a pool of values."""
    with manager_in(watch_interval=1.0) as manager:
        pool = manager.create_pool(each=range(VALUES))
        storm(partial(ObjectPool.lease, pool, timeout=None), tmp_path, kills)
        assert sorted(pool.acquire(timeout=20) for _ in range(VALUES)) == list(range(VALUES)), "none is lost"
        assert pool.stats().reclaimed > 0
    assert not (tmp_path / "complaints").exists()
    assert uses(tmp_path) > 0


@pytest.mark.stress
@pytest.mark.parametrize("portable", [False, True], ids=["pidfd", "portable"])
def test_no_value_is_held_twice_or_lost(
    tmp_path: Path, portable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        do_without_linux(monkeypatch)
    weather(tmp_path, kills=stress_times(300))


def test_no_value_is_lost_in_a_shower(tmp_path: Path) -> None:
    weather(tmp_path, kills=30)


def test_a_queue_loses_what_its_users_held(tmp_path: Path) -> None:
    queue = FORK.Queue()
    for value in range(VALUES):
        queue.put(value)
    storm(partial(from_queue, queue), tmp_path, kills=30)
    assert len(list(all_left_in(queue))) < VALUES


def all_left_in(queue: Any) -> Iterator[int]:
    with suppress(Empty):  # also where a dead process holds the lock of the queue
        while True:
            yield queue.get(timeout=0.5)
