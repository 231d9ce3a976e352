"""A Ray cluster as a place of the contract tests: its workers are tasks on the nodes, each in turn."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import uuid
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from actors import Gate, Worker, lives, obey
from backends import Backend
from helpers import wait_until
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mppool import ManagerLost, ObjectPool, PoolManager
from mppool.ray import Placement, RayPoolManager

BACKENDS = ("ray",)
"""Of a module that has the tests of another one."""

ANYWHERE = Placement(num_cpus=0, strategy="SPREAD")


class Manager(RayPoolManager):
    """Spreads objects over the nodes, and needs no CPU for them, unless a test says otherwise."""

    def create_pool(self, factory: Any = None, **options: Any) -> ObjectPool[Any]:
        return super().create_pool(factory, **{"placement": ANYWHERE, **options})


class RayBackend(Backend):
    """On the nodes with these ids. All are on this machine: processes are found and stopped by pids."""

    kills = True

    def __init__(self, nodes: list[str]) -> None:
        self._nodes = itertools.cycle(nodes)
        self._namespaces: dict[Any, str] = {}

    @contextlib.contextmanager
    def manager(self, *, watch_interval: float = 1.0) -> Iterator[PoolManager]:
        """A manager of a namespace of its own. How often it looks after its holders is its own affair."""
        namespace = f"test {uuid.uuid4()}"
        manager: Any = Manager(namespace=namespace)
        self._namespaces[manager] = namespace
        try:
            yield manager
        finally:
            wait_until(lambda: _all_closed(manager), 60)
        wait_until(lambda: not any(each.startswith("pool ") for each in _actors(namespace)), 30)

    def many(self, number: int) -> int:
        return min(number, 10)  # each takes Ray a second or two to start

    def worker(self) -> Worker:
        return RayWorker(next(self._nodes))

    def gate(self) -> contextlib.AbstractContextManager[Gate]:
        directory = Path(os.environ[Gate.DIRECTORY])
        for path in directory.iterdir():
            path.unlink()
        return Gate.set_up(directory)

    def process_of(self, manager: PoolManager) -> psutil.Process:
        """Of the control of the manager's one pool."""
        (control,) = (each for each in _actors(self._namespaces[manager]) if each.startswith("pool "))
        actor = ray.get_actor(control, self._namespaces[manager])
        return psutil.Process(ray.get(actor.__ray_call__.remote(_pid)))

    def processes_of(self, manager: PoolManager) -> list[psutil.Process]:
        (pool,) = manager.pools().values()
        objects = [psutil.Process(each.pid) for each in pool.objects() if each.pid is not None]
        return [self.process_of(manager), *objects]

    def do_without_linux(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.skip("what Ray starts does not inherit what a test sets")


class RayWorker(Worker):
    """A task that does what it is told."""

    def __init__(self, node: str) -> None:
        on_node = NodeAffinitySchedulingStrategy(node, soft=False)
        with Listener(family="AF_UNIX") as listener:
            self._task = _obey_caller.options(scheduling_strategy=on_node).remote(listener.address)
            self._pipe: Any = listener.accept()
        self.pid = self._pipe.recv()
        self._seen = psutil.Process(self.pid)
        self._children: list[int] = []

    def kill(self) -> None:
        assert lives(self._seen), "the worker has ended by itself"
        self._seen.kill()

    def await_end(self) -> None:
        wait_until(self.has_ended)

    def __exit__(self, *exc_info: object) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        if not self.has_ended():
            self.go_on()
        self._pipe.close()
        if not ray.wait([self._task], timeout=5)[0]:
            self.kill()  # it is in a call that does not end


@ray.remote(num_cpus=0, max_retries=0)
def _obey_caller(address: str) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # Ray keeps Ctrl-C from all that it starts
    with Client(address) as pipe:
        pipe.send(os.getpid())
        obey(pipe)


def _all_closed(manager: Any) -> bool:
    """Close its pools; False while a control that a test has killed is being restarted."""
    try:
        for pool in manager.pools().values():
            pool.close(timeout=0)
    except ManagerLost:
        return False
    return True


def _actors(namespace: str) -> list[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in named if each["namespace"] == namespace]


def _pid(actor: object) -> int:
    return os.getpid()
