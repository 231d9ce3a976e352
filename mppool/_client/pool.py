"""`ObjectPool`: a pool as worker processes see it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Concatenate, Generic, TypeVar, cast

from mppool._remote.calls import APPLY
from mppool._remote.handle import lease_of, make_handle
from mppool._wire.connection import Address
from mppool.errors import LeaseError, PoolError
from mppool.options import USE_DEFAULT, Timeout, seconds
from mppool.stats import LeaseInfo, PoolInfo, PoolStats

from .channel import Channel
from .lease import HeldLease

T = TypeVar("T")
R = TypeVar("R")

_TRACE = "MPPOOL_TRACE" in os.environ
_HERE = os.path.dirname(os.path.dirname(__file__))


class ObjectPool(Generic[T]):
    """A pool in a manager's process, for any process of the machine: it pickles small and cheap.

    Every method runs here and asks the manager. All of them raise `PoolClosed` if the pool was closed
    or its manager has shut down, and `ManagerLost` if the manager died or gives no sign of life for
    twice `mppool._wire.connection.BOUND` seconds. Timeouts are in seconds.
    """

    name: str
    """As it was given to `create_pool`, or as the manager made it up."""

    def __init__(self, address: Address, home: str | None, description: tuple[Any, ...]) -> None:
        self._address = address
        self._description = description
        info = PoolInfo(*description)
        _, self._id, self.name, self._timeout, self._traced, self._call_timeout, self._apart = info
        self._channel = Channel.to(address, home)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectPool, (self._address, self._channel.home, self._description)

    def __repr__(self) -> str:
        try:
            now = self.stats()
        except PoolError as error:
            return f"<ObjectPool {self.name!r}: {error}>"
        return f"<ObjectPool {self.name!r} idle={now.idle} leased={now.leased} waiting={now.waiting}>"

    def acquire(self, timeout: Timeout = USE_DEFAULT) -> T:
        """Borrow an object: a handle that stands for it until `release`.

        `timeout`: 0 does not wait for another holder, None waits for ever, left out is the pool's.
        Raises `PoolTimeout`, `TooManyWaiting`, or `FactoryError` if the object that was to be built
        for this call could not be.
        """
        channel = self._channel
        request = ("acquire", self._id, self._patience(timeout), self._where())
        try:
            _, (lease_id, number, shape, address) = channel.exchange(request)
            line = channel.line()
            if shape is None:
                shape = line.shapes[number]
            else:
                line.shapes[number] = shape
            direct = None if address is None else channel.to_object(address)
            lease = HeldLease(channel, direct, line, self._id, self.name, lease_id, self._call_timeout)
            handle = make_handle(shape, lease, 0)
            line.granted = lease_id
            return cast(T, handle)
        except PoolError:
            raise
        except BaseException:
            channel.drop()  # so that a lease that was granted, but not taken, goes back
            raise

    def release(self, handle: T, *, discard: bool = False) -> None:
        """Give an object back; `discard=True` has it closed instead of lent again.

        `LeaseError` if the handle is another pool's, another process's, or was released before. That
        the lease was taken back meanwhile is no error here; the manager counts it.
        """
        lease = lease_of(handle)
        if not isinstance(lease, HeldLease) or lease.pool_id != self._id:
            raise LeaseError(f"pool {self.name!r}: this handle is of another pool")
        lease.release(discard)

    def lease(self, timeout: Timeout = USE_DEFAULT) -> AbstractContextManager[T]:
        """`acquire` and `release` around a `with` block. An exception passes, and is never masked."""
        return _Leasing(self, timeout)

    def apply(
        self,
        func: Callable[Concatenate[T, ...], R],
        /,
        *args: Any,
        timeout: Timeout = USE_DEFAULT,
        **kwargs: Any,
    ) -> R:
        """Acquire, `func(object, *args, **kwargs)` where the object lives, release: one round trip.

        `func`, arguments and result have to pickle. Raises what `func` raises, and as `acquire`. With
        `call_timeout` (then also `CallTimeout`) or `isolation="process"` it is the three steps.
        """
        if self._call_timeout is not None or self._apart:
            with self.lease(timeout) as handle:
                return cast(R, lease_of(handle).call(0, APPLY, (func, args, kwargs), {})[1])
        request = ("apply", self._id, self._patience(timeout), self._where(), func, args, kwargs)
        return cast(R, self._channel.exchange(request)[1])

    def stats(self) -> PoolStats:
        """The pool's figures."""
        return cast(PoolStats, self._channel.exchange(("stats", self._id))[1])

    def leases(self) -> list[LeaseInfo]:
        """Who holds what now, the longest held first."""
        return cast("list[LeaseInfo]", self._channel.exchange(("leases", self._id))[1])

    def resize(self, min_size: int | None = None, max_size: int | None = None) -> None:
        """Change the bounds; objects beyond them go as they come home. `ValueError` for wrong ones."""
        self._channel.exchange(("resize", self._id, min_size, max_size))

    def refresh(self) -> None:
        """Retire every present object, each as it comes home."""
        self._channel.exchange(("refresh", self._id))

    def close(self, timeout: Timeout = USE_DEFAULT) -> None:
        """Lend no more, await held objects `timeout` seconds, close all objects.

        Waiters get `PoolClosed`; a lease that lasts longer is over.
        """
        self._channel.exchange(("close", self._id, self._patience(timeout)))

    def _patience(self, timeout: Timeout) -> float | None:
        if timeout is USE_DEFAULT:
            return self._timeout
        seconds("timeout", timeout, zero=True)
        return timeout  # type: ignore[return-value]  # the default, by its identity, is out

    def _where(self) -> str | None:
        """The file and line outside of mppool that is acquiring, if the pool or MPPOOL_TRACE asks."""
        if not (self._traced or _TRACE):
            return None
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
            frame = frame.f_back
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class _Leasing(AbstractContextManager[T]):
    """What `ObjectPool.lease` returns."""

    def __init__(self, pool: ObjectPool[T], timeout: Timeout) -> None:
        self._pool = pool
        self._timeout = timeout
        self._handles: list[T] = []

    def __enter__(self) -> T:
        handle = self._pool.acquire(self._timeout)
        self._handles.append(handle)
        return handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        handle = self._handles.pop()
        if lease_of(handle).ended:
            return  # released inside the block
        try:
            self._pool.release(handle)
        except Exception:
            if error is None:
                raise
