"""A manager's private directory (0700), and what lies in it under which name. Both sides use it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LONGEST_PATH = 100  # bytes; the shortest limit for the path of a Unix socket is 104
_LONGEST_NAME = 32  # bytes, of what `create` and the socket's name add to the path


class RuntimeDir:
    """The directory at `path`, which may be gone.

    In it lie the key (0600), by which processes of this user are known; the socket, unless an address is
    given; the definitions of pools and the reason to give up, of a manager that is restarted.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = os.path.join(path, "socket")
        self._key = os.path.join(path, "key")
        self._pools = os.path.join(path, "pools")
        self._give_up_reason = os.path.join(path, "give-up-reason")

    @classmethod
    def create(cls, key: bytes) -> RuntimeDir:
        """Make a new one, with the key in it. `OSError` if it cannot be made."""
        directory = cls(tempfile.mkdtemp(prefix="mppool-", dir=_base()))
        try:
            descriptor = os.open(directory._key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as stream:
                stream.write(key)
        except BaseException:
            directory.remove()
            raise
        return directory

    @classmethod
    def of_socket(cls, address: str) -> RuntimeDir | None:
        """The one whose socket has this address; None if it has another place."""
        directory = cls(os.path.dirname(address))
        return directory if address == directory.socket else None

    def exists(self) -> bool:
        """Whether it has not been removed."""
        return os.path.exists(self.path)

    def remove(self, address: str | tuple[str, int] | None = None) -> None:
        """Remove it, and the socket at this address, which may lie elsewhere. Both may be gone already."""
        if isinstance(address, str):
            Path(address).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def key(self) -> bytes:
        """The key. `FileNotFoundError` if there is no manager any more; other `OSError`s."""
        with open(self._key, "rb") as stream:
            return stream.read()

    # -- for a manager that is restarted --------------------------------------------------------------

    def save_pool(self, pool_id: int, definition: bytes) -> None:
        """Keep how a pool is made, in place of what was kept of it before."""
        os.makedirs(self._pools, exist_ok=True)
        draft = os.path.join(self.path, f"{pool_id}.draft")
        with open(draft, "wb") as stream:
            stream.write(definition)
        os.replace(draft, self._pool(pool_id))  # a kill at any moment leaves the old one or the new one

    def remove_pool(self, pool_id: int) -> None:
        """The pool was closed."""
        try:
            os.unlink(self._pool(pool_id))
        except FileNotFoundError:
            pass  # it was never saved, or two clients close it at the same time

    def saved_pools(self) -> Iterator[tuple[int, bytes]]:
        """The pools that were made and not closed."""
        for name in os.listdir(self._pools) if os.path.isdir(self._pools) else ():
            with open(self._pool(int(name)), "rb") as stream:
                yield int(name), stream.read()

    def save_give_up_reason(self, text: str) -> None:
        """Keep, for clients, why there is no manager any more."""
        with open(self._give_up_reason, "w", encoding="utf-8") as stream:
            stream.write(text)

    def give_up_reason(self) -> str | None:
        """Why there is no manager any more, if it was given up."""
        try:
            with open(self._give_up_reason, encoding="utf-8") as stream:
                return stream.read()
        except OSError:
            return None

    def _pool(self, pool_id: int) -> str:
        return os.path.join(self._pools, str(pool_id))


def _base() -> str | None:
    """Where the path of a socket in a new directory is short enough; None if that is nowhere."""
    for base in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):  # noqa: S108  # mkdtemp is safe there
        if base and os.path.isdir(base) and len(os.fsencode(base)) + _LONGEST_NAME < _LONGEST_PATH:
            return base
    return None
