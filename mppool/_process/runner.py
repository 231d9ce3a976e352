"""An object in a process of its own, as the manager sees it. What runs there is in `main.py`."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from mppool._pool.runner import Do, Fence, Runner
from mppool._remote.errors import unpack_error
from mppool._remote.opcodes import ERROR
from mppool._system.processes import ProcessId
from mppool._system.usage import FarTable
from mppool._wire.connection import Connection, PayloadLost, beside
from mppool._wire.handshake import connect
from mppool.errors import RemoteError
from mppool.options import HOOK_BOUND, PoolOptions

from .info import ManagerInfo

R = TypeVar("R")

END_SECONDS = 1.0
"""Seconds in which a process that has hung up has to be gone."""


class ObjectProcess(Protocol):
    """A process for one object, as its manager sees it. It serves the object by `main.ObjectServer`.

    Its methods are for any thread. It was made, and is started later, once.
    """

    id: ProcessId
    """The process, when it was started, like the next two."""
    control: Connection
    """Brings it orders. It ends with the process."""
    fence: Fence
    """Which lease may call there."""
    waits_for: str = ""
    """What its start waits for, for people."""

    def start(self) -> None:
        """Start it. Returns when it takes orders. `OSError` if it cannot be had, or ends over it."""

    def exit_reason(self, timeout: float) -> str | None:
        """How it has ended, for people; None if it is alive, and stays so for `timeout` seconds."""

    def is_reachable(self) -> bool:
        """Whether its machine gives a sign of life. If not, it counts as ended from here on."""
        return True

    def kill(self) -> None:
        """End it by force. While it is being started `start` fails soon, if it can."""

    def clean_up(self) -> None:
        """Remove what is left of a process that was killed, or has ended."""


class Processes(Protocol):
    """Where the processes of a manager's objects come from."""

    launcher: ProcessId | None = None
    """The process without which there can be no further ones, if there is such a one."""
    far_table: FarTable | None = None
    """Tells what they use; None: they are on this machine, of which there is a table."""

    def new(self, pool: str, options: PoolOptions, has_loop: bool) -> ObjectProcess:
        """One for the next object of the pool with this name. `has_loop`: the object is asynchronous."""


class ProcessRunner(Runner):
    """A process for one object, which gets orders. `watch` is called with it when it has begun."""

    stoppable = True

    def __init__(
        self,
        process: ObjectProcess,
        manager: ManagerInfo,
        has_loop: bool,
        watch: Callable[[ProcessId], None],
    ) -> None:
        self._process = process
        self._manager = manager
        self.has_loop = has_loop
        self._watch = watch
        self._killed = False
        self._calling: Connection | None = None  # over which the manager itself calls, if it has

    @property
    def waits_for(self) -> str:  # type: ignore[override]
        return self._process.waits_for

    @property
    def alive(self) -> bool:
        return not self._process.control.has_ended()  # it has not hung up

    def exit_reason(self, timeout: float = 0.0) -> str | None:
        how = self._process.exit_reason(timeout)
        return None if how is None else f"the process of its object {how}"

    def is_reachable(self) -> bool:
        return self._process.is_reachable()

    def create(self, factory: Callable[[], Any]) -> None:
        """Start the process and have the object made there.

        Raises what `factory` raises, `ChildProcessError` if the process ends over it, and `OSError` if
        none can be had.
        """
        self._process.start()
        try:
            self.process, self.fence = self._process.id, self._process.fence
            self._watch(self.process)
            if self._killed:  # while it was being started
                raise ChildProcessError("it took too long to start")
            self.object = self._order("create", factory, pickle.dumps(self.will), timeout=None)
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
            self._process.exit_reason(END_SECONDS)
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
                how = self.exit_reason(END_SECONDS)
                raise ChildProcessError(how or f"its process cannot be reached: {error!r}") from error
            except PayloadLost as error:
                raise RemoteError(str(error)) from error
            undo.pop_all()
        self._calling = connection
        if status == ERROR:
            raise unpack_error(payload)
        return payload

    def _connect(self, deadline: float | None) -> Connection:
        address = beside(self._manager.address, self.object.address)
        connection = connect(address, self._manager.key, deadline)
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

    def _order(self, order: str, *arguments: object, timeout: float | None) -> Any:
        """Have the process do something. It is killed if that takes longer than `timeout` seconds."""
        control = self._process.control
        try:
            control.send((order, *arguments))
            if timeout is not None and not control.wait_readable(timeout):
                self._kill()
            fine, result = control.recv()
        except (EOFError, OSError):
            how = self.exit_reason(END_SECONDS)
            raise ChildProcessError(how or "the process of its object hung up") from None
        if not fine:
            raise unpack_error(result)
        return result

    def _kill(self) -> None:
        self._killed = True  # first: one that is being started ends when that is done
        self._process.kill()
        if self.process is not None:  # it was started
            self._process.control.hang_up()  # what waits for it goes on, also where no kill gets there

    def _clean_up(self) -> None:
        self._process.clean_up()
        if self._calling is not None:
            self._calling.close()
