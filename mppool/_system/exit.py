"""How the manager's process ends, and those of its objects: told to, and at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

_LAST_WORDS = 0.5
"""Seconds for what is still to be written: perhaps nobody reads it."""


class _Heed:
    """A handler of SIGTERM that children do not take over."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do

    def __call__(self, *_: object) -> None:
        self._do()


def on_sigterm(do: Callable[[], object]) -> None:
    """Have this process do something when it is told to end. A child that is forked then just ends."""
    if threading.current_thread() is threading.main_thread():  # others may not say
        signal.signal(signal.SIGTERM, _Heed(do))


def end_this_process() -> NoReturn:
    """End now, whatever its threads are at."""
    with contextlib.suppress(RuntimeError):  # no thread is to be had
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(_LAST_WORDS)
    os._exit(0)  # not sys.exit: objects that hang must not hold up the end


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            stream.flush()
    logging.shutdown()


# Python forgets what signals come to a child before it is one: an object that starts a process and stops
# it at once would wait for ever. So they are held back until the child can take them.

_forking = threading.local()


def _before_fork() -> None:
    if isinstance(signal.getsignal(signal.SIGTERM), _Heed):
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _after_fork_in_child() -> None:
    if isinstance(signal.getsignal(signal.SIGTERM), _Heed):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _after_fork()


def _after_fork() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
