"""A pool of expensive objects, shared by the processes of one machine."""

from typing import TYPE_CHECKING, Any

from .client import ObjectPool
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
