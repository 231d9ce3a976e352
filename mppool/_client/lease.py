"""A lease, as its holder sees it."""

from __future__ import annotations

import pickle
import sys
import threading
import warnings
from collections.abc import Collection
from functools import partial
from typing import Any

from mppool._pool_info import PoolInfo
from mppool._remote.family import AnyLease
from mppool._remote.opcodes import LEAVE_NOTHING
from mppool._remote.references import fails_again
from mppool._wire.connection import DeadlineExceeded
from mppool.errors import CallTimeout, LeaseError, LeaseLost, ManagerLost, RemoteError, Unreachable

from .channel import Channel, ObjectChannel
from .connect import Request
from .connection import ClientConnection
from .delegated import DelegatedLease, Parked, Reminder


class Lease:
    """What every lease is to its holder, whether threads or an event loop call its object."""

    __slots__ = (
        "__weakref__",
        "_calls",
        "_channel",
        "_delegated",
        "_generation",
        "_info",
        "_reminder",
        "ended",
        "id",
        "pool_id",
    )

    def __init__(
        self, channel: Channel, info: PoolInfo, lease_id: int, delegated: DelegatedLease | None = None
    ) -> None:
        self._channel = channel
        self._delegated = delegated
        self._calls: list[None] = []
        """Those that go on, or of which something may be left. To put one in or take one out is one step."""
        self._generation = channel.generation
        self._info = info
        self.pool_id = info.pool_id
        self.id = lease_id
        # A delegated one tells by itself.
        self._reminder = None if delegated else Reminder(channel.telling(self._giving_back(False)))
        self.ended = False
        channel.held[lease_id] = (threading.get_ident(), self._giving_back(False))

    def check(self) -> None:
        """Raise `LeaseError` if this lease is not to be used, or not here."""
        if self.ended or self._generation != self._channel.generation:
            raise self._misuse()

    def why_apart(self, other: AnyLease) -> str | None:
        """Why the object of another lease cannot be used in a call on this one; None if it can."""
        one = _own(other)
        one.check()
        if one._channel is not self._channel:
            return "objects of two managers cannot meet in one call: no process has both"
        for each in (self, one):
            if each._info.isolation != "none":
                where = f"objects of pool {each._info.name!r} live in a {each._info.isolation} of their own"
                return f"objects of two leases cannot meet in one call, since {where}"
        return None

    def request_beside(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: Collection[AnyLease],
    ) -> Request:
        """What asks for a call with objects of other leases: it is one on each of them.

        When one of these leases ends, the manager is told.
        """
        for each in map(_own, beside):
            each._calls.append(None)
            each.check()  # that it was not ended before the call was seen there
        others = [(each.pool_id, each.id) for each in beside]
        return "call_beside", self.pool_id, self.id, others, target, op, args, kwargs

    def release(self, discard: bool) -> None:
        """End the lease. The manager is told, but not waited for."""
        self.check()
        self._end(discard)

    def _end(self, discard: bool) -> None:
        try:
            if (delegated := self._delegated) is not None:
                del self._delegated  # one step: of two threads that release, one ends the lease
                self.ended = True  # no call begins after this, so `_calls` has those of other threads, too
        except AttributeError:
            raise self._misuse() from None
        if delegated is not None:
            self._end_delegated(delegated, discard)
            return
        self._give_back(discard)
        self.ended = True  # only now: if this is interrupted, the finalizer tells (again, which does no harm)
        self._leave_reminder()
        self._channel.held.pop(self.id, None)

    def _end_delegated(self, delegated: DelegatedLease, discard: bool) -> None:
        """Park the object, unless the manager has something to do: then it is told, as of every lease."""
        parked = None
        try:
            self._channel.held.pop(self.id, None)  # before another thread has the same lease
            if not (discard or self._calls):
                parked = self._where_to_park()
            if parked is None or not delegated.park():
                self._give_back(discard)
                delegated.leave()
                return
        except BaseException:
            delegated.end()
            raise
        parked.add(self.pool_id, delegated)  # from now on it may be another thread's: it is not ended here

    def _where_to_park(self) -> Parked | None:
        """Where the object is to lie; None if the manager is to be told."""
        return self._channel.parked

    def _give_back(self, discard: bool) -> None:
        self._channel.notify(self._giving_back(discard))

    def _give_back_forgotten(self) -> None:
        """The same for a finalizer: no I/O, and no lock."""
        self._channel.notify_soon(self._giving_back(False))
        delegated = getattr(self, "_delegated", None)  # not there where a release was interrupted
        if delegated is not None:
            delegated.leave()  # last: if this is interrupted, its own finalizer tells

    def _leave_reminder(self) -> None:
        if self._reminder is not None:
            self._reminder.leave()

    def _giving_back(self, discard: bool) -> Request:
        return ("release", self.pool_id, self.id, discard)

    # At interpreter exit the modules' globals may be None already: what it needs it has as defaults.
    def __del__(self, _is_finalizing: Any = sys.is_finalizing, _warn: Any = warnings.warn) -> None:
        if getattr(self, "ended", True) or self._generation != self._channel.generation:
            return  # "ended" is missing where `__init__` was interrupted
        if not _is_finalizing():  # else this process has given back what it held
            self._give_back_forgotten()
        self.ended = True
        self._leave_reminder()
        self._channel.held.pop(self.id, None)
        if not self._info.lends_values:  # else no handle was forgotten, but a block never left
            text = f"pool {self._info.name!r}: a handle was never released; use `with pool.lease()`"
            _warn(text, ResourceWarning, stacklevel=2, source=self)

    def _call_timed_out(self, has_process: bool) -> CallTimeout:
        outcome = "its object is replaced, and closed when the call has ended"
        if has_process:
            outcome = "its process is killed, and its object replaced"
        text = f"a call took longer than call_timeout={self._info.call_timeout:g} s; {outcome}"
        return CallTimeout(f"pool {self._info.name!r}: {text}")

    def _unreachable(self) -> LeaseLost:
        text = "the process of its object cannot be reached, though it lives"
        return LeaseLost(f"pool {self._info.name!r}: lease {self.id} is over: {text}")

    def _misuse(self) -> LeaseError:
        text = "this handle was released"
        if self._generation != self._channel.generation:
            text = (
                "a handle belongs to the process that acquired it, and this is a forked child of that: "
                "acquire from the pool here"
            )
        return LeaseError(f"pool {self._info.name!r}: {text}")


