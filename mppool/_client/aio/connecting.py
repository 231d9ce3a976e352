"""Connections of one loop to one process: made one after the other in a thread, and lent to tasks."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

from mppool._client.channel import Channel
from mppool._client.connect import Request
from mppool._wire.connection import Connection

from .connection import CallingConnection, bring, in_time, opened

R = TypeVar("R")

_MAX_FREE = 32  # connections that wait for a call: each costs a thread in the manager

Made = tuple[Connection, bool]
"""A connection, and whether memory files can pass over it."""


class Lender:
    """Lends connections to one process, a manager or an object's own, for a call each."""

    def __init__(self, channel: Channel, keeper: object) -> None:
        """`keeper` lives as long as a connection does."""
        self.lent: set[CallingConnection] = set()
        self._channel = channel
        self._keeper = keeper
        self._free: list[weakref.ref[CallingConnection]] = []  # which the loop keeps
        self._wanted: deque[tuple[Request, asyncio.Future[Any]]] = deque()
        self._is_making = False
        self._borrowing = 0  # calls that are about to have a connection

    @property
    def in_use(self) -> bool:
        """Whether a call has a connection, or waits for one."""
        return self._borrowing > 0 or bool(self.lent)

    def is_connected(self) -> bool:
        """Whether a connection waits for a call, and is open. The loop may have stood still since its end."""
        free = self._free[-1]() if self._free else None
        return free is not None and not (free.closed or free.wire.has_ended())

    async def borrow(
        self, request: Request, deadline: float | None = None, anew: bool = False
    ) -> CallingConnection:
        """A connection for this request: one that is free, unless it is to be new; else the next there is.

        Raises what `Channel.connect_for` raises, and `DeadlineExceeded` from then on (`loop.time`).
        """
        free = None if anew else self._take_free()
        self._borrowing += 1
        try:
            connection = free or await self._next(request, deadline)
            self.lent.add(connection)
        finally:
            self._borrowing -= 1
        return connection

    def _take_free(self) -> CallingConnection | None:
        while self._free:
            connection = self._free.pop()()
            if connection is not None and connection.is_usable():
                return connection
        return None

    async def _next(self, request: Request, deadline: float | None) -> CallingConnection:
        """That which is made for this request, or given back before: on a busy machine that may take long."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._wanted.append((request, future))
        self._make_next()
        try:
            connection: CallingConnection = opened(await in_time(future, deadline))
        except BaseException:
            if future.done() and not future.cancelled() and isinstance(future.result(), CallingConnection):
                self._pass_on(future.result())  # the task was cancelled just then
            raise
        return connection

    def give_back(self, connection: CallingConnection) -> None:
        """The call is done, or the connection is closed."""
        self.lent.discard(connection)
        if not connection.closed:
            self._pass_on(connection)

    def _pass_on(self, connection: CallingConnection) -> None:
        """To the next call that waits; else it waits for one."""
        while self._wanted:
            _, future = self._wanted.popleft()
            if not future.done():
                future.set_result(connection)
                return
        if len(self._free) == _MAX_FREE:
            self._free = [each for each in self._free if (free := each()) is not None and not free.closed]
        if len(self._free) < _MAX_FREE:
            self._free.append(weakref.ref(connection))
        else:
            connection.close()

    def close(self) -> None:
        """Lend nothing more. What is lent lasts until its call is done."""
        while (connection := self._take_free()) is not None:
            connection.close()

    def _make_next(self) -> None:
        while self._wanted and self._wanted[0][1].done():  # that task waits no more
            self._wanted.popleft()
        if self._wanted and not self._is_making:
            self._is_making = True
            request = self._wanted[0][0]
            make = partial(self._channel.connect_for, request, None)
            waiting = {future for _, future in self._wanted}
            in_thread(make, partial(self._on_made, request[0], waiting))

    def _on_made(
        self, name: str, waiting: Collection[asyncio.Future[Any]], outcome: Made | BaseException
    ) -> None:
        self._is_making = False
        if not isinstance(outcome, BaseException):
            try:
                self._pass_on(CallingConnection(*outcome, self._keeper))
            except OSError as error:  # this process has no room for more
                outcome = error
        if isinstance(outcome, BaseException):
            self._fail(name, waiting, outcome)
        self._make_next()

    def _fail(self, name: str, waiting: Collection[asyncio.Future[Any]], error: BaseException) -> None:
        """Of one that has ended not each request that waited learns in turn.

        Those of another name may start it, and a later one may find what there was no room for.
        """
        wanted, self._wanted = self._wanted, deque()
        for request, future in wanted:
            if request[0] != name or future not in waiting:
                self._wanted.append((request, future))
            else:
                bring(future, error)


def in_thread(do: Callable[[], R], then: Callable[[R | BaseException], object]) -> None:
    """Do something in a thread of its own, and tell the loop what came of it, unless that is closed.

    `RuntimeError` comes of it where no thread can be started.
    Not in the loop's executor, where the program's own jobs may have all threads.
    """
    loop = asyncio.get_running_loop()

    def run() -> None:
        try:
            outcome: R | BaseException = do()
        except BaseException as error:
            outcome = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(then, outcome)

    try:
        start_new_thread(run, ())
    except RuntimeError as error:  # "can't start new thread"
        loop.call_soon(then, error)
