"""An object in a process of its own, as the manager sees it. What runs there is in `main.py`."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, TypeVar, cast

from mppool._pool.runner import Runner
from mppool._remote.errors import unpack_error
from mppool._system.fork import Step, at_fork, keep_from_children
from mppool._system.processes import ProcessId, await_end, kill, kill_group
from mppool._wire.connection import Address, Connection
from mppool.options import HOOK_BOUND

from .fence import LeaseFence
from .info import ManagerInfo
from .main import main

R = TypeVar("R")

_END_SECONDS = 1.0
"""Seconds in which a process that has hung up has to be gone."""

_POLL_SECONDS = 0.002

# Held while a process starts. A sibling that is forked just then would keep its end of `control` open.
_starting = threading.Lock()


@at_fork(Step.RENEW_START_LOCK)
def _renew_lock() -> None:
    global _starting
    _starting = threading.Lock()


class ProcessRunner(Runner):
    """A process for one object. `watch` is called with it when it has begun."""

    fence: LeaseFence
    stoppable = True

    def __init__(
        self,
        manager: ManagerInfo,
        pool: str,
        exposed: frozenset[str] | None,
        watch: Callable[[ProcessId], None],
    ) -> None:
        self._context: Any = get_context(manager.start_method)  # whose `Process` is of each subclass
        self._info = _info_of_object(manager, self._context.get_start_method())
        self._pool = pool
        self._exposed = exposed
        self._watch = watch
        self._exit: int | None = None  # its exit code, when it has ended and that is known
        self._killed = False

    @property
    def alive(self) -> bool:
        return not self._control.has_ended()  # it has not hung up

    def exit_reason(self, timeout: float = 0.0) -> str | None:
        if self.alive and not await_end(self._id, timeout) and self.alive:
            return None
        return f"the process of its object {_in_words(self._exit_code())}"

    def create(self, factory: Callable[[], Any]) -> None:
        """Start the process and have the object made there.

        Raises what `factory` raises, `ChildProcessError` if the process ends over it, and `OSError` if
        none can be had.
        """
        with _starting:
            self._start()
        try:
            self._id = self.process = ProcessId.of(self._child.pid)
            self._watch(self._id)
            if self._killed:  # while it was being started
                raise ChildProcessError("it took too long to start")
            self.object = self._order("create", factory, timeout=None)
        except BaseException:
            self._kill()
            self._clean_up()
            raise

    def run(self, do: Callable[[Any], R]) -> R:
        return cast(R, self._order("run", do, timeout=HOOK_BOUND))

    def destroy(self, do: Callable[[Any], object]) -> None:
        try:
            if self.alive and not self._killed:
                self._order("destroy", do, timeout=HOOK_BOUND)
        except BaseException:
            self._kill()
            raise
        finally:
            await_end(self._id, _END_SECONDS)
            self._kill()
            self._clean_up()

    def kill_after(self, timeout: float) -> None:
        """Wait for the end of the call that runs there, and kill the process after `timeout` seconds."""
        if not timeout:
            self._kill()
            return
        with contextlib.suppress(ChildProcessError):  # that is an end, too
            self._order("revoke", timeout=timeout)  # which is heard when the call has ended

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        keep_from_children(ours)
        keep_from_children(theirs, except_of=threading.get_ident())
        self._control = Connection(ours, "")
        try:
            self.fence = LeaseFence()
            args = theirs, self.fence, self._info, self._pool, self._exposed
            self._child = self._context.Process(target=main, args=args, name=f"mppool object of {self._pool}")
            self._child.start()
        except BaseException:
            self._control.close()
            raise
        finally:
            theirs.close()

    def _order(self, order: str, *arguments: object, timeout: float | None) -> Any:
        """Have the process do something. It is killed if that takes longer than `timeout` seconds."""
        try:
            self._control.send((order, *arguments))
            if timeout is not None and not self._control.wait_readable(timeout):
                self._kill()
            fine, result = self._control.recv()
        except (EOFError, OSError):
            how = self.exit_reason(_END_SECONDS)
            raise ChildProcessError(how or "the process of its object hung up") from None
        if not fine:
            raise unpack_error(result)
        return result

    def _kill(self) -> None:
        self._killed = True
        if self.process is None:  # it is being started, and ends when that is done
            return
        kill(self._id)
        if self._id.process is None:  # psutil could tell nothing of it
            with contextlib.suppress(ValueError, AttributeError):  # it was cleaned up just now
                self._child.kill()

    def _clean_up(self) -> None:
        """Remove what is left of a process that was killed, or has ended."""
        if self._exit_code() is not None:
            with _starting:  # a start looks at all children of before, this one too
                self._child.close()  # else `multiprocessing` would keep it to be joined
        kill_group(self._id)
        if isinstance(self._info.address, str):
            with contextlib.suppress(OSError):  # the process has done so itself, or the directory is gone
                os.unlink(self._info.address)
        self._control.close()
        self.fence.close()

    def _exit_code(self) -> int | None:
        """The exit code of a process that ends just now, or has ended; None if that cannot be known."""
        # Polled: the thread that the kernel told notes it down a little later, and the sentinel stays open as
        # long as any of its own children lives.
        deadline = time.monotonic() + _END_SECONDS
        with contextlib.suppress(ValueError, AttributeError):  # it was cleaned up just now
            while (code := self._child.exitcode) is None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            self._exit = code
        return self._exit


def _info_of_object(manager: ManagerInfo, start_method: str) -> ManagerInfo:
    """What the next object's process is told. It listens in the way the manager does."""
    address: Address = (manager.address[0], 0)
    if isinstance(manager.address, str):
        address = os.path.join(manager.runtime_dir, secrets.token_hex(4))
    # A fork copies this process, in which the initializer was called.
    initializer = None if start_method == "fork" else manager.initializer
    return replace(manager, address=address, creator_pid=os.getpid(), initializer=initializer)


def _in_words(code: int | None) -> str:
    if code is None:
        return "has ended"
    if code >= 0:
        return f"ended with exit code {code}"
    names = {each.value: each.name for each in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"