def _own(lease: AnyLease) -> Lease:
    assert isinstance(lease, Lease)
    return lease


class HeldLease(Lease):
    """The worker's side of a lease; all handles to its object share it. Runs in the worker's process.

    What its handles rely on:

    - **Ended.** A handle whose lease ended (released, expired, reclaimed, its manager restarted) gets
      `LeaseError` or `LeaseLost`; it never reaches the object that another holder has now.
    - **Threads.** Threads that share a handle take turns: their calls on one object never overlap.
    - **Interrupts.** A call that is interrupted (Ctrl-C, a signal handler that raises) drops the connection
      it used, so no later call can get its answer. The lease stays.
    - **Forks.** The handle of a process that forks works on; in the child it is refused with `LeaseError`,
      and the child can acquire an object of its own.
    - **Forgotten handles.** When the last handle is collected, the object is released, with a
      `ResourceWarning`. `max_hold` is the backstop; `ObjectPool.leases` names the holder and, with
      `max_hold`, `warn_hold` or MPPOOL_TRACE=1, the line that acquired. A process that ends in order gives
      back all that it holds, but for what threads acquired that its end still has to wait for.
    - **Long calls.** A call that takes longer than `call_timeout` gets `CallTimeout`, and the lease is over:
      the object is replaced at once, and closed when the call has ended. One in a process of its own is
      killed, with all processes that it started.
    - **Crashes.** Where the object's own process dies, a call gets `LeaseLost`, which names the signal.
    - **A manager that freezes.** What is released meanwhile comes home when it wakes up.

    It keeps the connection that it is granted on, even when the thread that acquired it has ended: a
    connection that closes before the manager knows that the grant arrived gives the object back.
    """

    __slots__ = ("_call_lock", "_connection", "_object_channel")

    def __init__(
        self,
        channel: Channel,
        object_channel: ObjectChannel | None,
        connection: ClientConnection | None,
        info: PoolInfo,
        lease_id: int,
        delegated: DelegatedLease | None = None,
    ) -> None:
        self._object_channel = object_channel  # where the object has a process of its own
        self._connection = connection
        # So that waiting for another thread's call is no part of a call. A signal handler may call again.
        needs_lock = object_channel is not None or info.call_timeout is not None
        self._call_lock = threading.RLock() if needs_lock else None
        super().__init__(channel, info, lease_id, delegated)

    @property
    def same_hashes(self) -> bool:
        """Whether strings hash alike here and where the object lives. May ask there, as a call does."""
        return (self._object_channel or self._channel).has_same_hashes(("call", self.pool_id, self.id))

    def call(
        self,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: Collection[AnyLease] = (),
    ) -> tuple[int, Any]:
        """One call on the object, or on something that an earlier call returned.

        `beside` has other leases, of which there are objects among the arguments.
        """
        self._calls.append(None)  # first: a thread that ends the lease looks for it after that
        if self.ended or self._generation != self._channel.generation:
            raise self._misuse()
        request: Request = ("call", self.pool_id, self.id, target, op, args, kwargs)
        if beside:
            request = self.request_beside(target, op, args, kwargs, beside)
        answer = self._ask(request)
        if answer[0] in LEAVE_NOTHING and not beside:  # else, as after an error, the manager hears of the end
            self._calls.pop()
        return answer

    def _ask(self, request: Request) -> tuple[int, Any]:
        if self._call_lock is None:
            return self._channel.request(request)
        with self._call_lock:
            try:
                return (self._object_channel or self._channel).request(request, self._info.call_timeout)
            except DeadlineExceeded:
                self._abandon()
                raise self._call_timed_out(self._object_channel is not None) from None
            except (LeaseLost, ManagerLost) as error:
                self._explain(error)
                raise

    def leave_call(self) -> None:
        """The last call is answered and goes on: what this thread asks next must not wait behind it."""
        if self._object_channel is None:  # else only calls of this lease go there, and those wait in any case
            self._channel.drop()

    def _abandon(self) -> None:
        self._channel.request(("give_up", self.pool_id, self.id))

    def _explain(self, error: LeaseError | ManagerLost) -> None:
        """The object's own process refused a call, or is lost: raise what the manager knows of it."""
        if self._object_channel is None or isinstance(error, Unreachable):  # which is what it knows
            return
        self._channel.request(("fate", self.pool_id, self.id))
        if isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
            self._abandon()
            raise self._unreachable() from error


