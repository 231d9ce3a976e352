"""How the manager's process ends, and those of its objects: on SIGTERM, and at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from .fork import Step, at_fork

_FLUSH_SECONDS = 0.5
"""For output that is still buffered: the pipe that it goes to may be full, and never read again."""


class _SigtermHandler(partial[object]):
    """A handler of SIGTERM that forked children do not take over."""


def on_sigterm(do: Callable[..., object]) -> None:
    """Have this process do something on SIGTERM, as a signal handler. A child that it forks just ends."""
    if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
        signal.signal(signal.SIGTERM, _SigtermHandler(do))


def exit_now(code: int = 0) -> NoReturn:
    """End this process, whatever its threads are doing."""
    with contextlib.suppress(RuntimeError):  # "can't start new thread"
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)
    os._exit(code)  # not sys.exit: it would wait for threads in which objects hang


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            stream.flush()
    logging.shutdown()


_forking = threading.local()  # `mask`: the signal mask of the thread that forks, from before


@at_fork(Step.BLOCK_SIGTERM)
def _block_sigterm() -> None:
    if isinstance(signal.getsignal(signal.SIGTERM), _SigtermHandler):
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


@at_fork(Step.UNBLOCK_SIGTERM_IN_PARENT)
def _unblock_sigterm() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@at_fork(Step.UNBLOCK_SIGTERM)
def _reset_sigterm() -> None:
    if isinstance(signal.getsignal(signal.SIGTERM), _SigtermHandler):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _unblock_sigterm()
