"""One client's connection, served by one thread of the manager."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mppool._pool.entry import Lease
from mppool._pool.pool import Pool
from mppool._pool.waiters import Outcome, Waiter
from mppool._process.main import ObjectAddress
from mppool._remote.calls import Answer, ObjectTable
from mppool._remote.errors import cannot_unpickle, failure
from mppool._remote.interface import Interface
from mppool._system.processes import ProcessId
from mppool._wire.connection import GRANT, Address, Connection, PayloadLost, Pickle, TruncatedMessage, encode
from mppool.errors import PoolError, RemoteError

log = logging.getLogger("mppool")

Method = Callable[..., bytes | None]

_WITHOUT_REPLY = ("arrived", "release")


class Session:
    """Reads requests `(method, *arguments)` and sends one reply frame each, unless a method has none.

    The reply to an acquire that had to wait is sent by the thread that gave the object back: this
    one waits for the next request meanwhile, and so learns when the client hangs up.
    """

    def __init__(self, connection: Connection, owner: ProcessId, methods: Mapping[str, Method]) -> None:
        self.owner = owner
        self._connection = connection
        self._methods = methods
        self._shapes: dict[Interface, int] = {}  # those that the client knows
        self._waiting: tuple[Pool[Any], Waiter] | None = None
        # The last grant, until a further request shows that it arrived. A client that is interrupted
        # in an acquire hangs up, whether it has read the reply or not: then this one comes back.
        self._unconfirmed: tuple[Pool[Any], Lease[Any]] | None = None
        self.ended = False
        self._answering = threading.Lock()  # held by another's thread that answers for us
        self._calling = False
        self._over = threading.Event()

    def serve(self) -> None:
        """Serve until the client hangs up."""
        receive, perform, send = self._connection.recv_pickle, self._perform, self._connection.send_frame
        try:
            while True:
                try:
                    reply = perform(*receive())
                except PayloadLost as error:
                    reply = failure(RemoteError(str(error)))
                if reply is not None:
                    send(reply)
        except TruncatedMessage:
            self._unconfirmed = None  # half a request shows as much as a whole one
        except (EOFError, OSError):
            return  # the client is gone; whoever looks after its process will see
        finally:
            self._end()

    def grant(self, pool: Pool[Any], lease: Lease[Any]) -> bytes:
        """The reply that tells of a lease: its id, and what the object offers (once a shape)."""
        try:
            address, shape = self._introduce(pool, lease)
            number = self._shapes.get(shape)
            if number is None:
                number = len(self._shapes)
                reply = encode((GRANT, (lease.id, number, shape, address)))
                self._shapes[shape] = number
            else:
                reply = encode((GRANT, (lease.id, number, None, address)))
        except BaseException:  # the lease is over already, or the type of its object is beyond us
            if not lease.over:
                pool.give_back(lease.id, discard=True)
            raise
        self._unconfirmed = (pool, lease)
        return reply

    def _introduce(self, pool: Pool[Any], lease: Lease[Any]) -> tuple[Address | None, Interface]:
        """Where the object takes calls, if not here, and what it offers."""
        lent = lease.object
        if type(lent) is ObjectAddress:  # isinstance would ask an object that may not tell its class
            return lent.address, lent.shape
        lease.kept = kept = ObjectTable(lent, pool.options.exposed)
        return None, kept.interface

    def confirm(self, lease_id: int) -> None:
        """The client is about to hang up, but the grant of this lease has arrived."""
        if self._unconfirmed is not None and self._unconfirmed[1].id == lease_id:
            self._unconfirmed = None

    def wait(self, pool: Pool[Any], waiter: Waiter) -> None:
        """Remember what this client waits for: it is cancelled when the client hangs up."""
        self._waiting = (pool, waiter)

    def deliver(self, pool: Pool[Any], outcome: Outcome) -> bool:
        """Tell the waiting client its outcome. Runs in whichever thread brought it about."""
        if isinstance(outcome, PoolError):
            return self.answer(failure(outcome))
        try:
            frame = self.grant(pool, outcome)
        except BaseException as error:
            return self.answer(failure(error))
        return self.answer(frame)

    def answer(self, frame: bytes) -> bool:
        """Send a reply that was owed; False if the client has hung up."""
        with self._answering:
            if self.ended:
                return False
            try:
                self._connection.send_frame(frame)
            except OSError:
                return False
        return True

    def hang_up(self) -> None:
        """Have the client know that this manager ends."""
        self._connection.hang_up()

    def settle(self, until: float) -> None:
        """The client's process has ended: give what it said last, such as a release, time to be read.

        Without delay if this session is in the middle of a call, and at `until` (`time.monotonic`) at
        the latest: another process may hold the connection open.
        """
        if not self._calling:
            self._over.wait(max(0.0, until - time.monotonic()))

    def lend(self) -> None:
        """The client can take memory files, and may send them from now on."""
        self._connection.share_memory()

    def encode(self, answer: Answer) -> bytes:
        """The reply that brings an answer, which may be large. Raises what pickle raises."""
        return self._connection.encode(answer)

    def _perform(self, data: Pickle, buffers: Sequence[memoryview]) -> bytes | None:
        try:
            name, *arguments = pickle.loads(data, buffers=buffers)
        except Exception as error:
            self._unconfirmed = None
            return failure(
                RemoteError(cannot_unpickle("the request cannot be rebuilt in the manager", error))
            )
        try:
            if name != "arrived":
                self._unconfirmed = None
            self._calling = name != "release"
            return self._methods[name](self, *arguments)
        except BaseException as error:  # an EOFError, too: here it is the object's, not the client's
            if name in _WITHOUT_REPLY:
                log.exception("mppool: %r failed", name)
                return None
            return failure(error)
        finally:
            self._calling = False

    def _end(self) -> None:
        self._connection.hang_up()  # who is just answering for us must not be held up
        with self._answering:
            self.ended = True  # a grant that is delivered from now on comes back by itself
        if self._waiting is not None:
            pool, waiter = self._waiting
            pool.cancel(waiter)
        if self._unconfirmed is not None:
            pool, lease = self._unconfirmed
            if not (
                lease.over or lease.entry.runner.called
            ):  # a call may come by another thread's connection
                pool.give_back(lease.id)
        self._waiting = self._unconfirmed = None
        self._over.set()
        self._connection.close()
