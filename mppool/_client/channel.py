"""This process's way to one manager: a connection for each thread, made when it is first needed."""

from __future__ import annotations

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
from multiprocessing import current_process
from typing import Any, ClassVar

from mppool._remote.errors import UNPICKLING_ERRORS, unpack_error
from mppool._remote.interface import Interface
from mppool._system.fork import Step, at_fork
from mppool._system.runtime_dir import RuntimeDir
from mppool._wire.connection import (
    ERROR,
    Address,
    Connection,
    PayloadLost,
    Received,
    TruncatedMessage,
    encode,
)
from mppool._wire.handshake import connect, hash_sample
from mppool._wire.shared_memory import LARGE
from mppool.errors import ManagerLost, PoolClosed, PoolError, RemoteError

_CUT_OFF = (EOFError, ConnectionError)
_UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError, *_CUT_OFF)  # the last, too: nothing was sent
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_MAX_OBJECTS = 32  # processes of objects to which connections are kept

Request = tuple[Any, ...]
"""The name of a method of the manager's service, and its arguments."""


class _Unpicklable(TypeError):
    """A request does not pickle; nothing was sent."""


class ClientConnection:
    """A connection, the interfaces that the manager described on it, and the last lease granted there."""

    __slots__ = ("__weakref__", "_can_share", "_share_next", "granted", "interfaces", "wire")

    def __init__(self, wire: Connection, can_share: bool) -> None:
        self.wire = wire
        self.interfaces: dict[int, Interface] = {}
        self.granted: int | None = None
        self._can_share = can_share
        self._share_next = False  # before the next request both sides agree on memory files

    def saw(self, size: int) -> None:
        """So much has passed in the stream: after the first large message, memory files are worth it."""
        if size >= LARGE and self._can_share and not self.wire.shares:
            self._share_next = True

    def ask(self, request: Request, deadline: float | None) -> Received | None:
        """Send a request and wait for its reply. None if the other side has certainly not read the request.

        Raises `_Unpicklable` before anything was sent, `DeadlineExceeded`, and as `Connection.recv_pickle`.
        """
        wire = self.wire
        wire.set_deadline(deadline)
        try:
            if wire.is_stale():
                return None
            if self._share_next:
                self._agree_to_share()
            wire.send_frame(self._encode(request))
        except (
            ManagerLost,
            TruncatedMessage,
        ):  # it stands still, having read perhaps all but the end
            raise
        except _CUT_OFF:
            return None
        wire.await_reply()
        try:
            return wire.recv_pickle()
        except ConnectionResetError:  # what the kernel answers for a peer that ended with something unread
            return None

    def _encode(self, request: Request) -> bytes:
        try:
            frame = self.wire.encode(request)
        except _UNPICKLABLE as error:  # not a signal handler's, as far as can be told
            text = f"an argument does not pickle, so it cannot get to the manager: {error}"
            raise _Unpicklable(text) from error
        self.saw(len(frame))
        return frame

    def _agree_to_share(self) -> None:
        self._share_next = False
        self.wire.share_memory()
        self.wire.send_frame(encode(("share_memory",)))
        self.wire.await_reply()
        self.wire.recv()

    def hang_up(self) -> None:
        """Close it. An answer that still comes is lost with it, and a lease that this grants goes back."""
        if self.granted is not None:  # the last one, however, has arrived
            self.wire.send_at_once(("acknowledge", self.granted))
        self.wire.close()


class _Local(threading.local):
    connection: ClientConnection | None = None


