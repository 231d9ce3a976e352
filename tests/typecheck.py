"""What a type checker sees of the public names. Read by mypy in `test_typing.py`, never run."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any

from typing_extensions import assert_type

from mppool import (
    AsyncHandle,
    AsyncObjectPool,
    AsyncPool,
    LeaseInfo,
    ObjectInfo,
    ObjectPool,
    PoolManager,
    PoolOptions,
    PoolStats,
    __version__,
    shared_pool,
)


class Session:
    """A user's object."""

    def __init__(self, retries: int = 3) -> None:
        self.retries = retries

    def get(self, url: str) -> bytes:
        """What is there."""
        return url.encode()

    def close(self) -> None:
        """The end."""


def connect() -> Session:
    """A user's factory."""
    return Session()


async def dial(retries: int = 3) -> Session:
    """A user's factory of objects that are asynchronous."""
    return Session(retries)


async def fetch(session: Session, url: str) -> bytes:
    """What a user has run on the loop of such an object."""
    return session.get(url)


async def hang_up(session: Session) -> None:
    """A user's hook for these."""
    session.close()


def load(device: str) -> Session:
    """A user's factory of given things."""
    return Session(len(device))


def length(session: Session, url: str, *, limit: int = 0) -> int:
    """What a user has run beside the object."""
    return len(session.get(url)) + limit


def lengths(session: Session, urls: list[str]) -> list[int]:
    """The same for many."""
    return [length(session, url) for url in urls]


def managers() -> None:
    """How pools are made and found."""
    with PoolManager(("127.0.0.1", 0), b"key", watch_interval=0.5) as manager:
        assert_type(manager, PoolManager)
        assert_type(manager.create_pool(Session), ObjectPool[Session])
        assert_type(manager.create_pool(connect, name="sessions", max_size=4), ObjectPool[Session])
        assert_type(manager.create_pool(partial(Session, retries=1)), ObjectPool[Session])
        assert_type(manager.create_pool(lambda: deque([1])), ObjectPool[deque[int]])
        assert_type(manager.create_pool(dial, isolation="thread"), AsyncObjectPool[Session])
        assert_type(manager.create_pool(partial(dial, retries=1), close=hang_up), AsyncObjectPool[Session])
        assert_type(manager.create_pool(dial, each=[1], max_uses=1), AsyncObjectPool[Session])
        assert_type(manager.create_pool("package.module:callable"), ObjectPool[Any])
        assert_type(manager.create_pool("package.module:callable", close=Session.close), ObjectPool[Any])
        assert_type(manager.create_pool(load, each=["cuda:0"], close=Session.close), ObjectPool[Session])
        assert_type(manager.create_pool(Session, each=range(3), exist_ok=True), ObjectPool[Session])
        assert_type(manager.create_pool("package.module:callable", each=[1]), ObjectPool[Any])
        assert_type(manager.create_pool(each=[0, 1]), ObjectPool[int])
        assert_type(manager.create_pool(each=["a", "b"], max_hold=1, check=str.isalpha), ObjectPool[str])
        assert_type(manager.get_pool("sessions"), ObjectPool[Any])
        assert_type(manager.pools(), dict[str, ObjectPool[Any]])
        assert_type(manager.connect(), None)
        assert_type(
            manager.create_pool(connect, close=Session.close, isolation="process", timeout=None),
            ObjectPool[Session],
        )
    manager.create_pool(Session())  # type: ignore[call-overload]
    manager.create_pool(Session, max_sise=4)  # type: ignore[call-overload]
    manager.create_pool(Session, isolation="treads")  # type: ignore[call-overload]
    manager.create_pool(Session, close=deque.clear)  # type: ignore[arg-type]
    manager.create_pool(load, each=[1])  # type: ignore[arg-type]
    manager.create_pool()  # type: ignore[call-overload]
    manager.create_pool(each=[1], isolation="process")  # type: ignore[call-overload]
    manager.create_pool(load)  # type: ignore[arg-type]
    manager.get_pool(7)  # type: ignore[arg-type]


def lending(pool: ObjectPool[Session]) -> None:
    """A handle is typed as the object that it stands for."""
    session = pool.acquire()
    assert_type(session, Session)
    assert_type(session.get("x"), bytes)
    assert_type(session.retries, int)
    assert_type(pool.acquire(0), Session)
    assert_type(pool.acquire(timeout=None), Session)
    assert_type(pool.release(session), None)
    assert_type(pool.release(session, discard=True), None)
    assert_type(pool.lease(), AbstractContextManager[Session])
    assert_type(pool.lease(discard_on_error=True), AbstractContextManager[Session])
    with pool.lease(timeout=2.5) as leased:
        assert_type(leased, Session)
    session.put("x")  # type: ignore[attr-defined]
    pool.acquire("soon")  # type: ignore[arg-type]
    pool.release("session")  # type: ignore[arg-type]


