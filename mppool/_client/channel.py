"""What this process asks of one manager: over a connection for each thread, made when it is first needed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pickle
import threading
import time
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from functools import partial
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any, ClassVar

from mppool._remote.errors import unpack_error
from mppool._remote.opcodes import ERROR, KEEP, is_apply
from mppool._remote.references import DoesNotPickle, fails_again
from mppool._system.fork import Step, at_fork
from mppool._wire.connection import (
    Address,
    Connection,
    DeadlineExceeded,
    PayloadLost,
    Received,
    beside,
    encode,
)
from mppool._wire.handshake import Key, connect, hash_sample, lacked_room
from mppool._wire.signals import is_handlers
from mppool.errors import ManagerLost, PoolError, RemoteError

from .blocking import named_if_blocking
from .connect import CUT_OFF, Connector, Request, is_cut_off, is_end
from .connection import Cancellation, ClientConnection
from .delegated import DelegatedLease, Parked
from .values import HeldValues

if TYPE_CHECKING:
    from mppool._wire.delegation import Parking

_RETRY_SECONDS = 0.5
"""Before a notification is sent again to a manager that stands still, or without a descriptor for it."""

_EXIT_SECONDS = 0.1
"""For a process that ends to find a way on which it gives back what it holds."""

_MAX_OBJECTS = 32  # processes of objects to which connections are kept

Way = tuple[str, tuple[Any, ...]]
"""An import string of what makes a channel, and its arguments, which are plain values."""


class _Idle:
    """Where a connection waits for the next request."""

    cancellation: Cancellation | None = None
    """What can end the waiting on this connection."""

    def __init__(self, most: int = 1) -> None:
        self.connections: deque[ClientConnection] = deque(maxlen=most)  # to take it out is one step


class _IdleOfThread(threading.local, _Idle):
    """The same for each thread by itself."""


class Channel(Connector):
    """Sends requests to one manager and brings their answers. One for each manager in a process.

    A request that is interrupted drops its connection, so that no later one can take its answer for its
    own. A forked child begins anew: `generation` tells what was made before.
    """

    # No WeakValueDictionary: a worker that is sent one pool takes longer to set it up than for all the rest.
    _by_address: ClassVar[dict[Address, weakref.ref[Channel]]] = {}
    _idle_kind: ClassVar[type[_Idle]] = _IdleOfThread
    _lends: ClassVar[bool] = True
    """Whether leases are granted over its connections."""
    _idle = _Idle(0)  # until a first connection is made: a process that is sent a pool may never use it
    _replaced: ClassVar[weakref.WeakSet[Channel]] = weakref.WeakSet()  # by another one of the same address

    def __init__(
        self, address: Address, runtime_dir: str | None, fingerprint: bytes, key: Key | None
    ) -> None:
        super().__init__(address, runtime_dir, fingerprint, key)
        self.generation = 0
        self._same_hashes: bool | None = None  # once a connection was made
        self._begin()

    def _begin_anew(self) -> None:
        for made_when_needed in ("_idle", "_values", "_loops"):
            vars(self).pop(made_when_needed, None)
        self._begin()

    def _begin(self) -> None:
        self._unsent: deque[Request] = deque()
        self._sending = threading.Lock()  # held by the one thread that sends them
        self._objects: dict[Address, ObjectChannel] = {}  # the latest used at the end
        self.held: dict[int, tuple[int, Request]] = {}  # leases: the thread that acquired; what gives it back
        self.parked = Parked()

    @property
    def values(self) -> HeldValues:
        """What this process holds of pools of values. Made with the first: most processes have none."""
        # In one step: other threads may do so at the same time.
        values: HeldValues = vars(self).get("_values") or vars(self).setdefault("_values", HeldValues())
        return values

    @classmethod
    def to(
        cls, address: Address, runtime_dir: str | None, fingerprint: bytes, key: Key | None = None
    ) -> Channel:
        """The channel of this process to the manager there: the one with the key of this fingerprint.

        `runtime_dir` is where that key lies. With the key itself it is a new channel: what listened at that
        address before may be another manager.
        """
        known = cls._by_address.get(address)
        channel = None if known is None else known()
        if (
            channel is None
            or key is not None
            or channel.fingerprint != fingerprint
            or channel.runtime_dir not in (None, runtime_dir)
        ):
            channel = cls(address, runtime_dir, fingerprint, key)
            channel._be_known()
        channel.runtime_dir = channel.runtime_dir or runtime_dir
        return channel

    def way(self, pool_id: int) -> Way:  # noqa: ARG002
        """The way of another process to this manager, and to one of its pools."""
        return "mppool._client.channel:Channel.to", (self.address, self.runtime_dir, self.fingerprint)

    def _be_known(self) -> None:
        """Be the channel of this process to its address, instead of another one."""
        known = self._by_address.get(self.address)
        before = None if known is None else known()
        if before is not self:
            if before is not None:
                self._replaced.add(before)
            if self._by_address:
                self._forget_collected()
            self._by_address[self.address] = weakref.ref(self)

    @classmethod
    def all(cls) -> list[Channel]:
        """Those to managers, of this process."""
        present = [each() for each in list(cls._by_address.values())]
        return [*(each for each in present if each is not None), *cls._replaced]

    @classmethod
    def _forget_collected(cls) -> None:
        for address, known in list(cls._by_address.items()):
            if known() is None:
                cls._by_address.pop(address, None)

    def to_object(self, address: Address) -> ObjectChannel:
        """The channel to an object that lives in a process of its own. The latest ones are kept."""
        address = beside(self.address, address)
        channel = self._objects.pop(address, None) or ObjectChannel(address, self)
        self._objects[address] = channel
        if len(self._objects) > _MAX_OBJECTS:
            del self._objects[next(iter(self._objects))]
        return channel

    def delegated(
        self,
        parking: Parking | None,
        is_object_there: Callable[[], bool] | None,
        pool_id: int,
        lease_id: int,
        *known: Any,
    ) -> DelegatedLease | None:
        """A lease that was just granted, if it is delegated to this process.

        `is_object_there` tells whether the object's own process has not ended, if it has one.
        """
        if parking is None or self._lifeline is None:
            return None
        self.parked.forget_recalled()
        tell = self.telling(("release", pool_id, lease_id, False))
        manager_ended = self._lifeline.has_ended
        is_usable = lambda: not manager_ended()  # noqa: E731
        if is_object_there is not None:
            is_usable = lambda: not manager_ended() and is_object_there()  # noqa: E731
        return DelegatedLease(parking, is_usable, tell, lease_id, *known)

    def telling(self, release: Request) -> Callable[[], object]:
        """What tells of the end of a lease by this, without I/O. It keeps nothing."""
        return partial(_tell_of_end, weakref.ref(self), self.generation, release)

    def cancel_with(self, cancellation: Cancellation) -> None:
        """This thread, which has asked nothing yet, waits for no object once that is requested."""
        self._own_idle().cancellation = cancellation

    def connection(self) -> ClientConnection:
        """The one that this thread's last request went over."""
        return self._idle.connections[-1]

    def has_same_hashes(self, request: Request) -> bool:
        """Whether strings hash alike here and in the process that would serve this request."""
        if self._same_hashes is None:
            self._keep(self._take(request, None))
        return bool(self._same_hashes)

    # -- requests, which have a reply -----------------------------------------------------------------

    def translated(self, request: Request) -> Request:
        """A request as the present manager knows its pool."""
        return request

    def make_anew(self, pool_id: int) -> bool:  # noqa: ARG002
        """Have a manager that does not know this pool make it; whether that is possible."""
        return False

    @named_if_blocking
    def request(self, request: Request, timeout: float | None = None) -> tuple[int, Any]:
        """Send a request and wait for its reply. Raises what the manager raised, or `ManagerLost`.

        `DeadlineExceeded` if the reply does not come within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        connection = self._take(request, deadline)
        try:
            if self._unsent:
                self._send_over(connection, deadline)
            received = connection.ask(request, deadline)
            if received is None:  # the manager was replaced since the last request, or has just died
                connection = self._open(request, deadline)
                received = connection.ask(request, deadline)
            if received is None:
                raise EOFError("it ends again and again")
            data, buffers = received
            try:
                status, payload = pickle.loads(data, buffers=buffers)
            except Exception as error:
                status, payload = self._kept_instead(connection, request, deadline, received, error)
            self._keep(connection)
        except DoesNotPickle:
            self._keep(connection)
            raise
        except PayloadLost as error:  # the reply is read, though not to be had
            self._keep(connection)
            raise RemoteError(str(error)) from error
        except BaseException as error:  # interrupted, too late, or cut off: a reply may still come
            self._drop(connection)
            if is_cut_off(error):
                text = f"the manager at {self.address!r} ended during {request[0]!r}"
                raise ManagerLost(text) from error
            raise
        if status != ERROR:
            return status, payload
        try:
            raise payload if isinstance(payload, Exception) else unpack_error(payload)
        finally:
            del payload  # with this frame, which its traceback knows, it would keep all that was called

    def _kept_instead(
        self,
        connection: ClientConnection,
        request: Request,
        deadline: float | None,
        received: Received,
        error: Exception,
    ) -> tuple[int, Any]:
        """An answer cannot be rebuilt: have what it was stay where it is, and bring what tells of that."""
        try:
            lost, keep = instead_of(request, received, error)
        finally:
            del error  # as above
        if keep is None:
            return ERROR, lost
        kept = connection.ask(keep, deadline)
        if kept is None:
            raise EOFError("it has just ended")
        status, payload = pickle.loads(kept[0], buffers=kept[1])
        return (ERROR, lost) if status == ERROR else (status, payload)

    def _take(self, request: Request, deadline: float | None) -> ClientConnection:
        """A connection for this request alone: a signal handler that asks meanwhile gets its own."""
        try:
            connection = self._idle.connections.pop()
        except IndexError:
            connection = None
        if connection is None or connection.wire.is_stale():
            return self._open(request, deadline)
        return connection

    def connect_for(self, request: Request, deadline: float | None) -> tuple[Connection, bool]:
        """A new connection, and whether memory files can pass over it. Raises as `open`."""
        wire, answer = self.open(request, deadline)
        _end_in_order(os.getpid())
        self.runtime_dir, can_share, hash_there = answer
        self._same_hashes = hash_there == hash_sample()
        return wire, can_share and wire.can_share

    def _open(self, request: Request, deadline: float | None) -> ClientConnection:
        connection = ClientConnection(*self.connect_for(request, deadline), self._lends)
        if (cancellation := self._own_idle().cancellation) is not None:
            cancellation.register(connection, request)
        return connection

    def _own_idle(self) -> _Idle:
        # In one step: other threads may do so at the same time.
        idle: _Idle = vars(self).setdefault("_idle", self._idle_kind())
        return idle

    def _keep(self, connection: ClientConnection) -> None:
        """The request is done: its connection serves the next one."""
        self._idle.connections.append(connection)

    def _drop(self, connection: ClientConnection) -> None:
        """The request is not done, or was interrupted just behind `_keep`."""
        with contextlib.suppress(ValueError):
            self._idle.connections.remove(connection)
        connection.hang_up()

    def leave(self) -> None:
        """Use the manager no more, until the next request."""
        lifeline, self._lifeline = self._lifeline, None
        vars(self).pop("_idle", None)  # the next request, of whichever thread, comes with a new lifeline
        if lifeline is not None:
            lifeline.close()

    def stop(self) -> None:
        """End the manager, if there is one, for all programs. Returns when its objects are closed."""
        with contextlib.suppress(ManagerLost, EOFError, OSError):  # it is not there, or ends just now
            self._ask_to_end()

    def _ask_to_end(self) -> None:
        with contextlib.closing(self._connect(("shutdown",), None)) as connection:
            connection.send((None, "shutdown", (), {}))  # as clients of `multiprocessing.managers` do
            connection.await_reply()
            connection.recv()

    def drop(self) -> None:
        """Hang up this thread's connection."""
        with contextlib.suppress(IndexError):
            self._idle.connections.pop().hang_up()

    # -- notifications, which have none ---------------------------------------------------------------

    def notify(self, request: Request) -> None:
        """Send a request that has no reply. It is sent in the end, even if this call is interrupted."""
        done = False
        try:
            done = self._try_to_send(request)
        finally:
            if not done:
                self.notify_soon(request)
        if self._unsent:  # no thread was free to send them
            self._send_soon()

    def notify_soon(self, request: Request) -> None:
        """`notify` from another thread, soon. Does no I/O itself, so that a finalizer may call it."""
        self._unsent.append(request)
        self._send_soon()

    def _send_over(self, connection: ClientConnection, deadline: float | None) -> None:
        """Send what could not be sent so far. For want of a descriptor another thread may wait to do so."""
        connection.wire.set_deadline(deadline)
        try:
            for each in list(self._unsent):
                connection.wire.send(each)
                self._was_sent(each)
        except CUT_OFF as error:  # the request that follows finds that out
            if is_handlers(error):
                raise

    def _was_sent(self, request: Request) -> None:
        with contextlib.suppress(ValueError):  # twice, by two threads, which does no harm
            self._unsent.remove(request)

    def _send_soon(self) -> None:
        with contextlib.suppress(RuntimeError):  # no thread is free: the next call sends this one, too
            start_new_thread(self._send_all, ())

    def _send_all(self) -> None:
        unsent, sending = self._unsent, self._sending  # a forked child has others
        while unsent and sending.acquire(blocking=False):
            try:
                while waiting := list(unsent):
                    if self._try_to_send(waiting[0]):
                        self._was_sent(waiting[0])
                    else:
                        time.sleep(_RETRY_SECONDS)
            finally:
                sending.release()  # then look again: a thread that came in between has left its own to us

    def _try_to_send(self, request: Request) -> bool:
        """Whether the manager is told, or is gone, and what it should know with it."""
        try:
            connection = self._take(request, None)
            connection.wire.set_deadline(None)
            connection.wire.send(request)
        except (OSError, PoolError) as error:
            if is_handlers(error):
                raise
            return is_end(error)  # and forget the connection: it closes when no lease needs it any more
        self._keep(connection)
        return True

    def give_back_all(self) -> None:
        """At the end of this process: end its leases, but those of threads for which the end has to wait.

        One try, which waits for no manager that stands still.
        """
        running = {each.ident for each in threading.enumerate() if not each.daemon} - {threading.get_ident()}
        ids = [lease_id for lease_id, (thread, _) in list(self.held.items()) if thread not in running]
        requests = [self.held.pop(each)[1] for each in ids]
        if self._sending.acquire(timeout=_EXIT_SECONDS):  # else a thread sends them, in vain so far
            requests += self._unsent
            self._unsent.clear()
            self._sending.release()
        with contextlib.suppress(OSError, PoolError, DeadlineExceeded):
            if requests:
                wire = self._take(requests[0], time.monotonic() + _EXIT_SECONDS).wire
                while requests and wire.try_to_send(encode(requests[0])):
                    del requests[0]


