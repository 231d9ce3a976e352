"""Whole messages over a socket, with deadlines. Both sides use it.

A frame is a header of 8 bytes and a pickle. The header is the pickle's size (little-endian) with a mark in
its highest byte, which says what the pickle is:

    (none)     the message
    SHARED    where the message lies in a memory file, once both sides have agreed to share memory
    APART     where the message lies in what follows: large arrays are used where they were received
    _NEWS      what has become of memory files; another frame follows

A small frame costs one `send` on one side and one `recv` on the other.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from mppool import _system

from .shared_memory import ALIGNMENT, LARGE, Buffer, SharedFiles, can_share, lay_out
from .signals import is_handlers

R = TypeVar("R")

Address = str | tuple[str, int]
"""A path of a Unix socket, or host and port."""

# A lost machine is noticed after 50 seconds: 20 + 3 * 10 while nothing is under way to it; else by the
# last option, without which the kernel sends again for a quarter of an hour.
_KEEP_ALIVE = {socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
if sys.platform == "darwin":
    _KEEP_ALIVE |= {0x10: 20, 0x80: 50}  # TCP_KEEPALIVE, TCP_RXT_CONNDROPTIME
else:
    _KEEP_ALIVE |= {socket.TCP_KEEPIDLE: 20, socket.TCP_USER_TIMEOUT: 50_000}

SILENCE_SECONDS = 5.0
"""Seconds for a connect and handshake; also the silence after which a client pings its manager."""

CLOCK_STEP = 0.01
"""Seconds: the kernel counts timeouts in steps of this size at most, so one may end that much early."""

HEADER = struct.Struct("<Q")
MARK_SHIFT = 56
SIZE_BITS = (1 << MARK_SHIFT) - 1
_NEWS = 1
SHARED = 2
APART = 3
_ROOM_FOR_DESCRIPTORS = 24  # bytes of ancillary data: one descriptor comes with a frame, or two
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # not on macOS
CHUNK = 16 * 1024  # bytes of one recv: more than nearly every message
PIECE = 256 * 1024  # bytes of one recv of a large message

Pickle = bytes | bytearray | memoryview
Received = tuple[Pickle, Sequence[memoryview]]
"""A pickle as it came, and the buffers that it leaves out."""


class TruncatedMessage(EOFError):
    """The stream ended in the middle of a message."""


class DeadlineExceeded(Exception):
    """No answer came in time. A late one fits no later question: drop the connection."""


class PayloadLost(Exception):
    """A message came whole, but this side has no descriptor or memory left for it."""


_LOOK = int(socket.MSG_PEEK) | int(socket.MSG_DONTWAIT)
"""Flags to see what has come, without taking it or waiting. A plain int: enums take long to combine."""

Reducers = Mapping[type, Callable[[Any], Any]]
"""For the dispatch table of a pickler: how objects of a type pickle."""


def encode(message: object, reducers: Reducers | None = None, mark: int = 0) -> bytes:
    """A message as a frame. Raises what pickle raises if it does not pickle."""
    if reducers is None:
        pickled = pickle.dumps(message, 5)
    else:
        file = io.BytesIO()
        pickler = pickle.Pickler(file, 5)
        pickler.dispatch_table = reducers
        pickler.dump(message)
        pickled = file.getvalue()
    return HEADER.pack(len(pickled) | mark << MARK_SHIFT) + pickled


def split_header(data: bytes) -> tuple[int, int, int]:
    """Of a frame that has begun to come: its mark, the size of its pickle, and where it ends."""
    if len(data) < HEADER.size:
        return 0, 0, HEADER.size
    marked: int = HEADER.unpack_from(data)[0]
    size = marked & SIZE_BITS
    return marked >> MARK_SHIFT, size, HEADER.size + size


class PassingFrame(bytes):
    """A frame along with which descriptors pass."""

    descriptors: tuple[int, ...] = ()


class OwningFrame(PassingFrame):
    """One that closes them at its end: sent or not, they have no other use here."""

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        for each in self.descriptors:
            _close(each)


class _SharedFrame(PassingFrame):
    """A frame that says where a message lies in a memory file, of which the descriptor may pass along."""


class _Descriptors(list[int]):
    """Those that have come, and are not taken yet."""

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        while self:
            _close(self.pop())

    __del__ = close


def _in_stream(parts: Sequence[Sequence[Buffer]], writable: Sequence[bool]) -> bytes:
    """The frame of a message that was taken apart, in one copy."""
    places = lay_out(parts)
    index = pickle.dumps((places, writable), 5)
    start = _start_behind(len(index))
    body: list[Buffer] = [HEADER.pack(len(index)), index]
    end = HEADER.size + len(index) - start
    for (begin, next_end), part in zip(places, parts, strict=True):
        body += [bytes(begin - end), *part]
        end = next_end
    return b"".join((HEADER.pack(start + end | APART << MARK_SHIFT), *body))


def open_apart(body: Pickle) -> Received:
    """A message as it came, of such a frame. Its arrays lie right in that."""
    view = memoryview(body)
    size = HEADER.unpack_from(view)[0]
    places, writable = pickle.loads(view[HEADER.size : HEADER.size + size])
    parts = view[_start_behind(size) :]
    pickled, *buffers = (parts[begin:end] for begin, end in places)
    return pickled, protected(buffers, writable)


def _start_behind(size: int) -> int:
    """Where the parts begin in a body, behind an index of this size."""
    end = HEADER.size + size
    return end + -end % ALIGNMENT


def protected(buffers: Sequence[memoryview], writable: Sequence[bool]) -> list[memoryview]:
    """Buffers as they were on the other side: those that could not be written to cannot be here."""
    pairs = zip(buffers, writable, strict=True)
    return [each if may_write else each.toreadonly() for each, may_write in pairs]


def is_large(frame: bytes) -> bool:
    """Whether a frame brings much."""
    return len(frame) >= LARGE or isinstance(frame, _SharedFrame)


class Socket(socket.socket):
    """One that closes without a warning if it is forgotten, as when its thread ends or in a forked child."""

    # That of the base class: `socket.close` fails where a signal handler raised within `__init__`, when there
    # is a descriptor already. At interpreter exit this module's globals may be None.
    def __del__(self, _close: Callable[[Any], None] = socket.SocketType.close) -> None:
        _close(self)


class Connection:
    """One end of an authenticated stream. Sends and receives whole messages; one reader at a time."""

    __slots__ = (
        "_deadline",
        "_descriptors",
        "_largest",
        "_receive",
        "_rest",
        "_sends_large",
        "_shared",
        "_socket",
        "address",
        "on_silence",
        "peer_pid",
    )

    def __init__(
        self, sock: socket.socket, address: Address, on_silence: Callable[[], object] | None = None
    ) -> None:
        self._socket = sock
        self._receive: Callable[[int], bytes] = sock.recv
        self._rest = b""  # received, but of the next frame
        self._largest = 0  # bytes of the largest message that has come
        self._descriptors: _Descriptors | None = None  # where they are taken
        self._shared: SharedFiles | None = None  # when both sides have agreed on it
        self._sends_large = False  # has sent a large message: there may be more of them
        self._deadline: float | None = None
        self.address = address
        self.on_silence = on_silence
        """Called after each `SILENCE_SECONDS` without progress; it raises where waiting on is no use."""
        self.peer_pid: int | None = None  # as the kernel reports it, on the manager's end

    def on_stall(self, on_silence: Callable[[], object]) -> None:
        """From now on call this whenever the peer has stopped for `SILENCE_SECONDS` within a message."""
        set_timeout(self._socket)
        self.on_silence = on_silence

    def set_deadline(self, deadline: float | None) -> None:
        """Raise `DeadlineExceeded` where this end waits for the other beyond this time (`time.monotonic`).

        None: wait as long as `on_silence` does not raise.
        """
        if deadline != self._deadline:
            self._deadline = deadline
            set_timeout(self._socket, deadline)

    # -- memory files ---------------------------------------------------------------------------------

    @property
    def can_share(self) -> bool:
        """Whether memory files can pass, as far as this side is concerned."""
        return can_share(self._socket)

    def share_memory(self) -> None:
        """The other side has agreed to pass memory files, or is about to."""
        if self._shared is None:
            self.accept_descriptors()
            self._shared = SharedFiles()

    def accept_descriptors(self) -> None:
        """From now on descriptors may come along with messages."""
        if self._descriptors is None:
            self._descriptors = _Descriptors()
            self._receive = partial(_recv_with_descriptors, self._socket, self._descriptors)

    def take_descriptors(self) -> list[int]:
        """Those that came along with the last message, as far as this process had room for them."""
        taken = list(self._descriptors or ())
        if self._descriptors is not None:
            self._descriptors.clear()
        return taken

    # -- sending --------------------------------------------------------------------------------------

    def send(self, message: object, passed: socket.socket | None = None) -> None:
        """Send a message, and pass a socket along for `recv_with_socket`.

        `OSError` if the other side is gone; what pickle raises if the message does not pickle.
        """
        frame = encode(message)
        self.send_frame(frame if passed is None else self._pass((passed.fileno(),), frame))

    def encode(self, message: object, reducers: Reducers | None = None) -> bytes:
        """A message as a frame for this connection: a large one is written to a memory file, if agreed on.

        It is a copy in any case: the object may be another holder's before the frame is sent.
        """
        shared = self._shared
        if shared is None and not self._sends_large:
            frame = encode(message, reducers)
            self._sends_large = len(frame) >= LARGE
            return frame
        pieces, buffers = take_apart(message, reducers)
        size = sum(map(len, pieces))
        if not buffers and (size < LARGE or shared is None):
            return b"".join((HEADER.pack(size), *pieces))
        parts: list[Sequence[Buffer]] = [pieces, *([each] for each in buffers)]
        writable = [not each.readonly for each in buffers]
        if shared is None:
            return _in_stream(parts, writable)
        try:
            parcel, descriptor = shared.write(parts)
        except OSError as error:  # no descriptor or no memory is left: the stream will do
            if is_handlers(error):
                raise
            return _in_stream(parts, writable)
        frame = _SharedFrame(encode((parcel, descriptor is not None, writable), mark=SHARED))
        frame.descriptors = () if descriptor is None else (descriptor,)
        return frame

    def send_frame(self, data: bytes) -> None:
        """Send what `encode` made."""
        if self._shared is not None or isinstance(data, PassingFrame):
            data = self._send_descriptors(data)
            if not data:
                return  # to send nothing fails where the other side has read all of it, and left
        sent = self._patiently(self._socket.send, data)
        while sent < len(data):
            data = memoryview(data)[sent:]  # type: ignore[assignment]
            sent = self._patiently(self._socket.send, data)

    def send_at_once(self, message: object) -> None:
        """Send a short last message before `close`, if there is room and the other side is there."""
        with contextlib.suppress(OSError):
            self._socket.setblocking(False)
            self.try_to_send(encode(message))

    def try_to_send(self, frame: bytes) -> bool:
        """Send a short frame without waiting; False if the other side leaves so much unread, or is gone.

        After that the stream is of no use, since a part may have been sent.
        """
        if self._shared is not None and self._shared.has_news:
            frame = self._news() + frame
        with contextlib.suppress(OSError):
            return self.send_some(frame) == len(frame)
        return False

    def send_some(self, data: Buffer) -> int:
        """Send as much as goes without waiting; how many bytes. `OSError` if the other side is gone."""
        try:
            if isinstance(data, PassingFrame) and data.descriptors:
                return self._socket.sendmsg([data], rights_of(data.descriptors), socket.MSG_DONTWAIT)
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def _send_descriptors(self, frame: bytes) -> bytes:
        """Put news before a frame, and pass its descriptors, if it has any. Returns what is left to send."""
        data = frame
        if self._shared is not None and self._shared.has_news:
            data = self._news() + frame
        if isinstance(frame, PassingFrame) and frame.descriptors:
            return self._pass(frame.descriptors, data)
        return data

    def _news(self) -> bytes:
        """The frame that tells what has become of memory files."""
        assert self._shared is not None, "it has some"
        return encode(self._shared.take_news(), mark=_NEWS)

    def _pass(self, descriptors: Sequence[int], data: bytes) -> bytes:
        """Pass descriptors along with what they belong to. Returns what is left to send."""
        return data[self._patiently(self._socket.sendmsg, [data], rights_of(descriptors)) :]

    # -- receiving ------------------------------------------------------------------------------------

    def recv(self) -> Any:
        """The next message. Raises as `recv_pickle`, and what pickle raises if it cannot be rebuilt."""
        data, buffers = self.recv_pickle()
        return pickle.loads(data, buffers=buffers)

    def recv_with_socket(self) -> tuple[Any, Socket | None]:
        """The next message, and what was passed along, if this process has a descriptor free for that."""
        descriptors: list[int] = []
        receive, self._receive = self._receive, partial(_recv_with_descriptors, self._socket, descriptors)
        try:
            message, passed = self.recv(), None
            if descriptors:
                passed = Socket(fileno=descriptors[0])
                passed.set_inheritable(False)
                del descriptors[0]
        finally:
            self._receive = receive
            for each in descriptors:
                os.close(each)
        return message, passed

    def recv_pickle(self) -> Received:
        """The next message as it came. `EOFError` at the end, `TruncatedMessage` if that is within a message.

        `PayloadLost` if there is no memory for it, or it lies in a memory file that cannot be mapped; the
        message after it is intact.
        """
        body: bytes | bytearray
        data = self._rest or self._patiently(self._receive, CHUNK)
        if not data:
            raise EOFError
        while len(data) < HEADER.size:
            data += self._go_on(self._receive, CHUNK)
        marked = HEADER.unpack_from(data)[0]
        if len(data) == marked + HEADER.size:  # one frame and no mark: nearly always
            self._rest = b""
            return data[HEADER.size :], ()
        end = HEADER.size + (marked & SIZE_BITS)
        body, self._rest = data[HEADER.size : end], data[end:]
        if len(data) < end:
            body = self._recv_large(body, end - HEADER.size)
        mark = marked >> MARK_SHIFT
        return self._open_marked(mark, body) if mark else (body, ())

    def _recv_large(self, begun: bytes, size: int) -> bytearray:
        come = len(begun)
        try:
            body = bytearray(min(size, max(self._largest, PIECE)))
            body[:come] = begun
            while True:
                with memoryview(body) as room:
                    while come < len(body):
                        come += self._go_on(self._socket.recv_into, room[come:])
                if come == size:
                    self._largest = max(size, self._largest)
                    return body
                # As much again as has come, not what the header announces.
                body += bytes(min(size - come, come))
        except MemoryError:
            body = bytearray()
            while come < size:  # it is read all the same: the next message lies behind it
                come += len(self._go_on(self._socket.recv, min(size - come, PIECE)))
            raise PayloadLost("a message is too large for the memory that is left here") from None

    def _open_marked(self, mark: int, body: Pickle) -> Received:
        if mark == APART:
            return open_apart(body)
        content = pickle.loads(body)
        return self._open_shared(content) if self._is_shared(mark, content) else self.recv_pickle()

    def _is_shared(self, mark: int, content: Any) -> bool:
        """Whether a marked frame says where a message lies; else it had news, which are heard."""
        if self._shared is None:
            raise TruncatedMessage("the other side passes memory files without an agreement")
        if mark == _NEWS:
            self._shared.on_news(content)
        return mark != _NEWS

    def _open_shared(self, content: Any) -> Received:
        shared = self._shared
        assert shared is not None, "it was agreed on"
        parcel, has_descriptor, writable = content
        descriptor = self._descriptors.pop(0) if has_descriptor and self._descriptors else None
        try:
            pickled, *buffers = shared.map(parcel, descriptor)
        except OSError as error:
            raise PayloadLost(str(error)) from error
        return pickled, protected(buffers, writable)

    def _go_on(self, receive: Callable[..., R], *args: Any) -> R:
        """Receive more of a message that has begun: its end now is no orderly one."""
        try:
            received = self._patiently(receive, *args)
        except ConnectionResetError as error:
            if is_handlers(error):
                raise
            raise TruncatedMessage from error
        if not received:
            raise TruncatedMessage
        return received

    # -- waiting --------------------------------------------------------------------------------------

    def _patiently(self, do: Callable[..., R], *args: Any) -> R:
        """Do something with the socket, again after each silence, until the deadline."""
        while True:
            try:
                return do(*args)
            except (BlockingIOError, TimeoutError) as error:
                if is_handlers(error):
                    raise
                if self._deadline is not None and time.monotonic() > self._deadline - CLOCK_STEP:
                    raise DeadlineExceeded from None
                if self.on_silence is not None:
                    self.on_silence()

    def await_reply(self) -> None:
        """Wait for something to receive until the deadline, whatever signals come meanwhile."""
        if self._deadline is not None and not self.wait_readable(max(0.0, self._deadline - time.monotonic())):
            raise DeadlineExceeded

    def wait_readable(self, seconds: float) -> bool:
        """Whether something to receive (or the end) is there, or comes within so many seconds."""
        poll = select.poll()  # needs no descriptor
        poll.register(self._socket, select.POLLIN)
        return bool(self._rest or poll.poll(math.ceil(seconds * 1000)))

    def has_ended(self) -> bool:
        """Whether this side or the other has hung up, and nothing is left to receive."""
        try:
            # A flag of `recv` is not enough: with a timeout Python waits before it asks, gevent always.
            if self._rest or not self.wait_readable(0):
                return False
            return not self._socket.recv(1, _LOOK)
        except BlockingIOError:
            return False
        except (OSError, ValueError):  # it is closed here, or was reset
            return True

    def is_stale(self) -> bool:
        """Whether the other side has hung up, where a `send` would not be told so: on TCP."""
        return not isinstance(self.address, str) and self.has_ended()

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def peer(self) -> tuple[str, int] | None:
        """Host and port of the other side; None unless on TCP."""
        if isinstance(self.address, str):
            return None
        host, port, *_ = self._socket.getpeername()
        return host.removeprefix("::ffff:"), port  # of IPv4, which a listener of IPv6 may serve as well

    # -- the end --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close this end. Data that came in a memory file lasts as long as something refers to it."""
        self._socket.close()
        if self._descriptors is not None:
            self._descriptors.close()
        if self._shared is not None:
            self._shared.close()

    def detach(self) -> socket.socket:
        """Its socket, with which this object has nothing to do any more."""
        return socket.socket(fileno=self._socket.detach())

    def stop_receiving(self) -> None:
        """End what comes from the other side, even while another thread waits for it in `recv`."""
        with contextlib.suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RD)

    def hang_up(self) -> None:
        """End the stream for both sides, even while another thread waits in `recv`."""
        with contextlib.suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)


