"""`ObjectPool`: a pool as worker processes see it."""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, TypeVar, cast, overload

from mppool import _version
from mppool._pool_info import PoolInfo
from mppool._remote.arguments import has_no_file, send_packed
from mppool._remote.family import AnyHandle, is_handle, lease_of
from mppool._remote.handle import apply_to, class_for, make_handle
from mppool._remote.opcodes import APPLY, Answer
from mppool._remote.references import DoesNotPickle, RequestLost
from mppool._remote.steps import Steps, drive
from mppool._validation import USE_DEFAULT, Timeout, expect, resolve, seconds
from mppool._wire.connection import DeadlineExceeded
from mppool._wire.handshake import other_version
from mppool.errors import LeaseError, PoolClosed, PoolError, RemoteError

from .batches import steps_of_batch
from .channel import Channel, ObjectChannel
from .connection import Cancellation
from .delegated import DelegatedLease
from .face import PoolFace
from .lease import HeldLease, ValueLease

if TYPE_CHECKING:
    from mppool._remote.async_handle import AsyncHandle
    from mppool._wire.delegation import Parking
    from mppool.options import PoolOptions
    from mppool.stats import LeaseInfo, ObjectInfo, PoolStats

    from .aio.pool import AsyncPool

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

_REPR_SECONDS = 0.1
"""What a `repr` waits for the manager at most: debuggers and logs make many, and must not hang."""


