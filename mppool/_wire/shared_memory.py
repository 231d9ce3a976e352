"""Large data beside the stream: memory files that one side of a connection fills and the other maps.

One copy brings a message into a file of the sender's, whose descriptor passes over the Unix socket. The
receiver's arrays look right into it. The file has no name, so nothing of it outlives its processes.

    sender                                         receiver
    `put`: a file at rest, or a new one, filled
           and lent under a serial number   --->   `open`: mapped the first time, known by number later;
                                                   a window into it, in which arrays look
    `heed`: at rest again                   <---   `news`: nobody looks into the window any more

Fresh memory costs several times the copy: that is why a file is lent again, and why both sides keep it
mapped. The sender never touches a file that is lent; one that is not returned belongs to those who look.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import socket
import threading
import time
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

LARGE = 96 * 1024
"""Bytes of a pickle or a buffer from which on it is lent: below that the stream is as fast."""

HELD = 256 * 2**20
"""Bytes of files at rest that a process keeps for the next message."""

IDLE = 5.0
"""Seconds after which files that nobody used give their memory back; twice as many at most."""

_MOST = 4  # files lent over one connection, each way: then the longest lent is given up
_SMALLEST = 2**20  # bytes of a file; only those that were written take memory
_ALIGNMENT = 64  # of each part: a cache line, and the widest vector register
_MAP_FIXED = 0x10
_HAS_CTYPES = find_spec("_ctypes") is not None  # Python can be built without it

R = TypeVar("R")
Buffer = bytes | memoryview

Parcel = tuple[int, int, int, list[int]]
"""Number, size in bytes, serial and the sizes of the parts of what is lent: all that crosses the socket."""


def can_lend(sock: socket.socket) -> bool:
    """Whether memory files can pass over this socket. MPPOOL_PORTABLE says no."""
    if os.environ.get("MPPOOL_PORTABLE") or not hasattr(os, "memfd_create"):
        return False
    return sock.family == socket.AF_UNIX and _HAS_CTYPES


@functools.cache
def _system() -> tuple[Any, Any]:
    """`ctypes`, which takes its time to import, and the C library.

    Python's own mmap keeps a descriptor open for each mapping, and cannot lay one over another.
    """
    ctypes = import_module("ctypes")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return ctypes, libc


def _map(descriptor: int, size: int) -> mmap.mmap:
    """A memory file as this process sees it: unmapped when nobody looks, without a step of Python's."""
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _lay_over(room, descriptor, mmap.MAP_SHARED)
    return room


def _lay_over(room: mmap.mmap, descriptor: int, kind: int) -> None:
    """Have a file in the place of what was mapped there, whoever looks."""
    ctypes, libc = _system()
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if libc.mmap(address, len(room), access, kind | _MAP_FIXED, descriptor, 0) != address:
        raise OSError(ctypes.get_errno(), "a memory file cannot be mapped")


class _File:
    """One memory file: the sender's end of it, or the receiver's."""

    __slots__ = ("_open", "known", "number", "room", "serial", "since", "used")

    def __init__(self, number: int, size: int, descriptor: int) -> None:
        self._open = [descriptor]  # taken out by whoever must have it open for the time
        self.number = number
        self.room = _map(descriptor, size)
        self.serial = 0  # of the loan
        self.known = False  # to the receiver: it needs the descriptor no more
        self.used = 0  # bytes that take memory, as far as this side knows
        self.since = 0.0  # when it was first seen at rest

    @classmethod
    def make(cls, number: int, size: int) -> _File:
        """A new one. `OSError` if there is no descriptor or no memory for it."""
        file = cls(number, size, os.memfd_create("mppool"))
        os.ftruncate(file.descriptor, size)
        return file

    @property
    def descriptor(self) -> int:
        """What it is open under; -1 if it is closed."""
        return self._open[0] if self._open else -1

    def hollow(self) -> None:
        """Give its memory back. Only for whoever is alone with it; it may be closed meanwhile."""
        try:
            descriptor = self._open.pop()
        except IndexError:
            return
        try:
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, len(self.room))
            self.used = 0
        finally:
            self._open.append(descriptor)

    def close(self) -> None:
        """Close the descriptor. Whoever looks goes on to do so."""
        while self._open:
            os.close(self._open.pop())

    __del__ = close


