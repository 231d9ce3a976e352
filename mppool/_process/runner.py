"""An object in a process of its own, as the manager sees it. What runs there is in `resident.py`."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar, cast

from mppool._pool.pool import HOOK_BOUND
from mppool._pool.runner import Busy, Keepsakes
from mppool._remote.errors import raise_error
from mppool._system.fork import Step, at_fork, keep_from_children
from mppool._system.processes import ProcessId, await_end, kill, kill_group
from mppool._system.runtime_dir import RuntimeDir
from mppool._wire.connection import Address, Connection

from .fence import LeaseFence
from .main import ObjectConfig, live

log = logging.getLogger("mppool")

T = TypeVar("T")
R = TypeVar("R")

_LAST_BREATH = 1.0
"""Seconds in which a process that has said its last word has to be gone."""

_A_MOMENT = 0.002

# A sibling that is forked just then would keep a process's end of `control` open.
_starting = threading.Lock()


@at_fork(Step.RENEW_START_LOCK)
def _renew_lock() -> None:
    global _starting
    _starting = threading.Lock()


@dataclass(frozen=True)
class ProcessFactory:
    """What the object processes of a manager have in common."""

    context: BaseContext
    home: RuntimeDir
    address: Address
    """The manager's own: they listen where it does."""
    key: bytes
    initialize: Callable[[], object] | None
    """What is to be called first in a process that does not begin as a copy of this one."""

    def terms(self, pool: str, exposed: frozenset[str] | None) -> ObjectConfig:
        """Those of the next process."""
        if isinstance(self.address, str):
            address: Address = os.path.join(self.home.path, secrets.token_hex(4))
        else:
            address = (self.address[0], 0)
        initialize = None if self.context.get_start_method() == "fork" else self.initialize
        return ObjectConfig(pool, exposed, self.home.path, address, self.key, os.getpid(), initialize)


class ProcessRunner(Generic[T]):
    """A process for one object. `began` is told who it is, to watch over it."""

    def __init__(
        self,
        housing: ProcessFactory,
        pool: str,
        exposed: frozenset[str] | None,
        began: Callable[[ProcessId], None],
    ) -> None:
        self._terms = housing.terms(pool, exposed)
        self._context: Any = housing.context  # whose `Process` is of each subclass
        self._began = began
        self.lent: T
        self.owner: ProcessId | None = None
        self._code: int | None = None  # when it has ended
        self._killed = False

    @property
    def lives(self) -> bool:
        """Whether it has not hung up."""
        return not self._control.has_ended()

    @property
    def called(self) -> bool:
        """Whether a call of the present lease has come."""
        return self._baton.called

    def fate(self, patience: float = 0.0) -> str | None:
        """How it came to its end; None if it lives, and does so for so many more seconds."""
        if self.lives and not await_end(self._owner, patience) and self.lives:
            return None
        return f"the process of its object {_in_words(self._exit_code())}"

    def make(self, factory: Callable[[], T]) -> None:
        """Start the process and have the object made there.

        Raises what `factory` raises, `ChildProcessError` if the process ends over it, and `OSError` if
        none can be had.
        """
        with _starting:
            self._start()
        try:
            self._owner = self.owner = ProcessId.of(self._process.pid)
            self._began(self._owner)
            self.lent = cast(T, self._ask("make", factory, patience=None))
        except BaseException:
            self._see_off(kill_it=True)
            raise

    def lend(self, lease_id: int) -> tuple[Busy, Keepsakes | None]:
        """A lease of the object begins."""
        self._baton.lend(lease_id)
        return self._baton, self._baton

    def run(self, do: Callable[[T], R], kept: Keepsakes | None = None) -> R:  # noqa: ARG002  # it lies there
        """Do something with the object. `ChildProcessError` if the process ends over it, or has ended."""
        return cast(R, self._ask("run", do, patience=HOOK_BOUND))

    def end(self, do: Callable[[T], object], kept: Keepsakes | None = None) -> None:  # noqa: ARG002
        """Do something last with the object, and see its process off."""
        try:
            if self.lives and not self._killed:
                self._ask("end", do, patience=HOOK_BOUND)
        except ChildProcessError as error:
            log.warning("pool %r: close: %s", self._terms.pool, error)
        except Exception:  # the hook is not known there
            log.exception("pool %r: close could not be called", self._terms.pool)
            self._kill()
        self._see_off(kill_it=False)

    def stop(self, patience: float) -> None:
        """Wait for the end of the call that runs there, and kill the process after so many seconds."""
        if not patience:
            self._kill()
            return
        try:
            self._ask("revoke", patience=patience)  # which is heard when the call has ended
        except ChildProcessError:
            pass  # that is an end, too

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        keep_from_children(ours)
        keep_from_children(theirs, except_of=threading.get_ident())
        self._control = Connection(ours, "")
        try:
            self._baton = LeaseFence()
            self._process = self._context.Process(
                target=live,
                args=(theirs, self._baton, self._terms),
                name=f"mppool object of {self._terms.pool}",
            )
            self._process.start()
        except BaseException:
            self._control.close()
            raise
        finally:
            theirs.close()

    def _ask(self, order: str, *arguments: object, patience: float | None) -> Any:
        """Have the process do something. After so many seconds it is killed."""
        try:
            self._control.send((order, *arguments))
            if patience is not None and not self._control.wait_readable(patience):
                self._kill()
            fine, result = self._control.recv()
        except (EOFError, OSError):
            raise ChildProcessError(self.fate(_LAST_BREATH) or "the process of its object hung up") from None
        if not fine:
            raise_error(result)
        return result

    def _see_off(self, *, kill_it: bool) -> None:
        if not kill_it:
            await_end(self._owner, _LAST_BREATH)
        self._kill()
        if self._exit_code() is not None:
            with _starting:  # a start looks after all processes of before, this one too
                self._process.close()  # else it would be kept for somebody to join it
        kill_group(self._owner)
        if isinstance(self._terms.address, str):
            try:
                os.unlink(self._terms.address)
            except OSError:
                pass  # it has done so itself, or the whole home is gone
        self._control.close()
        self._baton.close()

    def _kill(self) -> None:
        self._killed = True
        kill(self._owner)
        if self._owner.process is None:  # psutil could tell nothing of it
            with contextlib.suppress(ValueError, AttributeError):  # it was seen off just now
                self._process.kill()

    def _exit_code(self) -> int | None:
        """How a process that is about to be gone, or is, has ended; None if nobody can tell."""
        # Looked for again and again: whichever thread the kernel told notes it down a little later, and the
        # sentinel stays open as long as any of its own children lives.
        deadline = time.monotonic() + _LAST_BREATH
        while self._code is None and time.monotonic() < deadline:
            try:
                self._code = self._process.exitcode
            except (ValueError, AttributeError):  # it was seen off just now
                break
            if self._code is None:
                time.sleep(_A_MOMENT)
        return self._code


def _in_words(code: int | None) -> str:
    if code is None:
        return "has ended"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
