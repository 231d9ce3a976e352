"""What a client may ask of the manager: the methods marked `@request`.

They get the session that asks, then what the client sent, and return a value for the client. A call's result
is a frame already: it was pickled beside the object. The reply to an acquire that waits comes later.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from mppool._pool.entry import Lease
from mppool._pool.pool import Pool
from mppool._pool.runner import InlineRunner, Runner, ThreadRunner
from mppool._pool.threads import ThreadCache
from mppool._pool.waiters import OnOutcome, Outcome, Waiter
from mppool._pool_info import PoolInfo, new_pool_id
from mppool._process.info import ManagerInfo
from mppool._process.runner import Processes, ProcessRunner
from mppool._remote.calls import ObjectTable, Place, perform
from mppool._remote.errors import failure
from mppool._remote.opcodes import VALUE
from mppool._remote.references import PoolUnknown, WithReferences
from mppool._remote.results import kept_types
from mppool._system.processes import ProcessId
from mppool._system.runtime_dir import RuntimeDir
from mppool._wire.connection import Connection, encode
from mppool.errors import LeaseLost, PoolClosed, PoolError, Unreachable
from mppool.options import PoolOptions, is_coroutine_function
from mppool.stats import LeaseInfo, ManagerFacts, ObjectInfo, PoolStats

from .agenda import Agenda
from .batches import Batches, Caller
from .delegations import Delegations
from .gauge import Gauge
from .numbered import encode_numbered
from .recipe import Recipe, check_loop, resolved
from .session import NO_REPLY, Session, request
from .users import Users
from .watchdog import Watchdog

log = logging.getLogger("mppool")

_DRAIN_SECONDS = 0.05
"""To read what a process sent just before its end. It lies there; only a thread must wake up.

After this time it is looked whether something lies there still.
"""

_END_SECONDS = 1.0
"""In which a process that has hung up on a client has to be gone."""

_RENEW_SECONDS = 1.0
"""Between two looks whether the manager's files are there. Clients that miss them wait longer."""

_REMEMBERED = 1000  # closed pools of which the name is known


