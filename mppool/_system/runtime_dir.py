"""A manager's private directory (0700), and what lies in it under which name. Both sides use it.

The key (0600), by which this user's processes are known; the socket, unless an address is given; and,
where a manager that dies gets a successor, what that needs to know of the pools.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LONGEST_PATH = 100  # bytes; the shortest limit for the path of a Unix socket is 104


class RuntimeDir:
    """The directory at `path`, which may be gone."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = os.path.join(path, "socket")
        self._key = os.path.join(path, "key")
        self._recipes = os.path.join(path, "pools")
        self._last_word = os.path.join(path, "last word")

    def leave_key(self, key: bytes) -> None:
        """Lay the key where this user's processes find it, and nobody else."""
        file = os.open(self._key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "wb") as stream:
            stream.write(key)

    def key(self) -> bytes:
        """The key. `FileNotFoundError` if there is no manager any more; other `OSError`s."""
        with open(self._key, "rb") as stream:
            return stream.read()

    # -- for a successor --------------------------------------------------------------------------

    def keep_recipe(self, pool_id: int, recipe: bytes) -> None:
        """Note down how a pool was made, in place of what was noted of it before."""
        os.makedirs(self._recipes, exist_ok=True)
        draft = os.path.join(self.path, f"{pool_id}.draft")
        with open(draft, "wb") as stream:
            stream.write(recipe)
        os.replace(draft, self._recipe(pool_id))  # whole or not at all, whenever we are killed

    def drop_recipe(self, pool_id: int) -> None:
        """The pool was closed."""
        try:
            os.unlink(self._recipe(pool_id))
        except FileNotFoundError:
            pass  # whoever closed it at the same time was first

    def recipes(self) -> Iterator[tuple[int, bytes]]:
        """The pools that were made and not closed."""
        for name in os.listdir(self._recipes) if os.path.isdir(self._recipes) else ():
            with open(self._recipe(int(name)), "rb") as stream:
                yield int(name), stream.read()

    def leave_last_word(self, text: str) -> None:
        """Tell whoever comes why there is no manager any more."""
        with open(self._last_word, "w", encoding="utf-8") as stream:
            stream.write(text)

    def last_word(self) -> str | None:
        """Why there is no manager any more, if anybody left word."""
        try:
            with open(self._last_word, encoding="utf-8") as stream:
                return stream.read()
        except OSError:
            return None

    def _recipe(self, pool_id: int) -> str:
        return os.path.join(self._recipes, str(pool_id))


def make_home() -> RuntimeDir:
    """A new home, whose path leaves room for the socket's name."""
    for base in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):  # noqa: S108  # mkdtemp is safe there
        if base and os.path.isdir(base) and len(os.fsencode(base)) + 32 < _LONGEST_PATH:
            return RuntimeDir(tempfile.mkdtemp(prefix="mppool-", dir=base))
    return RuntimeDir(tempfile.mkdtemp(prefix="mppool-"))


def tidy(address: str | tuple[str, int], home: RuntimeDir) -> None:
    """Remove what a manager leaves in the file system. That it is gone already is no error."""
    if isinstance(address, str):
        Path(address).unlink(missing_ok=True)
    remove(home)


def remove(home: RuntimeDir) -> None:
    """Remove a home and what lies in it."""
    shutil.rmtree(home.path, ignore_errors=True)
