"""What crosses the socket and how: whole messages, with deadlines. Both sides use it.

A frame is the length of a pickle (8 bytes, little-endian) and the pickle. A small frame costs one
`send` on one side and one `recv` on the other. A large message travels in a memory file, if both sides
have agreed on that: then its frame, marked in the length's highest byte, only tells where it lies.
"""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from .shared_memory import LARGE, SharedFiles, can_lend

Address = str | tuple[str, int]
"""A path of a Unix socket, or host and port."""

BOUND = 5.0
"""Seconds for a connect and handshake; also the silence after which a manager is asked for a sign."""

# Statuses of a reply beyond those of `calls.py`, which are small and positive.
GRANT = -1
ERROR = -2

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # those without a descriptor

_DONT_WAIT = None if os.environ.get("MPPOOL_PORTABLE") else getattr(socket, "MSG_DONTWAIT", None)

_HEADER = struct.Struct("<Q")
_MARK = 56  # bits of a length; above them a mark
_UNMARKED = (1 << _MARK) - 1
_NEWS = 1  # about loans of before; a frame follows
_LOAN = 2
_ROOM_FOR_RIGHTS = 24  # bytes: one descriptor comes with a frame
_CHUNK = 16 * 1024  # one recv: more than nearly every message
A_MOMENT = 0.01  # the kernel counts time in larger steps than we do


class TruncatedMessage(EOFError):
    """The stream ended in the middle of a message."""


class DeadlineExceeded(Exception):
    """What was to come has not come in time. When it comes it is nobody's: drop the connection."""


class PayloadLost(Exception):
    """A message has come whole, but this side has no descriptor or memory left to see it."""


def encode(message: object) -> bytes:
    """A message as a frame. Raises what pickle raises if it does not pickle."""
    data = pickle.dumps(message, 5)
    return _HEADER.pack(len(data)) + data


class _Lent(bytes):
    """A frame that tells of a loan, and the descriptor that passes with it, if that is news."""

    descriptor: int | None = None


Pickle = bytes | bytearray | memoryview
Received = tuple[Pickle, Sequence[memoryview]]
"""A pickle as it came, and the buffers that it leaves out."""