async def lending_in_a_loop(handle: AsyncHandle[Session]) -> None:
    """What a handle of an event loop gives is awaited; of what, nothing is known."""
    assert_type(await handle.get("x"), Any)
    assert_type(await handle.retries, Any)
    assert_type(await handle["x"], Any)
    await assert_type(handle(1), Coroutine[Any, Any, Any])
    assert_type(await (handle + 1), Any)
    assert_type(await (1 - handle), Any)
    assert_type(await (handle < 1), Any)
    assert_type(await divmod(handle, 2), Any)
    assert_type(await round(handle, 1), Any)
    assert_type(await (-handle), Any)
    assert_type(handle == handle, bool)  # noqa: PLR0124
    assert_type(hash(handle), int)
    async with handle as entered:
        assert_type(entered, Any)
    assert_type(aiter(handle), AsyncIterator[Any])
    async for item in handle:
        assert_type(item, Any)
    assert_type(await anext(handle), Any)
    wider: AsyncHandle[object] = handle
    assert_type(await wider.anything, Any)
    handle.retries = 3  # type: ignore[attr-defined]
    other: AsyncHandle[int] = handle  # type: ignore[assignment]
    assert_type(other, AsyncHandle[int])


async def pools_in_a_loop(pool: ObjectPool[Session], of_async: AsyncObjectPool[Session]) -> None:
    """The face of a pool for asyncio lends handles that are asynchronous, or what the object is already."""
    assert_type(pool.aio, AsyncPool[Session, AsyncHandle[Session]])
    assert_type(of_async.aio, AsyncPool[Session, Session])
    assert_type(pool.aio.lease(), AbstractAsyncContextManager[AsyncHandle[Session]])
    assert_type(of_async.aio.lease(timeout=1), AbstractAsyncContextManager[Session])
    assert_type(await pool.aio.acquire(), AsyncHandle[Session])
    assert_type(await of_async.aio.acquire(0), Session)
    assert_type(await pool.aio.release(await pool.aio.acquire()), None)
    assert_type(await of_async.aio.release(await of_async.aio.acquire(), discard=True), None)
    assert_type(await pool.aio.apply(Session.get, "x"), bytes)
    assert_type(await of_async.aio.apply(Session.get, "x"), bytes)
    assert_type(await of_async.aio.apply(fetch, "x", timeout=1), bytes)
    assert_type(pool.aio.map(Session.get, ["x"]), AsyncIterator[bytes])
    assert_type(of_async.aio.map(fetch, ["x"]), AsyncIterator[bytes])
    assert_type(await pool.aio.stats(), PoolStats)
    assert_type(await pool.aio.leases(), list[LeaseInfo])
    assert_type(await pool.aio.close(), None)


def asynchronous_objects(pool: AsyncObjectPool[Session]) -> None:
    """What has an event loop where it lives gives results that were awaited there."""
    assert_type(shared_pool("sessions", dial, max_size=1), AsyncObjectPool[Session])
    assert_type(shared_pool("sessions", connect), ObjectPool[Session])
    assert_type(pool.acquire(), Session)
    assert_type(pool.apply(fetch, "x"), bytes)
    assert_type(pool.apply(length, "x", timeout=1), int)
    assert_type(pool.map(fetch, ["x"]), Iterator[bytes])
    assert_type(pool.map(length, ["x"]), Iterator[int])


def applying(pool: ObjectPool[Session]) -> None:
    """`apply` returns what the function does."""
    assert_type(pool.apply(Session.get, "x"), bytes)
    assert_type(pool.apply(length, "x", limit=3, timeout=1), int)
    pool.apply(connect)  # type: ignore[arg-type]
    pool.apply(len)  # type: ignore[arg-type]


def batching(pool: ObjectPool[Session]) -> None:
    """A caller of `apply_batch` gets an element of what the function returns."""
    assert_type(pool.apply_batch(lengths, "x"), int)
    assert_type(pool.apply_batch(lengths, "x", timeout=1), int)
    pool.apply_batch(lengths, 1)  # type: ignore[arg-type]
    pool.apply_batch(length, "x")  # type: ignore[arg-type]


def mapping(pool: ObjectPool[Session]) -> None:
    """`map` gives what the function returns, for items that it takes."""
    assert_type(pool.map(Session.get, ["x"]), Iterator[bytes])
    assert_type(pool.map(length, (each for each in "xy"), timeout=1), Iterator[int])
    pool.map(Session.get, [1])  # type: ignore[arg-type]


def applying_what_is_built_in(pool: ObjectPool[list[int]]) -> None:
    """The functions that there are for the object's type fit."""
    assert_type(pool.apply(len), int)
    assert_type(pool.apply(list.append, 1), None)
    assert_type(pool.apply(sorted, reverse=True), list[int])


def control(pool: ObjectPool[Session]) -> None:
    """The rest."""
    assert_type(pool.name, str)
    assert_type(pool.stats(), PoolStats)
    assert_type(pool.stats().idle, int)
    assert_type(pool.stats().retired, dict[str, int])
    assert_type(pool.stats().wait.counts, tuple[int, ...])
    assert_type(pool.leases(), list[LeaseInfo])
    assert_type(pool.objects(), list[ObjectInfo])
    assert_type(pool.leases()[0].where, str | None)
    assert_type(pool.options, PoolOptions)
    assert_type(pool.wait(timeout=1), None)
    with pool as entered:
        assert_type(entered, ObjectPool[Session])
    assert_type(pool.resize(min_size=1, max_size=3), None)
    assert_type(pool.refresh(), None)
    assert_type(pool.close(timeout=None), None)


def options() -> None:
    """What a pool promises, as a value."""
    assert_type(__version__, str)
    assert_type(PoolOptions(max_size=4).max_size, int)
    assert_type(PoolOptions().timeout, float | None)
    PoolOptions(4)  # type: ignore[call-arg]
    PoolOptions(max_sise=4)  # type: ignore[call-arg]
    PoolOptions(order="random")  # type: ignore[arg-type]
