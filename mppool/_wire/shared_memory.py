"""Large data beside the stream: memory files that one side of a connection writes and the other maps.

One copy brings a message into a file of the sender's, whose descriptor passes over the Unix socket. The
receiver's arrays lie right in it. The file has no name, so nothing of it outlives its processes.

    sender                                         receiver
    `write`: a file at rest, or a new one, gets
             a message and a serial number   --->  `map`: mapped the first time, known by number later;
                                                   a window into it, in which the arrays lie
    `on_news`: at rest again                 <---  `take_news`: nothing refers to the window any more

Fresh memory costs several times the copy: that is why a file is used again, and why both sides keep it
mapped. The sender never touches a file in flight; one that does not come back belongs to the receiver.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import socket
import sys
import threading
import time
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from mppool import _system
from mppool._system.fork import Step, at_fork

LARGE = 96 * 1024
"""Bytes of a pickle or a buffer from which on it goes into a file: below that the stream is as fast."""

HELD = 256 * 2**20
"""Bytes of files at rest that a process keeps for the next message."""

IDLE = 5.0
"""Seconds after which unused files give their memory back; twice as many at most."""

_MAX_FILES = 4  # in flight over one connection, each way: beyond that the oldest is left to the receiver
_MIN_SIZE = 2**20  # bytes of a file; only those that were written take memory
_COPIED_AT_ONCE = 2**20  # bytes: an event loop can do something else between two of them
ALIGNMENT = 64  # of each part: a cache line, and the widest vector register
_MAP_FIXED = 0x10
_HAS_CTYPES = find_spec("_ctypes") is not None  # Python can be built without it

R = TypeVar("R")
Buffer = bytes | memoryview

Places = list[tuple[int, int]]
"""Where the parts of a message begin and end."""

Parcel = tuple[int, int, int, Places]
"""Number and bytes of a file, a serial, and where the parts begin and end: all that crosses the socket."""

News = tuple[list[int], list[int]]
"""Serials that the receiver has no more use for, and numbers that the sender will not use again."""


def lay_out(parts: Iterable[Iterable[Buffer]]) -> Places:
    """Places for parts, each of which comes in pieces, one behind the other."""
    places: Places = []
    end = 0
    for part in parts:
        start = end + -end % ALIGNMENT
        end = start + sum(map(len, part))
        places.append((start, end))
    return places


def can_share(sock: socket.socket) -> bool:
    """Whether memory files can pass over this socket."""
    return (
        sock.family == socket.AF_UNIX and hasattr(os, "memfd_create") and _HAS_CTYPES and not _system.PORTABLE
    )


@functools.cache
def _libc() -> tuple[Any, Any]:
    """`ctypes`, which takes its time to import, and the C library.

    Python's own mmap keeps a descriptor open for each mapping, and cannot lay one over another.
    """
    ctypes = import_module("ctypes")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return ctypes, libc


def map_file(descriptor: int, size: int) -> mmap.mmap:
    """A memory file as this process sees it: unmapped with its last reference, by C code alone."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _map_over(memory, descriptor, mmap.MAP_SHARED)
    return memory


def _map_over(memory: mmap.mmap, descriptor: int, kind: int) -> None:
    """Map a file in the place of what was mapped there, for all that refer to it."""
    ctypes, libc = _libc()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if libc.mmap(address, len(memory), access, kind | _MAP_FIXED, descriptor, 0) != address:
        raise OSError(ctypes.get_errno(), "a memory file cannot be mapped")


class _File:
    """One memory file: the sender's end of it, or the receiver's. Open as long as something refers to it."""

    __slots__ = ("descriptor", "known", "memory", "number", "serial", "since", "used")

    def __init__(self, number: int, size: int, descriptor: int) -> None:
        self.descriptor = descriptor
        self.number = number
        self.memory = map_file(descriptor, size)
        self.serial = 0  # of the message in it
        self.known = False  # to the receiver: it needs the descriptor no more
        self.used = 0  # bytes that take memory, as far as this side knows
        self.since = 0.0  # when it was first seen at rest

    @classmethod
    def make(cls, number: int, size: int) -> _File:
        """A new one. `OSError` if there is no descriptor or no memory for it."""
        file = cls(number, size, os.memfd_create("mppool"))
        os.ftruncate(file.descriptor, size)
        return file

    def free(self) -> None:
        """Give its memory back. Only where nothing else uses it."""
        os.ftruncate(self.descriptor, 0)
        os.ftruncate(self.descriptor, len(self.memory))
        self.used = 0

    def free_if_idle(self) -> bool:
        """Give its memory back after `IDLE` seconds at rest; whether it still has some."""
        now = time.monotonic()
        self.since = self.since or now
        if self.used and now - self.since >= IDLE:
            self.free()
        return self.used > 0

    # At interpreter exit `os` may be None already, and the kernel closes it. What is mapped stays so while
    # something refers to it.
    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _is_finalizing():
            os.close(self.descriptor)


