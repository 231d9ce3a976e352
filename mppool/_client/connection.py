"""One connection of this process to a manager, or to an object's own process, and what ends waiting on it."""

from __future__ import annotations

import os
import weakref
from functools import partial
from typing import TYPE_CHECKING

from mppool._remote.interface import Interface
from mppool._remote.references import DoesNotPickle, fails_again
from mppool._wire.connection import Connection, Received
from mppool._wire.shared_memory import LARGE
from mppool._wire.signals import is_handlers
from mppool.errors import PoolError

from .connect import CUT_OFF, Request

if TYPE_CHECKING:
    from mppool._wire.delegation import Arrivals, Parking


class ClientConnection:
    """A connection, the interfaces that the manager described on it, and the last lease granted there."""

    __slots__ = (
        "__weakref__",
        "_arrivals",
        "_can_share",
        "_large",
        "granted",
        "interfaces",
        "wire",
    )

    def __init__(self, wire: Connection, can_share: bool, lends: bool) -> None:
        self.wire = wire
        self._arrivals: Arrivals | None = None
        if lends and wire.can_share:
            wire.accept_descriptors()
        self.interfaces: dict[int, Interface] = {}
        self.granted: int | None = None
        self._can_share = can_share  # and both sides have not agreed on it yet
        self._large = False  # a message has passed that is worth a memory file: there may be more of them

    def parking(self, delegated: tuple[int, int, bool] | None) -> Parking | None:
        """What came along with the last grant, if the lease is delegated."""
        if delegated is None:
            return None
        descriptors = self.wire.take_descriptors()
        if self._arrivals is None:
            try:
                from mppool._wire.delegation import Arrivals  # noqa: PLC0415  # which many workers never need
            except OSError:  # no descriptor is left to read it by
                for each in descriptors:
                    os.close(each)
                return None
            self._arrivals = Arrivals()
        return self._arrivals.open(*delegated, descriptors)

    def confirm(self) -> None:
        """Tell that the last grant has arrived: its lease may outlast this connection without a call."""
        try:
            self.wire.send(("arrived",))
        except OSError as error:
            if is_handlers(error):
                raise  # else the manager has ended

    def is_open(self) -> bool:
        """Whether the other side is there. For one over which no answer is to come."""
        return not self.wire.has_ended()

    def ask(self, request: Request, deadline: float | None) -> Received | None:
        """Send a request and wait for its reply. None if the other side has certainly not read the request.

        Raises `DoesNotPickle` before anything was sent, `DeadlineExceeded`, and as `Connection.recv_pickle`.
        """
        wire = self.wire
        wire.set_deadline(deadline)
        try:
            if self._large and self._can_share:
                self._agree_to_share()
            frame = self._encode(request)
            wire.send_frame(frame)
        except CUT_OFF as error:
            if is_handlers(error):
                raise
            return None
        wire.await_reply()
        try:
            received = wire.recv_pickle()
        except ConnectionResetError as error:
            if is_handlers(error):
                raise
            return None  # so the kernel answers for a peer that ended with something unread
        self._large = max(len(frame), len(received[0])) >= LARGE
        return received

    def _encode(self, request: Request) -> bytes:
        try:
            return self.wire.encode(request)
        except Exception as error:
            if fails_again(partial(self.wire.encode, request)):
                raise DoesNotPickle(f"an argument does not pickle: {error}") from error
            raise

    def _agree_to_share(self) -> None:
        self._can_share = False
        self.wire.share_memory()
        self.wire.send(("share_memory",))
        self.wire.await_reply()
        self.wire.recv()

    def hang_up(self) -> None:
        """Close it. An answer that still comes is lost with it, and a lease that this grants goes back."""
        self.wire.send_at_once(("acknowledge", self.granted))  # the last grant that has arrived
        self.wire.close()


class Cancellation:
    """Ends the waiting for objects of several threads of this process, once it is requested."""

    def __init__(self) -> None:
        self.requested = False
        self._connections: list[weakref.ref[ClientConnection]] = []

    def register(self, connection: ClientConnection, request: Request) -> None:
        """A thread is about to send this request there. Raises `PoolError` if it is too late to wait."""
        self._connections.append(weakref.ref(connection))
        if self.requested and request[0] in ("acquire", "apply"):  # a release goes out all the same
            connection.hang_up()
            raise PoolError("nothing waits for this object any more")

    def request(self) -> None:
        """From now on none of these threads waits."""
        self.requested = True
        for each in self._connections:
            if (connection := each()) is not None:
                connection.wire.stop_receiving()