class Channel:
    """Sends requests to one manager and brings their answers. One for each manager in a process.

    A request that is interrupted drops its connection, so that no later one can take its answer for its
    own. A forked child begins anew: `generation` tells what was made before.
    """

    _by_address: ClassVar[weakref.WeakValueDictionary[Address, Channel]] = weakref.WeakValueDictionary()
    _all: ClassVar[weakref.WeakSet[Channel]] = weakref.WeakSet()  # also those that were replaced

    def __init__(self, address: Address, home: str | None, key: bytes | None) -> None:
        self.address = address
        self.home = home
        self.generation = 0
        self._key = key
        self._same_hashes: bool | None = None  # once a connection was made
        self._begin()
        self._all.add(self)

    def _begin(self) -> None:
        self._local = _Local()
        self._unsent: deque[bytes] = deque()
        self._sending = threading.Lock()  # held by the one thread that sends them
        self._objects: dict[Address, ObjectChannel] = {}  # the latest used at the end

    def after_fork(self) -> None:
        """In a forked child: what is open belongs to the parent."""
        self.generation += 1
        self._begin()

    @classmethod
    def to(cls, address: Address, home: str | None, key: bytes | None = None) -> Channel:
        """The channel of this process to the manager there. `home` is where its key lies.

        With a key it is a new one: what listened at that address before may be another manager.
        """
        channel = cls._by_address.get(address)
        if channel is None or key is not None or channel.home not in (None, home):
            channel = cls._by_address[address] = cls(address, home, key)
        channel.home = channel.home or home
        return channel

    def to_object(self, address: Address) -> ObjectChannel:
        """The channel to an object that lives in a process of its own. The latest ones are kept."""
        if not isinstance(address, str):
            address = (self.address[0], address[1])  # it listens where its manager does
        channel = self._objects.pop(address, None) or ObjectChannel(address, self.home, self._key, self)
        self._objects[address] = channel
        if len(self._objects) > _MAX_OBJECTS:
            del self._objects[next(iter(self._objects))]
        return channel

    def connection(self) -> ClientConnection:
        """This thread's connection."""
        connection = self._local.connection
        if connection is None:
            connection = self._local.connection = self._open((), None)
        return connection

    def has_same_hashes(self, request: Request) -> bool:
        """Whether strings hash alike here and in the process that would serve this request."""
        if self._same_hashes is None:
            self._keep(self._take(request, None))
        return bool(self._same_hashes)

    # -- requests, which have a reply -----------------------------------------------------------------

    def request(self, request: Request, timeout: float | None = None) -> tuple[int, Any]:
        """Send a request and wait for its reply. Raises what the manager raised, or `ManagerLost`.

        `DeadlineExceeded` if the reply does not come within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        connection = self._take(request, deadline)
        try:
            received = connection.ask(request, deadline)
            if received is None:  # the manager was replaced since the last request, or has just died
                connection = self._open(request, deadline)
                received = connection.ask(request, deadline)
            if received is None:  # it dies again and again
                raise self._lost(request)
            data, buffers = received
            connection.saw(len(data))
            self._keep(connection)
        except _Unpicklable as error:  # nothing was sent
            self._keep(connection)
            raise TypeError(str(error)) from error.__cause__
        except PayloadLost as error:  # the reply is read, though not to be had
            self._keep(connection)
            raise RemoteError(str(error)) from error
        except BaseException as error:  # interrupted, too late, or cut off: a reply may still come
            self._drop(connection)
            if isinstance(error, _CUT_OFF) and not isinstance(error, ManagerLost):
                raise self._lost(request) from error
            raise
        try:
            status, payload = pickle.loads(data, buffers=buffers)
        except UNPICKLING_ERRORS as error:
            text = f"the manager's answer cannot be rebuilt here: {type(error).__name__}: {error}"
            raise RemoteError(text) from error
        if status == ERROR:
            raise unpack_error(payload)
        return status, payload

    def _take(self, request: Request, deadline: float | None) -> ClientConnection:
        """A connection for this request alone: a signal handler that asks meanwhile gets its own."""
        connection, self._local.connection = self._local.connection, None
        return self._open(request, deadline) if connection is None else connection

    def _keep(self, connection: ClientConnection) -> None:
        """The request is done: its connection serves the next one."""
        self._local.connection = connection

    def _drop(self, connection: ClientConnection) -> None:
        """The request is not done, or was interrupted just behind `_keep`."""
        self._local.connection = None
        connection.hang_up()

    def drop(self) -> None:
        """Hang up this thread's connection."""
        connection, self._local.connection = self._local.connection, None
        if connection is not None:
            connection.hang_up()

    def _lost(self, request: Request) -> ManagerLost:
        return ManagerLost(f"the manager at {self.address!r} ended during {request[0]!r}")

    # -- notifications, which have none ---------------------------------------------------------------

    def notify(self, request: Request) -> None:
        """Send a request that has no reply. It is sent in the end, even if this call is interrupted."""
        frame = encode(request)
        try:
            self._fresh_connection().wire.send_frame(frame)
        except BaseException as error:
            self.drop()
            if not _is_end(error):
                self.notify_soon(request)
            if not isinstance(error, (OSError, PoolError)):
                raise

    def notify_soon(self, request: Request) -> None:
        """`notify` from another thread, soon. Does no I/O itself, so that a finalizer may call it."""
        self._unsent.append(encode(request))
        try:
            start_new_thread(self._send_all, ())
        except RuntimeError:
            pass  # no thread is free: the next call sends this one, too; or the process ends

    def _send_all(self) -> None:
        unsent, sending = self._unsent, self._sending  # a forked child has others
        while unsent and sending.acquire(blocking=False):
            try:
                self._send_each(unsent)
            finally:
                sending.release()  # then look again: a thread that came in between has left its own to us

    def _send_each(self, unsent: deque[bytes]) -> None:
        pause = _FIRST_PAUSE
        while unsent:
            if self._try_to_send(unsent[0]):
                unsent.popleft()
                pause = _FIRST_PAUSE
            else:  # the manager stands still, or this process has no descriptor: that may pass
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _try_to_send(self, frame: bytes) -> bool:
        try:
            self._fresh_connection().wire.send_frame(frame)
        except (OSError, PoolError) as error:
            self.drop()
            return _is_end(error)
        return True

    def _fresh_connection(self) -> ClientConnection:
        """This thread's, unless it is to an earlier manager: what is told concerns this one."""
        if self.connection().wire.is_stale():
            self.drop()
        connection = self.connection()
        connection.wire.set_deadline(None)
        return connection

    # -- connecting -----------------------------------------------------------------------------------

    def _open(self, request: Request, deadline: float | None) -> ClientConnection:
        try:
            return self._try_to_open(request, deadline)
        except ManagerLost as error:
            if _is_end(error) or not isinstance(error.__cause__, _CUT_OFF):
                raise
        # The manager died meanwhile. If it has a successor, that one answers now; if not, this says so.
        return self._try_to_open(request, deadline)

    def _try_to_open(self, request: Request, deadline: float | None) -> ClientConnection:
        wire = self._connect(request, deadline)
        try:
            me = (os.getpid(), current_process().name, _process_token(os.getpid()))
            wire.send((None, "serve_pools", me, {}))  # as clients of `multiprocessing.managers` do
            wire.await_reply()
            kind, answer = wire.recv()
            if kind != "#RETURN":
                raise ManagerLost(f"the manager at {self.address!r} refused a connection: {answer}")
            self.home, can_share, hash_there = answer
        except _CUT_OFF as error:
            wire.close()
            raise ManagerLost(f"the manager at {self.address!r} refused a connection: {error!r}") from error
        except BaseException:
            wire.close()
            raise
        self._same_hashes = hash_there == hash_sample()
        return ClientConnection(wire, can_share and wire.can_share)

    def _connect(self, request: Request, deadline: float | None) -> Connection:  # noqa: ARG002
        try:
            return connect(self.address, self._find_key(), deadline)
        except FileNotFoundError:
            raise PoolClosed(f"the manager at {self.address!r} has shut down") from None
        except ManagerLost as error:
            why = RuntimeDir(self.home).give_up_reason() if self.home is not None and _is_end(error) else None
            if why is None:
                raise
            raise ManagerLost(why) from error.__cause__

    def _find_key(self) -> bytes:
        if self._key is not None:
            return self._key
        if self.home is None:
            return bytes(current_process().authkey)
        try:
            return RuntimeDir(self.home).key()
        except FileNotFoundError:
            if not isinstance(self.address, str):  # perhaps a manager on another machine
                return bytes(current_process().authkey)
            raise
        except OSError as error:
            raise ManagerLost(
                f"the key of the manager at {self.address!r} cannot be read: {error}"
            ) from error


