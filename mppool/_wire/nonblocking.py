"""A connection for an event loop: what it sends and receives, it does without waiting."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

from .connection import (
    APART,
    CHUNK,
    HEADER,
    PIECE,
    SHARED,
    Connection,
    PayloadLost,
    Received,
    TruncatedMessage,
    encode,
    open_apart,
    rights_of,
    split_header,
    take_apart,
)
from .shared_memory import LARGE, Buffer
from .signals import is_handlers

Frame = tuple[list[Buffer], int | None]
"""What is to be sent, piece by piece, and the descriptor that passes along with the first of it."""


class NonBlockingConnection(Connection):
    """Takes over the socket of a connection that has been made."""

    __slots__ = ("_body", "_mark", "_missing", "_outgoing")

    def __init__(self, made: Connection) -> None:
        super().__init__(made._socket, made.address)
        self._socket.setblocking(False)
        self._outgoing: deque[Buffer] = deque()
        # Of a large message that has begun to come: None where there is no memory for it.
        self._body: bytearray | None = None
        self._missing = self._mark = 0

    # -- sending --------------------------------------------------------------------------------------

    def take_apart(self, message: object) -> Parts:
        """A message, before its large data was copied. Raises what pickle raises if it does not pickle."""
        return Parts(*take_apart(message, None, apart=self._shared is not None))

    def frame_in_steps(self, message: object, parts: Parts) -> Generator[None, None, Frame]:
        """The frame of a message that was taken apart. Large data is copied a piece with each step."""
        shared = self._shared
        if shared is None or not parts.is_large:
            return parts.in_stream(), None
        try:
            parcel, descriptor, copying = shared.begin_to_write(parts.for_file())
        except OSError as error:  # no descriptor or no memory is left: the stream will do
            if is_handlers(error):
                raise
            return Parts(*take_apart(message, None, apart=False)).in_stream(), None
        yield from copying
        content = parcel, descriptor is not None, parts.writable
        return [encode(content, mark=SHARED)], descriptor

    def send_begun(self, frame: Frame) -> bool:
        """Send of a frame what goes now; whether that was all. If not, `send_rest` goes on with it."""
        pieces, descriptor = frame
        if self._shared is None and not self._outgoing and len(pieces) == 1:  # nearly always
            sent = self.send_some(pieces[0])
            if sent < len(pieces[0]):
                self._outgoing.append(memoryview(pieces[0])[sent:])
            return not self._outgoing
        if self._shared is not None and self._shared.has_news:
            pieces = [self._news(), *pieces]
        self._outgoing += pieces
        if descriptor is not None:
            first = self._outgoing[0]  # all that was sent on this connection before has been answered
            self._sent(first, self._socket.sendmsg([first], rights_of([descriptor])))
        return self.send_rest()

    def send_rest(self) -> bool:
        """Send what goes now of what is left; whether that was all. `OSError` if the other side is gone."""
        while self._outgoing:
            piece = self._outgoing[0]
            sent = self.send_some(piece)
            self._sent(piece, sent)
            if sent < len(piece):
                return False
        return True

    def send_last(self, frame: bytes) -> bool:
        """Send this behind all that is still to be sent; False if that takes its time."""
        self._outgoing.append(frame)
        with suppress(OSError):
            return self.send_rest()
        return True  # the other side is gone

    def send_rest_patiently(self) -> None:
        """Send what is left, however long the other side takes to read it, and close. For a thread."""
        with suppress(OSError):
            self._socket.setblocking(True)
            for piece in self._outgoing:
                self._socket.sendall(piece)
        self.close()

    def _sent(self, piece: Buffer, size: int) -> None:
        if size == len(piece):
            self._outgoing.popleft()
        else:
            self._outgoing[0] = memoryview(piece)[size:]

    # -- receiving ------------------------------------------------------------------------------------

    def receive(self) -> list[Received | PayloadLost]:
        """The messages that are whole with what has come. Each call looks once: there may be more.

        `EOFError` at the end, `TruncatedMessage` if that is within a message.
        """
        try:
            data = self._socket.recv(min(self._missing, PIECE)) if self._missing else self._receive(CHUNK)
        except BlockingIOError:
            return []
        if not data:
            raise TruncatedMessage if self._rest or self._missing else EOFError
        if self._missing:
            return self._go_on_with_large(data)
        if self._rest:
            data = self._rest + data
        if len(data) >= HEADER.size and len(data) == HEADER.size + HEADER.unpack_from(data)[0]:
            self._rest = b""
            return [(data[HEADER.size :], ())]  # one frame and no mark: nearly always
        return list(self._split(data))

    def _split(self, data: bytes) -> Generator[Received | PayloadLost, None, None]:
        while True:
            mark, size, end = split_header(data)
            if end > len(data):
                break
            yield from self._completed(mark, data[HEADER.size : end])
            data = data[end:]
        self._rest = data
        if size > CHUNK:
            self._body, self._mark = bytearray(data[HEADER.size :]), mark
            self._missing, self._rest = end - len(data), b""

    def _go_on_with_large(self, data: bytes) -> list[Received | PayloadLost]:
        self._missing -= len(data)
        try:
            if self._body is not None:
                self._body += data  # memory for what has come, not for what the header announces
        except MemoryError:
            self._body = None  # the rest is read all the same: the next message lies behind it
        if self._missing:
            return []
        body, self._body = self._body, None
        if body is None:
            return [PayloadLost("a message is too large for the memory that is left here")]
        return list(self._completed(self._mark, body))

    def _completed(self, mark: int, body: Any) -> Generator[Received | PayloadLost, None, None]:
        if not mark:
            yield body, ()
            return
        if mark == APART:
            yield open_apart(body)
            return
        content = pickle.loads(body)
        if self._is_shared(mark, content):
            try:
                yield self._open_shared(content)
            except PayloadLost as error:
                yield error


class Parts:
    """A message taken apart: the pieces of its pickle, and the large buffers that were left out."""

    def __init__(self, pieces: list[Buffer], buffers: list[memoryview]) -> None:
        self._pieces = pieces
        self._buffers = buffers
        self._size = sum(map(len, pieces))

    @property
    def is_large(self) -> bool:
        """Whether it is worth a memory file."""
        return bool(self._buffers) or self._size >= LARGE

    @property
    def writable(self) -> list[bool]:
        """Of each of the buffers."""
        return [not each.readonly for each in self._buffers]

    def for_file(self) -> list[Sequence[Buffer]]:
        """What goes into a memory file, part by part."""
        return [self._pieces, *([each] for each in self._buffers)]

    def in_stream(self) -> list[Buffer]:
        """The frame of it. Nothing large is copied."""
        assert not self._buffers, "what goes through the stream is in the pickle"
        header = HEADER.pack(self._size)
        return [header, *self._pieces] if self.is_large else [b"".join((header, *self._pieces))]
