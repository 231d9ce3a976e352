"""An object in a process of its own, as the manager sees it. What runs there is in `main.py`."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, TypeVar, cast

from mppool._pool.runner import Do, Runner
from mppool._remote.errors import unpack_error
from mppool._remote.opcodes import ERROR
from mppool._system.fork import keep_from_children
from mppool._system.processes import ProcessId, await_end, kill, kill_group
from mppool._wire.connection import Address, Connection, PayloadLost
from mppool._wire.handshake import connect
from mppool.errors import RemoteError
from mppool.options import HOOK_BOUND, Exposed

from .fence import LeaseFence
from .info import ManagerInfo
from .launcher import Launcher

R = TypeVar("R")

_END_SECONDS = 1.0
"""Seconds in which a process that has hung up has to be gone."""


class ProcessRunner(Runner):
    """A process for one object, which runs `main`. `watch` is called with it when it has begun."""

    fence: LeaseFence
    stoppable = True

    def __init__(
        self,
        manager: ManagerInfo,
        launcher: Launcher,
        pool: str,
        exposed: Exposed,
        keep: Collection[type | str],
        has_loop: bool,
        watch: Callable[[ProcessId], None],
    ) -> None:
        self._info = _info_of_object(manager)
        self._launcher = launcher
        self._pool = pool
        self.has_loop = has_loop
        self._shown = exposed, keep
        self._watch = watch
        self._killed = False
        self._calling: Connection | None = None  # over which the manager itself calls, if it has

    @property
    def alive(self) -> bool:
        return not self._control.has_ended()  # it has not hung up

    def exit_reason(self, timeout: float = 0.0) -> str | None:
        if self.alive and not await_end(self._id, timeout) and self.alive:
            return None
        self._child.join(_END_SECONDS)
        return f"the process of its object {_in_words(self._child.exitcode)}"

    def create(self, factory: Callable[[], Any]) -> None:
        """Start the process and have the object made there.

        Raises what `factory` raises, `ChildProcessError` if the process ends over it, and `OSError` if
        none can be had.
        """
        self._start()
        try:
            self._id = self.process = self._child.id
            self._watch(self._id)
            if self._killed:  # while it was being started
                raise ChildProcessError("it took too long to start")
            self.object = self._order("create", factory, timeout=None)
        except BaseException:
            self._kill()
            self._clean_up()
            raise

    def run(self, do: Do[R]) -> R:
        return cast(R, self._order("run", do, timeout=HOOK_BOUND))

    def destroy(self, do: Do[object]) -> None:
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

    def ask(self, request: tuple[Any, ...], timeout: float | None, on_silence: Callable[[], object]) -> Any:
        """Send a request as a holder does, and wait for what it brings. Raises what the answer raises.

        `DeadlineExceeded` after `timeout` seconds, and `ChildProcessError` if the process hangs up.
        """
        connection, self._calling = self._calling, None  # no other gets the answer if this is interrupted
        deadline = None if timeout is None else time.monotonic() + timeout
        with contextlib.ExitStack() as undo:
            try:
                connection = connection or self._connect(deadline)
                undo.callback(connection.close)
                connection.set_deadline(deadline)
                connection.on_silence = on_silence
                connection.send_frame(connection.encode(request))
                connection.await_reply()
                status, payload = connection.recv()
            except (EOFError, OSError) as error:
                how = self.exit_reason(_END_SECONDS)
                raise ChildProcessError(how or f"its process cannot be reached: {error!r}") from error
            except PayloadLost as error:
                raise RemoteError(str(error)) from error
            undo.pop_all()
        self._calling = connection
        if status == ERROR:
            raise unpack_error(payload)
        return payload

    def _connect(self, deadline: float | None) -> Connection:
        connection = connect(self.object.address, self._info.key, deadline)
        connection.send((None,))
        _, (_, can_share, _) = connection.recv()
        if can_share and connection.can_share:
            connection.send(("share_memory",))
            connection.recv()
            connection.share_memory()
        return connection

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
        keep_from_children(theirs)
        self._control = Connection(ours, "")
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(self._control.close)
            self.fence = LeaseFence()
            undo.callback(self.fence.close)
            name = f"mppool object of {self._pool}"
            args = theirs, self.fence, self._info, self._pool, *self._shown, self.has_loop
            self._child = self._launcher.start(name, *args)
            undo.pop_all()

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
        self._child.send_signal(signal.SIGKILL)  # if psutil could tell nothing of it: no descriptor was free

    def _clean_up(self) -> None:
        """Remove what is left of a process that was killed, or has ended."""
        self._child.join(_END_SECONDS)
        kill_group(self._id)
        if isinstance(self._info.address, str):
            with contextlib.suppress(OSError):  # the process has done so itself, or the directory is gone
                os.unlink(self._info.address)
        self._control.close()
        self.fence.close()
        if self._calling is not None:
            self._calling.close()


def _info_of_object(manager: ManagerInfo) -> ManagerInfo:
    """What the next object's process is told. It listens in the way the manager does."""
    address: Address = (manager.address[0], 0)
    if isinstance(manager.address, str):
        address = os.path.join(manager.runtime_dir, secrets.token_hex(4))
    return replace(manager, address=address, creator_pid=os.getpid())


def _in_words(code: int | None) -> str:
    if code is None:
        return "has ended"
    if code >= 0:
        return f"ended with exit code {code}"
    names = {each.value: each.name for each in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"
