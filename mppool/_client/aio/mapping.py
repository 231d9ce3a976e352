"""`AsyncPool.map`: tasks of the loop, each with one item at an object, and results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from typing import Any, TypeVar

from mppool.errors import PoolTimeout

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

_AHEAD = 2
"""Items that are read for each object, so that none lies idle while the caller looks at a result."""

_END: Any = object()


def iterator_of(items: Iterable[I] | AsyncIterable[I]) -> Iterator[I] | AsyncIterator[I]:
    """Of an input of either kind. `TypeError` if it is of none."""
    return aiter(items) if isinstance(items, AsyncIterable) else iter(items)


async def results(
    pool: str,
    call: Callable[[I, float | None], Awaitable[R]],
    items: Iterator[I] | AsyncIterator[I],
    size: int,
    timeout: float | None,
) -> AsyncGenerator[R, None]:
    """The results of `call(item, seconds left)` in order, with `size` calls at once. However it ends, all do.

    Raises:
        PoolTimeout: a result is not there in time.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    reading = asyncio.Lock()  # whose turn is that of the task that began first
    free = asyncio.Semaphore(size)

    def left() -> float | None:
        return None if deadline is None else max(0.0, deadline - loop.time())

    async def read() -> I:
        nonlocal items
        try:
            return next(items, _END) if isinstance(items, Iterator) else await anext(items, _END)
        except BaseException:  # of the input: it comes in its place, and nothing after it
            items = iter(())
            raise

    async def next_result() -> Any:
        async with reading:
            item = await read()
        if item is _END:
            return item
        async with free:
            return await call(item, left())

    pending = deque(asyncio.ensure_future(next_result()) for _ in range(_AHEAD * size))
    try:
        while True:
            done, _ = await asyncio.wait([pending[0]], timeout=left())
            if not done:
                raise PoolTimeout(f"pool {pool!r}: {timeout:g} s were too short for all of a map")
            result = pending.popleft().result()
            if result is _END:
                return
            pending.append(asyncio.ensure_future(next_result()))
            yield result
            del result
    finally:
        for each in pending:
            each.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
