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

from mppool._remote.errors import UNPICKLING_ERRORS, raise_error
from mppool._remote.interface import Interface
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
from mppool._wire.handshake import connect
from mppool._wire.shared_memory import LARGE
from mppool.errors import ManagerLost, PoolClosed, PoolError, RemoteError

_CUT_OFF = (EOFError, ConnectionError)
_UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError, *_CUT_OFF)  # the last, too: nothing was sent
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_OBJECTS = 32  # processes of objects to which connections are kept


class _Unpicklable(TypeError):
    """A request does not pickle; nothing was sent."""


class ClientConnection:
    """A thread's connection, the shapes that the manager has told it, and the last lease granted."""

    __slots__ = ("__weakref__", "connection", "granted", "shapes", "to_lend")

    def __init__(self, connection: Connection, can_lend: bool) -> None:
        self.connection = connection
        self.shapes: dict[int, Interface] = {}
        self.granted: int | None = None
        # None: large data passes in the stream. False: not yet beside it. True: from the next request on.
        self.to_lend = False if can_lend else None

    def saw(self, size: int) -> None:
        """So much has passed in the stream: was that the first large message?"""
        if size >= LARGE and self.to_lend is False and not self.connection.lends:
            self.to_lend = True

    def ask(self, request: tuple[Any, ...], until: float | None) -> Received | None:
        """Send a request and wait for its reply. None if certainly nobody has read the request.

        Raises `_Unpicklable` before anything was sent, `DeadlineExceeded`, and as `Connection.recv_pickle`.
        """
        connection = self.connection
        connection.give(until)
        try:
            if connection.is_stale():
                return None
            if self.to_lend:
                self._agree_to_lend()
            connection.send_frame(self.encode(request))
        except (ManagerLost, TruncatedMessage):  # it stands still
            raise
        except (ConnectionError, EOFError):
            return None
        connection.await_reply()
        try:
            return connection.recv_pickle()
        except ConnectionResetError:  # so says the kernel to whom nobody has listened to the end
            return None

    def encode(self, request: tuple[Any, ...]) -> bytes:
        """A request as a frame for this connection. `_Unpicklable` if it cannot be."""
        try:
            frame = self.connection.encode(request)
        except _UNPICKLABLE as error:  # not a signal handler's, as far as can be told
            text = f"an argument does not pickle, so it cannot get to the manager: {error}"
            raise _Unpicklable(text) from error
        self.saw(len(frame))
        return frame

    def _agree_to_lend(self) -> None:
        self.to_lend = False
        self.connection.begin_to_lend()
        self.connection.send_frame(encode(("lend",)))
        self.connection.await_reply()
        self.connection.recv()

    def hang_up(self) -> None:
        """Close it. An answer may still come on it: nobody shall mistake it for his own, and if it
        grants a lease, that goes back.
        """
        if self.granted is not None:
            self.connection.send_at_once(("arrived", self.granted))
        self.connection.close()


class _Local(threading.local):
    line: ClientConnection | None = None


