"""Starts a program that outlives this process: a fresh interpreter, in a session of its own.

It has the environment, the working directory, the import path and the interpreter's flags of this process,
and the one descriptor that it is given: no lock, no signal mask, no terminal. It is no child of this process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Iterator
from multiprocessing import spawn
from multiprocessing.connection import wait
from typing import Any

from .users import open_private

# The import path comes first: other modules of these names may lie in the working directory.
_CODE = "import sys; sys.path[:] = eval(sys.stdin.buffer.readline()); from {} import main; main()"

_LOG_BYTES = 1 << 20
"""Of a longer log that many are put aside, the last, in the place of those before."""

_LAST_WORDS = 2000  # bytes


def start_detached(module: str, name: str, log: str, descriptor: int, timeout: float, *told: Any) -> None:
    """Have `main()` of a module run so, and print to the log. Returns when it says that it is ready.

    The name is what lists of processes show. The rest is what `begin_detached` returns there. `OSError` if
    the program cannot be started, ends before it is ready, or is not ready in time.
    """
    import subprocess  # noqa: PLC0415  # few processes start a program

    with open(log, "ab", opener=open_private) as output, _pipe() as (ready, theirs):
        path = [os.path.abspath(each) for each in sys.path]
        request = ascii(path).encode() + b"\n" + pickle.dumps((theirs.fileno(), descriptor, *told))
        process = subprocess.Popen(  # noqa: S603  # this interpreter
            [*_interpreter(), "-c", _CODE.format(module), name],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(), descriptor),
            start_new_session=True,  # from its first moment: Ctrl-C is for the program that starts it
        )
        theirs.close()
        late = TimeoutError(f"it is not ready within {timeout:g} s: see {log!r}")
        try:
            process.communicate(request, timeout)  # it forks, and this child ends
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise late from None
        if not wait([ready], timeout):
            raise late
        if not ready.read(1):
            raise ChildProcessError(f"it ended while it started; its last words: {_last_words(log)}")


def _interpreter() -> list[Any]:
    """What starts this interpreter once more, with its flags. `OSError` if there is none."""
    if getattr(sys, "frozen", False):
        raise OSError("this program is frozen: it contains no interpreter that could be started by itself")
    if not spawn.get_executable():
        raise OSError("sys.executable names no interpreter: multiprocessing.set_executable() tells of one")
    *interpreter, _, _, _ = spawn.get_command_line()  # without "-c", its code, and what says whose it is
    return interpreter


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[Any, Any]]:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as ready, open(writing, "wb", buffering=0) as theirs:
        yield ready, theirs


def _last_words(log: str) -> str:
    with open(log, "rb", opener=open_private) as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _LAST_WORDS))
        return stream.read().decode(errors="replace").strip() or "none"


# -- in the program that was started --------------------------------------------------------------------


def begin_detached() -> tuple[Any, ...]:
    """The first thing that it does: what it was told. The first element is the file that says "ready"."""
    ready, *told = pickle.load(sys.stdin.buffer)
    if os.fork():
        os._exit(0)  # so the program that starts it has no child that may end, or be killed, with it
    os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return open(ready, "wb", buffering=0), *told


def keep_log(log: str) -> None:
    """Keep this program's log as short as it may be, though others print to it; and there, for cleaners.

    `OSError` if that cannot be done.
    """
    with open(log, "a+b", opener=open_private) as stream:
        if not os.path.sameopenfile(stream.fileno(), 1):  # a cleaner removed it
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
        size = os.fstat(stream.fileno()).st_size
        if size > _LOG_BYTES:
            stream.seek(size - _LOG_BYTES)
            with open(f"{log}.old", "wb", opener=open_private) as old:
                old.write(stream.read(_LOG_BYTES))
            stream.truncate(0)
