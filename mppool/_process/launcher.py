"""How processes are started: never by a fork beside threads, which may hold any lock.

    this process -- a tether ----> the launcher: has no second thread, and forks
                 <-- pid, exit code --
                 -- arguments ---> its child: runs `main`

A tether is a pair of sockets for one process. The launcher hands its end on to the child, which reads the
arguments there. So nothing of a user's is unpickled, and imported, in the launcher.

Of `multiprocessing`, what it does not publish is used here and nowhere else: `BaseProcess._bootstrap`, which
makes a forked process a child in the sense of `multiprocessing`; `set_spawning_popen`, by which what is
pickled hands over its descriptors; `_children`; the resource tracker's `_fork_intent`. A test fails when a
Python version changes it.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from multiprocessing import context as contexts
from multiprocessing import current_process, get_context, process, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn, TypeAlias

from mppool._system.exit import on_sigterm
from mppool._system.fork import keep_from_children
from mppool._system.inherited import reset_inherited_state
from mppool._system.open_files import allow_open_files
from mppool._system.processes import ProcessId, await_end, is_gone, kill_children

_NUMBER = struct.Struct("<q")
_MOST_DESCRIPTORS = 250  # that the kernel passes on at once

_FORK_SECONDS = 30.0
_TELL_SECONDS = 10.0
"""In which a launcher that lives tells how a process of which nothing runs any more has ended."""

_ORPHANED_SECONDS = 1.5
"""For the children of a launcher that is closed, or whose parent has ended, to end by themselves."""

_KILL_SECONDS = 1.0
"""After that: for the launcher to kill them and to end."""

Main = Callable[..., object]


class Child:
    """A process that was started. Its methods are for any thread, `join` or `exitcode` has to see its end.

    `reap` waits for it, so many seconds, in another way than by asking psutil.
    """

    def __init__(
        self, pid: int, read_code: Callable[[], int | None], reap: Callable[[float | None], object] = bool
    ) -> None:
        self.id = ProcessId.of(pid)
        self._reap = reap
        self._lock = threading.Lock()  # guards what follows
        self._code: int | None = None
        self._read_code: Callable[[], int | None] | None = read_code

    @property
    def pid(self) -> int:
        """As `multiprocessing` has it, like the rest."""
        return self.id.pid

    @property
    def exitcode(self) -> int | None:
        """How it ended; None if it lives, or if that cannot be known."""
        self.join(0)
        return self._code

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        if self.id.process is None:  # psutil can tell nothing of it, not even that it is a zombie
            self._reap(timeout)
        if await_end(self.id, inf if timeout is None else timeout):
            with self._lock:
                if self._read_code is not None:
                    self._code, self._read_code = self._read_code(), None

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if not is_gone(self.id):
            with suppress(ProcessLookupError):  # it ends just now
                os.kill(self.pid, number)


class ContextLauncher:
    """Has `multiprocessing` start processes in the way of a context, as it is asked for one."""

    id = None

    def __init__(self, context: BaseContext, main: Main) -> None:
        self._context: Any = context  # whose `Process` is of each subclass
        self._main = main

    def start(self, name: str, *args: object) -> Child:
        """Start a process that calls the main function. `OSError` if none can be had."""
        child = self._context.Process(target=self._main, args=args, name=name)
        child.start()
        # On this list it would be waited for at the end of this process, and in vain at that of a forked one;
        # and a thread that starts another process would see its end, and keep that for itself for a moment.
        process._children.discard(child)  # type: ignore[attr-defined]

        def read_code() -> int | None:
            child.join()
            code: int | None = child.exitcode
            return code

        return Child(child.pid, read_code, child.join)

    def close(self) -> None:
        """Nothing is to be done."""


class ForkLauncher:
    """A process without threads, which forks on request.

    It has to be made before this process has a second thread: else it forks the threads' locks. `main`, and
    all that this process has now, is in its processes by inheritance.
    """

    id: ProcessId | None
    """The process; without it there can be no further ones."""

    def __init__(self, main: Main) -> None:
        self._control, theirs = socket.socketpair()
        keep_from_children(self._control)
        keep_from_children(theirs, except_of=threading.get_ident())
        args = theirs, main
        with theirs:
            self._process = ContextLauncher(get_context("fork"), _launch).start("mppool launcher", *args)
        self.id = self._process.id

    def start(self, name: str, *args: object) -> Child:
        """Start a process that calls the main function. `OSError` if none can be had."""
        request = _Request((name, args))
        tether, theirs = socket.socketpair()
        keep_from_children(tether)
        keep_from_children(theirs)
        tether.settimeout(_FORK_SECONDS)
        try:
            with theirs:
                socket.send_fds(self._control, [b"!"], [theirs.fileno(), *request.descriptors])
            pid = _receive(tether)
            if pid < 0:
                raise OSError(-pid, os.strerror(-pid))
            with suppress(OSError):  # it has ended, which the caller sees
                tether.sendall(request.data)
        except BaseException as error:
            tether.close()
            if isinstance(error, (EOFError, ConnectionError)):
                raise ChildProcessError("the process that forks others has ended") from None
            raise
        return Child(pid, lambda: _receive_code(tether))

    def close(self) -> None:
        """Start no more. What was started has a moment to end, and is killed then."""
        self._control.close()
        self._process.join(_ORPHANED_SECONDS + _KILL_SECONDS)
        self._process.send_signal(signal.SIGKILL)
        self._process.join()


Launcher: TypeAlias = ForkLauncher | ContextLauncher


def new_launcher(context: BaseContext, main: Main) -> Launcher:
    """What starts processes as `context` does. Other ways than fork begin without the threads of this one.

    A daemonic process, which may have no children, has no launcher either.
    """
    if context.get_start_method() == "fork" and not current_process().daemon:
        return ForkLauncher(main)
    return ContextLauncher(context, main)


def _receive(tether: socket.socket) -> int:
    data = tether.recv(_NUMBER.size)
    if not data:
        raise EOFError
    number: int = _NUMBER.unpack(data)[0]
    return number


def _receive_code(tether: socket.socket) -> int | None:
    with tether, suppress(EOFError, OSError):  # the launcher has ended, or stands still
        tether.settimeout(_TELL_SECONDS)
        return _receive(tether)
    return None


class _Descriptor:
    """Stands for a descriptor in a pickle."""

    received: Sequence[int]

    def __init__(self, index: int) -> None:
        self._index = index

    def detach(self) -> int:
        return self.received[self._index]


class _Request:
    """What a process is to be called with, pickled as for spawn, and the descriptors that belong to it.

    While it is pickled it stands in for the `Popen` of `multiprocessing`.
    """

    def __init__(self, request: object) -> None:
        self.descriptors: list[int] = []
        contexts.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            self.data = ForkingPickler.dumps(request)
        finally:
            contexts.set_spawning_popen(None)

    def duplicate_for_child(self, descriptor: int) -> int:
        self.descriptors.append(descriptor)
        return len(self.descriptors) - 1

    DupFd = _Descriptor


# -- in the launcher ----------------------------------------------------------------------------------


def _launch(control: socket.socket, main: Main) -> NoReturn:
    """Fork until the process that asks has ended, or has closed `control`."""
    reset_inherited_state()
    allow_open_files()  # a child costs one
    on_sigterm(lambda *_: None)  # it is for others of the group to end in order
    keep_from_children(control)
    forker = _Forker(main)
    while (request := socket.recv_fds(control, 1, _MOST_DESCRIPTORS))[0]:
        if descriptors := request[1]:  # else none was free here, and the tether is closed
            forker.fork(*descriptors)
    forker.end()


class _Forker:
    """Forks, and tells how its children end."""

    def __init__(self, main: Main) -> None:
        self._main = main
        self._tethers: dict[int, socket.socket] = {}
        # Of this process's end its children learn by one descriptor, as `multiprocessing` has it.
        self._lifeline, self._ours = os.pipe()
        signal.signal(signal.SIGCHLD, self._reap)

    def fork(self, tether_fd: int, *descriptors: int) -> None:
        """Fork one process, which gets these descriptors."""
        for each in descriptors:
            os.set_inheritable(each, False)
        tether = socket.socket(fileno=tether_fd)
        tether.set_inheritable(False)
        child = get_context("fork").Process(target=_run, args=(tether, descriptors, self._main))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until it is in `_tethers`
        try:
            pid = _fork_with_tracker()
        except OSError as error:
            pid = -(error.errno or 1)
        if pid == 0:
            self._be_child(child)
        for each in descriptors:
            os.close(each)
        with suppress(OSError):  # the process that asks has ended
            tether.send(_NUMBER.pack(pid))
        if pid > 0:
            self._tethers[pid] = tether
        else:
            tether.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])

    def _be_child(self, child: Any) -> NoReturn:
        code = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.close(self._ours)
            for sibling in self._tethers.values():
                sibling.close()
            code = child._bootstrap(parent_sentinel=self._lifeline)
        finally:
            os._exit(code)

    def _reap(self, *_: object) -> None:
        """A signal handler."""
        with suppress(ChildProcessError):  # there is none any more
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, status = ended
                with self._tethers.pop(pid) as tether, suppress(OSError):  # closed there
                    tether.send(_NUMBER.pack(os.waitstatus_to_exitcode(status)))

    def end(self) -> NoReturn:
        """End, after a moment for the children, with all that descends from them or is of their groups."""
        deadline = time.monotonic() + _ORPHANED_SECONDS
        while self._tethers and time.monotonic() < deadline:
            time.sleep(0.005)  # and not a wait for SIGCHLD: its handler may have run just before
        kill_children()
        for pid in list(self._tethers):
            with suppress(ProcessLookupError, PermissionError):  # it leads none
                os.killpg(pid, signal.SIGKILL)
        os._exit(0)


def _run(tether: socket.socket, descriptors: Sequence[int], main: Main) -> None:
    """What a child of the launcher does."""
    _Descriptor.received = descriptors
    with tether, tether.makefile("rb") as stream:
        try:
            current_process().name, args = pickle.load(stream)
        except EOFError:  # the process that asks has ended
            return
    main(*args)


def _fork_with_tracker() -> int:
    """Fork a process that shares the resource tracker of this one, as those of `multiprocessing` do."""
    intent: Any = getattr(resource_tracker, "_fork_intent", None)  # else every forked process shares it
    if intent is None:
        return os.fork()
    intent.preserve_fd = True
    try:
        return os.fork()
    finally:
        intent.preserve_fd = False