class Connection:
    """One end of an authenticated stream. Sends and receives whole messages; one reader at a time."""

    __slots__ = (
        "_descriptors",
        "_lending",
        "_rest",
        "_socket",
        "_until",
        "address",
        "peer_pid",
        "sign_of_life",
    )

    def __init__(
        self, sock: socket.socket, address: Address, sign_of_life: Callable[[], object] | None = None
    ) -> None:
        self._socket = sock
        self._rest = b""  # received, but of the next frame
        self._lending: SharedFiles | None = None  # when both sides have agreed on it
        self._descriptors: list[int] = []  # received, but not of which file
        self._until: float | None = None
        self.address = address
        self.sign_of_life = sign_of_life
        """The client's end asks for one after `BOUND` silent seconds. Raises if there is none."""
        self.peer_pid: int | None = None  # as the kernel reports it, on the manager's end

    def send(self, message: object) -> None:
        """Send a message. `OSError` if nobody is there; what pickle raises if it does not pickle."""
        self.send_frame(encode(message))

    def limit(self, sign_of_life: Callable[[], object]) -> None:
        """From now on `sign_of_life` is called when the peer has stopped for `BOUND` seconds in a message."""
        set_bound(self._socket)
        self.sign_of_life = sign_of_life

    def give(self, until: float | None) -> None:
        """The other side has until then (`time.monotonic`); who waits for it longer gets `DeadlineExceeded`.

        None: for ever, as long as there are signs of life.
        """
        if until != self._until:
            self._until = until
            set_bound(self._socket, until)

    @property
    def can_lend(self) -> bool:
        """Whether memory files can pass, as far as this side is concerned."""
        return can_lend(self._socket)

    @property
    def lends(self) -> bool:
        """Whether both sides have agreed to pass memory files."""
        return self._lending is not None

    def begin_to_lend(self) -> None:
        """The other side has agreed to pass memory files, or is about to."""
        self._lending = self._lending or SharedFiles()

    def encode(self, message: object) -> bytes:
        """As `wire.encode`; what is large in the message is lent, if that is agreed on."""
        lending = self._lending
        if lending is None:
            return encode(message)
        parts = _Parts(message)
        if parts.large:
            try:
                return _lent_frame(lending, parts)
            except OSError:  # no descriptor or no memory is left: the stream will do
                return encode(message)
        return b"".join((_HEADER.pack(parts.size), *parts.pickle))

    def send_frame(self, data: bytes) -> None:
        """Send what `encode` made."""
        if self._lending is not None:
            data = self._with_news(self._lending, data)
        sent = self._send_some(data)
        while sent < len(data):
            data = memoryview(data)[sent:]  # type: ignore[assignment]
            sent = self._send_some(data)

    def send_at_once(self, message: object) -> None:
        """Send a short last message before `close`, if there is room and somebody there."""
        try:
            self._socket.setblocking(False)
            self._socket.send(encode(message))
        except OSError:
            pass  # whoever has left so much unread will read of that, or nothing at all

    def recv(self) -> Any:
        """The next message. Raises as `recv_pickle`, and what pickle raises if it cannot be rebuilt."""
        data, buffers = self.recv_pickle()
        return pickle.loads(data, buffers=buffers)

    def await_reply(self) -> None:
        """Wait for something to receive as long as was given, whatever signals come meanwhile."""
        if self._until is not None and not self.has_come(max(0.0, self._until - time.monotonic())):
            raise DeadlineExceeded

    def recv_pickle(self) -> Received:
        """The next message as it came. `EOFError` at the end, `TruncatedMessage` if that is within a message.

        `PayloadLost` if it was lent and cannot be had; the one after it can.
        """
        data = self._rest or self._recv_some(_CHUNK)
        if not data:
            raise EOFError
        while len(data) < _HEADER.size:
            data += self._more(_CHUNK)
        size = _HEADER.unpack_from(data)[0]
        if len(data) == size + _HEADER.size:
            self._rest = b""
            return data[_HEADER.size :], ()
        if size >> _MARK:
            return self._recv_marked(data, size)
        return self._recv_body(data, size), ()

    def _recv_body(self, data: bytes, size: int) -> bytes | bytearray:
        end = size + _HEADER.size
        if len(data) >= end:
            self._rest = data[end:]
            return data[_HEADER.size : end]
        self._rest = b""
        return self._recv_large(data[_HEADER.size :], size)

    def _recv_marked(self, data: bytes, marked: int) -> Received:
        mark = marked >> _MARK
        content = pickle.loads(self._recv_body(data, marked & _UNMARKED))
        lending = self._lending
        if lending is None:
            raise TruncatedMessage("the other side lends what nobody has agreed on")
        if mark == _NEWS:
            lending.heed(content)
            return self.recv_pickle()
        loan, has_descriptor, writable = content
        try:
            pickled, *buffers = lending.open(loan, self._take_descriptor() if has_descriptor else None)
        except OSError as error:
            raise PayloadLost(str(error)) from error
        pairs = zip(buffers, writable, strict=True)
        return pickled, [each if may else each.toreadonly() for each, may in pairs]

    def _take_descriptor(self) -> int | None:
        return self._descriptors.pop(0) if self._descriptors else None

    def _with_news(self, lending: SharedFiles, data: bytes) -> bytes:
        """A frame and, before it, what the other side should know. Passes the descriptor, if there is one."""
        descriptor = data.descriptor if isinstance(data, _Lent) else None
        if lending.has_news:
            news = pickle.dumps(lending.news(), 5)
            data = _HEADER.pack(len(news) | _NEWS << _MARK) + news + data
        if descriptor is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            data = data[self._patiently(self._socket.sendmsg, [data], rights) :]
        return data

    def has_come(self, patience: float) -> bool:
        """Whether something to receive (or the end) is there, or comes within so many seconds."""
        with _Selector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return bool(self._rest or selector.select(patience))

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def has_ended(self) -> bool:
        """Whether the other side has hung up, or this one, and nothing is left to receive."""
        try:
            if _DONT_WAIT is None:
                return self.has_come(0) and not self._socket.recv(1, socket.MSG_PEEK)
            return not self._socket.recv(1, socket.MSG_PEEK | _DONT_WAIT)
        except BlockingIOError:
            return False
        except (OSError, ValueError):  # it is closed here
            return True

    def is_stale(self) -> bool:
        """Whether the other side has hung up, where a `send` would not be told so: on TCP."""
        if isinstance(self.address, str):
            return False
        bound = self._socket.gettimeout()
        self._socket.setblocking(False)  # a flag of `recv` does not help: Python waits before it asks
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._socket.settimeout(bound)

    def peer(self) -> tuple[str, int] | None:
        """Host and port of the other side; None unless on TCP."""
        name: Any = None if isinstance(self.address, str) else self._socket.getpeername()
        return None if name is None else name[:2]

    def close(self) -> None:
        """Close this end. What it brought lasts as long as anybody looks."""
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.pop())
        if self._lending is not None:
            self._lending.end()

    def hang_up(self) -> None:
        """End the stream for both sides, even while another thread waits in `recv`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was first

    def _recv_large(self, begun: bytes, size: int) -> bytearray:
        body = bytearray(size)
        body[: len(begun)] = begun
        rest = memoryview(body)[len(begun) :]
        while rest:
            try:
                received = self._socket.recv_into(rest)
            except (BlockingIOError, TimeoutError):
                self._ask_for_life()
                continue
            except ConnectionResetError:
                received = 0
            if not received:
                raise TruncatedMessage
            rest = rest[received:]
        return body

    def _more(self, size: int) -> bytes:
        try:
            data = self._recv_some(size)
        except ConnectionResetError as error:
            raise TruncatedMessage from error
        if not data:
            raise TruncatedMessage
        return data

    def _recv_some(self, size: int) -> bytes:
        while True:
            try:
                return self._socket.recv(size) if self._lending is None else self._recv_with_rights(size)
            except (BlockingIOError, TimeoutError):
                self._ask_for_life()

    def _recv_with_rights(self, size: int) -> bytes:
        data, rights, _, _ = self._socket.recvmsg(size, _ROOM_FOR_RIGHTS, socket.MSG_CMSG_CLOEXEC)
        for _, _, packed in rights:
            self._descriptors += struct.unpack(f"{len(packed) // 4}i", packed)
        return data

    def _patiently(self, do: Callable[..., int], *args: Any) -> int:
        while True:
            try:
                return do(*args)
            except (BlockingIOError, TimeoutError):
                self._ask_for_life()

    def _send_some(self, data: bytes) -> int:
        while True:
            try:
                return self._socket.send(data)
            except (BlockingIOError, TimeoutError):
                self._ask_for_life()

    def _ask_for_life(self) -> None:
        if self._until is not None and time.monotonic() > self._until - A_MOMENT:
            raise DeadlineExceeded
        if self.sign_of_life is not None:
            self.sign_of_life()


class _Parts:
    """A message taken apart without a copy: its pickle, in pieces, and the large buffers left out of that.

    Raises what pickle raises if it does not pickle.
    """

    __slots__ = ("buffers", "pickle", "size", "write")

    def __init__(self, message: object) -> None:
        self.pickle: list[Any] = []
        self.buffers: list[memoryview] = []
        self.write = self.pickle.append  # a file, to the pickler, which writes large bytes as they are
        pickle.Pickler(self, 5, buffer_callback=self._stays).dump(message)
        self.pickle = [
            each if type(each) is bytes else pickle.PickleBuffer(each).raw() for each in self.pickle
        ]
        self.size = sum(map(len, self.pickle))

    @property
    def large(self) -> bool:
        """Whether it is worth a loan."""
        return bool(self.buffers) or self.size >= LARGE

    def _stays(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether a buffer stays in the pickle: one that is small, or scattered."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True
        if len(raw) < LARGE:
            return True
        self.buffers.append(raw)
        return False


def _lent_frame(lending: SharedFiles, parts: _Parts) -> bytes:
    loan, descriptor = lending.put([parts.pickle, *([each] for each in parts.buffers)])
    told = pickle.dumps((loan, descriptor is not None, [not each.readonly for each in parts.buffers]), 5)
    frame = _Lent(_HEADER.pack(len(told) | _LOAN << _MARK) + told)
    frame.descriptor = descriptor
    return frame


def set_bound(sock: socket.socket, until: float | None = None) -> None:
    """Bound each connect, send and recv.

    Where the kernel can do it, a call takes half the time that it takes with Python's timeouts. But each
    signal whose handler returns begins the time anew.
    """
    seconds = BOUND if until is None else min(BOUND, max(A_MOMENT, until - time.monotonic()))
    if sys.platform == "win32" or os.environ.get("MPPOOL_PORTABLE"):
        sock.settimeout(seconds)
        return
    bound = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
