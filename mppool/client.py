"""`ObjectPool`: a pool as worker processes see it."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Concatenate, Generic, TypeVar, cast

from .calls import APPLY
from .channel import Channel, Line, ObjectChannel
from .errors import CallTimeout, LeaseError, LeaseLost, ManagerLost, PoolError
from .handle import lease_of, make_handle
from .options import USE_DEFAULT, Timeout, seconds
from .stats import LeaseInfo, PoolStats
from .wire import Address, Overdue

T = TypeVar("T")
R = TypeVar("R")

Description = tuple[int, str, float | None, bool, float | None, bool]
"""What the manager tells of a pool: its id, name, timeout, whether leases are traced, call_timeout, and
whether its objects live apart, in processes of their own."""

_TRACE = "MPPOOL_TRACE" in os.environ
_HERE = os.path.dirname(__file__)


class ObjectPool(Generic[T]):
    """A pool in a manager's process, for any process of the machine: it pickles small and cheap.

    Every method runs here and asks the manager. All of them raise `PoolClosed` if the pool was closed
    or its manager has shut down, and `ManagerLost` if the manager died or gives no sign of life for
    twice `mppool.wire.BOUND` seconds. Timeouts are in seconds.
    """

    def __init__(self, address: Address, home: str | None, description: Description) -> None:
        self._address = address
        self._description = description
        self._id, self.name, self._timeout, self._traced, self._call_timeout, self._apart = description
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
            lease = Lease(channel, direct, line, self._id, self.name, lease_id, self._call_timeout)
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
        if not isinstance(lease, Lease) or lease.pool_id != self._id:
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
        while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) == _HERE:
            frame = frame.f_back
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Lease:
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
        line: Line,
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
            except Overdue:
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
