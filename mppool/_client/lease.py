"""A lease, as its holder sees it."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from mppool._wire.connection import DeadlineExceeded
from mppool.errors import CallTimeout, LeaseError, LeaseLost, ManagerLost

from .channel import Channel, ClientConnection, ObjectChannel


class HeldLease:
    """The worker's side of a lease; all handles to its object share it.

    It keeps the connection that it was granted on, even when the thread that acquired it has ended: a
    connection that closes before the manager knows that the grant arrived gives the object back.
    """

    __slots__ = (
        "__weakref__",
        "_call_timeout",
        "_channel",
        "_direct",
        "_generation",
        "_line",
        "_turns",
        "ended",
        "id",
        "name",
        "pool_id",
    )

    def __init__(
        self,
        channel: Channel,
        direct: ObjectChannel | None,
        line: ClientConnection,
        pool_id: int,
        name: str,
        lease_id: int,
        call_timeout: float | None,
    ) -> None:
        self._channel = channel
        self._direct = direct  # to the object's own process, if it has one
        self._line = line
        self._generation = channel.generation
        self.pool_id = pool_id
        self.name = name
        self.id = lease_id
        self._call_timeout = call_timeout
        # So that waiting for another thread's call is no part of a call. A signal handler needs no turn.
        self._turns = None if direct is None and call_timeout is None else threading.RLock()
        self.ended = False

    def call(self, target: int, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, Any]:
        """One call on the object, or on something that an earlier call returned."""
        if self.ended or self._generation != self._channel.generation:
            raise self._misuse()
        request = ("call", self.pool_id, self.id, target, op, args, kwargs)
        if self._turns is None:
            return self._channel.exchange(request)
        with self._turns:
            try:
                return (self._direct or self._channel).exchange(request, self._call_timeout)
            except DeadlineExceeded:
                self._give_up()
                raise self._too_long() from None
            except (LeaseLost, ManagerLost) as error:
                self._explain(error)
                raise

    def _give_up(self) -> None:
        self._channel.exchange(("give_up", self.pool_id, self.id))

    def _explain(self, error: LeaseError | ManagerLost) -> None:
        """The object's own process refused a call, or is lost: raise what the manager knows of it."""
        if self._direct is None:
            return
        self._channel.exchange(("fate", self.pool_id, self.id))
        if isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
            self._give_up()
            text = "the process of its object cannot be reached, though it lives"
            raise LeaseLost(f"pool {self.name!r}: lease {self.id} is over: {text}") from error

    def release(self, discard: bool) -> None:
        """End the lease. The manager is told, but not waited for."""
        if self.ended or self._generation != self._channel.generation:
            raise self._misuse()
        self._channel.tell(("release", self.pool_id, self.id, discard))
        self.ended = True  # only now: if this is interrupted, the finalizer tells (again, which does no harm)

    def __del__(self) -> None:
        if getattr(self, "ended", True) or self._generation != self._channel.generation:
            return  # or it never was: interrupted while it was made
        self.ended = True
        self._channel.tell_later(("release", self.pool_id, self.id, False))
        warnings.warn(
            f"pool {self.name!r}: a handle was never released; use `with pool.lease()`",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )

    def _too_long(self) -> CallTimeout:
        fate = "its object is replaced, and closed when the call has ended"
        if self._direct is not None:
            fate = "its process is killed, and its object replaced"
        text = f"a call took longer than call_timeout={self._call_timeout:g} s; {fate}"
        return CallTimeout(f"pool {self.name!r}: {text}")

    def _misuse(self) -> LeaseError:
        if self._generation != self._channel.generation:
            return LeaseError(
                f"pool {self.name!r}: a handle belongs to the process that acquired it, and this is a "
                "forked child of that: acquire from the pool here"
            )
        return LeaseError(f"pool {self.name!r}: this handle was released")
