"""What a client may ask of the manager: the registered methods. Runs in the manager.

A method gets the session that asks, then what the client sent, and returns its reply as a frame:
None where there is none, or where it comes later.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from mppool import _version
from mppool._pool.entry import Lease
from mppool._pool.pool import Pool
from mppool._pool.runner import InlineRunner
from mppool._pool.threads import ThreadCache
from mppool._pool.waiters import Outcome
from mppool._process.runner import ProcessFactory, ProcessRunner
from mppool._remote.calls import VALUE, ObjectTable
from mppool._remote.errors import cannot_unpickle, failure
from mppool._remote.reply import applied, perform
from mppool._system.processes import ProcessId
from mppool._system.runtime_dir import RuntimeDir
from mppool._wire.connection import encode
from mppool.errors import FactoryError, PoolClosed, PoolError
from mppool.options import PoolOptions, resolve
from mppool.stats import PoolInfo

from .session import Session
from .watchdog import Watchdog

log = logging.getLogger("mppool")

_LAST_WORDS = 0.05
"""Seconds to read what a process sent just before its end. It lies there; only a thread must wake up."""

_LAST_BREATH = 1.0
"""Seconds in which a process that has hung up on a client has to be gone."""


class PoolService:
    """All pools of a manager."""

    METHODS = (
        "acquire",
        "apply",
        "arrived",
        "call",
        "close",
        "create_pool",
        "fate",
        "get_pool",
        "give_up",
        "leases",
        "lend",
        "refresh",
        "release",
        "resize",
        "stats",
    )

    def __init__(self, watch_interval: float, recipes: RuntimeDir | None, housing: ProcessFactory) -> None:
        self._housing = housing
        self._creator: ProcessId | None = None
        self._on_orphaned: Callable[[], None] = lambda: None
        self._recipes = recipes  # where a successor will look; None if there will be none
        self._recipe: dict[int, tuple[bytes, bytes]] = {}
        self._lock = threading.Lock()  # guards the making and the end of pools
        self._pools: dict[int, Pool[Any]] = {}
        self._ids: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._sessions: set[Session] = set()
        self._closing = False
        self.left = False
        """Whether all clients are left to a successor."""
        self._crew = ThreadCache("mppool")
        self.watchdog = Watchdog(
            interval=watch_interval, holders=self._owners, on_gone=self._gone, tick=self._tend
        )

    def end_with(self, creator: ProcessId, on_orphaned: Callable[[], None]) -> None:
        """Watch the process without which the manager is not to go on."""
        self._creator, self._on_orphaned = creator, on_orphaned
        self.watchdog.watch(creator)

    def serve(self, session: Session) -> None:
        """Serve a client until it hangs up."""
        self._sessions.add(session)
        if self.left:
            session.hang_up()
        try:
            session.serve()
        finally:
            self._sessions.discard(session)
        if not session.owner.foreign_id:
            self.watchdog.look_soon()
        elif not any(each.owner == session.owner for each in list(self._sessions)):
            self._gone(session.owner)  # nothing else tells of its end

    # -- pools ----------------------------------------------------------------------------------------

    def create_pool(self, _: Session, factory: bytes, name: str | None, options: bytes) -> bytes:
        """Make a pool. The factory and the options come pickled: here they may not be known."""
        pool_id = secrets.randbits(62)  # so that a pool of an earlier manager is never mistaken for it
        self._make(pool_id, factory, name, options)
        try:
            self._note_down(pool_id)
        except BaseException:  # no room on the disk
            self.close(_, pool_id, 0)
            raise
        return self._description(pool_id)

    def restore(self) -> None:
        """Make the pools of the manager before this one, which died, once more."""
        for pool_id, recipe in [] if self._recipes is None else self._recipes.saved_pools():
            factory, options, name, min_size, max_size = pickle.loads(recipe)
            try:
                self._make(pool_id, factory, name, options)
                self._pool(pool_id).resize(min_size, max_size)
            except Exception:
                log.exception("pool %r: it cannot be made once more", name)

    def _note_down(self, pool_id: int) -> None:
        with self._lock:
            recipe = self._recipe.get(pool_id)
            if self._recipes is not None and recipe is not None:  # else it is being closed
                pool = self._pool(pool_id)
                sizes = pool.options.min_size, pool.options.max_size
                self._recipes.save_pool(pool_id, pickle.dumps((*recipe, pool.name, *sizes)))

    def _make(self, pool_id: int, factory: bytes, name: str | None, options: bytes) -> None:
        made = _unpickled("factory", factory)
        chosen = _unpickled("options", options)
        try:
            build = resolve(made)
        except ValueError:
            raise
        except Exception as error:  # also what the module raises while it is imported
            raise FactoryError(
                f"the import string {made!r} leads nowhere in the manager: {error!r}"
            ) from error
        if not callable(build):
            raise TypeError(f"factory must be callable: {made!r}")
        with self._lock:
            if self._closing:
                raise PoolClosed("the manager is shutting down")
            name = self._next_name() if name is None else name
            if name in self._ids:
                raise ValueError(f"name={name!r}: a pool of this name exists already; get_pool() finds it")
            pool = self._new_pool(build, factory, name, chosen)
            self._pools[pool_id] = pool
            self._ids[name] = pool_id
            self._recipe[pool_id] = (factory, options)

    def _new_pool(
        self, build: Callable[[], Any], factory: bytes, name: str, options: dict[str, Any]
    ) -> Pool[Any]:
        if options.get("isolation") != "process":
            return Pool(build, name=name, crew=self._crew, **options)
        exposed = PoolOptions(**options).exposed
        runner = partial(ProcessRunner[Any], self._housing, name, exposed, self.watchdog.watch)
        # As it came: what an import string stands for may not pickle.
        return Pool(partial(_made_of, factory), name=name, crew=self._crew, new_place=runner, **options)

    def get_pool(self, _: Session, name: str) -> bytes:
        """Find a pool by its name."""
        pool_id = self._ids.get(name)
        if pool_id is None:
            known = ", ".join(map(repr, sorted(self._ids))) or "none"
            raise PoolError(f"there is no pool named {name!r}; known: {known}")
        return self._description(pool_id)

    def close(self, _: Session, pool_id: int, timeout: float | None) -> bytes:
        """Close a pool for good; its name is free again afterwards. One that is closed stays so."""
        pool = self._pools.get(pool_id)
        if pool is not None:
            with self._lock:
                self._recipe.pop(pool_id, None)
                if self._recipes is not None:
                    self._recipes.remove_pool(pool_id)
            pool.close(timeout)
        with self._lock:
            if pool is not None and self._pools.pop(pool_id, None) is not None:
                del self._ids[pool.name]
        return encode((VALUE, None))

    def resize(self, _: Session, pool_id: int, min_size: int | None, max_size: int | None) -> bytes:
        """Change a pool's bounds."""
        self._pool(pool_id).resize(min_size, max_size)
        self._note_down(pool_id)
        return encode((VALUE, None))

    def refresh(self, _: Session, pool_id: int) -> bytes:
        """Retire a pool's present objects as they come home."""
        self._pool(pool_id).refresh()
        return encode((VALUE, None))

    def stats(self, _: Session, pool_id: int) -> bytes:
        """A pool's figures."""
        return encode((VALUE, self._pool(pool_id).stats()))

    def leases(self, _: Session, pool_id: int) -> bytes:
        """Who holds what of a pool."""
        return encode((VALUE, self._pool(pool_id).leases()))

    # -- lending ----------------------------------------------------------------------------------------

    def acquire(
        self, session: Session, pool_id: int, timeout: float | None, where: str | None
    ) -> bytes | None:
        """Lend an object: the reply says so at once, or comes when one is free."""
        pool = self._pool(pool_id)
        got = pool.request(session.owner, partial(session.deliver, pool), timeout, where)
        if isinstance(got, Lease):
            return session.grant(pool, got)
        session.wait(pool, got)
        self.watchdog.wake_at(got.deadline)
        self.watchdog.look_soon()
        return None

    def release(self, _: Session, pool_id: int, lease_id: int, discard: bool) -> None:
        """Take an object back. The client waits for no reply, so there is none; failures are counted."""
        pool = self._pools.get(pool_id)
        if pool is not None:
            pool.give_back(lease_id, discard=discard)

    def give_up(self, _: Session, pool_id: int, lease_id: int) -> bytes:
        """A call on this lease takes too long: end it. Its object is closed when the call has ended."""
        self._pool(pool_id).give_up(lease_id)
        return encode((VALUE, None))

    def fate(self, _: Session, pool_id: int, lease_id: int) -> bytes:
        """The holder was cut off from the object's process: raise `LeaseLost` if that has ended."""
        pool = self._pool(pool_id)
        runner = pool.held(lease_id).entry.runner
        if runner.owner is not None and runner.fate(_LAST_BREATH) is not None:
            pool.bury(runner.owner)
            pool.held(lease_id)
        return encode((VALUE, None))

    def arrived(self, session: Session, lease_id: int) -> None:
        """A sign, sent before a connection is given up, that the grant of this lease arrived."""
        session.confirm(lease_id)

    def lend(self, session: Session) -> bytes:
        """From now on large data passes beside the stream, in memory files."""
        session.lend()
        return encode((VALUE, None))

    def call(
        self,
        session: Session,
        pool_id: int,
        lease_id: int,
        target: int,
        op: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> bytes:
        """Call a leased object, or something kept for its holder. Calls on one object never overlap."""
        pool = self._pool(pool_id)
        lease = pool.held(lease_id)
        _here(lease).called = True
        busy: Any = lease.busy  # a lock, as the object lives here
        try:
            with busy:
                if lease.over:
                    raise pool.lost(lease_id)
                kept: ObjectTable = lease.kept  # type: ignore[assignment]  # `grant` laid it there
                return _here(lease).call(partial(perform, session.encode, kept, target, op, args, kwargs))
        finally:
            pool.call_ended(lease)  # not before `busy` is free: until then the lease may end under us

    def apply(
        self,
        session: Session,
        pool_id: int,
        timeout: float | None,
        where: str | None,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> bytes | None:
        """Acquire, run `func(object, ...)` here, release. The reply is what it returned."""
        pool = self._pool(pool_id)
        job = partial(_apply, session, pool, func=func, args=args, kwargs=kwargs)

        def deliver(outcome: Outcome) -> bool:
            if isinstance(outcome, PoolError):
                return session.answer(failure(outcome))
            if session.ended:
                return False
            self._crew.submit(lambda: session.answer(job(outcome)))
            return True

        got = pool.request(session.owner, deliver, timeout, where)
        if isinstance(got, Lease):
            return job(got)
        session.wait(pool, got)
        self.watchdog.wake_at(got.deadline)
        self.watchdog.look_soon()
        return None

    # -- the end ------------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Hang up on every client: he shall know of the manager's end, not of pools that come back."""
        self.left = True
        for session in list(self._sessions):
            session.hang_up()

    def close_all(self) -> None:
        """Close every pool, all side by side, without waiting for those who still hold something."""
        with self._lock:
            self._closing = True
            pools = list(self._pools.values())
        if not pools:
            return
        executor = ThreadPoolExecutor(len(pools))
        wait([executor.submit(each.close, 0) for each in pools])

    def _owners(self) -> set[ProcessId]:
        owners = {self._creator} if self._creator is not None else set()
        return owners.union(*(pool.owners() | pool.homes() for pool in list(self._pools.values())))

    def _gone(self, owner: ProcessId) -> None:
        if owner == self._creator:
            self._on_orphaned()
            return  # all ends now: what was to be taken back from it would be replaced
        until = time.monotonic() + _LAST_WORDS
        for session in list(self._sessions):
            if session.owner == owner:
                session.settle(until)
        for pool in list(self._pools.values()):
            pool.reclaim(owner)
            pool.bury(owner)

    def _tend(self) -> float | None:
        due = [self._tend_one(pool) for pool in list(self._pools.values())]
        return min((each for each in due if each is not None), default=None)

    def _tend_one(self, pool: Pool[Any]) -> float | None:
        try:
            return pool.tend()
        except Exception:  # the other pools, and the sweeps, must not suffer for it
            log.exception("pool %r: could not be tended", pool.name)
            return None

    def _pool(self, pool_id: int) -> Pool[Any]:
        try:
            return self._pools[pool_id]
        except KeyError:
            raise PoolClosed("the pool was closed, or its manager was restarted since") from None

    def _next_name(self) -> str:
        return next(name for name in (f"pool-{n}" for n in self._numbers) if name not in self._ids)

    def _description(self, pool_id: int) -> bytes:
        pool = self._pools[pool_id]
        options = pool.options
        info = PoolInfo(
            version=_version.__version__,
            pool_id=pool_id,
            name=pool.name,
            timeout=options.timeout,
            records_caller=options.records_caller,
            call_timeout=options.call_timeout,
            isolated=options.isolation == "process",
        )
        return encode((VALUE, tuple(info)))


def _unpickled(what: str, data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:
        text = cannot_unpickle(f"the manager's process cannot find the {what}", error)
        raise FactoryError(f"{text}, or give an import string 'package.module:callable'") from error


def _made_of(factory: bytes) -> Any:
    """In an object's process: what the factory makes."""
    build: Any = resolve(_unpickled("factory", factory))
    return build()


def _here(lease: Lease[Any]) -> InlineRunner[Any]:
    runner = lease.entry.runner
    assert isinstance(runner, InlineRunner), "who lives elsewhere is called there"
    return runner


def _apply(
    session: Session,
    pool: Pool[Any],
    lease: Lease[Any],
    *,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bytes:
    busy: Any = lease.busy  # a lock, as the object lives here
    try:
        with busy:
            if lease.over:
                raise pool.lost(lease.id)
            reply = _here(lease).call(partial(applied, session.encode, func, lease.object, args, kwargs))
    except BaseException as error:
        reply = failure(error)
    pool.call_ended(lease)
    if lease.over:
        return failure(pool.lost(lease.id))
    pool.give_back(lease.id)
    return reply
