"""Where managers of this user have their directories (0700), and what lies in such a one under which name.

Both sides use it. A worker process only reads there: the modules that remove a directory are imported where
that is done.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from .fork import keep_from_children
from .locks import leads_to, lock
from .users import check_private, check_user, open_private

LONGEST_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes of the path of a Unix socket."""

_LONGEST_SOCKET = 9
"""Bytes of what a socket adds to the path of its directory."""

_LONGEST_NAME = 17 + _LONGEST_SOCKET
"""Bytes of what a manager's directory and a socket in it add to the path of the place."""

_PLAIN = "manager-"
"""How the names of directories begin that belong to managers without a name, and go with them."""

_SHARED = "shared-"
"""How those begin that belong to managers with a name. One that was killed leaves its own to the next one."""

_GONE = "~"
"""How those end that are being removed."""

_KEY = 32  # bytes

_AGE_SECONDS = 3600.0
"""After which a file looks old to us. Cleaners remove what was not touched for days."""

_ours: set[str] = set()
"""The directories of the managers that this process belongs to."""

_DARWIN_USER_TEMP_DIR = 65537  # of <unistd.h>, which `os.confstr` does not know by its name everywhere


def place() -> str:
    """Where all runtime directories of this user lie: one directory, whichever process asks.

    Neither TMPDIR nor XDG_RUNTIME_DIR is asked: a shell has them, and a unit of systemd has not.
    """
    chosen = os.environ.get("MPPOOL_RUNTIME_DIR")
    if chosen:
        return chosen
    if sys.platform == "darwin":
        return os.path.join(os.confstr(_DARWIN_USER_TEMP_DIR) or "/tmp", "mppool")  # noqa: S108
    return f"/tmp/mppool-{os.geteuid()}"  # noqa: S108  # its owner is looked at


def shared_dir(name: str) -> str:
    """The path of the directory of the manager with this name. `ValueError` if there can be none."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(
            f"name={name!r}: the name of a manager is of letters (a to z), digits, '.', '_', '-'"
        )
    path = os.path.join(place(), _SHARED + name)
    left = LONGEST_PATH - _LONGEST_SOCKET - len(os.fsencode(path))
    if left < 0:
        raise ValueError(f"name={name!r} is {-left} bytes too long for the path of a socket in {place()!r}")
    return path


def belong_to(path: str) -> None:
    """This process is the manager with this directory, or an object of it: it puts no other in its place.

    At the end of a manager what still runs there may ask for a pool of it.
    """
    _ours.add(path)


def runtime_dirs() -> list[RuntimeDir]:
    """Those of this user's managers, in the order of their names. One that was killed may have left its own.

    `OSError` if the place is another user's, or open to others.
    """
    path = place()
    try:
        check_private(path, os.lstat(path))
    except FileNotFoundError:
        return []
    names = sorted(os.listdir(path))
    return [RuntimeDir(os.path.join(path, name)) for name in names if _is_whole(name)]


def _is_whole(name: str) -> bool:
    """Whether a manager's directory has this name, and is not being removed."""
    return name.startswith((_PLAIN, _SHARED)) and not name.endswith(_GONE)


def _make_place(path: str) -> None:
    """Make the place, unless it is there. `OSError` if it cannot be, or is not this user's alone."""
    if not os.path.isabs(path):
        raise OSError(f"MPPOOL_RUNTIME_DIR={path!r} has to be an absolute path")
    if len(os.fsencode(path)) + _LONGEST_NAME > LONGEST_PATH:
        raise OSError(f"MPPOOL_RUNTIME_DIR={path!r} is too long for the path of a socket in it")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    check_user(
        repr(path), status.st_uid, "have it removed, or set MPPOOL_RUNTIME_DIR to a directory of yours"
    )
    check_private(path, status)


class RuntimeDir:
    """The directory at `path`, which may be gone.

    In it lie the key (0600), by which processes of this user are known; the socket, or else the address that
    was given; sockets of objects; the definitions of pools and the reason to give up, of a manager that is
    restarted; what a manager with a name has printed.

    Once it is gone, another user may make one of that name: no file is read or written unless it and the
    directory are this user's and closed to others. `PermissionError` tells whose they are.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = os.path.join(path, "socket")
        self.log = os.path.join(path, "log")
        self._key = os.path.join(path, "key")
        self._address = os.path.join(path, "address")
        self._give_up_reason = os.path.join(path, "give-up-reason")

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

    @property
    def has_name(self) -> bool:
        """Whether it belongs to a manager with a name."""
        return os.path.basename(self.path).startswith(_SHARED)

    @property
    def name(self) -> str:
        """That of the manager; of one that has none, the directory's."""
        return os.path.basename(self.path).removeprefix(_SHARED)

    def is_held(self) -> bool:
        """Whether a manager has it. `FileNotFoundError` if it was removed meanwhile; other `OSError`s."""
        try:
            os.close(lock(self.path, os.O_RDONLY | os.O_DIRECTORY))
        except BlockingIOError:
            return True
        return False

    def address(self) -> Any:
        """Where the manager listens. `OSError` if that cannot be read."""
        import ast  # noqa: PLC0415  # where a manager is looked for by its directory

        try:
            return ast.literal_eval(_read(self._address).decode())
        except FileNotFoundError:
            return self.socket

    def key(self) -> bytes:
        """The key. `FileNotFoundError` if there is no manager any more; other `OSError`s."""
        return _read(self._key)

    # -- for a manager that is restarted --------------------------------------------------------------

    def save_pool(self, pool_id: int, definition: bytes) -> None:
        """Keep how a pool is made, in place of what was kept of it before."""
        _replace(self._pool(pool_id), definition)

    def remove_pool(self, pool_id: int) -> None:
        """The pool was closed."""
        with contextlib.suppress(FileNotFoundError):  # a cleaner was there
            os.unlink(self._pool(pool_id))

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


