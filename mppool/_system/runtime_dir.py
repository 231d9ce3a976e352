"""A manager's private directory (0700), and what lies in it under which name. Both sides use it.

A worker process only reads in it: the modules that make and remove it are imported where that is done.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .users import open_private

_LONGEST_PATH = 100  # bytes; the shortest limit for the path of a Unix socket is 104
_LONGEST_NAME = 32  # bytes, of what `create` and the socket's name add to the path


class RuntimeDir:
    """The directory at `path`, which may be gone.

    In it lie the key (0600), by which processes of this user are known; the socket, unless an address is
    given; the definitions of pools and the reason to give up, of a manager that is restarted.

    Once it is gone, another user may make one of that name: no file is read or written unless it and the
    directory are this user's and closed to others. `PermissionError` tells whose they are.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = os.path.join(path, "socket")
        self._key = os.path.join(path, "key")
        self._give_up_reason = os.path.join(path, "give-up-reason")

    @classmethod
    def create(cls, key: bytes) -> RuntimeDir:
        """Make a new one, with the key in it. `OSError` if it cannot be made."""
        import tempfile  # noqa: PLC0415

        directory = cls(tempfile.mkdtemp(prefix="mppool-", dir=_base(tempfile.gettempdir())))
        try:
            _write(directory._key, key)
        except BaseException:
            directory.remove()
            raise
        return directory

    @classmethod
    def key_beside(cls, address: str) -> bytes | None:
        """The key that lies beside the socket with this address; None if there is none. Other `OSError`s."""
        directory = cls(os.path.dirname(address))
        try:
            return directory.key() if address == directory.socket else None
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Whether it has not been removed; another user's of the same name is not this one."""
        try:
            return os.lstat(self.path).st_uid == os.geteuid()
        except OSError:
            return False

    def remove(self, address: str | tuple[str, int] | None = None) -> None:
        """Remove it, and the socket at this address, which may lie elsewhere. Both may be gone already."""
        import shutil  # noqa: PLC0415

        if isinstance(address, str):
            _unlink(address)
        shutil.rmtree(self.path, ignore_errors=True)

    def key(self) -> bytes:
        """The key. `FileNotFoundError` if there is no manager any more; other `OSError`s."""
        return _read(self._key)

    # -- for a manager that is restarted --------------------------------------------------------------

    def save_pool(self, pool_id: int, definition: bytes) -> None:
        """Keep how a pool is made, in place of what was kept of it before."""
        draft = os.path.join(self.path, f"draft-{pool_id}")
        _write(draft, definition)
        os.replace(draft, self._pool(pool_id))  # a kill at any moment leaves the old one or the new one

    def remove_pool(self, pool_id: int) -> None:
        """The pool was closed."""
        _unlink(self._pool(pool_id))

    def saved_pools(self) -> Iterator[tuple[int, bytes]]:
        """The pools that were made and not closed."""
        for name in os.listdir(self.path):
            if name.startswith("pool-"):
                pool_id = int(name.removeprefix("pool-"))
                yield pool_id, _read(self._pool(pool_id))

    def save_give_up_reason(self, text: str) -> None:
        """Keep, for clients, why there is no manager any more."""
        _write(self._give_up_reason, text.encode())

    def give_up_reason(self) -> str | None:
        """Why there is no manager any more, if it was given up."""
        try:
            return _read(self._give_up_reason).decode()
        except OSError:
            return None

    def _pool(self, pool_id: int) -> str:
        return os.path.join(self.path, f"pool-{pool_id}")


def _read(path: str) -> bytes:
    with open(path, "rb", opener=open_private) as stream:
        return stream.read()


def _write(path: str, data: bytes) -> None:
    with open(path, "wb", opener=open_private) as stream:
        stream.write(data)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process removed it at the same time
        os.unlink(path)


def _base(default: str) -> str | None:
    """Where the path of a socket in a new directory is short enough; None if that is nowhere."""
    for base in (default, os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):  # noqa: S108  # mkdtemp is safe there
        if base and os.path.isdir(base) and len(os.fsencode(base)) + _LONGEST_NAME < _LONGEST_PATH:
            return base
    return None