class _Window(weakref.ref[Any]):
    """A reference to a `ctypes` array over a file, which all that lies in it, such as an array, keeps alive.

    When that is gone, the reference is put among the ended ones of its connection. This runs no Python
    code: a signal handler that raised there would raise into nothing.
    """

    __slots__ = ("file",)

    file: _File | None
    """None when nothing is to be told of it any more."""

    def detach(self) -> None:
        """Leave the memory to this process for good. After a fork, parent and child have a copy each."""
        file, array = self.file, self()  # which keeps it from ending meanwhile
        if file is not None and array is not None:
            self.file = None
            _map_over(file.memory, file.descriptor, mmap.MAP_PRIVATE)


class SharedFiles:
    """The memory files of one connection, both ways. Used by one thread at a time, by `tidy` besides.

    A thread that takes a file out of `_resting` or `_ended` has it for itself: taking out is one step.
    """

    def __init__(self) -> None:
        # What this side sends:
        self._numbers = itertools.count()
        self._serials = itertools.count(1)
        self._resting: deque[_File] = deque()
        self._in_flight: dict[int, _File] = {}  # by serial, the oldest first
        self._retired: list[int] = []  # numbers that the receiver may forget
        # What it receives:
        self._received: dict[int, _File] = {}  # by number
        self._windows: dict[int, _Window] = {}  # the latest of each number
        self._ended: deque[_Window] = deque()
        self._lost: list[int] = []  # negative serials of what could not be mapped
        _instances[id(self)] = self

    # -- what is told with the next message -----------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether there is anything to tell the other side."""
        return bool(self._ended or self._lost or self._retired)

    def take_news(self) -> News:
        """What to tell the other side. It is told once."""
        serials, self._lost = self._lost, []
        numbers, self._retired = self._retired, []
        for window in _take_each(self._ended):
            if window.file is not None:
                serials.append(window.file.serial)
                window.file = None
        return serials, numbers

    def on_news(self, news: News) -> None:
        """What the other side told."""
        serials, numbers = news
        for serial in serials:
            file = self._in_flight.pop(abs(serial), None)
            if file is not None:
                file.known = file.known or serial > 0  # negative: the receiver could not map it
                self._keep(file)
        self._forget(numbers)

    # -- the sender's side --------------------------------------------------------------------------

    def write(self, parts: Sequence[Sequence[Buffer]]) -> tuple[Parcel, int | None]:
        """Copy parts into a file for the other side. Also returns its descriptor, if that has to pass along.

        Each part comes in pieces. `OSError` if there is no room.
        """
        *written, copying = self.begin_to_write(parts)
        for _ in copying:
            pass
        return tuple(written)  # type: ignore[return-value]

    def begin_to_write(self, parts: Sequence[Sequence[Buffer]]) -> tuple[Parcel, int | None, Iterator[None]]:
        """The same in steps: what is returned at last copies a piece with each."""
        places = lay_out(parts)
        end = places[-1][1]
        file = self._find(end)
        file.used = max(file.used, end)
        file.serial = next(self._serials)
        self._in_flight[file.serial] = file
        parcel = (file.number, len(file.memory), file.serial, places)
        copying = _copy_in_steps(file.memory, places, parts)
        return parcel, None if file.known else file.descriptor, copying

    def _keep(self, file: _File) -> None:
        """Let a file rest until the next message, without its memory if too much rests already."""
        if _at_rest + file.used > HELD:
            file.free()
        file.since = 0.0
        _count_rest(file.used)
        self._resting.append(file)
        _tidy_soon()

    def _find(self, size: int) -> _File:
        for file in _take_each(self._resting):
            # A small array must not pin a large file.
            if size <= len(file.memory) <= max(_MIN_SIZE, 8 * size):
                _count_rest(-file.used)
                return file
            self._resting.append(file)
        if len(self._resting) >= _MAX_FILES:
            retired = self._resting.popleft()
            _count_rest(-retired.used)
            self._retired.append(retired.number)
        if len(self._in_flight) >= _MAX_FILES:
            self._retired.append(self._in_flight.pop(next(iter(self._in_flight))).number)
        return _File.make(next(self._numbers), max(_MIN_SIZE, 1 << (size - 1).bit_length()))

    # -- the receiver's side ------------------------------------------------------------------------

    def map(self, parcel: Parcel, descriptor: int | None) -> list[memoryview]:
        """The parts of a message, for as long as something refers to them. `OSError` if that cannot be."""
        number, size, serial, places = parcel
        try:
            if descriptor is not None:
                self._forget([number])  # one that could not be mapped
                file = _File(number, size, descriptor)
                if os.fstat(descriptor).st_size < size:  # to read beyond its end would end this process
                    raise OSError("the file is shorter than the other side says")
                self._received[number] = file
            file = self._received[number]
        except (OSError, KeyError) as error:
            self._lost.append(-serial)
            raise OSError(f"a large message cannot be mapped here: {error!r}") from error
        array = (_libc()[0].c_ubyte * size).from_buffer(file.memory)
        window = self._windows[number] = _Window(array, self._ended.append)
        window.file = file
        file.serial, file.used, file.since = serial, max(file.used, places[-1][1]), 0.0
        _tidy_soon()
        view = memoryview(array).cast("B")
        return [view[start:end] for start, end in places]

    def _forget(self, numbers: Iterable[int]) -> None:
        """The other side will not use these files any more."""
        for number in numbers:
            self._received.pop(number, None)
            window = self._windows.pop(number, None)
            if window is not None:
                window.detach()
                window.file = None

    # -- time passes --------------------------------------------------------------------------------

    def tidy(self) -> bool:
        """Free the files that were not used for `IDLE` seconds; whether others are left."""
        left = False
        for file in _take_each(self._resting):
            left |= file.free_if_idle()
            self._resting.append(file)
        for window in _take_each(self._ended):
            received = window.file
            if received is not None:  # else it was left to others, such as a forked child
                left |= received.free_if_idle()
                self._ended.append(window)
        return left or any(each() is not None for each in list(self._windows.values()))

    def close(self) -> None:
        """The connection is closed."""
        self._forget(list(self._received))
        self._in_flight.clear()
        _count_rest(-sum(each.used for each in self._resting))
        self._resting.clear()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _is_finalizing():  # as for one of its files
            self.close()


