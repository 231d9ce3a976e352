"""What one event loop asks of one manager.

All acquires share a connection, on which each has a number. A call borrows another one for as long as it
takes: the manager has a thread for each, which performs the call.
"""

from __future__ import annotations

import asyncio
import pickle
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar, cast

from mppool._client.channel import Channel, instead_of
from mppool._client.connect import Request, is_cut_off
from mppool._client.delegated import DelegatedLease
from mppool._remote.errors import unpack_error
from mppool._remote.opcodes import ERROR, goes_on
from mppool._remote.references import PoolUnknown, WithReferences
from mppool._wire import connection as wire
from mppool._wire.connection import Address, PayloadLost, Received
from mppool._wire.handshake import lacked_room
from mppool._wire.shared_memory import LARGE
from mppool.errors import ManagerLost, PoolClosed, PoolError, RemoteError

from .connecting import Lender, Made, in_thread
from .connection import AcquiringConnection, CallingConnection, bring, opened, unread

R = TypeVar("R")
T = TypeVar("T")

_MAX_OBJECTS = 32  # processes of objects to which connections are kept

Grant = tuple[AcquiringConnection, int, tuple[Any, ...]]
"""The connection and number of an acquire, and what the manager told of the lease."""


class LoopChannel:
    """The way of one loop to one manager.

    The loop keeps its connections, and they keep this. It does not keep them: so when the loop is closed they
    end at once, and not when the garbage is collected.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.loop = asyncio.get_running_loop()
        self._latest: weakref.ref[AcquiringConnection] | None = None
        self._to_manager = Lender(channel, self)
        self._to_objects: dict[Address, Lender] = {}
        self._under_way: dict[object, asyncio.Future[Any]] = {}
        self._next_look: asyncio.TimerHandle | None = None

    @classmethod
    def here(cls, channel: Channel) -> LoopChannel:
        """That of the running loop. `RuntimeError` if none runs in this thread."""
        loop = asyncio.get_running_loop()
        loops = vars(channel).get("_loops") or vars(channel).setdefault("_loops", _Loops())
        known = loops.get(loop)
        here = None if known is None else known()
        if here is None:
            here = cls(channel)
            loops[loop] = weakref.ref(here)
        return here

    def runs_here(self) -> bool:
        """Whether its loop runs in this thread."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:  # none does
            return False

    # -- acquires -------------------------------------------------------------------------------------

    def resume(self, pool_id: int) -> tuple[AcquiringConnection, DelegatedLease] | None:
        """A lease that this loop takes again by itself, and the connection that it was granted on."""
        connection = self._acquiring()
        delegated = None if connection is None else connection.parked.resume(pool_id)
        return None if connection is None or delegated is None else (connection, delegated)

    def is_connected_to(self, address: Address) -> bool:
        """Whether there is an open connection to the object there, over which no call goes."""
        lender = self._to_objects.get(address)
        return lender is not None and lender.is_connected()

    async def acquire(self, pool_id: int, timeout: float | None, where: str | None) -> Grant:
        """Wait for a lease. Cancelled, it leaves nothing behind.

        Raises what the manager raised, or `ManagerLost`.
        """
        request = "enqueue", pool_id, timeout, where
        try:
            return await self._acquire(request)
        except PoolUnknown as error:
            return await self._anew(self._acquire, request, error)

    async def _acquire(self, request: Request) -> Grant:
        for _ in range(2):  # the manager may have been replaced since the last request, or have just died
            connection = self._acquiring() or await self._connect_for_acquires(request)
            number, future = connection.ask(*self.channel.translated(request))
            self._mind_silence()
            try:
                outcome = opened(await future)
            except (EOFError, OSError) as error:
                # A batch may have been read, and run, where what was sent behind it has not been.
                if request[0] == "enqueue_batch" or unread(error):
                    raise self._lost(request, error) from error
                outcome = None
            except BaseException:  # of the task, which may have been cancelled when the object was granted
                connection.end(number)
                raise
            if outcome is not None:
                status, payload = outcome
                if status == ERROR:
                    raise unpack_error(payload)
                return connection, number, payload
        raise self._lost(request, EOFError("it ends again and again"))

    async def apply_batch(self, *call: Any) -> WithReferences:
        """What comes of a call in a batch. A small one is sent as an acquire is."""
        if _is_large(*call[-2:]):
            return cast(WithReferences, (await self.request(("apply_batch", *call)))[1])
        request = "enqueue_batch", *call
        try:
            _, _, packed = await self._acquire(request)
        except PoolUnknown as error:
            _, _, packed = await self._anew(self._acquire, request, error)
        return cast(WithReferences, packed)

    async def _connect_for_acquires(self, request: Request) -> AcquiringConnection:
        connect = partial(self.channel.connect_for, request, None)
        made: AcquiringConnection = await self._once("acquiring", connect, self._on_made)
        return made

    def _on_made(self, made: Made) -> AcquiringConnection:
        connection = AcquiringConnection(made[0], self)
        self._latest = weakref.ref(connection)
        return connection

    def _acquiring(self) -> AcquiringConnection | None:
        """The connection for acquires, if there is one."""
        present = None if self._latest is None else self._latest()
        return present if present is not None and present.is_usable() else None

    # -- other requests -------------------------------------------------------------------------------

    async def request(
        self, request: Request, address: Address | None = None, timeout: float | None = None
    ) -> tuple[int, Any]:
        """Send a request to the manager, or to the object's own process there, and wait for its reply.

        Raises as `Channel.request`. Interrupted, it closes the connection.
        """
        lender = self._to_manager if address is None else self._lender_for(address)
        try:
            return await self._request(lender, timeout, request)
        except PoolUnknown as error:
            return await self._anew(partial(self._request, lender, timeout), request, error)

    async def _request(self, lender: Lender, timeout: float | None, request: Request) -> tuple[int, Any]:
        request = self.channel.translated(request)
        deadline = None if timeout is None else self.loop.time() + timeout
        self._mind_silence()
        try:
            for anew in (False, True):  # as for an acquire
                connection = await lender.borrow(request, deadline, anew)
                try:
                    received = await connection.ask(request, deadline)
                    if received is not None:
                        status, payload = await self._answer(connection, request, deadline, received)
                        if lender is self._to_manager and goes_on(status, payload):
                            connection.close()  # what is asked next must not wait behind it
                        break
                finally:
                    lender.give_back(connection)
            else:
                raise EOFError("it ends again and again")
        except PayloadLost as error:  # the reply is read, though not to be had
            raise RemoteError(str(error)) from error
        except (EOFError, OSError) as error:
            raise self._lost(request, error) from error
        if status != ERROR:
            return status, payload
        try:
            raise payload if isinstance(payload, Exception) else unpack_error(payload)
        finally:
            del payload  # with this frame, which its traceback knows, it would keep all that was called

    async def _answer(
        self, connection: CallingConnection, request: Request, deadline: float | None, received: Received
    ) -> tuple[int, Any]:
        """What an answer brings. If that cannot be rebuilt, what it was stays where it is."""
        data, buffers = received
        try:
            status, payload = pickle.loads(data, buffers=buffers)
        except Exception as error:
            lost, keep = instead_of(request, received, error)
            if keep is None:
                return ERROR, lost
            kept = await connection.ask(keep, deadline)
            if kept is None:
                raise EOFError("it has just ended") from error
            status, payload = pickle.loads(kept[0], buffers=kept[1])
            return (ERROR, lost) if status == ERROR else (status, payload)
        return status, payload

    async def _anew(self, ask: Callable[[Request], Awaitable[R]], request: Request, error: PoolUnknown) -> R:
        """Ask once more: a manager with a name does not know the pool, and makes it first."""
        try:
            if not await self._once(request[1], partial(self.channel.make_anew, request[1])):
                raise error
            return await ask(request)
        except PoolUnknown as unknown:
            raise PoolClosed(str(unknown)) from None

    async def _once(self, key: object, do: Callable[[], T], then: Callable[[T], Any] | None = None) -> Any:
        """What a thread does, and `then` the loop makes of it, for all tasks that want it at this time."""
        if key not in self._under_way:
            self._under_way[key] = self.loop.create_future()
            in_thread(do, partial(self._on_done, key, then))
        return opened(await asyncio.shield(self._under_way[key]))

    def _on_done(self, key: object, then: Callable[[T], Any] | None, outcome: T | BaseException) -> None:
        future = self._under_way.pop(key)
        if then is not None and not isinstance(outcome, BaseException):
            try:
                outcome = then(outcome)
            except BaseException as error:  # of this process, which has no room for more
                outcome = error
        bring(future, outcome)

    def _lost(self, request: Request, error: BaseException) -> BaseException:
        if not is_cut_off(error):
            return error
        return ManagerLost(f"the manager at {self.channel.address!r} ended during {request[0]!r}")

    def _lender_for(self, address: Address) -> Lender:
        lender = self._to_objects.pop(address, None) or Lender(self.channel.to_object(address), self)
        self._to_objects[address] = lender  # the latest used at the end
        if len(self._to_objects) > _MAX_OBJECTS:
            self._close_oldest()
        return lender

    def _close_oldest(self) -> None:
        """Keep no connection to the object that was unused the longest. One in a call is looked after."""
        unused = [each for each, lender in self._to_objects.items() if not lender.in_use][:-1]
        if unused:
            self._to_objects.pop(unused[0]).close()

    # -- silence ----------------------------------------------------------------------------------------

    def _mind_silence(self) -> None:
        """Something is waited for: look now and then whether the other side is alive."""
        if self._next_look is None:
            self._next_look = self.loop.call_later(wire.SILENCE_SECONDS, self._look)

    def _look(self) -> None:
        self._next_look = None
        calls = [each for lender in self._lenders() for each in lender.lent]
        since = [each.asked_at for each in calls]
        acquiring = self._acquiring()
        if acquiring is not None and (oldest := acquiring.waits_since()) is not None:
            since.append(oldest)
        if not since:
            return
        self._mind_silence()
        silent_since = self.loop.time() - wire.SILENCE_SECONDS
        if min(since) <= silent_since:
            objects = [each for lender in self._to_objects.values() for each in lender.lent]
            silent = [each for each in objects if each.asked_at <= silent_since]
            in_thread(partial(self._ask_fates, silent), self._on_fates)

    def _lenders(self) -> list[Lender]:
        return [self._to_manager, *self._to_objects.values()]

    def _ask_fates(self, silent: list[CallingConnection]) -> dict[CallingConnection, PoolError]:
        """See whether the manager is alive, and ask it what became of objects. Runs in a thread."""
        self.channel.ping()
        lost = {}
        for each in silent:
            if (request := each.request) is not None:
                try:
                    self.channel.request(("fate", *request[1:3]))
                except PoolError as error:
                    if not (isinstance(error, ManagerLost) and lacked_room(error)):  # else it is asked again
                        lost[each] = error
        return lost

    def _on_fates(self, outcome: dict[CallingConnection, PoolError] | BaseException) -> None:
        if isinstance(outcome, dict):
            for connection, error in outcome.items():
                connection.fail(error)
        elif isinstance(outcome, PoolError):  # else this process has no room to look
            for each in [each for lender in self._lenders() for each in lender.lent]:
                each.fail(outcome)
            if (acquiring := self._acquiring()) is not None:
                acquiring.fail(outcome)


def _is_large(*pickles: WithReferences) -> bool:
    """Whether a connection of its own, with memory files, is worth its while for this."""
    sizes = (len(data) + sum(each.raw().nbytes for each in buffers) for data, buffers in pickles)
    return bool(sum(sizes) >= LARGE)


class _Loops(weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, "weakref.ref[LoopChannel]"]):
    """The channels of the loops of this process to one manager."""
