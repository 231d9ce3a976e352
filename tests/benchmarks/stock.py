"""The pool that `multiprocessing.managers` and a page of code give: what mppool is measured against.

It lends objects through proxies, works in any process that it is passed to, waits its turn with a timeout,
and is as fast as that way allows: no `AutoProxy`, which would ask for the methods of each object; handles
go home as an id, not as a proxy. It does without what mppool is for: an object whose holder dies is lost.

`KeptPool` is the trick that is left: a client keeps its proxy to each object for good, so that a number is
all that travels. The proxy then says nothing any more about who holds the object; a client that goes on
after a release calls somebody else's. It is measured beside the other one.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager, BaseProxy
from typing import Any

from .things import Thing

__all__ = ["KeptPool", "PoolProxy", "StockManager", "open_kept", "serve"]


class StockPool:
    """The pool, in the manager's process."""

    def __init__(self, size: int) -> None:
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        self._objects = [Thing() for _ in range(size)]
        self._by_id = {f"{id(each):x}": each for each in self._objects}
        for each in self._objects:
            self._idle.put(each)

    def acquire(self, timeout: float = 30.0) -> Thing:
        thing: Thing = self._idle.get(timeout=timeout)
        return thing

    def release(self, ident: str) -> None:
        self._idle.put(self._by_id[ident])

    def apply(self, func: Callable[..., Any], *args: Any) -> Any:
        thing = self.acquire()
        try:
            return func(thing, *args)
        finally:
            self._idle.put(thing)

    # For `KeptPool`.

    def acquire_number(self, timeout: float = 30.0) -> int:
        return self._objects.index(self._idle.get(timeout=timeout))

    def release_number(self, number: int) -> None:
        self._idle.put(self._objects[number])

    def object(self, number: int) -> Thing:
        return self._objects[number]


class PoolProxy(BaseProxy):
    """The pool, for clients."""

    _exposed_ = ("acquire", "release", "apply", "acquire_number", "release_number", "object")

    def __init__(self, token: Any, serializer: str, manager: Any = None, **kwargs: Any) -> None:
        # A proxy that was pickled has no manager any more, and could not make proxies of its own.
        super().__init__(token, serializer, manager=manager or StockManager(), **kwargs)

    def acquire(self, timeout: float = 30.0) -> Any:
        return self._callmethod("acquire", (timeout,))

    def release(self, handle: ThingProxy) -> None:
        self._callmethod("release", (handle.ident(),))

    def apply(self, func: Callable[..., Any], *args: Any) -> Any:
        return self._callmethod("apply", (func, *args))

    def acquire_number(self) -> Any:
        return self._callmethod("acquire_number")

    def release_number(self, number: int) -> None:
        self._callmethod("release_number", (number,))

    def object(self, number: int) -> Any:
        return self._callmethod("object", (number,))


class ThingProxy(BaseProxy):
    """A handle."""

    _exposed_ = ("echo", "take", "give", "select")

    def ident(self) -> str:
        return self._token.id  # type: ignore[attr-defined, no-any-return]

    def echo(self, value: Any) -> Any:
        return self._callmethod("echo", (value,))

    def take(self, value: Any) -> Any:
        return self._callmethod("take", (value,))

    def give(self, kind: str, size: int) -> Any:
        return self._callmethod("give", (kind, size))

    def select(self, rows: int) -> Any:
        return self._callmethod("select", (rows,))


class CursorProxy(BaseProxy):
    """What `select` returns: it does not pickle."""

    _exposed_ = ("fetchall", "fetchmany")

    def fetchall(self) -> Any:
        return self._callmethod("fetchall")

    def fetchmany(self, size: int) -> Any:
        return self._callmethod("fetchmany", (size,))

    def __iter__(self) -> Iterator[Any]:
        while rows := self.fetchmany(100):
            yield from rows


class StockManager(BaseManager):
    """A `BaseManager` that knows the pool."""


StockManager.register("Cursor", proxytype=CursorProxy, create_method=False)
StockManager.register(
    "Thing", proxytype=ThingProxy, create_method=False, method_to_typeid={"select": "Cursor"}
)
StockManager.register("pool", StockPool, PoolProxy, method_to_typeid={"acquire": "Thing", "object": "Thing"})


class KeptPool:
    """A client's view of the pool, which keeps every proxy that it ever got."""

    def __init__(self, pool: PoolProxy) -> None:
        self._pool = pool
        self._proxies: dict[int, Any] = {}
        self._numbers: dict[Any, int] = {}

    def acquire(self) -> Any:
        number = self._pool.acquire_number()
        proxy = self._proxies.get(number)
        if proxy is None:
            proxy = self._proxies[number] = self._pool.object(number)
            self._numbers[proxy] = number
        return proxy

    def release(self, handle: Any) -> None:
        self._pool.release_number(self._numbers[handle])


@contextmanager
def serve(size: int) -> Iterator[PoolProxy]:
    """A pool of so many objects, in a manager of its own."""
    manager = StockManager()
    manager.start(_end_with_parent)
    with manager:
        yield manager.pool(size)  # type: ignore[attr-defined]


def _end_with_parent() -> None:
    """In the manager: a benchmark that is killed shall leave nothing behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def open_kept(pool: PoolProxy) -> Iterator[KeptPool]:
    """In a client."""
    yield KeptPool(pool)