class LeaseOfValue(Lease):
    """The lease of a value, which is lent as it is: there is no handle that could be forgotten.

    It lasts until it is released, or as long as the block that holds it.
    """

    item: int
    value: Any
    thread: int
    superseded: bool

    def _hold(self, item: int, value: Any) -> None:
        self.item, self.value = item, value
        self.thread = threading.get_ident()
        self.superseded = False
        self._channel.values.add(self)

    def _end(self, discard: bool) -> None:
        super()._end(discard)
        self._channel.values.drop(self)


def loaded(info: PoolInfo, pickled: bytes) -> Any:
    """The item of a pool of values. `RemoteError` if it is not known here."""
    try:
        return pickle.loads(pickled)
    except Exception as error:
        if not fails_again(partial(pickle.loads, pickled)):
            raise
        raise RemoteError(f"pool {info.name!r}: its item cannot be rebuilt here: {error!r}") from error


class ValueLease(LeaseOfValue, HeldLease):
    """That of a thread."""

    def __init__(
        self,
        channel: Channel,
        connection: ClientConnection,
        info: PoolInfo,
        lease_id: int,
        item: int,
        pickled: bytes,
    ) -> None:
        try:
            value = loaded(info, pickled)
        except RemoteError:
            channel.drop()  # with which the lease ends
            raise
        super().__init__(channel, None, connection, info, lease_id)
        self._hold(item, value)
