"""Threads for slow work: factories and hooks run here, never under a lock nor in a caller's time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

log = logging.getLogger("mppool")

Job = Callable[[], object]
_IDLE_SECONDS = 10.0


class ThreadCache:
    """Daemon threads, as many as there are jobs at once; one that is free takes the next job.

    Unlike an executor's, its threads hold up no exit: a job that hangs costs its own thread only.
    Where no further thread can be had, a job waits for a thread that comes free; without any, it
    runs in the thread that brought it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._lock = threading.Lock()  # guards the two counts
        self.size = 0  # how many threads there are
        self.free = 0  # how many of them have no job; less than 0: so many jobs wait for one to come free

    def submit(self, job: Job) -> None:
        """Have the job done soon. Never blocks for another job, never raises what the job raises."""
        self._jobs.put(job)
        with self._lock:
            if self.free > 0:
                self.free -= 1  # that thread is on its way to take a job
                return
            self.size += 1
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # "can't start new thread"
            with self._lock:
                self.size -= 1
                if self.size:
                    self.free -= 1  # the next thread to come free takes one job more
                    return
            _do(self._jobs.get())

    def _work(self) -> None:
        while (job := self._next()) is not None:
            _do(job)
            del job  # what it refers to must not live until the next one comes
            with self._lock:
                self.free += 1

    def _next(self) -> Job | None:
        while True:
            try:
                return self._jobs.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self.free > 0:
                        self.free -= 1
                        self.size -= 1
                        return None


def _do(job: Job) -> None:
    try:
        job()
    except Exception:
        log.exception("mppool: a job failed")
