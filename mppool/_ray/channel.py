"""The way to the control of a pool: it is found by its name, also where Ray has put the next one."""

from __future__ import annotations

import functools
import os
import time
from typing import Any, NamedTuple

from mppool._client.channel import Channel, Way
from mppool._client.connect import CUT_OFF, USES, Request
from mppool._remote.errors import unpack_error
from mppool._system.processes import ProcessId
from mppool._wire import connection as wire
from mppool._wire.connection import Address, Connection, DeadlineExceeded
from mppool._wire.handshake import Key, OtherVersion, connect, ping
from mppool.errors import ManagerLost, PoolClosed

from . import cluster

_RESTART_SECONDS = 60.0
"""For Ray to start the next control. If its node has died, Ray takes a quarter of that to say so."""

_USES = {*USES, "get_pool"}

_LOOK_SECONDS = 0.05
"""Between two looks for it."""


class Contact(NamedTuple):
    """What a control tells of itself."""

    address: Address
    key: bytes


class RayChannel(Channel):
    """The channel to the control of one pool. If that dies, the next use of the pool finds the next one.

    Its `address` is the pool's namespace and name.
    """

    def __init__(self, namespace: str, name: str) -> None:
        super().__init__((namespace, name), None, b"", None)  # type: ignore[arg-type]
        self._name = namespace, name
        self._contact: Contact | None = None
        self._forked = False

    @classmethod
    def named(cls, namespace: str, name: str) -> RayChannel:
        """The one of this process to the control of the pool with this name."""
        known = cls._by_address.get((namespace, name))  # type: ignore[arg-type]
        channel = None if known is None else known()
        if not isinstance(channel, cls):
            channel = cls(namespace, name)
            channel._be_known()
        return channel

    def way(self, pool_id: int) -> Way:  # noqa: ARG002
        """As `Channel.way`."""
        return "mppool._ray.channel:RayChannel.named", self._name

    def find(self, timeout: float, patience: float) -> Contact:
        """What the control says within so many seconds; while it is restarted this waits until `patience`.

        `patience` is a moment (`time.monotonic`). Raises what kept it from making its pool, `PoolClosed` if
        there is no such control, and `ManagerLost`.
        """
        if self._forked:
            text = f"the control of pool {self._name[1]!r} has gone, and Ray tells a forked child of no other"
            raise ManagerLost(text)
        while True:
            try:
                self._contact = contact = ask(*self._name, timeout)
                break
            except ManagerLost as error:
                if not isinstance(error.__cause__, ConnectionRefusedError) or time.monotonic() > patience:
                    raise
            time.sleep(_LOOK_SECONDS)
        self._key = Key(contact.key)
        self.fingerprint = self._key.fingerprint
        return contact

    def open(self, request: Request, deadline: float | None) -> tuple[Connection, Any]:
        """As `Connector.open`. A control that has died is followed by another one, for which this waits."""
        patience = time.monotonic() + (_RESTART_SECONDS if request[0] in _USES else 0.0)
        while True:
            is_new = self._contact is None
            if is_new:
                self._find_in_time(patience, deadline)
            try:
                return self._enter(request, deadline)
            except ManagerLost as error:
                if not _is_gone(error) or (is_new and time.monotonic() > patience):
                    raise
            self._contact = None

    def _find_in_time(self, patience: float, deadline: float | None) -> None:
        """`find` until then; `DeadlineExceeded` if the deadline comes first."""
        if deadline is None:
            self.find(wire.SILENCE_SECONDS, patience)
            return
        left = max(0.0, deadline - time.monotonic())
        try:
            self.find(min(left, wire.SILENCE_SECONDS), min(patience, deadline))
        except ManagerLost:
            if time.monotonic() < deadline:
                raise
            raise DeadlineExceeded from None

    def _connect(self, request: Request, deadline: float | None) -> Connection:  # noqa: ARG002
        return connect(self._known().address, self._find_key(), deadline)

    def _known(self) -> Contact:
        return self._contact or self.find(wire.SILENCE_SECONDS, time.monotonic())

    def _find_key(self) -> Key:
        assert self._key is not None, "it comes with the address"
        return self._key

    def ping(self) -> None:
        """As `Connector.ping`."""
        ping(self._known().address, self._find_key())

    def _terms(self) -> dict[str, Any]:
        return who_here()

    def _begin_anew(self) -> None:
        """In a forked child, which Ray does not know."""
        super()._begin_anew()
        self._forked = True


def ask(namespace: str, name: str, timeout: float) -> Contact:
    """What the control of the pool with this name says. Raises as `RayChannel.find`."""
    cluster.check_here()
    pool = f"pool {name!r} of namespace {namespace!r}"
    try:
        fine, told = cluster.answer(cluster.control_of(namespace, name).contact.remote(), timeout)
    except cluster.TOO_LATE:
        text = f"the control of {pool} gave no answer within {timeout:g} s"
        raise ManagerLost(text) from TimeoutError("timed out")
    except cluster.CUT_OFF_FOR_NOW as error:
        text = f"the control of {pool} cannot be reached: {cluster.in_short(error)}"
        raise ManagerLost(text) from ConnectionRefusedError("it is being restarted")
    except (ValueError, cluster.DEAD) as error:
        raise PoolClosed(f"{pool} was closed, or the job that made it has ended, or its control") from error
    except cluster.FAILED as error:
        raise ManagerLost(f"the control of {pool} cannot be started: {cluster.in_short(error)}") from error
    if not fine:
        raise unpack_error(told)
    return Contact(*told)


def _is_gone(error: ManagerLost) -> bool:
    """Whether there may be another one by now, elsewhere."""
    gone = isinstance(error.__cause__, (ConnectionRefusedError, TimeoutError, *CUT_OFF))
    return gone and not isinstance(error.__cause__, OtherVersion)


def who_here() -> dict[str, Any]:
    """By what the watch of this node knows this process."""
    return {"node": cluster.own_node(), "started": _start_time(os.getpid())}


@functools.lru_cache(maxsize=1)
def _start_time(pid: int) -> float | None:
    process = ProcessId.of(pid).process
    return None if process is None else process.create_time()
