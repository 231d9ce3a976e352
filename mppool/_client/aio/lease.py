"""A lease, as the tasks of an event loop hold it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Collection
from typing import Any

from mppool._client.connect import Request
from mppool._client.delegated import DelegatedLease, Parked
from mppool._client.lease import Lease, LeaseOfValue
from mppool._pool_info import PoolInfo
from mppool._remote.family import AnyLease
from mppool._remote.opcodes import LEAVE_NOTHING
from mppool._wire.connection import Address, DeadlineExceeded
from mppool.errors import LeaseError, LeaseLost, ManagerLost, Unreachable

from .channel import LoopChannel
from .connection import AcquiringConnection


class AsyncLease(Lease):
    """A lease that belongs to the loop in which it was acquired; all handles to its object share it.

    What holds for `HeldLease` holds here, too; tasks that share a handle take turns. In place of an interrupt
    there is a cancel: a call that is cancelled closes its connection, the lease stays, and the object is lent
    again when what runs there has ended. When the loop is closed, the leases that it had are over.
    """

    __slots__ = ("_address", "_connection", "_number", "_turns", "_unfinished", "_way")

    def __init__(
        self,
        way: LoopChannel,
        connection: AcquiringConnection,
        number: int,
        address: Address | None,
        info: PoolInfo,
        lease_id: int,
        delegated: DelegatedLease | None = None,
    ) -> None:
        self._way = way
        self._connection = weakref.ref(connection)  # which the loop keeps: the lease ends with that
        self._number = number  # that of its acquire
        self._address = address  # where the object has a process of its own
        self._unfinished = False
        # So that waiting for another task's call is no part of a call, and needs no connection.
        self._turns = asyncio.Lock()
        super().__init__(way.channel, info, lease_id, delegated)

    def check(self) -> None:
        """Raise `LeaseError` if this lease is not to be used, or not here."""
        super().check()
        if not self._way.runs_here():
            text = "a handle belongs to the event loop in which it was acquired: acquire in this one, too"
            raise LeaseError(f"pool {self._info.name!r}: {text}")

    async def call(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: Collection[AnyLease] = (),
    ) -> tuple[int, Any]:
        """One call on the object, or on something that an earlier call returned: as `HeldLease.call`."""
        self.check()
        self._calls.append(None)
        await self._turns.acquire()  # `async with` would cost two more coroutines
        try:
            super().check()  # it may have ended while another task had its turn
            request: Request = ("call", self.pool_id, self.id, target, op, args, kwargs)
            if beside:
                request = self.request_beside(target, op, args, kwargs, beside)
            answer = await self._way.request(request, self._address, self._info.call_timeout)
        except DeadlineExceeded:
            await self._abandon()
            raise self._call_timed_out(self._address is not None) from None
        except (LeaseLost, ManagerLost) as error:
            await self._explain(error)
            raise
        finally:
            self._turns.release()
        if answer[0] in LEAVE_NOTHING and not beside:
            self._calls.pop()
        return answer

    def leave_call(self) -> None:
        """The last call is answered and goes on. The channel sees to that: its connection is closed."""

    async def _abandon(self) -> None:
        await self._way.request(("give_up", self.pool_id, self.id))

    async def _explain(self, error: LeaseError | ManagerLost) -> None:
        """The object's own process refused a call, or is lost: raise what the manager knows of it."""
        if self._address is None or isinstance(error, Unreachable):  # which is what it knows
            return
        await self._way.request(("fate", self.pool_id, self.id))
        if isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
            await self._abandon()
            raise self._unreachable() from error

    def _where_to_park(self) -> Parked | None:
        connection = self._connection()
        if connection is None or connection.closed or self._unfinished or self._way.loop.is_closed():
            return None
        return connection.parked

    def leave(self, discard: bool, unfinished: bool) -> None:
        """`release` at the end of a block. Where its task is collected unfinished that may be anywhere."""
        super().check()
        self._unfinished = unfinished
        self._end(discard)

    def _give_back(self, discard: bool) -> None:
        connection = self._connection()
        if connection is None or self._way.loop.is_closed():
            return  # the lease is over
        if connection.closed or self._unfinished:  # the manager may live, and knows the lease by its id
            self._channel.notify_soon(self._giving_back(discard))
        else:
            connection.end(self._number, discard)

    def _give_back_forgotten(self) -> None:
        """By its id: the loop may stand still, now or before it comes to that."""
        if not (self._connection() is None or self._way.loop.is_closed()):
            super()._give_back_forgotten()


class AsyncValueLease(LeaseOfValue, AsyncLease):
    """That of a value, which is lent as it is."""

    def __init__(
        self,
        way: LoopChannel,
        connection: AcquiringConnection,
        number: int,
        info: PoolInfo,
        lease_id: int,
        item: int,
        value: Any,
    ) -> None:
        super().__init__(way, connection, number, None, info, lease_id)
        self._hold(item, value)
