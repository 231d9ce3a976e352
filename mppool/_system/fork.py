"""What happens at a fork."""

from __future__ import annotations

import os
import socket
import threading
import weakref

_kept_from_children: weakref.WeakKeyDictionary[socket.socket, int | None] = weakref.WeakKeyDictionary()


def keep_from_children(sock: socket.socket, but_of: int | None = None) -> None:
    """Have forked children close it, but not those that this thread forks.

    When all managers are gone, a child that is none must not keep the door open, nor a connection.
    """
    _kept_from_children[sock] = but_of


def _close_in_child() -> None:
    for sock, thread in list(_kept_from_children.items()):
        if thread != threading.get_ident():
            sock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
