"""The actor with an object, which lives in the main thread of its process."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, NamedTuple

from mppool._process.info import ManagerInfo
from mppool._process.main import serve_far
from mppool._system.open_files import allow_open_files
from mppool._system.processes import kill_children, lead_a_group
from mppool._wire.connection import Address, Connection
from mppool._wire.handshake import connect

from . import cluster
from .channel import start_time


class Guest(NamedTuple):
    """What a host tells of itself when it comes to its control."""

    ticket: str
    """By which the control knows whom it awaits."""
    pid: int
    node: str
    started: float | None


class Host:
    """The actor. Its one method lasts as long as the object."""

    def run(self, control: Address, ticket: str, info: ManagerInfo, *what: Any) -> None:
        """Have the control at this address give orders, and serve what it asks for."""
        lead_a_group()
        allow_open_files(info.open_files)  # `select` takes no descriptor above 1023
        me = Guest(ticket, os.getpid(), cluster.own_node(), start_time(os.getpid()))
        orders, side = (_come(control, info, me) for _ in range(2))
        serve_far(orders, side, replace(info, address=(cluster.own_address(), 0)), *what)
        kill_children()
        cluster.leave_actor()


def _come(control: Address, info: ManagerInfo, me: Guest) -> Connection:
    """One connection after the other: the control takes the first one for its orders."""
    connection = connect(control, info.key)
    connection.send((None, "welcome", tuple(me), {}))  # as clients of `multiprocessing.managers` do
    connection.recv()
    return connection
