"""`AsyncPool`: a pool as the tasks of an event loop see it."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from operator import attrgetter
from typing import Any, Concatenate, Generic, TypeVar, cast, overload

from mppool._client.batches import steps_of_batch
from mppool._client.delegated import DelegatedLease
from mppool._client.face import PoolFace
from mppool._client.lease import loaded
from mppool._remote.async_handle import apply_to_async, async_class_for, make_async_handle
from mppool._remote.family import lease_of
from mppool._remote.steps import drive_async
from mppool._validation import USE_DEFAULT, Timeout, expect, seconds
from mppool.errors import LeaseError
from mppool.options import is_awaitable
from mppool.stats import LeaseInfo, ObjectInfo, PoolStats

from .channel import LoopChannel
from .connection import AcquiringConnection
from .lease import AsyncLease, AsyncValueLease
from .mapping import iterator_of, results

T = TypeVar("T")
H = TypeVar("H")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])


def _awaited(method: F) -> F:
    """Has frameworks await a method, as a background task, say, that checks its call before it begins."""
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(method)
    marked: Any = method
    coroutines: Any = asyncio.coroutines
    marked._is_coroutine = coroutines._is_coroutine
    return method


class AsyncPool(PoolFace, Generic[T, H]):
    """The face of a pool for asyncio, `pool.aio`: the same pool, objects, queue, options and errors.

    Its methods are called and awaited in an event loop, of asyncio's or of a kind that has `add_reader`, such
    as uvloop's. They run in the process of that, and never make the loop wait; there is no thread for one
    that waits. All acquires of a loop share one connection to the manager, and each call that is under way
    has another one. What is large is copied piece by piece; only a result that is one large `bytes`, or the
    first large one of its connection, or that comes over TCP, is copied at once.

    Objects are lent as `AsyncHandle`: its methods give awaitables. The objects of a coroutine factory are
    lent as what they are to their own users, and values as they are.

    **Cancelled.** An acquire that is cancelled, by `asyncio.timeout` or a task group, say, is out of the
    queue at once, and an object that was granted just then goes back. A cancelled call is over for its task;
    where the object lives it runs on to its end (`call_timeout` bounds that), and the lease stays. If that is
    released before, the object is replaced.

    **Loops.** A handle belongs to the loop in which it was acquired: `LeaseError` in another one. When a loop
    is closed, the leases that it has are over, and their objects go back. Each loop of a process has its own
    connections, and so has a forked child. It pickles, as the pool does.

    Raises:
        RuntimeError: from every method: it was called where no event loop runs.
        PoolError: from every method, as from those of `ObjectPool`.
    """

    def __init__(self, pool: PoolFace) -> None:
        self._pool = pool
        self._know(pool._channel, pool._info)

    def __reduce__(self) -> tuple[Any, ...]:
        return attrgetter("aio"), (self._pool,)

    def __eq__(self, other: object) -> bool:
        return self._pool == other._pool if isinstance(other, AsyncPool) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._pool)

    def __repr__(self) -> str:
        return f"<the asyncio face of pool {self.name!r}>"

    @_awaited
    def acquire(self, timeout: Timeout = USE_DEFAULT) -> Coroutine[Any, Any, H]:
        """Borrow an object until `release`.

        Args:
            timeout: seconds to wait for an object; 0 takes one at once or fails, None waits without end.
                Default: the pool's `timeout`.

        Raises:
            PoolTimeout: no object came free in time.
            TooManyWaiting: `max_waiting` others wait already.
            FactoryError: the object that was to be built for this call could not be.
        """
        way = self._way("acquire")
        return self._acquire_kept(way, self._seconds(timeout), self._caller())

    async def _acquire_kept(self, way: LoopChannel, timeout: float | None, where: str | None) -> H:
        handle, lease = await self._acquire(way, timeout, where)
        if isinstance(lease, AsyncValueLease):
            way.channel.values.keep(lease)
        return handle

    async def _acquire(
        self, way: LoopChannel, timeout: float | None, where: str | None
    ) -> tuple[H, AsyncLease]:
        """A handle, or a value, and its lease."""
        info = self._info
        if (resumed := way.resume(info.pool_id)) is not None:
            try:
                return self._held(way, *resumed)
            except BaseException:  # interrupted
                resumed[1].end()
                raise
        connection, number, told = await way.acquire(info.pool_id, timeout, where)
        try:
            if info.lends_values:
                lease_id, item, pickled, *_ = told
                held = AsyncValueLease(way, connection, number, info, lease_id, item, loaded(info, pickled))
                return held.value, held
            lease_id, known_as, _, address, parking = told
            kind = async_class_for(connection.interfaces[known_as])
            known = number, address, kind
            is_object_there = None if address is None else partial(way.is_connected_to, address)
            delegated = way.channel.delegated(parking, is_object_there, info.pool_id, lease_id, *known)
            lease = AsyncLease(way, connection, number, address, info, lease_id, delegated)
            return cast(H, make_async_handle(kind, lease)), lease
        except BaseException:
            connection.end(number)
            raise

    def _held(
        self, way: LoopChannel, connection: AcquiringConnection, delegated: DelegatedLease
    ) -> tuple[H, AsyncLease]:
        """A handle, and its lease, of an object that this loop has taken again by itself."""
        lease_id, number, address, kind = delegated.known
        lease = AsyncLease(way, connection, number, address, self._info, lease_id, delegated)
        return cast(H, make_async_handle(kind, lease)), lease

    @_awaited
    def release(self, handle: H, *, discard: bool = False) -> Coroutine[Any, Any, None]:
        """Give an object back. The manager is told, not waited for: this never lets another task run.

        A delegated object lies parked at this loop, as with `ObjectPool.release`. Of any other, what is asked
        right afterwards with `timeout=0`, but not by this loop, may reach it first.

        Args:
            handle: what `acquire` gave, of this pool, in this loop; or a value equal to that.
            discard: have the object closed instead of lent again. Default: False.

        Raises:
            LeaseError: the handle is another pool's or loop's, or was released before; or this process does
                not hold the value.
            TypeError: it is no handle.
        """
        self._way("release")
        return self._release(handle, discard)

    async def _release(self, handle: H, discard: bool) -> None:
        if self._lends_values:
            self._release_value(cast(T, handle), discard)
            return
        lease: Any = lease_of(handle)
        if not isinstance(lease, AsyncLease) or lease.pool_id != self._id:
            raise LeaseError(f"pool {self.name!r}: this handle is of another pool, or not of its aio")
        lease.release(discard)

    def lease(
        self, timeout: Timeout = USE_DEFAULT, *, discard_on_error: bool = False
    ) -> AbstractAsyncContextManager[H]:
        """`acquire` and `release` around an `async with` block. Its exception passes, and is never masked.

        Args:
            timeout: as for `acquire`.
            discard_on_error: have the object closed instead of lent again if the block ends in an exception,
                also if it is cancelled. Default: False.

        Raises:
            PoolError: as `acquire`, when the block is entered.
        """
        expect(isinstance(discard_on_error, bool), "discard_on_error", "True or False", discard_on_error)
        return _AsyncLeasing(self, timeout, discard_on_error)

    @overload
    def apply(
        self,
        func: Callable[Concatenate[T, ...], Awaitable[R]],
        /,
        *args: Any,
        timeout: Timeout = USE_DEFAULT,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def apply(
        self,
        func: Callable[Concatenate[T, ...], R],
        /,
        *args: Any,
        timeout: Timeout = USE_DEFAULT,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, R]: ...

    @_awaited
    def apply(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,
        timeout: Timeout = USE_DEFAULT,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Acquire, `func(object, *args, **kwargs)` where the object lives, release.

        With a value `func` runs here, in the loop; what it returns is awaited if it can be.

        Args:
            func: what to call; for the objects of a coroutine factory it may be a coroutine function. It, its
                arguments and its result have to pickle, unless it runs here.
            *args: its further arguments.
            **kwargs: its keyword arguments.
            timeout: as for `acquire`.

        Raises:
            Exception: as `ObjectPool.apply`.
        """
        self._way("apply")
        return self._apply(self.lease(timeout), func, args, kwargs)

    async def _apply(
        self,
        leasing: AbstractAsyncContextManager[Any],
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        async with leasing as handle:
            if not self._lends_values:
                return await apply_to_async(handle, func, args, kwargs)
            result = func(handle, *args, **kwargs)
            return await result if is_awaitable(result) else result

    @overload
    def apply_batch(
        self, func: Callable[[T, list[I]], Awaitable[Iterable[R]]], item: I, *, timeout: Timeout = USE_DEFAULT
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def apply_batch(
        self, func: Callable[[T, list[I]], Iterable[R]], item: I, *, timeout: Timeout = USE_DEFAULT
    ) -> Coroutine[Any, Any, R]: ...

    @_awaited
    def apply_batch(
        self, func: Callable[..., Any], item: Any, *, timeout: Timeout = USE_DEFAULT
    ) -> Coroutine[Any, Any, Any]:
        """`func(object, [items])` for the items of many callers; gives the result for this one.

        A call shares the connection for acquires; one with a large item has another one meanwhile.

        Args:
            func: what to call, as for `ObjectPool.apply_batch`.
            item: what this caller brings.
            timeout: as for `acquire`; 0 takes an object at once, and joins no batch that waits.

        Raises:
            Exception: as `ObjectPool.apply_batch`.
        """
        way = self._way("apply_batch")
        self._refuse_batch_of_values()
        ask = partial(way.apply_batch, self._id, self._seconds(timeout), self._caller())
        return drive_async(steps_of_batch(ask, func, item))

    @overload
    def map(
        self,
        func: Callable[[T, I], Awaitable[R]],
        iterable: Iterable[I] | AsyncIterable[I],
        *,
        timeout: float | None = None,
    ) -> AsyncIterator[R]: ...

    @overload
    def map(
        self,
        func: Callable[[T, I], R],
        iterable: Iterable[I] | AsyncIterable[I],
        *,
        timeout: float | None = None,
    ) -> AsyncIterator[R]: ...

    def map(
        self,
        func: Callable[[T, I], Any],
        iterable: Iterable[I] | AsyncIterable[I],
        *,
        timeout: float | None = None,
    ) -> AsyncIterator[Any]:
        """`func(object, item)` for each item, beside as many objects as the pool has, for `async for`.

        It begins with the first result that is asked for, in as many tasks as `max_size` says then, and reads
        the input no more than two items ahead for each. Results come in order. An error comes in the place of
        its result, and the rest is cancelled, as when the iterator is closed.

        Args:
            func: what to call, as for `apply`.
            iterable: the items, or an asynchronous iterable of them.
            timeout: seconds from the first result that is asked for. Default: None, no end.

        Raises:
            TypeError: it is no iterable.
            PoolTimeout: from the iterator, when a result is not there in time.
            Exception: what `func` or `iterable` raises, from the iterator.
        """
        self._way("map")
        seconds("timeout", timeout, zero=True)
        return self._map(func, iterator_of(iterable), timeout)

    async def _map(
        self, func: Callable[[T, I], Any], items: Iterator[I] | AsyncIterator[I], timeout: float | None
    ) -> AsyncIterator[Any]:
        async def call(item: I, left: float | None) -> Any:
            return await self.apply(func, item, timeout=left)

        size = (await self.stats()).max_size
        found = results(self.name, call, items, size, timeout)
        async with aclosing(found):
            async for result in found:
                yield result

    @_awaited
    def stats(self) -> Coroutine[Any, Any, PoolStats]:
        """The pool's figures, now."""
        return self._ask("stats")

    @_awaited
    def leases(self) -> Coroutine[Any, Any, list[LeaseInfo]]:
        """Who holds what now, the longest held first."""
        return self._ask("leases")

    @_awaited
    def objects(self) -> Coroutine[Any, Any, list[ObjectInfo]]:
        """What objects there are now, lent or not, the oldest first."""
        return self._ask("objects")

    @_awaited
    def close(self, timeout: Timeout = USE_DEFAULT) -> Coroutine[Any, Any, None]:
        """Lend no more, wait for held objects, close all objects. Waiters get `PoolClosed`.

        Args:
            timeout: seconds that holders have; a lease that lasts longer is over. None waits without end.
                Default: the pool's `timeout`.
        """
        return self._ask("close", self._seconds(timeout))

    def _ask(self, what: str, *arguments: Any) -> Coroutine[Any, Any, Any]:
        way = self._way(what)
        return self._answer(way, (what, self._id, *arguments))

    async def _answer(self, way: LoopChannel, request: tuple[Any, ...]) -> Any:
        return (await way.request(request))[1]

    def _way(self, what: str) -> LoopChannel:
        """From the running loop to the manager."""
        try:
            return LoopChannel.here(self._channel)
        except RuntimeError:
            text = f"pool.aio.{what}() was called where no event loop runs: call it from a coroutine"
            other = f"elsewhere `pool.{what}()` does the same"
            raise RuntimeError(f"pool {self.name!r}: {text}; {other}") from None


class _AsyncLeasing(AbstractAsyncContextManager[H]):
    """What `AsyncPool.lease` returns."""

    def __init__(self, pool: AsyncPool[Any, H], timeout: Timeout, discard_on_error: bool) -> None:
        self._pool = pool
        self._timeout = timeout
        self._discard_on_error = discard_on_error
        self._leases: list[AsyncLease] = []  # a handle that the block forgets must not end its lease

    def __repr__(self) -> str:
        return f"<a lease of pool {self._pool.name!r}, for an `async with` block>"

    async def __aenter__(self) -> H:
        pool = self._pool
        way = pool._way("lease")
        handle, lease = await pool._acquire(way, pool._seconds(self._timeout), pool._caller())
        self._leases.append(lease)
        return handle

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        lease = self._leases.pop()
        if lease.ended:
            return  # released inside the block
        try:
            discard = self._discard_on_error and kind is not None
            lease.leave(discard, unfinished=kind is GeneratorExit)
        except Exception:
            if error is None:
                raise