class Channel:
    """Sends requests to one manager and brings their answers. One for each manager in a process.

    An exchange that is interrupted drops its connection, so that no later one can take its answer
    for its own. In a forked child all begins anew: `generation` tells what was made before.
    """

    _by_address: ClassVar[weakref.WeakValueDictionary[Address, Channel]] = weakref.WeakValueDictionary()
    _all: ClassVar[weakref.WeakSet[Channel]] = weakref.WeakSet()  # also those that were replaced

    def __init__(self, address: Address, home: str | None, key: bytes | None) -> None:
        self.address = address
        self.home = home
        self.generation = 0
        self._key = key
        self._local = _Local()
        self._untold: deque[bytes] = deque()
        self._telling = threading.Lock()  # held by the one thread that tells them
        self._objects: dict[Address, ObjectChannel] = {}
        self._all.add(self)

    @classmethod
    def to(cls, address: Address, home: str | None, key: bytes | None = None) -> Channel:
        """The channel of this process to the manager there. `home` is where its key lies.

        Who brings a key gets a new one: what listened at that address before may be another manager.
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
        if len(self._objects) > _OBJECTS:
            del self._objects[next(iter(self._objects))]
        return channel

    def line(self) -> ClientConnection:
        """This thread's connection."""
        line = self._local.line
        if line is None:
            line = self._local.line = self._open((), None)
        return line

    def exchange(self, request: tuple[Any, ...], patience: float | None = None) -> tuple[int, Any]:
        """Send a request and wait for its reply. Raises what the manager raised, or `ManagerLost`.

        `DeadlineExceeded` if the reply does not come within `patience` seconds.
        """
        until = None if patience is None else time.monotonic() + patience
        line = self._take_line(request, until)
        try:
            received = line.ask(request, until)
            if received is None:  # the manager was replaced, or has just died
                line = self._open(request, until)
                received = line.ask(request, until)
            if received is None:
                raise self._lost(request)
            data, buffers = received
            line.saw(len(data))
            self._keep_line(line)
        except _Unpicklable as error:
            self._keep_line(line)  # nothing was sent
            raise TypeError(str(error)) from error.__cause__
        except PayloadLost as error:
            self._keep_line(line)
            raise RemoteError(str(error)) from error
        except BaseException as error:
            self._drop_line(line)
            if isinstance(error, (EOFError, ConnectionError)) and not isinstance(error, ManagerLost):
                raise self._lost(request) from error
            raise
        try:
            status, payload = pickle.loads(data, buffers=buffers)
        except UNPICKLING_ERRORS as error:
            text = f"the manager's answer cannot be rebuilt here: {type(error).__name__}: {error}"
            raise RemoteError(text) from error
        if status == ERROR:
            raise_error(payload)
        return status, payload

    def _take_line(self, request: tuple[Any, ...], until: float | None) -> ClientConnection:
        """One for this exchange alone: a signal handler that asks meanwhile gets its own."""
        line, self._local.line = self._local.line, None
        return self._open(request, until) if line is None else line

    def _keep_line(self, line: ClientConnection) -> None:
        """The exchange is over."""
        self._local.line = line

    def _drop_line(self, line: ClientConnection) -> None:
        """The exchange was not completed, or was interrupted just behind its last step."""
        self._local.line = None
        line.hang_up()

    def tell(self, request: tuple[Any, ...]) -> None:
        """Send a request that has no reply. It is sent in the end, even if this call is interrupted."""
        frame = encode(request)
        try:
            self._fresh_line().connection.send_frame(frame)
        except BaseException as error:
            self.drop()
            if not _is_end(error):
                self.tell_later(request)
            if not isinstance(error, (OSError, PoolError)):
                raise

    def tell_later(self, request: tuple[Any, ...]) -> None:
        """`tell` from another thread, soon. Does no I/O itself, so that a finalizer may call it."""
        self._untold.append(encode(request))
        try:
            start_new_thread(self._tell_all, ())
        except RuntimeError:
            pass  # no thread is to be had: the next one takes it along; or the process ends

    def drop(self) -> None:
        """Hang up this thread's connection."""
        line, self._local.line = self._local.line, None
        if line is not None:
            line.hang_up()

    def begin_anew(self) -> None:
        """In a forked child: nothing that the parent has open is ours."""
        self.generation += 1
        self._objects = {}
        self._local = _Local()
        self._untold = deque()
        self._telling = threading.Lock()

    def _tell_all(self) -> None:
        untold, telling = self._untold, self._telling
        while untold and telling.acquire(blocking=False):
            try:
                self._tell_each(untold)
            finally:
                telling.release()  # then look again: who came in between has left it to us

    def _tell_each(self, untold: deque[bytes]) -> None:
        pause = _FIRST_PAUSE
        while untold:
            if self._try_to_tell(untold[0]):
                untold.popleft()
                pause = _FIRST_PAUSE
            else:  # the manager stands still, or we have no descriptor: that may pass
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _try_to_tell(self, frame: bytes) -> bool:
        try:
            self._fresh_line().connection.send_frame(frame)
        except (OSError, PoolError) as error:
            self.drop()
            return _is_end(error)
        return True

    def _fresh_line(self) -> ClientConnection:
        if self.line().connection.is_stale():  # of a manager before; what is held may be of this one
            self.drop()
        line = self.line()
        line.connection.give(None)
        return line

    def _open(self, request: tuple[Any, ...], until: float | None) -> ClientConnection:
        try:
            return self._try_to_open(request, until)
        except ManagerLost as error:
            if _is_end(error) or not isinstance(error.__cause__, _CUT_OFF):
                raise
        # The manager died meanwhile, and has a successor; if it has none, we are told so now.
        return self._try_to_open(request, until)

    def _try_to_open(self, request: tuple[Any, ...], until: float | None) -> ClientConnection:
        connection = self._connect(request, until)
        try:
            me = (os.getpid(), current_process().name, _mark(os.getpid()))
            connection.send((None, "serve_pools", me, {}))  # as clients of `multiprocessing.managers` do
            connection.await_reply()
            kind, answer = connection.recv()
            if kind != "#RETURN":
                raise ManagerLost(f"the manager at {self.address!r} refused a connection: {answer}")
            self.home, can_lend = answer
        except _CUT_OFF as error:
            connection.close()
            raise ManagerLost(f"the manager at {self.address!r} refused a connection: {error!r}") from error
        except BaseException:
            connection.close()
            raise
        return ClientConnection(connection, can_lend and connection.can_lend)

    def _connect(self, request: tuple[Any, ...], until: float | None) -> Connection:  # noqa: ARG002
        try:
            return connect(self.address, self._find_key(), until)
        except FileNotFoundError:
            raise PoolClosed(f"the manager at {self.address!r} has shut down") from None
        except ManagerLost as error:
            last_word = (
                RuntimeDir(self.home).last_word() if self.home is not None and _is_end(error) else None
            )
            if last_word is None:
                raise
            raise ManagerLost(last_word) from error.__cause__

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

    def _lost(self, request: tuple[Any, ...]) -> ManagerLost:
        return ManagerLost(f"the manager at {self.address!r} ended during {request[0]!r}")