class ObjectChannel(Channel):
    """Sends calls to an object that lives in a process of its own.

    It serves one call at a time, so one connection is kept, whichever thread calls. While it is busy it
    may give no sign of life: then its manager is asked what became of it.
    """

    _idle_kind = _Idle
    _lends = False

    def __init__(self, address: Address, manager: Channel) -> None:
        super().__init__(address, manager.runtime_dir, manager.fingerprint, manager._key)
        self._manager = manager

    def _take(self, request: Request, deadline: float | None) -> ClientConnection:
        connection = super()._take(request, deadline)
        connection.wire.on_silence = self._check_alive(request)
        return connection

    def watch_object(self, pool_id: int, lease_id: int) -> Callable[[], bool]:
        """Have a connection to the object; what is returned tells by that whether its process has ended.

        For the holder of this lease, between two uses of it.
        """
        self._keep(self._take(("call", pool_id, lease_id), None))
        return self._is_there

    def _is_there(self) -> bool:
        try:
            return self._idle.connections[-1].is_open()
        except IndexError:  # another thread calls just now, or it was closed
            return False

    def _connect(self, request: Request, deadline: float | None) -> Connection:
        check_alive = self._check_alive(request)
        while True:
            try:
                wire = connect(self.address, self._find_key(), deadline)
            except ManagerLost as error:
                if not isinstance(error.__cause__, TimeoutError):
                    raise
                check_alive()  # if it is alive, it is busy with code that lets no other thread run
            except FileNotFoundError as error:
                raise ManagerLost(f"nothing listens at {self.address!r} any more") from error
            else:
                wire.on_silence = check_alive
                return wire

    def _enter(self, request: Request, deadline: float | None) -> tuple[Connection, Any]:
        """Of the end of this program its manager learns."""
        wire = self._connect(request, deadline)
        return wire, self._introduce(wire, "serve_pools")

    def _check_alive(self, request: Request) -> Callable[[], object]:
        """What raises `LeaseLost` if the process that serves this request has ended."""
        _, pool_id, lease_id, *_ = request
        return partial(self._ask_fate, ("fate", pool_id, lease_id))

    def _ask_fate(self, request: Request) -> None:
        try:
            self._manager.request(request)
        except ManagerLost as error:
            if not lacked_room(error):  # else it is asked again after the next silence
                raise


