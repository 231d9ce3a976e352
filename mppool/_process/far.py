"""Which lease may call an object whose process shares no memory with its manager, both halves.

    the manager  -- side connection: "revoke", "called" --> a thread beside the object's main thread

Lease ids grow, and an object is lent anew only when the end of its last lease was answered. So its process
need not be told of a lease: every id above that of the last one that has ended is the present one's. A handle
whose lease is over never reaches the object once the manager has the answer, however long its call was under
way.
"""

from __future__ import annotations

import itertools
import threading
import time
from math import inf
from typing import Any

from mppool._pool.runner import Fence, Gate
from mppool._wire.connection import Connection, DeadlineExceeded
from mppool.options import HOOK_BOUND


class FarFence(Fence):
    """In the manager: asks over the side connection."""

    def __init__(self, side: Connection) -> None:
        self._side = side
        self._asking = threading.Lock()  # held by the one thread that awaits an answer
        self._numbers = itertools.count()  # of questions: an answer may come when it is awaited no more
        self._lease_id = 0

    def begin(self, lease_id: int) -> None:
        self._lease_id = lease_id

    def end(self) -> None:
        return None

    def revoke(self) -> bool:
        idle, self.has_leftovers = self._ask("revoke")
        return bool(idle)

    @property
    def called(self) -> bool:
        try:
            return bool(self._ask("called"))
        except ChildProcessError:
            return False
        except TimeoutError:  # code runs there that lets no other thread run, perhaps the holder's
            return True

    def close(self) -> None:
        """The process is gone."""
        self._side.hang_up()
        with self._asking:
            self._side.close()

    def _ask(self, question: str) -> Any:
        """Raises as `revoke`. Not under the pool's lock."""
        deadline, answer = time.monotonic() + HOOK_BOUND, None
        if self._asking.acquire(timeout=HOOK_BOUND):
            try:
                answer = self._answer_to(next(self._numbers), question, deadline)
            except (EOFError, OSError, DeadlineExceeded) as error:  # the last one within an answer
                self._side.hang_up()
                raise ChildProcessError(f"the process of its object hung up: {error!r}") from error
            finally:
                self._asking.release()
        if answer is None:
            raise TimeoutError(f"the process of its object gave no answer within {HOOK_BOUND:g} s")
        return answer

    def _answer_to(self, number: int, question: str, deadline: float) -> Any:
        """None if there is no answer in time."""
        self._side.set_deadline(deadline)
        self._side.send((number, question, self._lease_id))
        while self._side.wait_readable(max(0.0, deadline - time.monotonic())):
            answered, answer = self._side.recv()
            if answered == number:
                return answer
        return None


class Floor(Gate):
    """In the object's process. The main thread enters and leaves, the one beside it answers the manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._floor: float = 0  # the last lease that has ended
        self._latest = 0  # the lease that called last
        self._calling = False
        self._has_leftovers = False  # that lease

    def enter(self, lease_id: int) -> bool:
        with self._lock:
            if lease_id <= self._floor:
                return False
            self._latest, self._calling = lease_id, True
            return True

    def leave(self, leftovers: object) -> None:
        with self._lock:
            self._calling, self._has_leftovers = False, bool(leftovers)

    def end(self) -> bool:
        """The end of all leases."""
        with self._lock:
            self._floor = inf
            return not self._calling

    def answer(self, question: str, lease_id: int) -> object:
        """Answer the manager about the present lease, or the one that ends with the question."""
        with self._lock:
            has_called = self._latest == lease_id
            if question == "called":
                return has_called
            self._floor = max(self._floor, lease_id)  # first: no call begins from here on
            return not self._calling, has_called and self._has_leftovers
