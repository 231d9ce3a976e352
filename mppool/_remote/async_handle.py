"""Stand-in."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from .handle import Handle, LeaseHandles
from .interface import Interface
from .opcodes import APPLY

T = TypeVar("T")


class AsyncHandle(Handle, Generic[T]):
    def __init__(self, interface, lease) -> None:
        object.__setattr__(self, "_mppool_family", LeaseHandles(lease))
        object.__setattr__(self, "_mppool_interface", interface)
        object.__setattr__(self, "_mppool_target", 0)

    def __getattr__(self, name: str) -> Any:
        async def method(*args, **kwargs):
            return (await self._mppool_family.lease.call(0, name, args, kwargs))[1]

        return method


def make_async_handle(interface: Interface, lease: Any) -> AsyncHandle[Any]:
    return AsyncHandle(interface, lease)


async def apply_to_async(handle, func, args, kwargs) -> Any:
    return (await handle._mppool_family.lease.call(0, APPLY, (func, args, kwargs), {}))[1]
