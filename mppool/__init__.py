"""A pool of expensive objects, shared by the processes of one machine.

A manager process owns the objects; workers borrow them, one holder at a time::

    with PoolManager() as manager:                              # a process that owns the objects
        pool = manager.create_pool(connect, max_size=4)         # an ObjectPool: pass it to any worker
        with pool.lease() as connection:                        # in a worker: borrow an object
            connection.execute("SELECT 1")                      # runs where the object lives

What is public is imported from here. The rooms behind it, in the order in which a call passes them::

    _client     in a worker process: the pool as its users see it, their leases, the way to the manager
    _remote     an object used from another process: the handle at one end, the calls at the other
    _wire       messages between processes: connection, handshake, listener, shared memory
    _server     the manager's process: its sessions with clients, and the watchdog that finds out who has died
    _pool       lending: who holds which object, who waits, and where factory and hooks are called
    _process    an object in a process of its own
    _shell      the command `mppool`: what an operator sees of the managers, and tells them
    _system     what is asked of the operating system: processes, the private directory, forks, exits

`manager` starts and ends the manager's process; `errors`, `options` and `stats` are what every room knows.
`prometheus` and `opentelemetry`, which a program imports by itself, hand on what pools tell of themselves.

An acquire goes from `ObjectPool` over the connection that its thread has to a session of the manager, which
asks the pool: for an idle object, a new one, or a place in the queue. The answer names the lease and tells
what the object offers, and the handle is made of that. A call goes the same way to the object, or straight to
the object's own process, and comes back as a copy, or, where it belongs to the object, as a further handle.
A release has no answer; the pool resets the object and gives it to the next waiter. Where there is no reset
and no waiter, and the worker takes the same object again and again, the lease is delegated: a release leaves
the object parked at the worker, and an acquire takes it again, by a token that the kernel gives to one reader
(`_wire.delegation`). Whatever else wants the object, the pool recalls the lease first. When the worker is
killed, the watchdog has psutil say whether this very process is gone, and the pool takes back what it held
and waited for.

On an event loop, `pool.aio`, all acquires share a connection, on which each has a number, and calls borrow
others: `_client.aio`.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("mppool is for Linux and macOS")

from ._client.pool import AsyncObjectPool, ObjectPool
from ._version import __version__
from .errors import (
    CallTimeout,
    FactoryError,
    LeaseError,
    LeaseLost,
    ManagerLost,
    PoolClosed,
    PoolError,
    PoolTimeout,
    RemoteError,
    RemoteTraceback,
    TooManyWaiting,
    Unreachable,
)

if TYPE_CHECKING:
    from ._client.aio.pool import AsyncPool
    from ._remote.async_handle import AsyncHandle
    from .manager import PoolManager, shared_pool
    from .options import PoolOptions
    from .stats import Histogram, LeaseInfo, ObjectInfo, PoolStats

__all__ = [
    "AsyncHandle",
    "AsyncObjectPool",
    "AsyncPool",
    "CallTimeout",
    "FactoryError",
    "Histogram",
    "LeaseError",
    "LeaseInfo",
    "LeaseLost",
    "ManagerLost",
    "ObjectInfo",
    "ObjectPool",
    "PoolClosed",
    "PoolError",
    "PoolManager",
    "PoolOptions",
    "PoolStats",
    "PoolTimeout",
    "RemoteError",
    "RemoteTraceback",
    "TooManyWaiting",
    "Unreachable",
    "__version__",
    "shared_pool",
]

# A pickle carries, and a log shows, the public name of a class, wherever it is defined.
for _public in (globals().get(name) for name in __all__):
    if isinstance(_public, type):
        _public.__module__ = __name__
del _public


# What a worker process that is given a pool does without: psutil, asyncio and dataclasses, for instance.
_IMPORTED_WHEN_NEEDED = {
    "AsyncHandle": "._remote.async_handle",
    "AsyncPool": "._client.aio.pool",
    "Histogram": ".stats",
    "LeaseInfo": ".stats",
    "ObjectInfo": ".stats",
    "PoolManager": ".manager",
    "PoolOptions": ".options",
    "PoolStats": ".stats",
    "shared_pool": ".manager",
}


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_WHEN_NEEDED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = globals()[name] = getattr(import_module(_IMPORTED_WHEN_NEEDED[name], __name__), name)
    public.__module__ = __name__
    return public


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