class ObjectPool(PoolFace, Generic[T]):
    """A pool in a manager's process, for any process of the machine: it pickles small and cheap.

    Pass it to a task, put it into `initargs`, or let a fork inherit it. Unpickling it opens no connection.
    Every method runs in the process that calls it and asks the manager's; factory, hooks and the functions
    of `apply` run where the objects live. Each thread has a connection of its own. Two `ObjectPool`s of the
    same pool are equal, in whichever way they came here.

    Whatever becomes of a worker, its object is not lost: when it is killed while it holds one, the object is
    closed and replaced (or reset, with `on_reclaim="reset"`; one that it never called just goes back) within
    milliseconds, and the next in the queue is served. When it is killed, gives up or is interrupted while it
    waits, its place in the queue is gone, and no object goes to it. When it is killed in the middle of a
    call, the call runs to its end, unseen; the object is replaced at once and closed after the call (one in
    a process of its own is killed). A worker that is merely stopped keeps what it holds: only proof of death
    takes a lease away, not psutil that cannot tell, nor a step of the wall clock.

    A worker that takes the same object again and again, while nothing else wants one, has it delegated: what
    it releases lies parked there, and its threads take it again without asking the manager. For all others a
    parked object is idle: it is lent to whichever process asks, whether the worker runs, stands still or was
    killed; a killed one held nothing then.

    A worker that replaces itself by `exec` counts as killed. One that ends in order (the end of its program,
    `sys.exit`, an executor's shutdown) gives back what it still holds.

    A child that is forked can use the pool at once, with connections of its own; handles stay the parent's.

    A pool of values (`create_pool(each=[0, 1])`, without a factory) lends the items as they are, one holder
    each: an `int` is an `int`. The value knows nothing of its lease, which ends when it is released, with its
    holder's process, or after `max_hold`: nothing keeps a holder from using it after that. The successor of a
    manager that died lends all values anew.

    Raises:
        PoolClosed: from every method: the pool was closed, or its manager has shut down.
        ManagerLost: from every method: the manager died (those who wait are told, too), refuses the key, or
            froze: no answer within two silences of 5 seconds each. A call that is merely long goes on. With
            `restart=True` the next acquire gets an object of a successor. From unpickling a pool: it comes
            from another version of mppool.
        TypeError: from every method: an argument of the wrong type.
        ValueError: from every method: a number out of range, such as a `timeout` below 0.
    """

    _applies_by_handle: bool
    """Whether `apply` is the three steps: the call has a bound, or goes to a process of the object's."""

    def __init__(self) -> None:
        raise TypeError("`PoolManager.create_pool()` makes a pool, and `get_pool()` finds one")

    @classmethod
    def _known_by(cls, channel: Channel, info: PoolInfo) -> ObjectPool[Any]:
        """The pool that a manager told of."""
        pool = AsyncObjectPool.__new__(AsyncObjectPool) if info.asynchronous else cls.__new__(cls)
        pool._know(channel, info)
        pool._applies_by_handle = info.isolation == "process" or info.call_timeout is not None
        return pool

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (*self._info, *self._channel.way(self._id))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ObjectPool):
            return NotImplemented
        return (self._channel.address, self._id) == (other._channel.address, other._id)

    def __hash__(self) -> int:
        return hash((self._channel.address, self._id))

    def __repr__(self) -> str:
        try:
            now: PoolStats = self._channel.request(("stats", self._id), _REPR_SECONDS)[1]
        except DeadlineExceeded:
            return f"<ObjectPool {self.name!r}: no answer from the manager within {_REPR_SECONDS:g} s>"
        except PoolError as error:
            return f"<ObjectPool {self.name!r}: {error}>"
        return f"<ObjectPool {self.name!r} idle={now.idle} leased={now.leased} waiting={now.waiting}>"

    def acquire(self, timeout: Timeout = USE_DEFAULT) -> T:
        """Borrow an object: a handle that stands for it until `release`; from a pool of values one of these.

        One that lies parked at this process is taken at once, without asking the manager. If this is
        interrupted after the object was granted, the object goes back.

        Args:
            timeout: seconds to wait for an object; 0 takes one at once or fails, None waits without end.
                Default: the pool's `timeout`.

        Raises:
            PoolTimeout: no object came free in time.
            TooManyWaiting: `max_waiting` others wait already.
            FactoryError: the object that was to be built for this call could not be.
        """
        handle, lease = self._acquire(timeout)
        if self._lends_values:
            self._channel.values.keep(cast(ValueLease, lease))
        return handle

    def _acquire(self, timeout: Timeout) -> tuple[T, HeldLease]:
        """A handle, or a value, and its lease."""
        channel, seconds = self._channel, self._seconds(timeout)
        delegated: DelegatedLease | None = None
        lease_id: int | None = None
        try:
            if (delegated := channel.parked.resume(self._id)) is not None:
                return self._held(delegated)
            request = ("acquire", self._id, seconds, self._caller())
            _, (lease_id, number, interface, address, delegation) = channel.request(request)
            connection = channel.connection()
            if self._lends_values:  # then it is the number of the item, and that as a pickle
                held = ValueLease(channel, connection, self._info, lease_id, number, interface)
                connection.granted = lease_id
                return held.value, held
            interface = connection.interfaces.setdefault(number, interface)  # each comes once
            object_channel = None if address is None else channel.to_object(address)
            kind = class_for(interface)
            delegated = self._delegated(connection.parking(delegation), lease_id, kind, object_channel)
            lease = HeldLease(channel, object_channel, connection, self._info, lease_id, delegated)
            handle = make_handle(kind, lease)
            connection.granted = lease_id
            if delegated is not None:
                connection.confirm()
            return cast(T, handle), lease
        except BaseException as error:
            if delegated is not None:
                delegated.end()
            elif lease_id is not None:  # on that connection something may have been asked meanwhile
                channel.notify_soon(("release", self._id, lease_id, False))
            elif isinstance(error, PoolError):
                raise
            channel.drop()  # interrupted: a lease that was granted, but not taken, goes back
            raise

    def _held(self, delegated: DelegatedLease) -> tuple[T, HeldLease]:
        """A handle, and its lease, of an object that this process has taken again by itself."""
        lease_id, kind, object_channel = delegated.known
        lease = HeldLease(self._channel, object_channel, None, self._info, lease_id, delegated)
        return make_handle(kind, lease), lease

    def _delegated(
        self, parking: Parking | None, lease_id: int, kind: type[AnyHandle], to_object: ObjectChannel | None
    ) -> DelegatedLease | None:
        """What is kept of a lease that was just granted, if it is delegated."""
        is_object_there = None
        if parking is not None and to_object is not None:
            try:
                is_object_there = to_object.watch_object(self._id, lease_id)
            except PoolError:  # it has ended: the first call tells
                return None
        return self._channel.delegated(parking, is_object_there, self._id, lease_id, kind, to_object)

    def release(self, handle: T, *, discard: bool = False) -> None:
        """Give an object back.

        A delegated one lies parked here, and is there at once for any process that asks, unless the lease was
        recalled or a call has left something. Else the manager is told, not waited for: what another process
        asks right afterwards with `timeout=0` may reach it first. A manager that stands still takes the
        object back when it goes on. That the lease was taken back meanwhile is no error here; the manager
        counts it.

        Of a value the lease is found by identity, else by equality: this thread's before another's, an
        acquired one before that of a `lease()` block, the oldest first.

        Args:
            handle: what `acquire` returned, of this pool, in this process; or a value equal to that.
            discard: have the object closed instead of lent again. Default: False.

        Raises:
            LeaseError: the handle is another pool's, another process's, or was released before; or this
                process does not hold the value. A forked child holds nothing of its parent's.
            TypeError: it is no handle.
        """
        if self._lends_values:
            self._release_value(handle, discard)
            return
        lease = lease_of(handle)
        if not isinstance(lease, HeldLease) or lease.pool_id != self._id:
            raise LeaseError(f"pool {self.name!r}: this handle is of another pool")
        lease.release(discard)

    def lease(
        self, timeout: Timeout = USE_DEFAULT, *, discard_on_error: bool = False
    ) -> AbstractContextManager[T]:
        """`acquire` and `release` around a `with` block. Its exception passes, and is never masked.

        Args:
            timeout: as for `acquire`.
            discard_on_error: have the object closed instead of lent again if the block ends in an exception.
                Default: False.

        Raises:
            PoolError: as `acquire`, when the block is entered.
        """
        expect(isinstance(discard_on_error, bool), "discard_on_error", "True or False", discard_on_error)
        return _Leasing(self, timeout, discard_on_error)

    def apply(
        self,
        func: Callable[Concatenate[T, ...], R],
        /,
        *args: Any,
        timeout: Timeout = USE_DEFAULT,
        **kwargs: Any,
    ) -> R:
        """Acquire, `func(object, *args, **kwargs)` where the object lives, release: one round trip.

        With `call_timeout` or `isolation="process"` it is the three steps. With a value `func` runs here.

        Args:
            func: what to call. It, its arguments and its result have to pickle, unless it runs here.
            *args: its further arguments.
            **kwargs: its keyword arguments.
            timeout: as for `acquire`.

        Raises:
            PoolError: as `acquire`.
            TypeError: an argument does not pickle; or the result does not, or it is, or refers to, what stays
                with the object.
            LeaseLost: the lease was over, or the object's process ended, before `func` had returned.
            CallTimeout: with `call_timeout`, where `func` takes longer.
            Exception: what `func` raises.
        """
        if self._lends_values:
            with self.lease(timeout) as value:
                return func(value, *args, **kwargs)
        if self._applies_by_handle or self._channel.parked.has(self._id):
            with self.lease(timeout) as handle:
                return cast(R, apply_to(handle, func, args, kwargs))
        request = ("apply", self._id, self._seconds(timeout), self._caller())
        call = (func, args, kwargs)
        problem = None
        if not has_no_file():
            try:
                return cast(R, self._channel.request((*request, APPLY, call))[1])
            except (DoesNotPickle, RequestLost) as error:
                problem = error

        def send(op: str, arguments: tuple[Any, ...]) -> Steps[Answer]:
            answer: Answer = yield partial(self._channel.request, (*request, op, arguments))
            return answer

        try:
            return cast(R, drive(send_packed(send, APPLY, call, {}, _no_handle, problem))[1])
        except _HandleError:  # its lease and that of this call are both needed
            with self.lease(timeout) as handle:
                return cast(R, apply_to(handle, func, args, kwargs))

    def apply_batch(
        self, func: Callable[[T, list[I]], Iterable[R]], item: I, *, timeout: Timeout = USE_DEFAULT
    ) -> R:
        """`func(object, [items])` for the items of many callers; returns the result for this one.

        Calls of one function, of whichever processes, that come while no object is free, or within
        `batch_wait` of the first one, are put together, `max_batch_size` at most. A batch queues with the
        acquires, in the place of its first call. A caller that dies, is interrupted or times out before its
        batch runs is not in it. Nothing is tried again. Several batches run at once, on several objects.

        Args:
            func: what to call where the object lives. It returns a list or an array of as many results, in
                the order of the items. An exception among them is raised for the caller of its item. Calls
                share a batch where it pickles to the same.
            item: what this caller brings. It and its result have to pickle, and are no handles.
            timeout: as for `acquire`; 0 takes an object at once, and joins no batch that waits.

        Raises:
            PoolError: as `acquire`.
            TypeError: function, item or result does not pickle, or the result is, or refers to, what stays
                with the object; `func` returns no list or array. In a pool of values: there `apply` does.
            ValueError: `func` returned a list of another length, which is an error for all callers.
            LeaseLost: the lease was over, or the object's process ended, before `func` had returned.
            CallTimeout: with `call_timeout`, where `func` takes longer.
            Exception: what `func` raises, for all callers.
        """
        self._refuse_batch_of_values()
        request = "apply_batch", self._id, self._seconds(timeout), self._caller()

        def ask(*call: Any) -> Any:
            return self._channel.request((*request, *call))[1]

        return cast(R, drive(steps_of_batch(ask, func, item)))

    def map(
        self, func: Callable[[T, I], R], iterable: Iterable[I], *, timeout: float | None = None
    ) -> Iterator[R]:
        """`func(object, item)` for each item, beside as many objects as the pool has, from this process.

        It begins at once, in threads of this process, as many as `max_size` says now, and reads the input no
        more than two items ahead for each. Results come in order. An error comes in the place of its result,
        and the rest is given up, as when the iterator is closed or dropped: no further call begins. With
        values `func` runs here.

        Args:
            func: what to call. It, the items and the results have to pickle, unless it runs here.
            iterable: the items.
            timeout: seconds from now for all of it. Default: None, no end, also in the queue for an object.

        Raises:
            PoolError: as `apply`; the first ones from this call.
            PoolTimeout: from the iterator, when a result is not there in time.
            Exception: what `func` or `iterable` raises, from the iterator.
        """
        from .mapping import MapThreads, results  # noqa: PLC0415  # threads and futures, which few workers need

        seconds("timeout", timeout, zero=True)
        items, call = iter(iterable), partial(self._call_for_item, func)
        found = results(MapThreads(self.name, self._channel, call, self.stats().max_size, timeout), items)
        next(found)  # it has begun, so that it ends its threads even if it is dropped before its first result
        return found

    def _call_for_item(
        self, func: Callable[[T, I], R], item: I, timeout: float | None, cancellation: Cancellation
    ) -> R:
        if not self._lends_values:
            return self.apply(func, item, timeout=timeout)
        with self.lease(timeout) as value:
            if cancellation.requested:
                raise PoolError("nothing waits for this value any more")
            return func(value, item)

    @property
    def aio(self) -> AsyncPool[T, AsyncHandle[T]]:
        """The same pool for the tasks of an event loop. May be asked for where none runs yet."""
        from .aio.pool import AsyncPool  # noqa: PLC0415  # with asyncio, which most workers do without

        return AsyncPool(self)

    @property
    def options(self) -> PoolOptions:
        """How the pool was made; each access asks the manager. `resize` changes what `stats` tells, not this.

        Raises:
            RemoteError: a hook, or a type in `keep`, is not known in this process.
        """
        from mppool.options import options_for  # noqa: PLC0415  # with dataclasses, which most workers do without

        items, given = self._channel.request(("options", self._id))[1]
        try:
            return options_for(items, pickle.loads(given))
        except Exception as error:
            raise RemoteError(f"pool {self.name!r}: its options cannot be rebuilt here: {error!r}") from error

    def wait(self, timeout: Timeout = USE_DEFAULT) -> None:
        """Wait until `min_size` objects are there, lent or not: at the start, or after a failure.

        Args:
            timeout: seconds; 0 only looks, None waits without end. Default: the pool's `timeout`.

        Raises:
            PoolTimeout: they are not there in time; it tells the last failure to build.
        """
        self._channel.request(("wait", self._id, self._seconds(timeout)))

    def stats(self) -> PoolStats:
        """The pool's figures, now."""
        return cast("PoolStats", self._channel.request(("stats", self._id))[1])

    def leases(self) -> list[LeaseInfo]:
        """Who holds what now, the longest held first."""
        return cast("list[LeaseInfo]", self._channel.request(("leases", self._id))[1])

    def objects(self) -> list[ObjectInfo]:
        """What objects there are now, lent or not, the oldest first."""
        return cast("list[ObjectInfo]", self._channel.request(("objects", self._id))[1])

    def resize(self, min_size: int | None = None, max_size: int | None = None) -> None:
        """Change the bounds; objects beyond them are closed as they come home.

        Args:
            min_size: objects to keep built. Default: None, unchanged.
            max_size: most objects at once. Default: None, unchanged.

        Raises:
            ValueError: a bound is out of range, `min_size` is more than `max_size`, or there are fewer items.
            TypeError: a bound is no whole number.
        """
        self._channel.request(("resize", self._id, min_size, max_size))

    def refresh(self) -> None:
        """Retire every present object, each as it comes home."""
        self._channel.request(("refresh", self._id))

    def close(self, timeout: Timeout = USE_DEFAULT) -> None:
        """Lend no more, wait for held objects, close all objects. Waiters get `PoolClosed`.

        Args:
            timeout: seconds that holders have; a lease that lasts longer is over. None waits without end.
                Default: the pool's `timeout`.
        """
        self._channel.request(("close", self._id, self._seconds(timeout)))
        self._channel.parked.forget_recalled()

    def __enter__(self) -> ObjectPool[T]:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """`close()`. The exception of the block passes, and is never masked."""
        try:
            self.close()
        except PoolClosed:
            pass  # so it is
        except PoolError:
            if error is None:
                raise