class ObjectChannel(Channel):
    """Sends calls to an object that lives in a process of its own.

    It serves one call at a time, so one connection is kept, whichever thread calls. While it is busy it
    may give no sign of life: then its manager is asked what became of it.
    """

    def __init__(self, address: Address, home: str | None, key: bytes | None, manager: Channel) -> None:
        super().__init__(address, home, key)
        self._manager = manager

    def _begin(self) -> None:
        super()._begin()
        self._idle: list[ClientConnection] = []

    def _take(self, request: Request, deadline: float | None) -> ClientConnection:
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._open(request, deadline)
        connection.wire.on_silence = self._check_alive(request)
        return connection

    def _keep(self, connection: ClientConnection) -> None:
        if self._idle:
            connection.hang_up()
        else:
            self._idle.append(connection)

    def _drop(self, connection: ClientConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        connection.hang_up()

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

    def _check_alive(self, request: Request) -> Callable[[], object]:
        """What raises `LeaseLost` if the process that serves this request has ended."""
        _, pool_id, lease_id, *_ = request
        return partial(self._manager.request, ("fate", pool_id, lease_id))


@functools.lru_cache(maxsize=1)
def _process_token(pid: int) -> str:  # noqa: ARG001  # a forked child gets one of its own
    """What this process calls itself, for a manager to which its pid means nothing."""
    return os.urandom(8).hex()


def _is_end(error: BaseException) -> bool:
    """Whether the manager is gone, and what it should know with it. Else it may be told later."""
    return isinstance(error, PoolClosed) or isinstance(error.__cause__, ConnectionRefusedError)


@at_fork(Step.FORGET_CONNECTIONS)
def _after_fork() -> None:
    for channel in list(Channel._all):
        channel.after_fork()
