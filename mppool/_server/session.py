"""One client's connection, served by one thread of the manager."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from mppool._pool.entry import Lease
from mppool._pool.pool import Pool
from mppool._pool.waiters import Outcome, Waiter
from mppool._process.main import ObjectAddress
from mppool._remote.errors import cannot_unpickle, failure
from mppool._remote.inspection import interface_for
from mppool._remote.interface import Interface
from mppool._remote.opcodes import GRANT, VALUE, Answer
from mppool._remote.references import RequestLost
from mppool._system.processes import ProcessId
from mppool._wire.connection import (
    CHUNK,
    Connection,
    PayloadLost,
    Pickle,
    TruncatedMessage,
    encode,
    is_large,
)
from mppool.errors import PoolError, RemoteError

from .batches import Batches
from .delegations import Delegation, Delegations
from .numbered import Framing, NumberedAcquires

log = logging.getLogger("mppool")

M = TypeVar("M", bound=Callable[..., object])


_ANSWERING_SECONDS = 1.0
"""For the thread that sends the answer before this one: its client has read that, so it is about to end."""

_UNREAD_SECONDS = 5.0
"""For a thread of a busy manager to read what lies there."""

_UNREAD_LOOK_SECONDS = 0.01

NO_REPLY = object()
"""Returned by a method whose reply another thread sends, when there is one, and by those that have none."""

_HUNG_UP = BrokenPipeError, ConnectionResetError

_WITHOUT_REPLY = ("acknowledge", "arrived", "end", "enqueue", "enqueue_batch", "release")
"""An answer to one of these would be taken for that to another request. No set: a name may not hash."""

REQUESTS: dict[str, Callable[..., object]] = {}


def request(method: M) -> M:
    """Mark a method of the service that clients ask for by its name.

    It gets the session that asks and what the client sent. It returns the value for the client, a frame
    (`bytes`) that is ready to be sent, or `NO_REPLY`.
    """
    REQUESTS[method.__name__] = method
    return method


class Session:
    """Reads requests `(name, *arguments)` and sends one reply frame each, unless a request has none.

    The reply to an acquire that had to wait is sent by the thread that gave the object back: this
    one waits for the next request meanwhile, and so learns when the client hangs up.
    """

    def __init__(
        self,
        connection: Connection,
        holder: ProcessId,
        service: object,
        submit: Callable[[Callable[[], object]], None],
        delegations: Delegations,
    ) -> None:
        self.holder = holder
        self.connection = connection
        self._service = service
        self._interfaces: dict[Interface, int] = {}  # those that the client knows
        self.waiting: tuple[Pool | Batches, Waiter] | None = None  # cancelled when the client hangs up
        self._submit = submit
        self._delegations = delegations
        self.numbered = NumberedAcquires(connection, self._offer, submit)
        # The last grant, until a further request shows that it arrived. A client that is interrupted
        # in an acquire hangs up, whether it has read the reply or not: then this one comes back.
        self._unacknowledged: tuple[Pool, Lease] | None = None
        self._is_sent = True  # the last reply
        self._took_leave = False  # the client has said that it is about to hang up
        self.ended = False
        self._answering = threading.Lock()  # held by another session's thread that answers for this one
        self._calling = False  # what is asked here takes its time: no release
        self._over = threading.Event()  # all that the client sent was read

    def serve(self) -> None:
        """Serve until the client hangs up."""
        receive, reply_to, send = self.connection.recv_pickle, self._reply_to, self.connection.send_frame
        try:
            while True:
                try:
                    reply = reply_to(*receive())
                except PayloadLost as error:
                    reply = failure(RemoteError(str(error)))
                if reply is not None:
                    self._is_sent = False
                    try:
                        send(reply)
                        self._is_sent = True
                    except _HUNG_UP:
                        pass  # what the client said last may lie here unread
                    reply = None  # a client that is idle costs neither its memory nor its descriptors
        except TruncatedMessage:
            self._unacknowledged = None  # half a request shows as much as a whole one
        except (EOFError, OSError):
            return  # the client is gone; the watchdog looks after its process
        finally:
            self._end()

    def grant(self, pool: Pool, lease: Lease) -> bytes:
        """The frame that tells of a lease: its id, and what the object offers (each interface once).

        Of a pool of values: the number and the pickle of the item.
        """
        try:
            frame = self._offer(pool, lease)(encode)
        except BaseException:  # the lease is over already, or the type of its object is beyond us
            if not lease.over:
                pool.give_back(lease.id, discard=True)
            raise
        self._unacknowledged = (pool, lease)
        return frame

    def _offer(self, pool: Pool, lease: Lease) -> Framing:
        """Find out what is to be told of a lease; what is returned makes that, when it is sent."""
        if pool.lends_values:
            item = lease.entry.item
            assert item is not None, "what is lent is an item"
            value = lease.id, item.number, item.pickled, None, None
            return lambda encode: encode((GRANT, value))
        obj, address = lease.object, None
        if type(obj) is ObjectAddress:  # isinstance would ask an object that may not tell its class
            address, interface = obj.address, obj.interface
        else:
            runner = lease.entry.runner
            interface = runner.offer = runner.offer or interface_for(
                obj, pool.options.exposed, runner.has_loop
            )
        return partial(self._tell, lease.id, interface, address, self._delegate(pool, lease))

    def _delegate(self, pool: Pool, lease: Lease) -> Delegation | None:
        """Let the client give the object back and take it again by itself, if that is worth it here."""
        is_traced = lease.where is not None  # then the line of each acquire is to be known
        if is_traced or not (lease.is_delegable and self.connection.can_share):
            return None
        delegation = self._delegations.make()
        if delegation is not None and not pool.delegate(lease, delegation):
            delegation.is_home = True  # the client has never had it
            delegation.close()
            return None
        return delegation

    def _tell(
        self,
        lease_id: int,
        interface: Interface,
        address: Any,
        delegation: Delegation | None,
        encode: Callable[[Answer], bytes],
    ) -> bytes:
        number = self._interfaces.get(interface)
        told = None if number is not None else interface
        if number is None:
            number = self._interfaces[interface] = len(self._interfaces)
        grant = lease_id, number, told, address
        return self._delegations.framed(delegation, lambda delegated: encode((GRANT, (*grant, delegated))))

    def _acknowledge(self, lease_id: int | None) -> None:
        """The client is about to hang up; the last grant that has arrived there is that of this lease."""
        self._took_leave = True
        if self._unacknowledged is not None and self._unacknowledged[1].id == lease_id:
            self._unacknowledged = None

    def deliver(self, pool: Pool, outcome: Outcome) -> bool:
        """Tell the waiting client its outcome. Runs in the thread that brought it about."""
        try:
            frame = failure(outcome) if isinstance(outcome, PoolError) else self.grant(pool, outcome)
        except BaseException as error:
            frame = failure(error)
        return self.answer_at_once(frame)

    def tell(self, error: PoolError | None) -> bool:
        """Tell the waiting client that what it waits for has come, or why it does not."""
        return self.answer_at_once(encode((VALUE, None)) if error is None else failure(error))

    def answer(self, frame: bytes) -> None:
        """Send a reply that is due, however long the client takes to read it."""
        with self._answering, suppress(OSError):
            if not self.ended:
                self.connection.send_frame(frame)

    def answer_at_once(self, frame: bytes) -> bool:
        """Send a short reply from a thread that has others to serve; False if the client does not get it.

        A client that waits has read all replies before this one: there is room. One that asks on without
        reading would hold this thread up for ever: it is hung up on.
        """
        sent = False
        if self._answering.acquire(timeout=_ANSWERING_SECONDS):
            sent = not self.ended and self.connection.try_to_send(frame)
            self._answering.release()
        if not sent:
            self.connection.hang_up()
        return sent

    def answer_soon(self, frame: bytes) -> None:
        """Send a reply from a thread that has others to serve, whatever its size."""
        if len(frame) > CHUNK or is_large(frame):
            self._submit(partial(self.answer, frame))
        else:
            self.answer_at_once(frame)

    def drain(self, deadline: float) -> None:
        """The client's process has ended: give what it said last, such as a release, time to be read.

        Without delay if this session is in the middle of a call. From `deadline` on (`time.monotonic`) only
        for what lies there to be read, if only the end: another process may hold the connection open.
        """
        latest = deadline + _UNREAD_SECONDS
        while not (self._calling or self._over.wait(max(0.0, deadline - time.monotonic()))):
            deadline = min(time.monotonic() + _UNREAD_LOOK_SECONDS, latest)
            if deadline == latest or not self._has_unread():
                return

    def _has_unread(self) -> bool:
        try:
            return self.connection.wait_readable(0)
        except ValueError:  # it was closed meanwhile
            return False

    def _reply_to(self, data: Pickle, buffers: Sequence[memoryview]) -> bytes | None:
        try:
            name, *arguments = pickle.loads(data, buffers=buffers)
        except BaseException as error:  # a SystemExit is an argument's: no handler of a signal runs here
            self._unacknowledged = None
            text = cannot_unpickle("the request cannot be rebuilt in the manager", error)
            return failure(RequestLost(text))
        try:
            if name == "acknowledge":
                self._acknowledge(*arguments)
                return None
            self._unacknowledged = None
            self._calling = name not in _WITHOUT_REPLY
            result = REQUESTS[name](self._service, self, *arguments)
            if result is NO_REPLY:
                return None
            return result if isinstance(result, bytes) else encode((VALUE, result))
        except BaseException as error:  # an EOFError, too: here it is the object's, not the client's
            if name in _WITHOUT_REPLY:
                log.exception("mppool: %r failed", name)
                return None
            return failure(error)
        finally:
            self._calling = False

    def _end(self) -> None:
        self.connection.hang_up()  # a thread that is just answering for this one must not be held up
        with self._answering:
            self.ended = True  # a grant that is delivered from now on comes back by itself
        self.numbered.close(self._took_leave)
        if self.waiting is not None:
            queue, waiter = self.waiting
            queue.cancel(waiter)
        if self._unacknowledged is not None:
            pool, lease = self._unacknowledged
            if not (lease.over or self._may_have(pool, lease)):
                pool.give_back(lease.id)
        self._over.set()
        self.connection.close()

    def _may_have(self, pool: Pool, lease: Lease) -> bool:
        """Whether the client, which has hung up, may have the lease that was granted last."""
        if self._took_leave:
            return False  # it has said which grant arrived
        if (
            pool.lends_values
        ):  # it may be in use, also while its holder is dying: until that has ended for sure
            return self._is_sent
        return lease.entry.runner.fence.called  # by another thread's connection
