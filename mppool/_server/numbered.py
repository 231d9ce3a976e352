"""The acquires of an event loop: many share one connection, each with a number that the client chose.

The number names the acquire, and then the lease that comes of it: `end` ends whichever it is by then. So a
client that gives up need not know how far its acquire has come, and an answer that crosses its `end` on the
way means nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from mppool._pool.entry import Lease
from mppool._pool.pool import Pool
from mppool._pool.waiters import OnOutcome, Outcome, Waiter
from mppool._remote.errors import pack_error
from mppool._remote.opcodes import ERROR, FOLLOWS, Answer
from mppool._wire.connection import CHUNK, Connection, encode

from .batches import Batches, Caller

_STALE_LEASES = 100

Framing = Callable[[Callable[[Answer], bytes]], bytes]
"""Makes the frame of an answer by the way of encoding that it gets."""

Offer = Callable[[Pool, Lease], Framing]
"""Finds out what an object offers, and returns what makes the frame that tells that to the client."""


def encode_numbered(number: int, answer: Answer) -> bytes:
    """The frame of an answer to what a client asked for under this number."""
    return encode((number, *answer))


def _refusal(error: BaseException, encode: Callable[[Answer], bytes]) -> bytes:
    return encode((ERROR, pack_error(error)))


class NumberedAcquires:
    """Those of one connection. Answers are sent by whichever thread has one, in the order of their frames."""

    def __init__(
        self, connection: Connection, offer: Offer, submit: Callable[[Callable[[], object]], None]
    ) -> None:
        self._connection = connection
        self._offer = offer
        self._submit = submit
        # Guards what follows. An outcome and the `end` of its number are one step each; frames are made in
        # the order in which they are sent, since an interface comes with the first that needs it.
        self._lock = threading.Lock()
        self._asked: dict[int, tuple[Pool | Batches, Waiter | Lease | None]] = {}
        self._most_asked = _STALE_LEASES  # beyond that some may have ended otherwise, by their ids or late
        self._over = False
        self._outbox: deque[bytes] = deque()
        self._sending = threading.Lock()  # held by the one thread that empties it

    def ask(self, number: int, pool: Pool, request: Callable[[OnOutcome], Lease | Waiter]) -> None:
        """Ask the pool for an object. Its outcome, an error as well, is told under this number."""
        with self._lock:
            if number in self._asked:
                raise ValueError(f"the number {number!r} is that of another acquire or lease")
            self._forget_stale()
            self._asked[number] = pool, None
        deliver = partial(self._deliver, number, pool)
        try:
            got = request(deliver)
        except BaseException:
            with self._lock:
                self._asked.pop(number, None)
            raise
        if isinstance(got, Lease):
            if not deliver(got):
                pool.give_back(got.id)
            return
        with self._lock:
            if self._asked.get(number) == (pool, None):  # else it has been served meanwhile
                self._asked[number] = pool, got

    def _forget_stale(self) -> None:
        """Forget leases that have ended without an `end`. Needs the lock."""
        if len(self._asked) > self._most_asked:
            states = self._asked.items()
            self._asked = {each: asked for each, asked in states if not getattr(asked[1], "over", False)}
            self._most_asked = 2 * len(self._asked) + _STALE_LEASES

    def expect(self, number: int, batches: Batches, caller: Caller) -> None:
        """A call in a batch has this number, and gets its `answer`, a frame of `encode_numbered`."""
        with self._lock:
            self._asked[number] = batches, caller

    def answer(self, number: int, frame: bytes) -> bool:
        """Answer a call in a batch, unless its client has ended it.

        A client that has no memory for a large answer learns from the one ahead of it whose it was.
        """
        with self._lock:
            if self._over or self._asked.pop(number, None) is None:
                return False
            if len(frame) > CHUNK:
                self._outbox.append(encode((number, FOLLOWS, None)))
            self._outbox.append(frame)
        self._send_all()
        return True

    def refuse(self, number: int, error: BaseException) -> None:
        """Tell under this number why nothing comes of it."""
        with self._lock:
            self._outbox.append(_refusal(error, partial(encode_numbered, number)))
        self._send_all()

    def _deliver(self, number: int, pool: Pool, outcome: Outcome) -> bool:
        """Tell the client; False if it has ended this number, or is gone: then a lease goes to another."""
        if not isinstance(outcome, Lease):
            return self._answer(number, None, partial(_refusal, outcome))
        try:
            return self._answer(number, (pool, outcome), self._offer(pool, outcome))
        except BaseException as error:  # the lease is over already, or the type of its object is beyond us
            if not outcome.over:
                pool.give_back(outcome.id, discard=True)
            self._answer(number, None, partial(_refusal, error))
            return True

    def _answer(self, number: int, becomes: tuple[Pool, Lease] | None, make: Framing) -> bool:
        """Answer what was asked under a number, which names a lease from now on, or nothing."""
        with self._lock:
            if self._over or number not in self._asked:
                return False
            frame = make(partial(encode_numbered, number))
            if becomes is None:
                del self._asked[number]
            else:
                self._asked[number] = becomes
            self._outbox.append(frame)
        self._send_all()
        return True

    def end(self, number: int, discard: bool = False) -> None:
        """End the acquire with this number, or the lease that it has become."""
        with self._lock:
            pool, state = self._asked.pop(number, (None, None))
        if pool is None or state is None:
            return  # it has failed, or its outcome is on its way, and finds that nothing waits for it
        if isinstance(state, Waiter):
            pool.cancel(state)
        elif isinstance(pool, Pool):
            pool.give_back(state.id, discard=discard)

    def close(self, has_left: bool) -> None:
        """The connection has ended. What was granted on it ends, too, if the client has left.

        Else its process is dead or dying, which the watchdog finds out, or the network was cut: it keeps what
        it has called, and so knows of.
        """
        with self._lock:
            self._over = True
            asked, self._asked = self._asked, {}
            self._outbox.clear()
        for pool, state in asked.values():
            if isinstance(state, Waiter):
                pool.cancel(state)
            elif (
                isinstance(pool, Pool)
                and state is not None
                and not state.over
                and (has_left or not (pool.lends_values or state.entry.runner.fence.called))
            ):
                pool.give_back(state.id)
        self._sending.acquire()  # a thread that still sends is done before the descriptor is another one's

    def _send_all(self) -> None:
        """Send what is in the outbox, without waiting: that is for a thread of its own to do."""
        while self._outbox and self._sending.acquire(blocking=False):
            try:
                while self._outbox:
                    frame = self._outbox.popleft()
                    sent = self._connection.send_some(frame)
                    if sent < len(frame):
                        self._submit(partial(self._send_patiently, frame[sent:] if sent else frame))
                        return  # which holds the lock from here on
            except (OSError, IndexError):  # the client is gone
                self._connection.hang_up()
            self._sending.release()  # then look again: another thread may have left its frame to us

    def _send_patiently(self, begun: bytes) -> None:
        try:
            self._connection.send_frame(begun)
            while self._outbox:
                self._connection.send_frame(self._outbox.popleft())
        except (OSError, IndexError):
            self._connection.hang_up()
        finally:
            self._sending.release()
        self._send_all()
