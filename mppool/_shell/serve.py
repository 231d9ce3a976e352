"""`mppool serve`: a manager in the foreground, with the pools that a function of the user's makes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from functools import partial
from typing import Any, NoReturn

from mppool import PoolManager
from mppool._server import foreground
from mppool._system.runtime_dir import shared_dir
from mppool._validation import resolve

from .managers import Failure

_NOT_THEIRS = ("<", *map(os.path.dirname, (os.path.dirname(__file__), importlib.__file__)))
"""How the files begin in which an error of a setup never is to be looked for."""


def serve(target: str, name: str) -> NoReturn:
    """Serve the pools that `target`, "package.module:setup", makes when it is called with the manager."""
    sys.path.insert(0, os.getcwd())  # a console script has its own directory there
    try:
        foreground.serve(shared_dir(name), partial(_set_up, target, name))
    except BlockingIOError as error:
        raise Failure(f"a manager {name!r} runs already; to end it: mppool stop {name}") from error
    except OSError as error:
        raise Failure(f"no manager {name!r} can be started: {error}") from error


def _set_up(target: str, name: str) -> str:
    """Have the pools made. Returns the line that says so."""
    try:
        set_up: Any = resolve(target)
        with PoolManager.shared(name, linger=None) as manager:
            set_up(manager)
            pools = ", ".join(sorted(manager.pools())) or "none"
    except BaseException as error:
        raise Failure(f"{target} failed: {type(error).__name__}: {error}{_where(error)}") from error
    return f"mppool: manager {name!r} is ready: pid {os.getpid()}, pools: {pools}"


def _where(error: BaseException) -> str:
    """The line of the user's code that it comes from."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    theirs = (each for each in frames if not each.filename.startswith(_NOT_THEIRS))
    return next((f" ({each.filename}:{each.lineno})" for each in theirs), "")
