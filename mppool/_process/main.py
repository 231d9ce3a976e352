"""What runs in an object's own process: its main thread, in which the object is made, called and closed.

    the manager  -- control --> `make`, then `run` (check, reset), `revoke`, `end`
    the holder   -- calls ----> served if the baton says that his lease is on

One loop serves both, so nothing ever overlaps. Besides it there is a thread at the door, for whoever
connects while a call runs, and one that ends all when the manager is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from mppool._pool.runner import InlineRunner, let_go
from mppool._remote.calls import VALUE, ObjectTable
from mppool._remote.errors import cannot_unpickle, failure, pack_error
from mppool._remote.interface import Interface
from mppool._remote.reply import Encode, perform
from mppool._system.exit import exit_now, on_sigterm
from mppool._system.fork import keep_from_children
from mppool._system.processes import ProcessId, await_end, kill_children, lead_a_group
from mppool._wire.connection import Address, Connection, PayloadLost, Pickle, TruncatedMessage, encode
from mppool._wire.handshake import hash_sample
from mppool._wire.listener import Listener, address_of, listen
from mppool.errors import LeaseLost, PoolError, RemoteError

from .fence import LeaseFence

log = logging.getLogger("mppool")

_AWAKE = 30e-6
"""Seconds for which the loop looks for the next call before it lies down: to be woken would take it about
as long. It gives way to whoever else needs the processor, first of all to the caller."""

_give_way = getattr(os, "sched_yield", partial(time.sleep, 0))


@dataclass(frozen=True)
class ObjectConfig:
    """What an object's process is told when it begins."""

    pool: str
    exposed: frozenset[str] | None
    home: str
    """The manager's."""
    address: Address
    """Where to listen."""
    key: bytes
    manager_pid: int
    initialize: Callable[[], object] | None


@dataclass(frozen=True)
class ObjectAddress:
    """Where an object takes calls, and what it offers: stands for it in the manager."""

    address: Address
    shape: Interface


def live(control: socket.socket, baton: LeaseFence, terms: ObjectConfig) -> NoReturn:
    """The main function of the process."""
    lead_a_group()
    _set_signals()
    keep_from_children(control)
    ObjectServer(Connection(control, ""), baton, terms).serve()
    _leave(terms)