class ObjectChannel(Channel):
    """Sends calls to an object that lives in a process of its own.

    It serves one call at a time, so one connection is kept, whichever thread calls. While it is busy it
    may give no sign of life: then its manager is asked what became of it.
    """

    def __init__(self, address: Address, home: str | None, key: bytes | None, manager: Channel) -> None:
        super().__init__(address, home, key)
        self._manager = manager
        self._at_rest: list[ClientConnection] = []

    def begin_anew(self) -> None:
        """In a forked child: nothing that the parent has open is ours."""
        super().begin_anew()
        self._at_rest = []

    def _take_line(self, request: tuple[Any, ...], until: float | None) -> ClientConnection:
        try:
            line = self._at_rest.pop()
        except IndexError:
            return self._open(request, until)
        line.connection.sign_of_life = self._fate_of(request)
        return line

    def _keep_line(self, line: ClientConnection) -> None:
        if self._at_rest:
            line.hang_up()
        else:
            self._at_rest.append(line)

    def _drop_line(self, line: ClientConnection) -> None:
        if line in self._at_rest:
            self._at_rest.remove(line)
        line.hang_up()

    def _connect(self, request: tuple[Any, ...], until: float | None) -> Connection:
        fate_of = self._fate_of(request)
        while True:
            try:
                connection = connect(self.address, self._find_key(), until)
            except ManagerLost as error:
                if not isinstance(error.__cause__, TimeoutError):
                    raise
                fate_of()  # then it is busy with code that lets nothing else run
            except FileNotFoundError as error:
                raise ManagerLost(f"nobody listens at {self.address!r} any more") from error
            else:
                connection.sign_of_life = fate_of
                return connection

    def _fate_of(self, request: tuple[Any, ...]) -> Callable[[], object]:
        """What raises `LeaseLost` if the process that serves this request has ended."""
        _, pool_id, lease_id, *_ = request
        return partial(self._manager.exchange, ("fate", pool_id, lease_id))


@functools.lru_cache(maxsize=1)
def _mark(pid: int) -> str:  # noqa: ARG001  # a forked child gets one of its own
    """What this process calls itself, for a manager to which its pid means nothing."""
    return os.urandom(8).hex()


def _is_end(error: BaseException) -> bool:
    """Whether the manager is gone, and what it should know with it. Else it may be told later."""
    return isinstance(error, PoolClosed) or isinstance(error.__cause__, ConnectionRefusedError)


def _begin_anew() -> None:
    for channel in list(Channel._all):
        channel.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
