"""The actor with an object, which lives in the main thread of its process."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import Any

from mppool._process.info import ManagerInfo
from mppool._process.main import serve_far
from mppool._system.exit import exit_now
from mppool._system.open_files import allow_open_files
from mppool._system.processes import kill_children, lead_a_group
from mppool._system.program import token
from mppool._wire.connection import Connection
from mppool._wire.handshake import connect
from mppool.options import HOOK_BOUND

from . import cluster
from .channel import who_here

_LEAVE_SECONDS = HOOK_BOUND + 2.0
"""In which a process ends whose control is gone: first it closes its object."""

_LOOK_SECONDS = 3600.0
"""`poll` takes no infinity."""


class Host:
    """The actor. Its one method lasts as long as the object.

    Ray kills what an actor has started when that dies, before an object can be closed. So this one is
    "detached" from its control, and sees itself that that is gone.
    """

    def __init__(self, info: ManagerInfo) -> None:
        lead_a_group()
        allow_open_files(info.open_files)  # `select` takes no descriptor above 1023
        self._info = info
        lifeline = _come(info, "hold_lifeline")
        threading.Thread(target=_end_with, args=(lifeline,), name="mppool lifeline", daemon=True).start()

    def run(self, ticket: str, *what: Any) -> None:
        """Come to the control, which awaits this ticket, and serve the object that it orders."""
        orders, side = (_come(self._info, "welcome", ticket=ticket) for _ in range(2))
        serve_far(orders, side, replace(self._info, address=(cluster.own_address(), 0)), *what)
        kill_children()
        cluster.leave_actor()


def _come(info: ManagerInfo, method: str, **more: Any) -> Connection:
    """One connection after the other: the control takes the first one for its orders."""
    connection = connect(info.address, info.key)
    me = os.getpid(), "object", token()
    connection.send((None, method, me, {**who_here(), **more}))  # as clients of `multiprocessing.managers` do
    connection.recv()
    return connection


def _end_with(lifeline: Connection) -> None:
    """End when the control does, whatever goes on here."""
    while not lifeline.wait_readable(_LOOK_SECONDS):
        pass
    time.sleep(_LEAVE_SECONDS)  # the end of the main thread is that of the process, and so of this one
    kill_children()
    exit_now()
