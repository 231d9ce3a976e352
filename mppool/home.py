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

__all__ = ["Home"]

_LONGEST_PATH = 100  # bytes; the shortest limit for the path of a Unix socket is 104


class Home:
    """The directory at `path`, which may be gone. Equal paths are the same home."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.socket = self.path / "socket"
        self._key = self.path / "key"
        self._recipes = self.path / "pools"
        self._last_word = self.path / "last word"

    @classmethod
    def make(cls) -> Home:
        """A new one, whose path leaves room for the socket's name."""
        for base in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):  # noqa: S108  # mkdtemp is safe there
            if base and os.path.isdir(base) and len(os.fsencode(base)) + 32 < _LONGEST_PATH:
                return cls(tempfile.mkdtemp(prefix="mppool-", dir=base))
        return cls(tempfile.mkdtemp(prefix="mppool-"))

    def remove(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.path, ignore_errors=True)

    def leave_key(self, key: bytes) -> None:
        """Lay the key where this user's processes find it, and nobody else."""
        file = os.open(self._key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "wb") as stream:
            stream.write(key)

    def key(self) -> bytes:
        """The key. `FileNotFoundError` if there is no manager any more; other `OSError`s."""
        return self._key.read_bytes()

    # -- for a successor --------------------------------------------------------------------------

    def keep_recipe(self, pool_id: int, recipe: bytes) -> None:
        """Note down how a pool was made, in place of what was noted of it before."""
        self._recipes.mkdir(exist_ok=True)
        draft = self.path / f"{pool_id}.draft"
        draft.write_bytes(recipe)
        draft.replace(self._recipes / str(pool_id))  # whole or not at all, whenever we are killed

    def drop_recipe(self, pool_id: int) -> None:
        """The pool was closed."""
        (self._recipes / str(pool_id)).unlink(missing_ok=True)

    def recipes(self) -> Iterator[tuple[int, bytes]]:
        """The pools that were made and not closed."""
        if self._recipes.is_dir():
            for file in sorted(self._recipes.iterdir(), key=os.path.getmtime):
                yield int(file.name), file.read_bytes()

    def leave_last_word(self, text: str) -> None:
        """Tell whoever comes why there is no manager any more."""
        self._last_word.write_text(text)

    def last_word(self) -> str | None:
        """Why there is no manager any more, if anybody left word."""
        try:
            return self._last_word.read_text()
        except OSError:
            return None
