"""To which user a file, or the process at the other end of a socket, belongs. Another user's is refused.

What another user made may hold that user's key, or be that user's manager, whose first answer could run as
this user. Every refusal is a `PermissionError` that names both users.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
import struct
import sys


def check_user(what: str, uid: int, advice: str = "start the manager as the user of its clients") -> None:
    """Refuse what belongs to another user than this process."""
    if uid != os.geteuid():
        names = f"{what} belongs to {_name(uid)}, and this process runs as {_name(os.geteuid())}"
        raise PermissionError(f"{names}: {advice}")


def check_owner(path: str) -> None:
    """Refuse a path that is another user's, as the directory is where this user may not even look."""
    while True:
        try:
            owner = os.lstat(path).st_uid
            break
        except PermissionError:
            path = os.path.dirname(path)
    check_user(repr(path), owner)


def check_peer(sock: socket.socket, what: str) -> int | None:
    """The pid of the process at the other end, as the kernel reports it. Refuses one of another user.

    0 if it has none here, as in another container. On TCP the kernel tells neither: None.
    """
    if sock.family != socket.AF_UNIX:
        return None
    pid: int
    if sys.platform == "darwin":  # options of <sys/un.h>, at the level SOL_LOCAL
        local_peercred, local_peerpid = 1, 2
        _, uid = struct.unpack_from("2I", sock.getsockopt(0, local_peercred, 76))  # a `struct xucred`
        (pid,) = struct.unpack("i", sock.getsockopt(0, local_peerpid, 4))
    else:
        pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    check_user(f"{what} (pid {pid})", uid)
    return pid


def check_private(path: str, status: os.stat_result) -> None:
    """Refuse what another user made, can read or can change, and links."""
    check_user(repr(path), status.st_uid)
    if stat.S_ISLNK(status.st_mode):
        raise PermissionError(f"{path!r} is a symbolic link, and must be none")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(f"{path!r} is open to other users (mode {mode:o}), and must be closed to them")


def open_private(path: str, flags: int) -> int:
    """An opener, for `open`, of a file that no other user made, can read or can change.

    Nor can another user have put the directory that it lies in there. Links are refused for the same reason.
    """
    place, name = os.path.split(path)
    check_owner(place)  # to open another user's may be forbidden, and tells less
    check_private(place, os.lstat(place))
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        check_private(place, os.fstat(directory))
        # Without O_NONBLOCK a pipe of that name would have this process wait for a writer.
        file = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        check_private(path, os.fstat(file))
    except BaseException:
        os.close(file)
        raise
    return file


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name!r} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