class HeldDir(RuntimeDir):
    """A runtime directory that its manager's processes hold: the creating one, and each manager in turn.

    They hold a lock on it. It keeps systemd-tmpfiles out, and tells other managers, which remove what is not
    held, that there is a manager.
    """

    def __init__(self, path: str, descriptor: Any = None) -> None:
        super().__init__(path)
        self._place = os.path.dirname(path)
        self._lock: int = -1 if descriptor is None else descriptor.detach()

    def __reduce__(self) -> tuple[object, ...]:
        from multiprocessing.reduction import DupFd  # noqa: PLC0415  # where a process starts, it is loaded

        return HeldDir, (self.path, DupFd(self._lock))

    @classmethod
    def create(cls, key: bytes) -> HeldDir:
        """Make a new one in the place, with the key in it, and hold it. `OSError` if it cannot be made."""
        while True:
            directory = cls(os.path.join(place(), _PLAIN + os.urandom(4).hex()))
            _make_place(directory._place)
            try:
                _sweep(directory._place)
                directory._hold()
                break
            except (BlockingIOError, FileNotFoundError):
                pass  # a cleaner, or another manager's sweep, found it before it was held
        try:
            _replace(directory._key, key)
        except BaseException:
            directory.remove()
            directory.close()
            raise
        return directory

    @classmethod
    def take(cls, path: str) -> HeldDir:
        """Hold the one of a name, which a manager that was killed may have left, with a key in it.

        `BlockingIOError` if another process was faster; other `OSError`s, such as where the disk is full.
        """
        if path in _ours:
            raise OSError("this process belongs to the one before, and ends with it")
        directory = cls(path)
        keep_from_children(directory)  # one that outlives the manager would have nothing follow it
        _make_place(directory._place)
        try:
            directory._hold()
        except FileNotFoundError as error:
            raise BlockingIOError(f"{path!r} was removed meanwhile") from error
        try:
            _sweep(directory._place)
            if not directory._has_key():
                _replace(directory._key, os.urandom(_KEY))
        except BaseException:
            directory.close()
            raise
        return directory

    def _has_key(self) -> bool:
        """Whether there is a whole key."""
        try:
            return len(self.key()) == _KEY
        except FileNotFoundError:
            return False

    def fileno(self) -> int:
        """The descriptor by which it is held, for a program that is to hold it, too."""
        return self._lock

    @classmethod
    def inherited(cls, path: str, descriptor: int) -> HeldDir:
        """The one that the program before this one in this process held by this descriptor."""
        os.set_inheritable(descriptor, False)
        directory = cls(path)
        directory._lock = descriptor
        return directory

    def renew(self, key: bytes) -> bool:
        """Put back what a cleaner removed, and have the rest look new. Whether all that lay here is lost.

        `OSError` if that cannot be done.
        """
        lost = not leads_to(self.path, self._lock)
        if lost:
            _make_place(self._place)
            self._hold()
        if not os.path.lexists(self._key):
            _replace(self._key, key)
        if rejuvenate(self._key):
            for path in (self._place, self.path, *(each.path for each in os.scandir(self.path))):
                with contextlib.suppress(FileNotFoundError):  # of an object that ends just now
                    rejuvenate(path)
        return lost

    def note(self, address: Any) -> None:
        """Have it tell where the manager listens, if that is not in here. `OSError` if it cannot."""
        if address != self.socket and not os.path.lexists(self._address):
            _replace(self._address, ascii(address).encode())

    def remove(self) -> None:
        """Remove it, if it is still there. A client finds all that was in it, or nothing."""
        gone = self.path + _GONE
        for _ in range(2):  # what the manager before one with a name is removing has to go first
            if leads_to(self.path, self._lock):
                with contextlib.suppress(OSError):  # another of the processes that hold it was faster
                    os.rename(self.path, gone)
            _remove(gone)

    def close(self) -> None:
        """This process holds it no more."""
        descriptor, self._lock = self._lock, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close

    def _hold(self) -> None:
        """Make it, unless it is there, and lock it.

        `BlockingIOError` or `FileNotFoundError` if another process was faster; other `OSError`s.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        descriptor = lock(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            check_private(self.path, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        self.close()
        self._lock = descriptor


def rejuvenate(path: str) -> bool:
    """Have a file look new, if it looks old. Whether it did."""
    is_old = abs(time.time() - os.lstat(path).st_mtime) > _AGE_SECONDS
    if is_old:
        os.utime(path, follow_symlinks=False)
    return is_old


def _sweep(path: str) -> None:
    """Remove the directories of managers that were killed from this place: those that no process holds."""
    for name in os.listdir(path):
        if name.startswith((_PLAIN, _SHARED)):
            left = os.path.join(path, name)
            with contextlib.suppress(OSError):  # it is held, or was removed just now
                descriptor = lock(left, os.O_RDONLY | os.O_DIRECTORY)
                _remove(left)
                os.close(descriptor)


def _remove(path: str) -> None:
    import shutil  # noqa: PLC0415

    shutil.rmtree(path, ignore_errors=True)


def _read(path: str) -> bytes:
    with open(path, "rb", opener=open_private) as stream:
        return stream.read()


def _write(path: str, data: bytes) -> None:
    with open(path, "wb", opener=open_private) as stream:
        stream.write(data)


def _replace(path: str, data: bytes) -> None:
    """Write a file at once: a kill at any moment leaves the old one or the new one."""
    place_of, name = os.path.split(path)
    draft = os.path.join(place_of, f"draft-{name}")
    _write(draft, data)
    os.replace(draft, path)
