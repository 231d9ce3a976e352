"""The processes of objects, which Ray places, as their control sees them."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from mppool._process.far import FarFence
from mppool._process.info import ManagerInfo
from mppool._process.runner import END_SECONDS, ObjectProcess, Processes
from mppool._system.processes import ProcessId
from mppool._wire.connection import Connection
from mppool.options import PoolOptions

from . import cluster
from .figures import ClusterTable
from .host import Host
from .nodes import Nodes
from .placement import Placement

_PAUSE_SECONDS = 0.5
"""Before Ray is asked again for a process that ended before it came: its node has died, perhaps."""

Arrivals = SimpleQueue[tuple[ProcessId, Connection] | Future[None] | None]
"""Connections of a process that is awaited; that it ended; None: it is to be awaited no more."""


class Hosts(Processes):
    """All those of a control."""

    nodes: Nodes

    def __init__(self, info: ManagerInfo, placement: Placement) -> None:
        self.info = replace(info, creator_pid=None)
        self.placement = placement
        self._awaited: dict[str, Arrivals] = {}
        self.far_table = lambda homes: ClusterTable(self.nodes, homes)

    def new(self, pool: str, options: PoolOptions, has_loop: bool) -> ObjectProcess:
        return HostedProcess(self, pool, options.exposed, options.keep, has_loop)

    @contextlib.contextmanager
    def awaiting(self, arrivals: Arrivals) -> Iterator[str]:
        """Within the block a process is awaited that says this ticket."""
        ticket = secrets.token_hex(8)
        self._awaited[ticket] = arrivals
        try:
            yield ticket
        finally:
            del self._awaited[ticket]

    def welcome(self, ticket: str, process: ProcessId, connection: Connection) -> None:
        """A process has come with one of its connections. One that is awaited no more is hung up on."""
        arrivals = self._awaited.get(ticket)
        if arrivals is None:
            connection.close()
        else:
            arrivals.put((process, connection))


class HostedProcess(ObjectProcess):
    """One of them: an actor, of which the one method lasts as long as the object."""

    _actor: Any = None
    _run: Future[None]
    _is_lost = False
    """Whether it cannot be reached."""

    def __init__(self, hosts: Hosts, *what: Any) -> None:
        self._hosts = hosts
        self._what = what
        self._killed = threading.Event()
        self._arrivals: Arrivals = SimpleQueue()

    def start(self) -> None:
        self.waits_for = f"the cluster to have {self._hosts.placement} for its process"
        try:
            while not self._has_come():
                self._killed.wait(_PAUSE_SECONDS)
        except BaseException:
            self.clean_up()
            raise
        finally:
            self.waits_for = ""

    def _has_come(self) -> bool:
        """Have Ray start the process. False if it has ended before it came.

        Then most likely its node has died, of which Ray may know nothing yet.
        """
        self._arrivals = SimpleQueue()
        with self._hosts.awaiting(self._arrivals) as ticket:
            self._actor = cluster.start(Host, self._hosts.info, **self._hosts.placement.of_host())
            self._run = cluster.future(self._actor.run.remote(ticket, *self._what))
            self._run.add_done_callback(self._arrivals.put)
            if self._killed.is_set():  # before there was an actor
                raise ChildProcessError("it took too long to start")
            try:
                self.id, self.control = self._next_arrival()
            except cluster.DEAD as error:
                if cluster.has_failed_to_begin(error):
                    raise ChildProcessError(cluster.in_short(error)) from None
                return False
            self.fence = FarFence(self._next_arrival()[1])
        return True

    def _next_arrival(self) -> tuple[ProcessId, Connection]:
        """Raises how the process has ended."""
        arrival = self._arrivals.get()
        if arrival is None:
            raise ChildProcessError("it took too long to start")
        if isinstance(arrival, Future):
            arrival.result()
            raise ChildProcessError("the process of its object has ended")
        return arrival

    def exit_reason(self, timeout: float) -> str | None:
        if self._is_lost:
            return "cannot be reached"
        if not self.control.has_ended():
            wait([self._run], timeout)
            if not self._run.done() and not self.control.has_ended():
                return None
        wait([self._run], END_SECONDS)
        return "has ended"

    def is_reachable(self) -> bool:
        self._is_lost = self._is_lost or not self._hosts.nodes.answers(self.id)
        return not self._is_lost

    def kill(self) -> None:
        self._killed.set()
        self._arrivals.put(None)
        self._end()
        if hasattr(self, "id"):
            self._hosts.nodes.kill(self.id)

    def clean_up(self) -> None:
        self._end()
        if hasattr(self, "id"):
            self._hosts.nodes.kill_group(self.id)
        for each in ("control", "fence"):
            if hasattr(self, each):
                getattr(self, each).close()

    def _end(self) -> None:
        if self._actor is not None:
            cluster.kill(self._actor)