def _tell_of_end(to: weakref.ref[Channel], generation: int, release: Request) -> None:
    """In a forked child the lease is the parent's."""
    channel = to()
    if channel is not None and channel.generation == generation:
        channel.notify_soon(release)


@functools.lru_cache(maxsize=1)
def _end_in_order(pid: int) -> None:  # noqa: ARG001  # a forked child has an end of its own
    """Have this process give back what it holds when it ends in order, as a program or a worker does."""
    if parent_process() is not None:  # a process of `multiprocessing`, which runs no functions of `atexit`
        from multiprocessing import util  # noqa: PLC0415  # has been imported there

        # Before it waits for its children: they may wait for what it holds.
        util.Finalize(None, _give_back_all, exitpriority=1)


@atexit.register  # of all functions the last, where it is the first to be registered
def _give_back_all() -> None:
    for channel in Channel.all():
        channel.give_back_all()


def instead_of(request: Request, received: Received, error: Exception) -> tuple[Exception, Request | None]:
    """An answer cannot be rebuilt here: the error that says so, and what can be asked for instead of it.

    Raises the error where this process is to blame for it, or a signal handler.
    """
    data, buffers = received
    if isinstance(error, MemoryError) or not fails_again(partial(pickle.loads, data, buffers=buffers)):
        try:
            raise error
        finally:
            del error  # as above
    text = f"the manager's answer cannot be rebuilt here: {type(error).__name__}: {error}"
    lost: Exception = RemoteError(text)
    if _asks_for_apply(request):
        lost = TypeError(f"{text}. What apply() is to bring has to be plainer")
    lost.__cause__ = error
    if isinstance(lost, TypeError) or request[0] not in ("call", "call_beside"):
        return lost, None
    return lost, ("call", *request[1:3], 0, KEEP, (), {})


def _asks_for_apply(request: Request) -> bool:
    """Whether nothing that a request brings can stay where it is."""
    if request[0] not in ("call", "call_beside"):
        return bool(request[0] == "apply")
    return is_apply(*request[-3:-1])


@at_fork(Step.FORGET_CONNECTIONS)
def _after_fork() -> None:
    """In a forked child: what is open belongs to the parent."""
    HeldValues.forget_all()
    for channel in Channel.all():
        channel.generation += 1
        channel._begin_anew()
