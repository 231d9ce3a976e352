"""The actor with an object, which lives in the main thread of its process."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from mppool._process.info import ManagerInfo
from mppool._process.main import serve_far
from mppool._system.open_files import allow_open_files
from mppool._system.processes import kill_children, lead_a_group
from mppool._system.program import token
from mppool._wire.connection import Connection
from mppool._wire.handshake import connect

from . import cluster
from .channel import who_here


class Host:
    """The actor. Its one method lasts as long as the object."""

    def run(self, ticket: str, info: ManagerInfo, *what: Any) -> None:
        """Come to the control, which awaits this ticket, and serve the object that it orders."""
        lead_a_group()
        allow_open_files(info.open_files)  # `select` takes no descriptor above 1023
        orders, side = (_come(info, "welcome", ticket=ticket) for _ in range(2))
        lifeline = _come(info, "hold_lifeline")
        serve_far(orders, side, replace(info, address=(cluster.own_address(), 0)), *what)
        lifeline.close()
        kill_children()
        cluster.leave_actor()


def _come(info: ManagerInfo, method: str, **more: Any) -> Connection:
    """One connection after the other: the control takes the first one for its orders."""
    connection = connect(info.address, info.key)
    me = os.getpid(), "object", token()
    connection.send((None, method, me, {**who_here(), **more}))  # as clients of `multiprocessing.managers` do
    connection.recv()
    return connection
