"""What a process inherits by being forked from a user's program, and must not keep.

A fork copies the program in the middle of what it is doing: other threads are gone, and with them whatever
would have released the locks that they held; signals mean what the program made of them.

Of `importlib`, what it does not publish is used here and nowhere else: `_module_locks`. A test fails when a
Python version changes it.
"""

from __future__ import annotations

import gc
import importlib
import signal
import sys
import threading
from typing import Any


def reset_inherited_state() -> None:
    """Put right what this process inherited. In its main thread, before it does anything else."""
    _forget_imports()
    _reset_signals()
    # The collector writes to what it looks at, which would end the sharing of memory with the program.
    gc.freeze()


def _forget_imports() -> None:
    """Free the locks of imports under way: this process never gets to the end of any of them.

    A module that the forking thread imports starts a manager: the module stays, as far as it has got. One
    that another thread was importing is imported anew.
    """
    module_locks: dict[str, Any] = importlib._bootstrap._module_locks  # type: ignore[attr-defined]
    locks = [reference() for reference in list(module_locks.values())]
    module_locks.clear()
    for lock in locks:
        if lock is not None and lock.owner not in (None, threading.get_ident()):
            sys.modules.pop(lock.name, None)


def _reset_signals() -> None:
    """Give signals a meaning of our own.

    A handler of the program's acts for the program, and asyncio's wakeup descriptor tells the program's event
    loop of our signals. No signal is ignored: it would be in programs that this process starts, too.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it hides how children end
    # A terminal sends these to all of its processes. What they mean to us, the program decides.
    signal.signal(signal.SIGINT, _do_nothing)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # by nohup: then for all processes
        signal.signal(signal.SIGHUP, _do_nothing)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, _do_nothing)  # not the default, which ends a process that is not meant
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _do_nothing(*_: object) -> None:
    """A handler."""
