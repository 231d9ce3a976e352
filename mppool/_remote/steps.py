"""What is asked of an object, apart from how the answer is waited for: by a thread, or in an event loop.

Steps are a generator. It yields what asks the object, one request after the other, and is resumed with each
answer, or with the error that came in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from mppool.errors import PoolError, RemoteTraceback

T = TypeVar("T")

Steps = Generator[Callable[[], Any], Any, T]
"""Their result is what `drive` returns. A `StopIteration` among the answers is to them a `RuntimeError` that
has it as its cause, as it is to any generator or coroutine (PEP 479)."""


def drive(steps: Steps[T]) -> T:
    """Take the steps in this thread."""
    try:
        ask = next(steps)
        while True:
            try:
                answer = ask()
            except BaseException as error:
                ask = steps.throw(error)
            else:
                ask = steps.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result
    except RuntimeError as error:
        stop = error.__cause__
        if isinstance(stop, StopIteration):
            raise stop from stop.__cause__
        raise


async def drive_async(steps: Steps[T]) -> T:
    """Take the steps in an event loop. `StopAsyncIteration` in place of a `StopIteration`."""
    try:
        ask = next(steps)
        while True:
            try:
                answer = await ask()
            except BaseException as error:
                ask = steps.throw(error)
            else:
                ask = steps.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result
    except RuntimeError as error:
        raise_async_stop(error)
        raise


def raise_async_stop(error: RuntimeError) -> None:
    """Raise `StopAsyncIteration` if this is what a coroutine has made of a `StopIteration` of the object."""
    stop = error.__cause__
    if isinstance(stop, StopIteration):
        raise StopAsyncIteration(*stop.args) from stop.__cause__


def is_answer(error: BaseException) -> bool:
    """Whether the other side, or the pool, raised an error; else something here ended the waiting."""
    return isinstance(error, PoolError) or isinstance(error.__cause__, RemoteTraceback)
