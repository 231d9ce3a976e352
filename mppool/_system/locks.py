"""Locks of the kernel (flock). The end of the last process that has its descriptor ends such a lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

_PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.01


def lock(path: str, flags: int) -> int:
    """The descriptor of what lies at this path, opened with these flags and locked.

    `BlockingIOError` if another process has the lock, or removed the path meanwhile; other `OSError`s.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not leads_to(path, descriptor):
            raise BlockingIOError(f"{path!r} was removed meanwhile")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def leads_to(path: str, descriptor: int) -> bool:
    """Whether this path leads to what the descriptor is of."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of a file for the length of a block, which is short. There is no file afterwards.

    `TimeoutError` if another process does not give it back; other `OSError`s.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            descriptor = lock(path, os.O_RDWR | os.O_CREAT)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process holds the lock {path!r}") from None
            time.sleep(_POLL_SECONDS)  # flock waits without a bound, or not at all
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the directory is gone, or may not be written to any more
            os.unlink(path)
        os.close(descriptor)
