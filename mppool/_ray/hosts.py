"""The processes of objects, which Ray places, as their control sees them."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import Future
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
from .host import Guest, Host
from .nodes import Nodes
from .placement import Placement


class Hosts(Processes):
    """All those of a control."""

    nodes: Nodes

    def __init__(self, info: ManagerInfo, placement: Placement) -> None:
        self.control = info.address
        self.info = replace(info, creator_pid=None)
        self.placement = placement
        self.awaited: dict[str, HostedProcess] = {}  # those that were started, by their tickets

    def new(self, pool: str, options: PoolOptions, has_loop: bool) -> ObjectProcess:
        return HostedProcess(self, pool, options.exposed, options.keep, has_loop)

    def welcome(self, guest: Guest, connection: Connection) -> None:
        """A process has come with one of its connections. One that is awaited no more is hung up on."""
        process = self.awaited.get(guest.ticket)
        if process is None:
            connection.close()
        else:
            process.arrivals.put((guest, connection))


class HostedProcess(ObjectProcess):
    """One of them, an actor."""

    def __init__(self, hosts: Hosts, *what: Any) -> None:
        self._hosts = hosts
        self._what = what
        self._actor: Any = None
        self._killed = False
        self._ended = threading.Event()
        self._how = "has ended"
        self.arrivals: SimpleQueue[tuple[Guest, Connection] | None] = SimpleQueue()  # None: there is no more

    def start(self) -> None:
        placement, ticket = self._hosts.placement, secrets.token_hex(8)
        self.waits_for = f"the cluster to have {placement} for its process"
        self._hosts.awaited[ticket] = self
        try:
            self._actor = cluster.start(Host, **placement.of_host())
            told = self._hosts.control, ticket, self._hosts.info, *self._what
            cluster.when_answered(self._actor.run.remote(*told), self._on_end)
            guest, self.control = self._next_arrival()
            self.id = ProcessId(guest.pid, None, "object", ticket, elsewhere=True, node=guest.node)
            _, side = self._next_arrival()
            self.fence = FarFence(side)
        except BaseException:
            self.clean_up()
            raise
        finally:
            self.waits_for = ""
            del self._hosts.awaited[ticket]
        self._hosts.nodes.watch(self.id, guest.started)

    def _next_arrival(self) -> tuple[Guest, Connection]:
        """`ChildProcessError` if it does not come."""
        arrival = self.arrivals.get()
        if arrival is None:
            raise ChildProcessError(f"the process of its object {self._how}")
        return arrival

    def _on_end(self, run: Future[None]) -> None:
        """Ray says that the actor has ended, or could not be started."""
        error = run.exception()
        if error is not None and not self._killed:
            self._how = f"has ended: {cluster.in_short(error)}"
        self._ended.set()
        self.arrivals.put(None)

    def exit_reason(self, timeout: float) -> str | None:
        if not self.control.has_ended() and not self._ended.wait(timeout) and not self.control.has_ended():
            return None
        self._ended.wait(END_SECONDS)
        return self._how

    def is_reachable(self) -> bool:
        """Whether its node gives a sign of life."""
        return self._hosts.nodes.answers(self.id)

    def kill(self) -> None:
        self._killed = True
        if self._actor is not None:
            cluster.kill(self._actor)
        if hasattr(self, "id"):
            self._hosts.nodes.kill(self.id)
        self.arrivals.put(None)

    def clean_up(self) -> None:
        if self._actor is not None:
            cluster.kill(self._actor)
        if hasattr(self, "id"):
            self._hosts.nodes.kill_group(self.id)
        for each in ("control", "fence"):
            if hasattr(self, each):
                getattr(self, each).close()
