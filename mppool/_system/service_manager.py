"""Tells the program that supervises this process, such as systemd, how far it is."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Say "READY=1" or "STOPPING=1" at the socket that NOTIFY_SOCKET names, where there is one.

    `OSError` if that says nothing.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        if address.startswith("@"):  # a name that is abstract
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)