class AsyncObjectPool(ObjectPool[T]):
    """A pool whose factory is a coroutine function: each object has an event loop, as long as it lives.

    There the factory, the hooks, the object's methods and the functions of `apply` run. What they give that
    can be awaited is awaited there, before the answer is made. So who holds an object calls its coroutine
    methods like others, and uses `with` and `for` where it has `async with` and `async for`. Between calls
    the tasks that it has begun go on; they are cancelled when it leaves the pool. A call that has lost its
    lease, or takes longer than `call_timeout`, is cancelled (in a process of its own it is killed).
    """

    if TYPE_CHECKING:  # what is awaited there is the result here

        @overload
        def apply(
            self,
            func: Callable[Concatenate[T, ...], Awaitable[R]],
            /,
            *args: Any,
            timeout: Timeout = USE_DEFAULT,
            **kwargs: Any,
        ) -> R: ...
        @overload
        def apply(
            self,
            func: Callable[Concatenate[T, ...], R],
            /,
            *args: Any,
            timeout: Timeout = USE_DEFAULT,
            **kwargs: Any,
        ) -> R: ...
        def apply(self, func: Any, /, *args: Any, timeout: Timeout = USE_DEFAULT, **kwargs: Any) -> Any: ...

        @overload
        def map(
            self,
            func: Callable[[T, I], Awaitable[R]],
            iterable: Iterable[I],
            *,
            timeout: float | None = None,
        ) -> Iterator[R]: ...
        @overload
        def map(
            self, func: Callable[[T, I], R], iterable: Iterable[I], *, timeout: float | None = None
        ) -> Iterator[R]: ...
        def map(self, func: Any, iterable: Any, *, timeout: float | None = None) -> Any: ...

    @property
    def aio(self) -> AsyncPool[T, T]:  # type: ignore[override]
        """The same pool for the tasks of an event loop: they await what an object's own users would."""
        return cast("AsyncPool[T, T]", super().aio)


