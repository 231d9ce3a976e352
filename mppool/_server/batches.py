"""Calls of many clients that are put together into one: `apply_batch`.

    a client   --  function, item  -->  `Batches.add`: into the batch of that function, or a new one,
                                        which acquires an object as a client does: that is its place
    the pool   --  a lease         -->  `_run`: waits until the batch is full, or long enough; then one
                                        call with all items
    each client   <--  its answer       a client that has gone meanwhile is not missed

A batch that waits for its object takes further calls of its function, without going back in the queue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pickle import PickleBuffer
from typing import Any, cast

from mppool._pool.entry import Lease
from mppool._pool.pool import Pool
from mppool._pool.waiters import Outcome, Waiter, Waiters
from mppool._process.runner import ProcessRunner
from mppool._remote.batches import apply_batch, result_as_answer
from mppool._remote.errors import error_answer
from mppool._remote.opcodes import Answer
from mppool._remote.references import WithReferences
from mppool._system.processes import ProcessId
from mppool._validation import seconds
from mppool._wire.connection import DeadlineExceeded
from mppool.errors import CallTimeout, LeaseLost, PoolError
from mppool.stats import LeaseInfo

log = logging.getLogger("mppool")

Function = tuple[bytes, ...]
"""The pickle of a function, by which it is known: data and buffers."""


@dataclass(slots=True, eq=False, kw_only=True)
class Caller(Waiter):
    """One call in a batch, and its client, which waits. `deliver` sends it a frame."""

    item: WithReferences | None
    encode: Callable[[Answer], bytes]
    batch: Batch | None = None

    @classmethod
    def waiting(
        cls,
        holder: ProcessId,
        timeout: float | None,
        where: str | None,
        item: WithReferences,
        encode: Callable[[Answer], bytes],
        send: Callable[[bytes], object],
    ) -> Caller:
        """One that waits from now on; with `timeout=0` the pool says how long."""
        seconds("timeout", timeout, zero=True)
        now = time.monotonic()
        return cls(holder, send, now, now + (timeout or inf), where, item=item, encode=encode)  # type: ignore[arg-type]

    def take_item(self) -> WithReferences:
        """The item. None of it is left here: its client uses the memory again when it is answered."""
        item, self.item = self.item, None
        assert item is not None, "it is called once"
        return item

    def frame(self, answer: Answer) -> bytes:
        """An answer as a frame for this client."""
        try:
            return self.encode(answer)
        except Exception as error:  # no memory is left for it
            return self.encode(error_answer(error))


@dataclass(slots=True, eq=False)
class Batch:
    """Calls of one function. Used under the lock of `Batches`."""

    function: Function
    patience: float
    """Until then it waits for further calls, though it has an object (`time.monotonic`)."""
    callers: Waiters
    """Those that wait; when it runs, none does any more."""
    ready: threading.Event
    """It is full, or of no use any more."""
    place: Waiter | None = None
    """Its place in the pool's queue."""
    has_object: bool = False
    running: tuple[Caller, ...] = ()

    @property
    def calls(self) -> tuple[Caller, ...]:
        """Those that are in it now."""
        return self.running or cast("tuple[Caller, ...]", tuple(self.callers))


