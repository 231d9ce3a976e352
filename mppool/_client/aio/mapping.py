"""`AsyncPool.map`: tasks of the loop, each with one item at an object, and results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from mppool.errors import PoolTimeout

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

_AHEAD = 2
"""Items that are read for each object, so that none lies idle while the caller looks at a result."""


async def each_of(items: Iterable[I] | AsyncIterable[I]) -> AsyncIterator[I]:
    """The items of an input of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def results(
    pool: str,
    call: Callable[[I, float | None], Awaitable[R]],
    items: AsyncIterator[I],
    size: int,
    timeout: float | None,
) -> AsyncGenerator[R, None]:
    """The results of `call(item, seconds left)` in order, with `size` calls at once. However it ends, all do.

    Raises:
        PoolTimeout: a result is not there in time.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    free = asyncio.Semaphore(size)

    def left() -> float | None:
        return None if deadline is None else max(0.0, deadline - loop.time())

    async def in_turn(item: I) -> R:
        async with free:
            return await call(item, left())

    pending: deque[asyncio.Future[R]] = deque()

    async def read_on() -> None:
        nonlocal items
        try:
            while len(pending) < _AHEAD * size:
                pending.append(asyncio.ensure_future(in_turn(await anext(items))))
        except StopAsyncIteration:
            pass
        except Exception as error:  # of the input: it comes in its place, and is the last
            items = each_of(())
            failed: asyncio.Future[Any] = loop.create_future()
            failed.set_exception(error)
            pending.append(failed)

    try:
        await read_on()
        while pending:
            done, _ = await asyncio.wait([pending[0]], timeout=left())
            if not done:
                raise PoolTimeout(f"pool {pool!r}: {timeout:g} s were too short for all of a map")
            result = pending.popleft().result()
            await read_on()
            yield result
            del result
    finally:
        for each in pending:
            each.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
