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
        self._key = Path(path, "key")
        self._pools = Path(path, "pools")
        self._give_up_reason = Path(path, "give-up-reason")

    @classmethod
    def create(cls, key: bytes) -> RuntimeDir:
        """Make a new one, with the key in it. `OSError` if it cannot be made."""
        directory = cls(tempfile.mkdtemp(prefix="mppool-", dir=_base()))
        try:
            directory._key.touch(0o600, exist_ok=False)  # in a new directory that only this user can enter
            directory._key.write_bytes(key)
        except BaseException:
            directory.remove()
            raise
        return directory

    @classmethod
    def key_beside(cls, address: str) -> bytes | None:
        """The key that lies beside the socket with this address; None if there is none for this user."""
        directory = cls(os.path.dirname(address))
        try:
            return directory.key() if address == directory.socket else None
        except OSError:
            return None

    def remove(self, address: str | tuple[str, int] | None = None) -> None:
        """Remove it, and the socket at this address, which may lie elsewhere. Both may be gone already."""
        if isinstance(address, str):
            Path(address).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def key(self) -> bytes:
        """The key. `FileNotFoundError` if there is no manager any more; other `OSError`s."""
        return self._key.read_bytes()

    # -- for a manager that is restarted --------------------------------------------------------------

    def save_pool(self, pool_id: int, definition: bytes) -> None:
        """Keep how a pool is made, in place of what was kept of it before."""
        self._pools.mkdir(exist_ok=True)
        draft = Path(self.path, f"{pool_id}.draft")
        draft.write_bytes(definition)
        draft.replace(self._pools / str(pool_id))  # a kill at any moment leaves the old one or the new one

    def remove_pool(self, pool_id: int) -> None:
        """The pool was closed."""
        Path(self._pools, str(pool_id)).unlink(missing_ok=True)  # two clients may close it at the same time

    def saved_pools(self) -> Iterator[tuple[int, bytes]]:
        """The pools that were made and not closed."""
        for path in self._pools.glob("*"):
            yield int(path.name), path.read_bytes()

    def save_give_up_reason(self, text: str) -> None:
        """Keep, for clients, why there is no manager any more."""
        self._give_up_reason.write_text(text, encoding="utf-8")

    def give_up_reason(self) -> str | None:
        """Why there is no manager any more, if it was given up."""
        try:
            return self._give_up_reason.read_text(encoding="utf-8")
        except OSError:
            return None


def _base() -> str | None:
    """Where the path of a socket in a new directory is short enough; None if that is nowhere."""
    for base in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):  # noqa: S108  # mkdtemp is safe there
        if base and os.path.isdir(base) and len(os.fsencode(base)) + _LONGEST_NAME < _LONGEST_PATH:
            return base
    return None
