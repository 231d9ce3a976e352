"""A pool of expensive objects, shared by the processes of one machine.

In a worker process, from the user's call to the socket:

    client      `ObjectPool` and its leases
    handle      what stands for an object
    channel     a connection for each thread
    wire        frames, the handshake; `memory` large data, `failure` errors on their way

In the manager's process, from the socket to the object:

    door        who may come in
    server      the process, from its beginning to its end
    session     one client's connection
    desk        the registered methods
    pool        the lock; `policy` all decisions; `entry` and `waiter` what they are about
    hooks       the user's factory, check, reset and close; `crew` threads for them
    place       where an object lives; `process` one that has a process of its own
    calls       calls on an object; `shape` what it offers; `reply` what they come to
    watchdog    takes back what the dead held; `owner` who is gone

In an object's own process:

    resident    its main thread, which makes, calls and closes the object
    baton       shared with the manager: whether a lease is on, and a call

Shared: `errors`, `options`, `stats`, `home` (the manager's private directory), `ending` (of the manager's
process and the objects'). `manager` starts and ends the manager's process, `keeper` starts its successors.
"""

from typing import TYPE_CHECKING, Any

from ._client.pool import ObjectPool
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
)
from .stats import LeaseInfo, PoolStats

if TYPE_CHECKING:
    from .manager import PoolManager

__all__ = [
    "CallTimeout",
    "FactoryError",
    "LeaseError",
    "LeaseInfo",
    "LeaseLost",
    "ManagerLost",
    "ObjectPool",
    "PoolClosed",
    "PoolError",
    "PoolManager",
    "PoolStats",
    "PoolTimeout",
    "RemoteError",
    "RemoteTraceback",
    "TooManyWaiting",
]


def __getattr__(name: str) -> Any:
    # A worker process, which is given a pool, needs nothing of the manager's side: psutil, for instance.
    if name == "PoolManager":
        from .manager import PoolManager  # noqa: PLC0415

        return PoolManager
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