class PoolService:
    """All pools of a manager."""

    def __init__(
        self,
        info: ManagerInfo,
        processes: Processes,
        users: Users,
        on_orphaned: Callable[[], None],
        renew: Callable[[], bool],
    ) -> None:
        self._info = info
        self._processes = processes
        self._users = users
        self._on_orphaned = on_orphaned
        self._renew = renew  # puts back files that were removed
        self._renew_at = 0.0
        self._began = time.monotonic()
        self.creator: ProcessId | None = None
        """The process without which the manager is not to go on."""
        self._directory = RuntimeDir(info.runtime_dir)  # where a successor looks for the pools
        self._lock = threading.Lock()  # guards the making and the end of pools
        self._pools: dict[int, Pool] = {}
        self._batches: dict[int, Batches] = {}  # of each pool
        self._this_process = ProcessId.of(os.getpid(), "a batch")  # as the holder of batches
        self._recipes: dict[int, Recipe] = {}  # of each pool that is not being closed
        self._closed: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED)  # pools and their names
        self._names = (f"pool-{number}" for number in itertools.count(1))
        self._sessions: set[Session] = set()
        self._closings: list[Future[None]] | None = None  # of all pools at once, since `_closing_since`
        self._closing_since = 0.0
        self.left = False
        """Whether all clients are left to a successor."""
        self.on_closed: Callable[[], object] | None = None
        """What is to follow the end of a pool."""
        self._threads = ThreadCache("mppool")
        self.submit = self._threads.submit
        self._gauge = Gauge(self._threads, processes.far_table)
        self._agenda = Agenda()  # of pools with waiters or builds: when the first of these takes too long
        self._tend_all_at = 0.0
        self.watchdog = Watchdog(
            interval=info.watch_interval, holders=self._watched, on_gone=self._gone, tick=self._tend
        )
        if info.creator_pid is not None:
            self.creator = ProcessId.of(info.creator_pid, token=info.creator_token)
        for process in (self.creator, processes.launcher):
            if process is not None:
                self.watchdog.watch(process)
        if info.restart:
            self._restore()

    def new_session(self, connection: Connection, client: ProcessId) -> Session:
        """For a client that has just connected."""
        return Session(connection, client, self, self._threads.submit, Delegations(self.watchdog))

    def serve(self, session: Session) -> None:
        """Serve a client until it hangs up."""
        self._sessions.add(session)
        self.watchdog.connected(session.holder, session)
        if self.left:
            session.connection.hang_up()
        try:
            session.serve()
        finally:
            self._sessions.discard(session)
            self.watchdog.disconnected(session.holder, session)

    # -- pools ----------------------------------------------------------------------------------------

    @request
    def create_pool(
        self, session: Session, name: str | None, exist_ok: bool, pool_id: int | None, *parts: Any
    ) -> tuple[object, ...]:
        """Make a pool, or find the one that was made of the same recipe, of which the parts come.

        Its id is what the client knows it by already, or a new one.
        """
        recipe = Recipe(*parts)
        if exist_ok and name in self._ids():
            return self._find(str(name), recipe)
        pool_id = pool_id or new_pool_id()
        if not self.make(pool_id, name, recipe):
            if exist_ok:
                return self._find(str(name), recipe)
            raise ValueError(f"name={name!r}: a pool of this name exists already; get_pool() finds it")
        try:
            self._save(pool_id)
        except BaseException:  # no room on the disk
            self.close(session, pool_id, 0)
            raise
        return self._found(pool_id)

    def _find(self, name: str, recipe: Recipe) -> tuple[object, ...]:
        """The pool of this name. `ValueError` if it was made in another way."""
        pool_id = self._ids().get(name, 0)
        difference = recipe.difference(self._recipe(pool_id))
        if difference is not None:
            raise ValueError(f"name={name!r}: a pool of this name exists already, and {difference}")
        return self._found(pool_id)

    def _restore(self) -> None:
        """Make the pools of the manager before this one, which died, once more."""
        for pool_id, definition in self._directory.saved_pools():
            recipe, name, min_size, max_size = pickle.loads(definition)
            try:
                self.make(pool_id, name, recipe)
                self._pool(pool_id).resize(min_size, max_size)
            except Exception:
                log.exception("pool %r: it cannot be made once more", name)

    def _save(self, pool_id: int) -> None:
        """Keep how this pool is made, for a successor."""
        with self._lock:
            if self._info.restart and pool_id in self._recipes:  # else it is being closed
                pool, recipe = self._pools[pool_id], self._recipes[pool_id]
                sizes = pool.options.min_size, pool.options.max_size
                self._directory.save_pool(pool_id, pickle.dumps((recipe, pool.name, *sizes)))

    def make(self, pool_id: int, name: str | None, recipe: Recipe) -> bool:
        """Make the pool; False if its name is taken."""
        build, options, items = recipe.find_factory(), recipe.find_options(), recipe.find_items()
        has_loop = is_coroutine_function(build)
        check_loop(has_loop, options)
        if options.isolation == "process":
            build, options = recipe.travelling(options)
        new_runner = self._new_runner(options, has_loop)
        with self._lock:
            if self._closings is not None:
                raise PoolClosed("the manager is shutting down")
            taken = self._ids()
            if name is None:
                name = next(each for each in self._names if each not in taken)
            if name in taken:
                return False
            pool = Pool(
                build,
                options,
                name=name,
                items=items,
                new_runner=partial(new_runner, name),
                threads=self._threads,
                wake_at=partial(self._wake_at, pool_id),
            )
            self._batches[pool_id] = Batches(pool, self._this_process, self._threads.submit)
            self._pools[pool_id] = pool
            self._recipes[pool_id] = recipe
        return True

    def _new_runner(self, options: PoolOptions, has_loop: bool) -> Callable[[str], Runner]:
        """What makes the place for the next object of the pool of a name. Imports what is to be kept."""
        if options.isolation == "process":
            new = self._processes.new
            told = self._info, has_loop, self.watchdog.watch
            return lambda name: ProcessRunner(new(name, options, has_loop), *told)
        keep = kept_types(map(resolved, options.keep))
        new_table = partial(ObjectTable, expose=options.exposed, keep=keep)
        if options.isolation == "none":
            return lambda _: InlineRunner(new_table)
        in_thread: type[ThreadRunner] = ThreadRunner
        if has_loop:
            from mppool._pool.loop_runner import LoopRunner as in_thread  # noqa: N813, PLC0415  # with asyncio
        return lambda name: in_thread(f"mppool object of {name}", new_table)

    @request
    def get_pool(self, _: Session, name: str) -> tuple[object, ...]:
        """Find a pool by its name."""
        ids = self._ids()
        if name not in ids:
            known = ", ".join(map(repr, sorted(ids))) or "none"
            raise PoolError(f"there is no pool named {name!r}; known: {known}")
        return self._found(ids[name])

    @request
    def pools(self, _: Session) -> list[tuple[object, ...]]:
        """All pools that are not closed."""
        return [self._describe(*each) for each in list(self._pools.items())]

    @request
    def about(self, _: Session) -> ManagerFacts:
        """What is to be told of the manager's process."""
        return ManagerFacts(
            pid=os.getpid(),
            python=sys.version.split()[0],
            uptime=time.monotonic() - self._began,
            users=None if self._info.linger is None else self._users.pids(),
            log=self._info.log,
        )

    @request
    def options(self, _: Session, pool_id: int) -> tuple[int, bytes]:
        """How many items a pool has, and the options that were given for it, as they came."""
        recipe = self._recipe(pool_id)
        return len(recipe.each), recipe.options

    @request
    def close(self, session: Session, pool_id: int, timeout: float | None) -> object:
        """Close a pool for good; its name is free again afterwards. One that is closed stays so."""
        pool = self._pools.get(pool_id)
        if pool is None:
            return None
        with self._lock:
            self._recipes.pop(pool_id, None)
            self._directory.remove_pool(pool_id)
        pool.close(timeout)
        with self._lock:
            self._closed.append((pool_id, pool.name))
            self._pools.pop(pool_id, None)
            self._batches.pop(pool_id, None)
            if self.on_closed is not None:
                self._closings = []  # this manager ends with its pool, and makes no other
        if self.on_closed is None:
            return None
        session.answer(encode((VALUE, None)))  # first: the manager may end with its pool
        self.on_closed()
        return NO_REPLY

    @request
    def resize(self, _: Session, pool_id: int, min_size: int | None, max_size: int | None) -> None:
        """Change a pool's bounds."""
        self._pool(pool_id).resize(min_size, max_size)
        self._save(pool_id)

    @request
    def refresh(self, _: Session, pool_id: int) -> None:
        """Retire a pool's present objects as they come home."""
        self._pool(pool_id).refresh()

    @request
    def stats(self, _: Session, pool_id: int) -> PoolStats:
        """How a pool stands, and what happened."""
        return self._pool(pool_id).stats()

    @request
    def leases(self, _: Session, pool_id: int) -> list[LeaseInfo]:
        """Who holds what of a pool."""
        pool = self._pool(pool_id)
        leases = pool.leases(self._gauge.usage(pool))
        return self._batches_of(pool_id).shown_in(leases)

    @request
    def objects(self, _: Session, pool_id: int) -> list[ObjectInfo]:
        """What objects a pool has."""
        pool = self._pool(pool_id)
        return pool.objects(self._gauge.usage(pool))

    # -- lending ----------------------------------------------------------------------------------------

    @request
    def acquire(self, session: Session, pool_id: int, timeout: float | None, where: str | None) -> object:
        """Lend an object: the reply says so at once, or comes when one is free."""
        pool = self._pool(pool_id)
        lease = self._request(session, pool_id, partial(session.deliver, pool), timeout, where)
        return NO_REPLY if lease is None else session.grant(pool, lease)

    @request
    def enqueue(
        self, session: Session, pool_id: int, number: int, timeout: float | None, where: str | None
    ) -> object:
        """`acquire` for an event loop, which has many under way: all that comes of it bears the number."""

        def ask(deliver: OnOutcome) -> Lease | Waiter:
            got = pool.request(session.holder, deliver, timeout, where)
            if isinstance(got, Waiter):
                self._see_to(pool_id, got)
            return got

        try:
            pool = self._pool(pool_id)
            session.numbered.ask(number, pool, ask)
        except BaseException as error:
            session.numbered.refuse(number, error)
        return NO_REPLY

    @request
    def end(self, session: Session, number: int, discard: bool) -> object:
        """End the acquire of this number, however far it has come: it waits, or is a lease by now."""
        session.numbered.end(number, discard)
        return NO_REPLY

    @request
    def apply(
        self, session: Session, pool_id: int, timeout: float | None, where: str | None, *call: Any
    ) -> object:
        """Acquire, call `func(object, ...)` here, release; `call` says what is called, for `perform`.

        The reply is what it returned.
        """
        pool = self._pool(pool_id)

        def apply_to(lease: Lease) -> bytes:
            try:
                frame = self._call(session, pool, lease, 0, *call, {})
                assert frame is not None, "only items are sent while a call goes on"
            except BaseException as error:
                frame = failure(error)
            if lease.over:
                return failure(pool.lost(lease.id))
            pool.give_back(lease.id)
            return frame

        def deliver(outcome: Outcome) -> bool:
            if isinstance(outcome, PoolError):
                return session.answer_at_once(failure(outcome))
            if session.ended:
                return False
            self._threads.submit(lambda: session.answer(apply_to(outcome)))
            return True

        lease = self._request(session, pool_id, deliver, timeout, where)
        return NO_REPLY if lease is None else apply_to(lease)

    @request
    def apply_batch(
        self,
        session: Session,
        pool_id: int,
        timeout: float | None,
        where: str | None,
        function: WithReferences,
        item: WithReferences,
    ) -> object:
        """Put a call into the batch of its function. The reply is what comes of it for this item."""
        encode_for, answer = session.connection.encode, session.answer_soon
        caller = Caller.waiting(session.holder, timeout, where, item, encode_for, answer)
        session.waiting = self._batches_of(pool_id), caller
        self._batch(pool_id, function, caller, timeout)
        return NO_REPLY

    @request
    def enqueue_batch(
        self,
        session: Session,
        pool_id: int,
        number: int,
        timeout: float | None,
        where: str | None,
        function: WithReferences,
        item: WithReferences,
    ) -> object:
        """`apply_batch` for an event loop: all that comes of it bears the number."""
        numbered = session.numbered
        try:
            encode_for, answer = partial(encode_numbered, number), partial(numbered.answer, number)
            caller = Caller.waiting(session.holder, timeout, where, item, encode_for, answer)
            numbered.expect(number, self._batches_of(pool_id), caller)
            self._batch(pool_id, function, caller, timeout)
        except BaseException as error:
            numbered.refuse(number, error)
        return NO_REPLY

    def _batch(self, pool_id: int, function: WithReferences, caller: Caller, timeout: float | None) -> None:
        self._batches_of(pool_id).add(function, caller, timeout)
        self._see_to(pool_id, caller)

    @request
    def wait(self, session: Session, pool_id: int, timeout: float | None) -> object:
        """Reply when `min_size` objects are there."""
        pool = self._pool(pool_id)
        waiter = pool.await_min_size(session.holder, session.tell, timeout)
        return None if waiter is None else self._keep_waiting(session, pool_id, pool, waiter)

    def _request(
        self, session: Session, pool_id: int, deliver: OnOutcome, timeout: float | None, where: str | None
    ) -> Lease | None:
        """A lease at once; or None, and `deliver` is called when there is an outcome."""
        pool = self._pool(pool_id)
        got = pool.request(session.holder, deliver, timeout, where)
        if isinstance(got, Lease):
            return got
        self._keep_waiting(session, pool_id, pool, got)
        return None

    def _keep_waiting(self, session: Session, pool_id: int, pool: Pool, waiter: Waiter) -> object:
        session.waiting = (pool, waiter)
        self._see_to(pool_id, waiter)
        return NO_REPLY

    def _see_to(self, pool_id: int, waiter: Waiter) -> None:
        """The outcome comes later, and no later than the waiter's deadline."""
        self._wake_at(pool_id, waiter.deadline)
        self.watchdog.look_soon()

    @request
    def arrived(self, _: Session) -> object:
        """The last grant has: its lease goes on without this connection. As every request shows."""
        return NO_REPLY

    @request
    def release(self, _: Session, pool_id: int, lease_id: int, discard: bool) -> object:
        """Take an object back. The client waits for no reply; failures are counted."""
        pool = self._pools.get(pool_id)
        if pool is not None:
            pool.give_back(lease_id, discard=discard)
        return NO_REPLY

    @request
    def give_up(self, _: Session, pool_id: int, lease_id: int) -> None:
        """A call on this lease takes too long: end it. Its object is closed when the call has ended."""
        self._pool(pool_id).give_up(lease_id)

    @request
    def fate(self, _: Session, pool_id: int, lease_id: int) -> None:
        """The holder was cut off from the object's process: raise `LeaseLost` if that has ended.

        `Unreachable` if it is far, and cannot be reached from here either.
        """
        pool = self._pool(pool_id)
        runner = pool.held(lease_id).entry.runner
        if runner.process is not None and runner.exit_reason(_END_SECONDS) is not None:
            pool.process_died(runner.process)
            pool.held(lease_id)
        elif runner.process is not None and not runner.is_reachable():
            pool.process_died(runner.process)
            text = f"the process of its object, {runner.process}, cannot be reached; the call may have run"
            raise Unreachable(f"pool {pool.name!r}: {text}")

    @request
    def share_memory(self, session: Session) -> None:
        """From now on large data passes beside the stream, in memory files."""
        session.connection.share_memory()

    @request
    def call(self, session: Session, pool_id: int, lease_id: int, *call: Any) -> object:
        """Call a leased object, or something that a call of it left: `call` is passed on to `perform`."""
        pool = self._pool(pool_id)
        frame = self._call(session, pool, pool.held(lease_id), *call)
        return NO_REPLY if frame is None else frame

    @request
    def call_beside(
        self, session: Session, pool_id: int, lease_id: int, others: list[tuple[int, int]], *call: Any
    ) -> bytes | None:
        """A call with objects of other leases among its arguments. Nothing else calls them meanwhile."""
        pools = {lease: self._pool(pool) for pool, lease in [(pool_id, lease_id), *others]}
        held = {lease: pools[lease].held(lease) for lease in sorted(pools)}

        def enter(entered: dict[int, Place]) -> bytes | None:
            """Enter the next one, in the order of the ids: so two such calls never wait for each other."""
            if len(entered) == len(held):
                return perform(session.connection.encode, None, *call, entered[lease_id], entered)  # type: ignore[call-arg]
            lease = list(held.values())[len(entered)]
            try:
                return lease.entry.runner.call(lease.id, lambda place: enter({**entered, lease.id: place}))
            except LeaseLost:
                return failure(pools[lease.id].lost(lease.id))
            finally:
                if lease.over:
                    pools[lease.id].call_ended(lease)

        return enter({})

    def _call(self, session: Session, pool: Pool, lease: Lease, *call: Any) -> bytes | None:
        """A call on an object that lives here; what `perform` returns. `LeaseLost` if the lease is over."""
        do = partial(perform, session.connection.encode, session.answer, *call)
        try:
            return lease.entry.runner.call(lease.id, do)
        except LeaseLost:  # the object's own error is in the frame
            raise pool.lost(lease.id) from None
        finally:
            if lease.over:  # it ended under the call
                pool.call_ended(lease)

    # -- the end ------------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Hang up on every client: it must learn of the manager's end, not of pools that come back."""
        self.left = True
        for session in list(self._sessions):
            session.connection.hang_up()

    def close_all(self, timeout: float) -> None:
        """Close every pool, all side by side, without waiting for what is still held.

        Waits for that until `timeout` seconds after the first call, whatever the objects' hooks do.
        """
        with self._lock:
            if self._closings is None:
                self._closing_since = time.monotonic()
                self._closings = [self._close_soon(each) for each in self._pools.values()]
        wait(self._closings, max(0.0, self._closing_since + timeout - time.monotonic()))

    def _close_soon(self, pool: Pool) -> Future[None]:
        closing: Future[None] = Future()

        def close() -> None:
            try:
                pool.close(0)
            finally:
                closing.set_result(None)

        self._threads.submit(close)  # no executor: it takes nothing where the interpreter shuts down
        return closing

    def _watched(self) -> set[ProcessId]:
        creator = set() if self.creator is None else {self.creator}
        lending: list[Pool | Batches] = [*self._pools.values(), *self._batches.values()]
        return creator.union(*(each.processes() for each in lending))

    def _gone(self, process: ProcessId) -> None:
        if process == self.creator:
            self._on_orphaned()
            return  # all ends now: what was to be taken back from it would be replaced
        self._users.died(process)
        if process == self._processes.launcher and self._closings is None:
            os.kill(os.getpid(), signal.SIGKILL)  # no object in a process can be made any more
        deadline = time.monotonic() + _DRAIN_SECONDS
        for session in list(self._sessions):
            if session.holder == process:
                session.drain(deadline)
        for batches in list(self._batches.values()):
            batches.reclaim(process)
        for pool in list(self._pools.values()):
            pool.reclaim(process)
            pool.process_died(process)

    def _wake_at(self, pool_id: int, moment: float) -> None:
        """Have the pool tended then, at the latest."""
        self._agenda.note(pool_id, moment)
        self.watchdog.wake_at(moment)

    def _tend(self) -> float:
        """Tend the pools whose waiters or builds take too long, and all of them now and then.

        Returns when this is next needed.
        """
        now = time.monotonic()
        due = self._agenda.take_due(now)
        if now >= self._tend_all_at:
            self._tend_all_at = now + self._info.watch_interval
            due = list(self._pools)
            bounded = [pool for pool in list(self._pools.values()) if pool.options.bounds_memory]
            self._gauge.look_soon(bounded)
        for pool_id in due:
            if pool_id in self._pools:  # else it was closed meanwhile
                self._tend_pool(pool_id, self._pools[pool_id])
        if now >= self._renew_at:
            self._renew_at = now + _RENEW_SECONDS
            if self._renew():
                self._replace_files()
        return min(self._agenda.next_moment(), self._tend_all_at, self._renew_at, self._users.tend())

    def _tend_pool(self, pool_id: int, pool: Pool) -> None:
        try:
            self._agenda.note(pool_id, min(pool.tend() or math.inf, self._batches_of(pool_id).tend()))
        except Exception:  # the other pools must not suffer for it
            log.exception("pool %r: could not be tended", pool.name)

    def _replace_files(self) -> None:
        """What lay in the directory is lost: how pools are made, and the sockets of objects."""
        for pool_id, pool in list(self._pools.items()):
            self._save(pool_id)
            if pool.options.isolation == "process":
                pool.refresh()

    def _pool(self, pool_id: int) -> Pool:
        try:
            return self._pools[pool_id]
        except KeyError:
            with self._lock:
                name = dict(self._closed).get(pool_id)
        if name is not None:
            raise PoolClosed(f"pool {name!r} is closed")
        kind = PoolClosed if self._info.linger is None else PoolUnknown
        raise kind("the pool was closed, or its manager was restarted since")

    def _batches_of(self, pool_id: int) -> Batches:
        try:
            return self._batches[pool_id]
        except KeyError:
            self._pool(pool_id)  # which says what became of it
            raise

    def _recipe(self, pool_id: int) -> Recipe:
        pool, recipe = self._pool(pool_id), self._recipes.get(pool_id)
        if recipe is None:
            raise PoolClosed(f"pool {pool.name!r} is being closed")
        return recipe

    def _ids(self) -> dict[str, int]:
        return {pool.name: pool_id for pool_id, pool in list(self._pools.items())}

    def _found(self, pool_id: int) -> tuple[object, ...]:
        return self._describe(pool_id, self._pool(pool_id))

    def _describe(self, pool_id: int, pool: Pool) -> tuple[object, ...]:
        """What a client has to know of a pool, as plain values.

        With it comes what the next manager of a name makes it of; without a name there is no next one.
        """
        recipe = None if self._info.linger is None else self._recipes.get(pool_id)
        info = PoolInfo.of(pool_id, pool.name, pool.options, pool.lends_values, pool.is_asynchronous)
        return tuple(info), None if recipe is None else recipe.parts
