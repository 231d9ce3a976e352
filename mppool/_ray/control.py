"""The actor with a pool: a manager as machines have them, which serves its clients over TCP."""

from __future__ import annotations

import secrets
import threading
from dataclasses import replace
from typing import Any, NoReturn

from mppool._process.info import ManagerInfo
from mppool._process.runner import Processes
from mppool._remote.errors import pack_error
from mppool._server.recipe import Recipe
from mppool._server.server import PoolServer
from mppool._system.processes import ProcessId
from mppool._system.runtime_dir import HeldDir
from mppool._wire.connection import Connection
from mppool._wire.handshake import Key
from mppool._wire.listener import Endpoint

from . import cluster
from .channel import Contact
from .hosts import Hosts
from .nodes import Nodes
from .placement import Placement

_KEY = 32  # bytes


class Control:
    """The actor. Its constructor's arguments are the recipe: Ray makes the next one with the same."""

    def __init__(
        self, namespace: str, name: str, pool_id: int, parts: tuple[Any, ...], placement: Placement
    ) -> None:
        try:
            self._server = ControlServer(namespace, placement)
            self._server.make(pool_id, name, Recipe(*parts))
            self._contact: tuple[bool, Any] = True, self._server.contact
        except BaseException as error:
            self._contact = False, pack_error(error)

    def contact(self) -> tuple[bool, Any]:
        """How it is reached; or why it could not make its pool."""
        return self._contact

    def end(self) -> None:
        """Close the pool, and end."""
        self._server.end_with_hooks()


class ControlServer(PoolServer):
    """The manager of one pool. It ends with it, and the actor's process with that."""

    public = (*PoolServer.public, "welcome")

    def __init__(self, namespace: str, placement: Placement) -> None:
        key = Key(secrets.token_bytes(_KEY))
        endpoint = Endpoint((cluster.own_address(), 0), HeldDir.create(key))
        info = ManagerInfo(
            address=endpoint.address,
            runtime_dir=endpoint.directory.path,
            key=key,
            start_method=None,
            watch_interval=1.0,
        )
        self._placement = placement
        super().__init__({}, info, endpoint)
        self._nodes = self._hosts.nodes = Nodes(
            namespace, on_gone=self._service.watchdog.ended, submit=self._service.submit
        )
        self.contact = Contact(info.address, bytes(key))
        self._node = cluster.own_node()
        self._actor = cluster.own_actor()

    def new_processes(self, info: ManagerInfo) -> Processes:
        """Ray places those of objects."""
        self._hosts = Hosts(info, self._placement)
        return self._hosts

    def welcome(self, conn: Connection, *process: Any, ticket: str, **terms: Any) -> NoReturn:
        """Take over one of the two connections of an object's process."""
        who = self._client_of(conn, *process, **terms)
        conn.send(("#RETURN", None))
        self._hosts.welcome(ticket, who, Connection(conn.detach(), ""))
        raise SystemExit

    def make(self, pool_id: int, name: str, recipe: Recipe) -> None:
        """Make the pool and serve it, on threads. Raises what keeps it from being made."""
        try:
            self._service.make(pool_id, name, recipe)
        except BaseException:
            self._leave_nothing()
            raise
        self._service.on_closed = self.stop_event.set
        self.begin()
        threading.Thread(target=self._end_with_pool, name="mppool end", daemon=True).start()

    def end_with_hooks(self) -> None:
        """Close all objects, and end."""
        self._service.close_all(self._bound)
        self.stop_event.set()

    def _end_with_pool(self) -> None:
        self.stop_event.wait()
        self._leave_nothing()
        self._service.close_all(self._bound)
        cluster.kill(self._actor)

    def _client_of(
        self,
        conn: Connection,
        *client: Any,
        node: str | None = None,
        started: float | None = None,
        **terms: Any,
    ) -> ProcessId:
        """One on this node is known as any local one. Of another one the watch of its node tells the end."""
        process = super()._client_of(conn, *client, **terms)
        if node == self._node:
            return replace(process, node=node)
        process = replace(process, process=None, elsewhere=True, node=node)
        if node is not None:
            self._nodes.watch(process, started)
        return process
