"""A pool of expensive objects, shared by the processes of one machine."""

from .client import ObjectPool
from .errors import (
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
from .manager import PoolManager
from .stats import LeaseInfo, PoolStats

__all__ = [
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