class _Window(weakref.ref[Any]):
    """A `ctypes` array over a file: whatever looks into it, such as an array, keeps it alive.

    When nobody does any more, the reference lies among the ended ones of its lending. To put it there
    takes no step of Python's: a signal handler that raises there would be raising into nothing.
    """

    __slots__ = ("file", "returned")

    file: _File
    returned: bool

    def give_up(self) -> None:
        """It is never returned: the memory is for those who look. After a fork, parent and child are two."""
        looked_at = self()  # which keeps it from ending meanwhile
        if not self.returned and looked_at is not None:
            self.returned = True
            _lay_over(self.file.room, self.file.descriptor, mmap.MAP_PRIVATE)


class SharedFiles:
    """What one connection lends and is lent. Used by one thread at a time, by `tidy` besides.

    Whoever takes a file out of `_resting` or `_ended` is alone with it: taking out is one step.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._serials = itertools.count(1)
        self._resting: deque[_File] = deque()
        self._lent: dict[int, _File] = {}  # by serial, the longest lent first
        self._given_up: list[int] = []
        self._borrowed: dict[int, _File] = {}
        self._windows: dict[int, _Window] = {}
        self._ended: deque[_Window] = deque()
        self._unseen: list[int] = []
        _lendings[id(self)] = self

    # -- what is told with the next message -----------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether there is anything to tell the other side."""
        return bool(self._ended or self._unseen or self._given_up)

    def news(self) -> tuple[list[int], list[int]]:
        """Serials of what nobody looks into any more here, and numbers that the other side may forget."""
        serials, self._unseen = self._unseen, []
        numbers, self._given_up = self._given_up, []
        try:
            while True:
                window = self._ended.popleft()
                if not window.returned:
                    window.returned = True
                    serials.append(window.file.serial)
        except IndexError:
            return serials, numbers

    def heed(self, news: tuple[list[int], list[int]]) -> None:
        """What the other side told."""
        serials, numbers = news
        self._take_back(serials)
        self._forget(numbers)

    # -- the sender's side --------------------------------------------------------------------------

    def put(self, parts: Sequence[Sequence[Buffer]]) -> tuple[Parcel, int | None]:
        """Copy parts into a file, for the other side alone. Also returns its descriptor, if that is news.

        Each part comes in pieces. `OSError` if there is no room.
        """
        sizes = [sum(map(len, part)) for part in parts]
        file = self._find(_end_of(sizes))
        view = memoryview(file.room)
        for (end, _), part in zip(_places(sizes), parts, strict=True):
            for piece in part:
                start, end = end, end + len(piece)  # noqa: PLW2901  # each piece follows the one before
                view[start:end] = piece
        file.used = max(file.used, _end_of(sizes))
        file.serial = next(self._serials)
        self._lent[file.serial] = file
        loan = (file.number, len(file.room), file.serial, sizes)
        return loan, None if file.known else file.descriptor

    def _take_back(self, serials: Iterable[int]) -> None:
        """Files to use again; by its negative serial, one that the other side could not open."""
        for serial in serials:
            file = self._lent.pop(abs(serial), None)
            if file is not None:
                file.known = file.known or serial > 0
                self._rest(file)

    def _rest(self, file: _File) -> None:
        if sum(each.used for lending in _all() for each in list(lending._resting)) + file.used > HELD:
            file.hollow()
        file.since = 0.0
        self._resting.append(file)
        _tidy_soon()

    def _find(self, size: int) -> _File:
        for _ in range(len(self._resting)):
            try:
                file = self._resting.popleft()
            except IndexError:
                break  # it is being tidied
            if size <= len(file.room) <= max(_SMALLEST, 8 * size):  # a small array must not pin a large file
                return file
            self._resting.append(file)
        if len(self._resting) >= _MOST:
            self._give_up(self._resting.popleft())
        if len(self._lent) >= _MOST:
            self._give_up(self._lent.pop(next(iter(self._lent))))
        return _File.make(next(self._numbers), max(_SMALLEST, 1 << (size - 1).bit_length()))

    def _give_up(self, file: _File) -> None:
        file.close()
        self._given_up.append(file.number)

    # -- the receiver's side ------------------------------------------------------------------------

    def open(self, loan: Parcel, descriptor: int | None) -> list[memoryview]:
        """The parts of what is lent, which last as long as anybody looks. `OSError` if they cannot be had."""
        number, size, serial, sizes = loan
        try:
            if descriptor is not None:
                self._forget([number])  # what that was, nobody could see
                self._borrowed[number] = _File(number, size, descriptor)
            file = self._borrowed[number]
        except (OSError, KeyError) as error:
            self._unseen.append(-serial)
            raise OSError(f"a large message cannot be seen here: {error!r}") from error
        window = (_system()[0].c_ubyte * size).from_buffer(file.room)
        reference = self._windows[number] = _Window(window, self._ended.append)
        reference.file, reference.returned = file, False
        file.serial, file.used, file.since = serial, max(file.used, _end_of(sizes)), 0.0
        _tidy_soon()
        view = memoryview(window).cast("B")
        return [view[start:end] for start, end in _places(sizes)]

    def _forget(self, numbers: Iterable[int]) -> None:
        """The other side will not lend these any more."""
        for number in numbers:
            file = self._borrowed.pop(number, None)
            window = self._windows.pop(number, None)
            if window is not None:
                window.give_up()
                window.returned = True
            if file is not None:
                file.close()

    # -- time passes --------------------------------------------------------------------------------

    def tidy(self) -> bool:
        """Have files that nobody has used for `IDLE` give back their memory; whether others are left."""
        resting = _tidied(self._resting, lambda file: file)
        ended = _tidied(self._ended, lambda window: None if window.returned else window.file)
        return resting or ended or any(each() is not None for each in list(self._windows.values()))

    def before_fork(self) -> None:
        """What is open belongs to those who look, in the parent and in the child."""
        for window in list(self._windows.values()):
            window.give_up()

    def end(self) -> None:
        """The connection is closed."""
        self._forget(list(self._borrowed))
        for file in (*self._lent.values(), *self._resting):
            file.close()
        self._lent.clear()
        self._resting.clear()

    __del__ = end


