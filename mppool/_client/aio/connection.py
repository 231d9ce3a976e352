"""Connections that an event loop watches. None of them ever makes it wait.

The loop's selector knows them by a callback, and nothing else need keep them: they last as long as the loop
is open. When it is closed, however that comes about, it drops the callback, with which they hang up.

They wait by `add_reader`, once and for all: memory files come by `recvmsg`, which neither a Protocol nor
`loop.sock_recv` offers. None of the three is faster than the others beyond what their figures vary, as the
benchmark's rows `aio-way` show.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
from _thread import start_new_thread
from functools import partial
from typing import Any

from mppool._client.connect import Request
from mppool._client.delegated import Parked
from mppool._remote.errors import pack_error
from mppool._remote.interface import Interface
from mppool._remote.opcodes import ERROR, FOLLOWS, GRANT
from mppool._remote.references import DoesNotPickle, fails_again
from mppool._wire.connection import Connection, DeadlineExceeded, PayloadLost, Received, encode
from mppool._wire.delegation import Arrivals
from mppool._wire.nonblocking import Frame, NonBlockingConnection, Parts
from mppool._wire.shared_memory import LARGE
from mppool._wire.signals import is_handlers
from mppool.errors import PoolError, RemoteError

Outcome = Any
"""What a future brings. An error is brought as well: of one that is raised, and that no task fetches, Python
complains."""


_SCALARS = frozenset({bool, float, int, type(None)})
_TEXTS = frozenset({bytes, str})
_SHORT = 1000  # characters of a text that is small beyond doubt


class LoopConnection:
    """A connection to a manager, or to an object's own process."""

    def __init__(self, made: Connection, keeper: object) -> None:
        """`keeper` lives as long as the connection does."""
        self._keeper = keeper
        self.loop = asyncio.get_running_loop()
        self.wire = NonBlockingConnection(made)
        self.closed = False
        self.loop.add_reader(self.wire, _Reader(self))

    def is_usable(self) -> bool:
        """Whether it is open: the loop may have stood still since the other side ended."""
        if not self.closed and self.wire.is_stale():
            self.fail(EOFError())
        return not self.closed

    def send(self, frame: Frame) -> None:
        """Send a frame: now as much as goes, and the rest as it goes. `OSError` if the other side is gone."""
        try:
            if not self.wire.send_begun(frame):
                self.loop.add_writer(self.wire, self._on_writable)
        except BaseException as error:
            if not isinstance(error, OSError) or is_handlers(error):
                self.fail(_interrupted())  # how much was sent is not known
            raise

    def _on_writable(self) -> None:
        try:
            if self.wire.send_rest():
                self.loop.remove_writer(self.wire)
        except OSError as error:
            self.fail(error)

    def _on_readable(self) -> None:
        try:
            received = self.wire.receive()
            for each in received:
                self._on_message(each)
        except BaseException as error:
            if not isinstance(error, (EOFError, OSError)) or is_handlers(error):
                self.fail(_interrupted())  # what was read may be lost
                raise
            self.fail(error)

    def _on_message(self, received: Received | PayloadLost) -> None:
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """It is of no use any more: tell that to those that wait for something from it."""
        self.close()
        self._on_end(error)

    def _on_end(self, error: BaseException) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Hang up."""
        if not (self.closed or self.loop.is_closed()):
            self.closed = True
            self.loop.remove_reader(self.wire)
            self.loop.remove_writer(self.wire)
            self._hang_up()

    def dropped(self) -> None:
        """The selector has dropped it: with its loop, unless it was closed before."""
        # In a forked child the socket is closed already, and the selector is its parent's, too.
        if not self.closed and self.wire.fileno() >= 0:
            self.closed = True
            self._hang_up()

    def _hang_up(self) -> None:
        self.wire.close()


class _Reader:
    """By which a selector knows a connection: nothing else keeps it."""

    def __init__(self, connection: LoopConnection) -> None:
        self._connection = connection

    def __call__(self) -> None:
        self._connection._on_readable()

    def __del__(self) -> None:
        self._connection.dropped()


class AcquiringConnection(LoopConnection):
    """That of all acquires of a loop, each with a number of ours. The numbers also name the leases.

    What was granted on it ends with it, when it is closed here.
    """

    def __init__(self, made: Connection, keeper: object) -> None:
        super().__init__(made, keeper)
        self.interfaces: dict[int, Interface] = {}
        self.parked = Parked()
        self._arrivals = Arrivals()
        if self.wire.can_share:
            self.wire.accept_descriptors()
        self._numbers = itertools.count(1)
        self._unasked: set[int] = set()  # numbers of acquires that are among:
        self._unsent: list[bytes] = []  # goes with one `send`, when those of this turn of the loop are there
        self._waiting: dict[int, tuple[float, asyncio.Future[Outcome]]] = {}
        self._follows: int | None = None  # the number of a large answer that comes next

    def ask(self, name: str, pool_id: int, *arguments: Any) -> tuple[int, asyncio.Future[Outcome]]:
        """Ask for an object, or what is done with one.

        Returns the number of that, and what brings status and payload of the answer.

        Or None: the manager has certainly not read it. Or an error: none comes.
        """
        number = next(self._numbers)
        future: asyncio.Future[Outcome] = self.loop.create_future()
        self._waiting[number] = self.loop.time(), future
        self._unasked.add(number)
        self._tell((name, pool_id, number, *arguments))
        return number, future

    def end(self, number: int, discard: bool = False) -> None:
        """End the acquire or lease of this number. An answer that is under way means nothing any more."""
        self._waiting.pop(number, None)
        self._tell(("end", number, discard))
        self._send_unsent()  # at once: what this thread asks next, without the loop, may need the object

    def _tell(self, request: Request) -> None:
        if self.closed or self.loop.is_closed():
            return
        if not self._unsent:
            self.loop.call_soon(self._send_unsent)
        self._unsent.append(encode(request))

    def _send_unsent(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self.closed or not unsent:
            return
        try:
            self.send(([b"".join(unsent)], None))
            self._unasked.clear()
        except OSError as error:
            if is_handlers(error):
                raise
            self.fail(error)

    def _on_message(self, received: Received | PayloadLost) -> None:
        number, status, payload = self._taken(received)
        if status == FOLLOWS:
            self._follows = number
            return
        if status == GRANT and isinstance(payload[2], Interface):
            self.interfaces[payload[1]] = payload[2]  # each comes once, also to those that wait no more
        if status == GRANT and payload[4] is not None:  # before the next message, which may bring others
            self.parked.forget_recalled()
            *told, (page, slot, has_page) = payload
            descriptors = self.wire.take_descriptors()
            payload = *told, self._arrivals.open(page, slot, has_page, descriptors)
        _, future = self._waiting.pop(number, (0.0, None))
        if future is not None and not future.done():
            future.set_result((status, payload))
        elif status == GRANT:  # its task has ended it, or was interrupted before it could
            self._tell(("end", number, False))

    def _taken(self, received: Received | PayloadLost) -> tuple[int, int, Any]:
        """Number, status and payload; those of an error where there is no memory for a large answer."""
        follows, self._follows = self._follows, None
        try:
            if isinstance(received, PayloadLost):
                raise received
            answer: tuple[int, int, Any] = pickle.loads(received[0])
        except (PayloadLost, MemoryError) as error:
            if follows is None:
                raise
            lost = RemoteError(str(error) or "an answer is too large for the memory that is left here")
            return follows, ERROR, pack_error(lost)
        return answer

    def waits_since(self) -> float | None:
        """Since when something waits for an answer (`loop.time`); None if nothing does."""
        return next((since for since, _ in self._waiting.values()), None)

    def _on_end(self, error: BaseException) -> None:
        waiting, self._waiting = self._waiting, {}
        for number, (_, future) in waiting.items():
            if not future.done():
                future.set_result(None if number in self._unasked else error)

    def _hang_up(self) -> None:
        """Say goodbye, behind what is still to be sent. Where that takes its time, it is for a thread."""
        if self.wire.send_last(b"".join((*self._unsent, encode(("acknowledge", None))))):
            self.wire.close()
            return
        with contextlib.suppress(RuntimeError):  # no thread is free: the manager takes it for cut off
            start_new_thread(self.wire.send_rest_patiently, ())


class CallingConnection(LoopConnection):
    """One of those for calls: it serves one request at a time."""

    def __init__(self, made: Connection, can_share: bool, keeper: object) -> None:
        super().__init__(made, keeper)
        self._can_share = can_share  # and both sides have not agreed on it yet
        self._answer: asyncio.Future[Outcome] | None = None
        self.request: Request | None = None
        """That which is being asked."""
        self.asked_at = 0.0
        self._brought_much = False  # an answer was worth a memory file

    async def ask(self, request: Request, deadline: float | None = None) -> Received | None:
        """Send a request and wait for its answer. None if the other side has certainly not read it.

        Raises `DoesNotPickle` before anything was sent, `DeadlineExceeded` from then on (`loop.time`), and
        what `fail` was told. If it is interrupted or late, the connection is closed.
        """
        self.request, self.asked_at = request, self.loop.time()
        try:
            if self._brought_much or not _is_small(request):
                frame = await self._frame(request, deadline)
            else:
                frame = [encode(request)], None
            answer = self._begin(frame)
            outcome = await (answer if deadline is None else in_time(answer, deadline))
            self._brought_much = type(outcome) is tuple and len(outcome[0]) >= LARGE
            return opened(outcome)  # type: ignore[no-any-return]
        except (DoesNotPickle, PayloadLost):
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self.request = None

    def _take_apart(self, request: Request) -> Parts:
        try:
            return self.wire.take_apart(request)
        except Exception as error:
            if fails_again(partial(self.wire.take_apart, request)):
                raise DoesNotPickle(f"an argument does not pickle: {error}") from error
            raise

    async def _frame(self, request: Request, deadline: float | None) -> Frame:
        parts = self._take_apart(request)
        if (parts.is_large or self._brought_much) and self._can_share:
            await self._agree_to_share(deadline)
            parts = self._take_apart(request)
        steps = self.wire.frame_in_steps(request, parts)
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                frame: Frame = stop.value
                return frame
            await asyncio.sleep(0)  # others take their turn

    async def _agree_to_share(self, deadline: float | None) -> None:
        self._can_share = False
        self.wire.share_memory()
        opened(await in_time(self._begin(([encode(("share_memory",))], None)), deadline))

    def _begin(self, frame: Frame) -> asyncio.Future[Outcome]:
        """Send a request: what brings the answer, or None if the other side has certainly not read it."""
        self._answer = answer = self.loop.create_future()
        try:
            if not self.closed:
                self.send(frame)
        except OSError as error:
            if is_handlers(error):
                raise
            self.close()
        if self.closed:
            bring(answer, None)
        return answer

    def _on_message(self, received: Received | PayloadLost) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            raise ConnectionAbortedError("an answer came to no question")
        if not answer.done():
            answer.set_result(received)

    def _on_end(self, error: BaseException) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(unread(error))


def _is_small(request: Request) -> bool:
    """Whether a call is small at a glance: then it is not taken apart, which costs as much as the rest."""
    if request[0] != "call":
        return False
    *_, args, kwargs = request
    for each in args:
        kind = type(each)
        if kind not in _SCALARS and (kind not in _TEXTS or len(each) > _SHORT):
            return False
    return not kwargs


def _interrupted() -> ConnectionAbortedError:
    return ConnectionAbortedError("a signal handler has raised")


def unread(error: BaseException) -> BaseException | None:
    """None if the other side has certainly not read all that was sent: so the kernel answers for it then."""
    return None if isinstance(error, ConnectionResetError) else error


async def in_time(future: asyncio.Future[Outcome], deadline: float | None) -> Outcome:
    """What a future brings, or `DeadlineExceeded` from then on (`loop.time`)."""
    if deadline is None:
        return await future
    late = future.get_loop().call_at(deadline, bring, future, DeadlineExceeded())
    try:
        return await future
    finally:
        late.cancel()


def opened(outcome: Outcome) -> Any:
    """What a future has brought; an error is raised."""
    if isinstance(outcome, PoolError):  # it may be that of many tasks
        raise type(outcome)(*outcome.args) from outcome.__cause__
    if isinstance(outcome, BaseException):
        try:
            raise outcome
        finally:
            del outcome  # with this frame, which its traceback knows, it would keep all that was called
    return outcome


def bring(future: asyncio.Future[Any], outcome: object) -> None:
    """Have a future bring this, unless its task waits no more."""
    if not future.done():
        future.set_result(outcome)