class _Caller:
    """A connection, and the lease that was last named on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lease_id = 0


class ObjectServer:
    """The object, and all who talk to it."""

    def __init__(self, control: Connection, baton: LeaseFence, terms: ObjectConfig) -> None:
        self._control = control
        self._baton = baton
        self._terms = terms
        self._place: InlineRunner[Any] = InlineRunner()
        self._kept = ObjectTable(None)  # by the lease with this id
        self._lease_id = 0
        self._revoked = False
        self._over = False
        self._arrivals: deque[Connection] = deque()
        self._poked, self._poke = socket.socketpair()
        # Not epoll: what it wakes is often moved to another processor, and it is for thousands.
        self._selector = selectors.PollSelector()
        self._selector.register(control, selectors.EVENT_READ, self._obey)
        self._selector.register(self._poked, selectors.EVENT_READ, self._let_in)
        self._orders: dict[str, Callable[..., Any]] = {
            "make": self._make,
            "run": self._run,
            "revoke": self._revoke,
            "end": self._end,
        }

    def serve(self) -> None:
        """Serve until the manager says that it is the end, or is gone itself."""
        while not self._over:
            try:
                for key, _ in self._await():
                    key.data()
            except Exception:  # between calls: a signal handler of the object's has raised
                log.exception("pool %r: an object's process was interrupted", self._terms.pool)

    def _await(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Whoever has something to say."""
        if self._lease_id:  # a holder who calls will call again
            until = time.perf_counter() + _AWAKE
            while time.perf_counter() < until:
                ready = self._selector.select(0)
                if ready:
                    return ready
                _give_way()
        return self._selector.select()

    # -- the manager ---------------------------------------------------------------------------------

    def _obey(self) -> None:
        try:
            self._control.send(self._outcome(*self._control.recv_pickle()))
        except (EOFError, OSError):
            self._over = True

    def _outcome(self, data: Pickle, buffers: Sequence[memoryview]) -> tuple[bool, object]:
        try:
            order, *arguments = pickle.loads(data, buffers=buffers)
            return True, self._orders[order](*arguments)
        except BaseException as error:  # the factory's, or of what is not known here
            return False, pack_error(error)

    def _make(self, factory: Callable[[], object]) -> ObjectAddress:
        threading.Thread(target=_end_with, args=(self._terms,), name="mppool lifeline", daemon=True).start()
        listener = listen(self._terms.address)  # first: it fails if the manager is about to end
        threading.Thread(
            target=self._attend, args=(Listener(listener),), name="mppool listener", daemon=True
        ).start()
        if self._terms.initialize is not None:
            self._terms.initialize()
        self._place.make(factory)
        table = ObjectTable(self._place.lent, self._terms.exposed)
        return ObjectAddress(address_of(listener), table.interface)

    def _run(self, do: Callable[[Any], object]) -> object:
        self._lease_id = 0
        return self._place.run(do, self._kept)

    def _revoke(self) -> None:
        self._revoked = True

    def _end(self, do: Callable[[Any], object]) -> None:
        self._over = True
        self._place.end(do, self._kept)

    # -- holders -------------------------------------------------------------------------------------

    def _attend(self, door: Listener) -> None:
        for connection in door.accept(self._terms.key):
            self._arrivals.append(connection)
            self._poke.send(b"!")

    def _let_in(self) -> None:
        self._poked.recv(1)
        caller = _Caller(self._arrivals.popleft())
        caller.connection.on_stall(partial(self._be_patient_with, caller))
        self._selector.register(caller.connection, selectors.EVENT_READ, partial(self._hear, caller))

    def _hear(self, caller: _Caller) -> None:
        connection = caller.connection
        try:
            try:
                reply = self._answer(caller, *connection.recv_pickle())
            except PayloadLost as error:
                reply = failure(RemoteError(str(error)))
            connection.send_frame(reply)
        except Exception as error:  # whatever one holder does, the object lives on
            if not isinstance(error, (EOFError, OSError)):
                log.exception("pool %r: an object's process stumbled over a caller", self._terms.pool)
            self._selector.unregister(connection)
            connection.close()

    def _be_patient_with(self, caller: _Caller) -> None:
        """A caller stands still within a message. He may while his lease is on: then nobody waits."""
        if self._revoked or not self._baton.take(caller.lease_id):
            raise TruncatedMessage
        self._baton.lay(caller.lease_id, bool(self._kept))

    def _answer(self, caller: _Caller, data: Pickle, buffers: Sequence[memoryview]) -> bytes:
        connection = caller.connection
        try:
            name, *arguments = pickle.loads(data, buffers=buffers)
        except Exception as error:
            text = cannot_unpickle("the request cannot be rebuilt where the object lives", error)
            return failure(RemoteError(text))
        if name == "call":
            caller.lease_id = arguments[1]
            return self._call(connection.encode, *arguments)
        if name == "lend":
            connection.share_memory()
            return encode((VALUE, None))
        if name is None:  # the first words, as a manager gets them
            return encode(("#RETURN", (self._terms.home, connection.can_share, hash_sample())))
        return failure(PoolError(f"an object's process serves no {name!r}"))

    def _call(
        self,
        encoded: Encode,
        pool_id: int,  # noqa: ARG002  # a process knows of one only
        lease_id: int,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> bytes:
        if self._revoked or not self._baton.take(lease_id):
            text = "it was released or taken back"
            return failure(LeaseLost(f"pool {self._terms.pool!r}: lease {lease_id} is over: {text}"))
        try:
            if lease_id != self._lease_id:
                let_go(self._kept)
                self._kept = ObjectTable(self._place.lent, self._terms.exposed)
                self._lease_id = lease_id
                self._baton.sign()
            return self._place.call(partial(perform, encoded, self._kept, target, op, args, kwargs))
        finally:
            self._baton.lay(lease_id, bool(self._kept))


def _set_signals() -> None:
    """What they mean to us the manager decides, which may get them together with us."""
    # They are not ignored: so they would be by every program that the object starts.
    on_sigterm(lambda: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: None)


def _end_with(terms: ObjectConfig) -> None:
    await_end(ProcessId.of(terms.manager_pid))
    _leave(terms)


def _leave(terms: ObjectConfig) -> NoReturn:
    if isinstance(terms.address, str):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(terms.address)
    kill_children()
    exit_now()
