"""Where an object lives that is asynchronous itself: on an event loop, in a thread of its own.

What is to be done with the object is done by that thread, one thing after the other. Whatever it calls of
the user's on the way is a task of the loop, which is awaited there; meanwhile, and between calls, the tasks
that the object has begun go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, TypeVar

from mppool._system.own_selector import OwnSelector
from mppool.errors import RemoteError
from mppool.options import HOOK_BOUND, is_awaitable

from .runner import Do, Gate, NewLeftovers, ThreadRunner, _WorkItem, end_child

log = logging.getLogger("mppool")

T = TypeVar("T")

LAST_TASKS = 2.0
"""Seconds that tasks of an object have to end, once they are cancelled."""


class LoopRunner(ThreadRunner):
    """An event loop in a thread. It begins with the factory, and is closed when the object is gone.

    `create` raises `OSError` if no loop can be had.
    """

    has_loop = True

    def __init__(self, name: str, new_leftovers: NewLeftovers, gate: Gate | None = None) -> None:
        super().__init__(name, partial(new_leftovers, invoke=self.invoke), gate)
        self._loop: asyncio.AbstractEventLoop | None = None  # there is one from `_create` to `_wind_up`
        self._task: asyncio.Task[Any] | None = None  # what is awaited now
        self._ends_at = inf  # when that is cancelled, on the monotonic clock

    def destroy(self, do: Do[object]) -> None:
        self._ends_at = time.monotonic() + HOOK_BOUND
        super().destroy(do)

    def cancel_after(self, timeout: float) -> None:
        self._ends_at = time.monotonic() + timeout
        self._soon(self._bound)

    def invoke(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function on the loop, and await what it gives if that can be awaited."""
        try:
            result, error = self._complete(_outcome(function, args, kwargs))
        except asyncio.CancelledError as cancelled:  # before it had begun
            result, error = None, cancelled
        if error is None:
            return result
        try:
            # To a caller it would mean that the caller's own task was cancelled.
            if isinstance(error, asyncio.CancelledError) and all(each is not error for each in args):
                raise RemoteError(f"{function!r} was cancelled on the event loop of its object") from error
            raise error
        finally:
            del error  # which knows this frame

    # -- in the thread -------------------------------------------------------------------------------

    def _create(self, factory: Callable[[], Any]) -> None:
        self._loop = asyncio.SelectorEventLoop(OwnSelector(end_child))
        try:
            super()._create(factory)
        except BaseException:
            self._wind_up()
            raise

    def _destroy(self, do: Do[object]) -> None:
        super()._destroy(do)
        self._wind_up()

    def _drop_leftovers(self) -> None:
        any_left = bool(self._leftovers)
        super()._drop_leftovers()
        if any_left:
            self._complete(_await_generators())

    def _wind_up(self) -> None:
        """End what the object has left running, and the loop."""
        loop, self._ends_at = self._loop, inf
        assert loop is not None
        self._complete(_end_tasks(self._name))
        loop.set_exception_handler(lambda *_: None)  # what did not end in time has been told
        self._loop = None
        loop.close()

    def _put(self, item: _WorkItem) -> None:
        super()._put(item)
        self._soon(self._stop)

    def _get(self) -> _WorkItem:
        if self._loop is not None:
            try:
                self._run_until(lambda: not self._items.empty())
            except Exception:  # its descriptors were closed, say: so the next call will be told
                log.exception("%s: the event loop has failed", self._name)
        return super()._get()

    def _complete(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the loop until this has returned. The one place where something is awaited."""
        assert self._loop is not None
        task: asyncio.Task[T]
        task = self._task = self._loop.create_task(coroutine)
        task.add_done_callback(self._stop)
        self._bound()
        try:
            self._run_until(task.done)
        finally:
            self._task = None
        return task.result()

    def _run_until(self, is_so: Callable[[], bool]) -> None:
        """Run the loop until something is so: with that comes a `_stop`, and others may come earlier."""
        assert self._loop is not None
        while not is_so():
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # of a task that the object has begun
                log.exception("%s: a task would have ended the event loop", self._name)

    def _stop(self, *_: object) -> None:
        if self._loop is not None:
            self._loop.stop()

    def _bound(self) -> None:
        """Have what is awaited now end in time."""
        if self._loop is not None and self._task is not None and self._ends_at != inf:
            self._loop.call_at(self._ends_at, self._task.cancel)

    # -- in any thread ---------------------------------------------------------------------------------

    def _soon(self, do: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(do)


_Outcome = tuple[Any, BaseException | None]


async def _outcome(function: Callable[..., Any], args: Any, kwargs: Any) -> _Outcome:
    """What comes of a call. An error is no task's: some would stop the loop, and some no task can raise."""
    try:
        result = function(*args, **kwargs)
        return (await result if is_awaitable(result) else result), None
    except BaseException as error:
        return None, error


_ACLOSE = "async_generator_athrow"  # what `aclose()` gives: its type is in no module


async def _await_generators() -> None:
    """Wait for the asynchronous generators that were dropped: the loop closes each in a task."""
    closing = [each for each in asyncio.all_tasks() if type(each.get_coro()).__name__ == _ACLOSE]
    if closing:
        await asyncio.wait(closing)


async def _end_tasks(name: str) -> None:
    """Cancel all other tasks, close all asynchronous generators, and wait for both, but not for long."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await _await_end(name, others)
    await _await_end(name, {asyncio.ensure_future(asyncio.get_running_loop().shutdown_asyncgens())})


async def _await_end(name: str, tasks: set[Any]) -> None:
    ended, others = await asyncio.wait(tasks, timeout=LAST_TASKS) if tasks else (tasks, tasks)
    for each in ended:
        if not each.cancelled() and each.exception() is not None:
            log.error("%s: a task failed at its end", name, exc_info=each.exception())
    for each in others:
        log.warning("%s: a task goes on though it was cancelled: %r", name, each)