class _HandleError(Exception):
    """A handle is among the arguments."""


def _no_handle(obj: object) -> None:
    if is_handle(obj):
        raise _HandleError


# The arguments are plain values, the version first: another version can read that much before it looks at the
# rest.


def _unpickled(version: str, *state: Any) -> ObjectPool[Any]:
    if version != _version.__version__:
        raise other_version("this pickled pool", version)
    *info, way, arguments = state
    to_manager = cast("Callable[..., Channel]", resolve(way))
    return ObjectPool._known_by(to_manager(*arguments), PoolInfo(version, *info))


class _Leasing(AbstractContextManager[T]):
    """What `ObjectPool.lease` returns."""

    def __init__(self, pool: ObjectPool[T], timeout: Timeout, discard_on_error: bool) -> None:
        self._pool = pool
        self._timeout = timeout
        self._discard_on_error = discard_on_error
        self._leases: list[HeldLease] = []  # a handle that the block forgets must not end its lease

    def __repr__(self) -> str:
        return f"<a lease of pool {self._pool.name!r}, for a `with` block>"

    def __enter__(self) -> T:
        handle, lease = self._pool._acquire(self._timeout)
        self._leases.append(lease)
        return handle

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        lease = self._leases.pop()
        if lease.ended:
            return  # released inside the block
        try:
            lease.release(discard=self._discard_on_error and kind is not None)
        except Exception:
            if error is None:
                raise