class Batches:
    """Those of one pool. A batch has a lease as clients have it; its holder is this process."""

    def __init__(self, pool: Pool, holder: ProcessId, submit: Callable[[Callable[[], object]], None]) -> None:
        self._pool = pool
        self._holder = holder
        self._submit = submit
        self._lock = threading.Lock()  # guards what follows; the pool is asked only while it is free
        self._waiting: set[Batch] = set()  # that do not run yet
        self._open: dict[Function, Batch] = {}  # those of them that take further calls
        self._held: dict[int, Batch] = {}  # by their leases

    # -- callers ----------------------------------------------------------------------------------------

    def add(self, function: WithReferences, caller: Caller, timeout: float | None) -> None:
        """Put a call into a batch. Its client gets what comes of it, an error as well.

        With `timeout=0` it joins no batch that waits for its object.
        """
        data, buffers = function
        key = (data, *map(bytes, buffers))
        with self._lock:
            batch = self._open.get(key)
            if batch is not None and (batch.has_object or timeout != 0) and not self._pool.closed:
                self._join(batch, caller)
                return
            patience = caller.since + self._pool.options.batch_wait
            batch = Batch(key, patience, Waiters(), threading.Event())
            self._waiting.add(batch)
            if timeout != 0:
                self._open[key] = batch
            self._join(batch, caller)
        self._acquire(batch, 0 if timeout == 0 else None, caller.where)

    def _join(self, batch: Batch, caller: Caller) -> None:
        """The lock is held."""
        caller.batch = batch
        batch.callers.append(caller)
        if len(batch.callers) >= self._pool.options.max_batch_size:
            batch.ready.set()
            self._shut(batch)

    def _shut(self, batch: Batch) -> None:
        """Have a batch take no further calls. The lock is held."""
        if self._open.get(batch.function) is batch:
            del self._open[batch.function]

    def cancel(self, waiter: Waiter) -> bool:
        """Take a call out of its batch; False if that runs already. Without calls there is no batch."""
        assert isinstance(waiter, Caller), "it was put into a batch"
        with self._lock:
            batch = waiter.batch
            if batch is None or not batch.callers.remove(waiter):
                return False
            place = None if batch.callers else batch.place
            if not batch.callers:
                self._end(batch)
        if place is not None:
            self._pool.cancel(place)
        return True

    def reclaim(self, process: ProcessId) -> None:
        """Take out the calls of a process that has ended."""
        for caller in self._callers():
            if caller.holder == process:
                self.cancel(caller)

    def tend(self) -> float:
        """Time out callers. Returns when this is next needed, on the clock of `time.monotonic`."""
        now = time.monotonic()
        with self._lock:
            late: list[Any] = [each for batch in self._waiting for each in batch.callers.expired(now)]
        for caller in late:
            if self.cancel(caller):
                self._tell([caller], error_answer(self._pool.timed_out(caller)))
        with self._lock:
            return min((each.callers.next_deadline() or inf for each in self._waiting), default=inf)

    def processes(self) -> set[ProcessId]:
        """Those that wait for a batch to run."""
        return {caller.holder for caller in self._callers()}

    def shown_in(self, leases: Iterable[LeaseInfo]) -> list[LeaseInfo]:
        """Leases, those of batches with their callers."""
        with self._lock:
            calls = {lease_id: batch.calls for lease_id, batch in self._held.items()}
        return [
            replace(each, callers=tuple(call.holder.pid for call in calls.get(each.lease_id, ())))
            for each in leases
        ]

    def _callers(self) -> list[Caller]:
        with self._lock:
            return [caller for batch in self._waiting for caller in batch.calls]

    # -- the object -------------------------------------------------------------------------------------

    def _acquire(self, batch: Batch, timeout: float | None, where: str | None) -> None:
        deliver = partial(self._on_outcome, batch)
        try:
            got = self._pool.request(self._holder, deliver, timeout, where)
        except PoolError as error:
            self._fail(batch, error)
            return
        if isinstance(got, Lease):
            if not deliver(got):
                self._pool.give_back(got.id)
            return
        with self._lock:
            batch.place, is_over = got, batch not in self._waiting
        if is_over:  # its callers have left meanwhile
            self._pool.cancel(got)

    def _on_outcome(self, batch: Batch, outcome: Outcome) -> bool:
        """A batch has an object, or gets none. False if it needs none any more."""
        if not isinstance(outcome, Lease):
            self._fail(batch, outcome)
            return True
        with self._lock:
            if batch not in self._waiting:
                return False
            batch.has_object = True
            self._held[outcome.id] = batch
            if not batch.ready.is_set():
                self._open.setdefault(batch.function, batch)
        self._submit(partial(self._run, batch, outcome))
        return True

    def _fail(self, batch: Batch, error: PoolError) -> None:
        self._tell(self._take_callers(batch), error_answer(error))

    def _take_callers(self, batch: Batch) -> tuple[Caller, ...]:
        """The callers that are there when a batch runs or fails: none can leave from now on."""
        with self._lock:
            batch.running = batch.calls
            batch.callers.clear()
            self._end(batch)
            return batch.running

    def _end(self, batch: Batch) -> None:
        """The lock is held."""
        self._waiting.discard(batch)
        self._shut(batch)
        batch.ready.set()

    # -- the call ---------------------------------------------------------------------------------------

    def _run(self, batch: Batch, lease: Lease) -> None:
        patience = batch.patience - time.monotonic()
        batch.ready.wait(min(max(0.0, patience), threading.TIMEOUT_MAX))
        callers = self._take_callers(batch)
        answers = (
            self._answers(lease, batch.function, [each.take_item() for each in callers]) if callers else []
        )
        # Before the object is lent again: arrays among the results may lie in its memory.
        frames = [each.frame(answer) for each, answer in zip(callers, answers, strict=True)]
        with self._lock:
            del self._held[lease.id]
        if not lease.over:
            self._pool.give_back(lease.id)
        for caller, frame in zip(callers, frames, strict=True):
            self._send(caller, frame)

    def _tell(self, callers: Iterable[Caller], answer: Answer) -> None:
        for caller in callers:
            self._send(caller, caller.frame(answer))

    def _send(self, caller: Caller, frame: bytes) -> None:
        try:
            caller.deliver(frame)  # type: ignore[arg-type]
        except Exception:  # the others must not suffer for it
            log.exception("pool %r: an answer could not be sent to %s", self._pool.name, caller.holder)

    def _answers(self, lease: Lease, function: Function, items: list[WithReferences]) -> list[Answer]:
        """An answer for each item."""
        try:
            answers = self._call(lease, ((function[0], function[1:]), items))
            self._pool.held(lease.id)  # else it ended under the call
        except BaseException as error:
            return [error_answer(error)] * len(items)
        return [result_as_answer(each) for each in answers]

    def _call(self, lease: Lease, call: tuple[WithReferences, list[WithReferences]]) -> list[WithReferences]:
        """Call the object, within `call_timeout`. `LeaseLost` if its lease ends before."""
        timeout, runner = self._pool.options.call_timeout, lease.entry.runner
        try:
            if isinstance(runner, ProcessRunner):
                return self._call_there(runner, lease, call, timeout)
            if timeout is None:
                return self._call_here(lease, call)
            return self._in_time(partial(self._call_here, lease, call), timeout)
        except (DeadlineExceeded, FutureTimeoutError):
            self._pool.give_up(lease.id)
            fate = "its process is killed" if runner.stoppable else "closed when the call has ended"
            text = f"a batch took longer than call_timeout={timeout:g} s; its object is replaced, and {fate}"
            raise CallTimeout(f"pool {self._pool.name!r}: {text}") from None

    def _call_here(
        self, lease: Lease, call: tuple[WithReferences, list[WithReferences]]
    ) -> list[WithReferences]:
        try:
            return lease.entry.runner.call(lease.id, partial(apply_batch, *call))
        except LeaseLost:
            raise self._pool.lost(lease.id) from None
        finally:
            if lease.over:
                self._pool.call_ended(lease)

    def _call_there(
        self,
        runner: ProcessRunner,
        lease: Lease,
        call: tuple[WithReferences, list[WithReferences]],
        timeout: float | None,
    ) -> list[WithReferences]:
        function, items = call
        passed = [(data, [PickleBuffer(each) for each in buffers]) for data, buffers in items]
        request = "apply_batch", lease.id, function, passed
        try:
            return runner.ask(request, timeout, partial(self._pool.held, lease.id))  # type: ignore[no-any-return]
        except ChildProcessError as error:
            assert runner.process is not None, "it was made"
            self._pool.process_died(runner.process)
            self._pool.held(lease.id)  # which says how it ended
            self._pool.give_up(lease.id)
            raise LeaseLost(f"pool {self._pool.name!r}: lease {lease.id} is over: {error}") from error

    def _in_time(self, call: Callable[[], list[WithReferences]], timeout: float) -> list[WithReferences]:
        """What a call returns that is made in a thread of its own, if it ends in time."""
        done: Future[list[WithReferences]] = Future()

        def do() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        self._submit(do)
        return done.result(timeout)