def _end_of(sizes: Sequence[int]) -> int:
    *_, (_, end) = _places(sizes)
    return end


def _places(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where parts of these sizes begin and end in a file."""
    end = 0
    for size in sizes:
        start = end + -end % _ALIGNMENT
        end = start + size
        yield start, end


def _tidied(resting: deque[R], file_of: Callable[[R], _File | None]) -> bool:
    left, now = False, time.monotonic()
    for _ in range(len(resting)):
        try:
            each = resting.popleft()
        except IndexError:
            break  # somebody took it
        file = file_of(each)
        if file is None:
            continue  # it belongs to others, such as a forked child
        file.since = file.since or now
        if file.used and now - file.since >= IDLE:
            file.hollow()
        left = left or file.used > 0
        resting.append(each)
    return left


_lendings: weakref.WeakValueDictionary[int, SharedFiles] = weakref.WeakValueDictionary()
_tidying = threading.Lock()  # held by the one thread that does


def _all() -> list[SharedFiles]:
    return [lending for lending in (ref() for ref in _lendings.valuerefs()) if lending is not None]


def _tidy_soon() -> None:
    """Something rests from now on. A thread sees to it that it does not for ever, and ends with its task."""
    if not _tidying.locked():
        try:
            start_new_thread(_tidy, (_tidying,))
        except RuntimeError:
            pass  # no thread is to be had: the next one will see to it; or the interpreter ends


def _tidy(tidying: threading.Lock) -> None:
    left = True
    while left and tidying.acquire(blocking=False):
        try:
            while left:
                time.sleep(IDLE)
                left = _tidy_all()
        finally:
            tidying.release()
        left = _tidy_all()  # what came to rest just before, and was left to us


def _tidy_all() -> bool:
    left = [each.tidy() for each in _all()]
    return any(left)


def _before_fork() -> None:
    for lending in _all():
        lending.before_fork()


def _begin_anew() -> None:
    """In a forked child: the connections are its parent's."""
    global _lendings, _tidying
    for lending in _all():
        lending.end()
    _lendings, _tidying = weakref.WeakValueDictionary(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_begin_anew)
