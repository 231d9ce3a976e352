"""Web servers, each a program of its own on the loopback, and the models that their workers share."""

from __future__ import annotations

import os
import re
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from commands import Command
from helpers import Beside, wait_until

from mppool import ObjectPool, PoolManager

PATIENCE = 60.0
"""Seconds for a server, or for a pool, to do what it is to do."""


class Server(Command):
    """`python -m command` in this directory."""

    def __init__(self, directory: Path, *command: str) -> None:
        super().__init__(directory, "-m", *command)
        port = int(wait_until(self._find_port, PATIENCE, "it tells its port"))
        wait_until(lambda: self._listens(port), PATIENCE, "it listens")
        self._url = f"http://127.0.0.1:{port}"

    def _find_port(self) -> str | None:
        found = re.search(r"http://127.0.0.1:(\d+)", self.log())
        assert found or self.process.poll() is None, self.log()
        return found and found[1]

    def _listens(self, port: int) -> bool:
        """Uvicorn tells its port before its workers listen there."""
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    def get(self, text: str) -> str:
        with urllib.request.urlopen(f"{self._url}/{text}", timeout=PATIENCE) as answer:
            return answer.read().decode().strip('"')

    def workers(self, count: int) -> set[psutil.Process]:
        """Its workers. Returns when there are so many, and each has loaded the application, as it told."""

        def all_there() -> set[psutil.Process] | None:
            told = {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", self.log())}
            workers = {each for each in self.family() if each.pid in told}
            return workers if len(workers) == count else None

        return wait_until(all_there, PATIENCE)

    def kill_a_worker(self, pool: ObjectPool[Any], begun: Callable[[], object], beside: Beside) -> None:
        """`kill -9` for one that has a model, in a request. Returns when the pool has the model back."""
        request = beside(self.get, "wait")
        wait_until(begun, PATIENCE)
        (lease,) = pool.leases()
        os.kill(lease.pid, signal.SIGKILL)
        assert isinstance(request.exception(PATIENCE), OSError)
        wait_until(lambda: not pool.leases())
        assert pool.stats().reclaimed == 1

    def end(self) -> int:
        """SIGTERM. Returns its status."""
        self.process.terminate()
        return int(self.process.wait(PATIENCE))


class Models:
    """The pool "models", of the models of a recipe."""

    def __init__(self, directory: Path, place: Path) -> None:
        self._directory, self._place = directory, place

    def noted(self, what: str) -> list[int]:
        """The processes in which something was noted of a model."""
        lines = [line.split() for line in (self._directory / "diary").read_text().splitlines()]
        return [int(pid) for verb, pid in lines if verb == what]

    @contextmanager
    def pool(self) -> Iterator[ObjectPool[Any]]:
        """The pool, of which this process is a user, too, for the length of the block.

        So it stays, and no manager has the path of this process, also where a busy machine takes longer to
        start new workers than the manager lingers after the old ones.
        """
        with PoolManager.shared("models") as manager:
            yield manager.get_pool("models")

    def all_closed(self, but: int = 0) -> bool:
        """Whether each that was made was closed, but for those that were killed."""
        return len(self.noted("closed")) == len(self.noted("made")) - but

    @contextmanager
    def log(self) -> Iterator[Callable[[], str]]:
        """What the manager prints, also when it has ended and its directory is gone."""
        with (self._place / "shared-models" / "log").open() as log:
            yield lambda: (log.seek(0), log.read())[1]

    def go_on(self) -> None:
        """What waits in a call goes on."""
        (self._directory / "go").touch()