def rights_of(descriptors: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """What passes descriptors along with a message."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]


def _recv_with_descriptors(sock: socket.socket, descriptors: list[int], size: int) -> bytes:
    data, rights, _, _ = sock.recvmsg(size, _ROOM_FOR_DESCRIPTORS, _CLOSE_ON_EXEC)
    for _, _, packed in rights:
        descriptors += struct.unpack(f"{len(packed) // 4}i", packed)
    return data


class _Pieces(list[Any]):
    """A file, to the pickler, which writes large bytes as they are."""

    write = list.append


def take_apart(
    message: object, reducers: Reducers | None, apart: bool = True
) -> tuple[list[Buffer], list[memoryview]]:
    """A message without a copy: its pickle, in pieces, and the large buffers left out of that, if `apart`.

    Raises what pickle raises if it does not pickle.
    """
    pieces, buffers = _Pieces(), []

    def belongs_in_pickle(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # it is not contiguous
            return True
        if len(raw) >= LARGE:
            buffers.append(raw)
        return len(raw) < LARGE

    pickler = pickle.Pickler(pieces, 5, buffer_callback=belongs_in_pickle if apart else None)
    if reducers is not None:
        pickler.dispatch_table = reducers
    pickler.dump(message)
    return [each if type(each) is bytes else pickle.PickleBuffer(each).raw() for each in pieces], buffers


def resolve(address: Address, flags: int = 0) -> list[tuple[int, Any]]:
    """Families and addresses, as sockets want them, that an address stands for: a name may have several.

    Those of IPv4 come first. `OSError` if there is none.
    """
    if isinstance(address, str):
        return [(socket.AF_UNIX, address)]
    host, port = address
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no name of a host") from error
    return sorted(((each[0], each[4]) for each in found), key=lambda each: each[0] != socket.AF_INET)


def beside(manager: Address, address: Address) -> Address:
    """The address of an object's process: without a host of its own it is where its manager is."""
    if isinstance(address, str) or address[0]:
        return address
    return manager[0], address[1]


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel notice that the machine at the other end is lost. Only TCP leads to another one."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def set_timeout(sock: socket.socket, deadline: float | None = None) -> None:
    """Let no connect, send or recv wait beyond `SILENCE_SECONDS` or the deadline.

    With the kernel's timeouts a call takes half the time that it takes with Python's. But each signal
    whose handler returns begins the time anew.
    """
    seconds = SILENCE_SECONDS
    if deadline is not None:
        seconds = min(seconds, max(CLOCK_STEP, deadline - time.monotonic()))
    if _system.PORTABLE:
        sock.settimeout(seconds)
        return
    packed = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)