def _copy_in_steps(
    memory: mmap.mmap, places: list[tuple[int, int]], parts: Sequence[Sequence[Buffer]]
) -> Iterator[None]:
    view = memoryview(memory)
    for (start, _), part in zip(places, parts, strict=True):
        for piece in part:
            for begin in range(0, len(piece), _COPIED_AT_ONCE):
                copied = memoryview(piece)[begin : begin + _COPIED_AT_ONCE]
                view[start : start + len(copied)] = copied
                start += len(copied)  # noqa: PLW2901  # each piece follows the one before
                yield


def _take_each(waiting: deque[R]) -> Iterator[R]:
    """Take out each that waits there now, one by one; another thread may be first."""
    for _ in range(len(waiting)):
        try:
            yield waiting.popleft()
        except IndexError:
            return


_instances: weakref.WeakValueDictionary[int, SharedFiles] = weakref.WeakValueDictionary()
_tidying = threading.Lock()  # held by the one thread that tidies


_at_rest = 0
"""Bytes of files at rest, of all connections: to add them up would cost a message more with each connection.

Changed without a lock, which the code that a signal handler interrupts might hold. So a change may get lost
where two threads make one at the same time; `_tidy_all` counts anew."""


def _count_rest(change: int) -> None:
    global _at_rest
    _at_rest += change


def _all() -> list[SharedFiles]:
    return [shared for shared in (ref() for ref in _instances.valuerefs()) if shared is not None]


def _tidy_soon() -> None:
    """A file may be idle from now on. One thread frees idle files, and ends when none is left."""
    if not _tidying.locked():
        with contextlib.suppress(RuntimeError):  # no thread is free: the next call starts one
            start_new_thread(_tidy, (_tidying,))


def _tidy(tidying: threading.Lock) -> None:
    left = True  # what has just come is idle in `IDLE` seconds: until then this is the one thread
    while left and tidying.acquire(blocking=False):
        try:
            while left:
                time.sleep(IDLE)
                left = _tidy_all()
        finally:
            tidying.release()
        left = _tidy_all()  # a file may have come just before the release, when no thread was started


def _tidy_all() -> bool:
    global _at_rest
    left = [each.tidy() for each in _all()]
    _at_rest = sum(each.used for shared in _all() for each in list(shared._resting))
    return any(left)


@at_fork(Step.DETACH_WINDOWS)
def _before_fork() -> None:
    for shared in _all():
        for window in list(shared._windows.values()):
            window.detach()


@at_fork(Step.FORGET_MEMORY_FILES)
def _after_fork() -> None:
    """In a forked child: the connections are its parent's."""
    global _instances, _tidying, _at_rest
    for shared in _all():
        shared.close()
    _instances, _tidying, _at_rest = weakref.WeakValueDictionary(), threading.Lock(), 0
