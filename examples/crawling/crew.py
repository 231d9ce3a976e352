"""Worker processes that are replaced when they die. Runs in the main process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from .page import Page

GRACE = 2.0  # seconds for the pages in flight when the crawl is stopped


class Visit(NamedTuple):
    """What a worker tells of a page: little enough to go in one write, which no death can cut in half."""

    error: str | None
    found: int


class Crew:
    """A process pool executor that does one task to many pages, and is replaced when it breaks.

    Made after all other child processes, so that it can tell its workers from them.
    """

    def __init__(self, size: int, task: Callable[[Page], Visit]) -> None:
        self._size = size
        self._task = task
        self._others = multiprocessing.active_children()
        self._hire()

    def _hire(self) -> None:
        self.running: dict[Future[Visit], Page] = {}
        self._executor = ProcessPoolExecutor(self._size, initializer=begin_helper)
        self._shot = False

    def submit(self, page: Page) -> None:
        """Hand a page to the workers."""
        try:
            with ctrl_c_held_back():
                future = self._executor.submit(self._task, page)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        self.running[future] = page

    def collect(self, seconds: float) -> tuple[list[Visit], list[Page]]:
        """Wait for a page to end. Returns those that ended, and after a death those that are lost.

        Raises what the task raised.
        """
        ended: Iterable[Future[Visit]] = wait(self.running, seconds, FIRST_COMPLETED).done
        broken = any(isinstance(future.exception(), BrokenProcessPool) for future in ended)
        if broken:
            # One death takes all workers of an executor down. After this, every future has its result
            # or the bad news.
            self._executor.shutdown()
            ended = list(self.running)
        visits, lost = [], []
        for future in ended:
            page = self.running.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                lost.append(page)
            else:
                visits.append(future.result())
        if broken:
            self._hire()
        return visits, lost

    def kill_one(self) -> int | None:
        """SIGKILL to a worker, and return its pid; None while the last victim is not yet replaced."""
        workers = self._workers()
        if self._shot or not workers:
            return None
        self._shot = True
        victim = random.choice(workers)
        victim.kill()
        return victim.pid

    def dismiss(self) -> bool:
        """End all workers; those that are still busy after a grace are killed. Returns whether any was."""
        for future in self.running:
            future.cancel()
        busy = bool(wait(self.running, GRACE).not_done)
        if busy:
            for worker in self._workers():
                worker.kill()
        self._executor.shutdown()
        return busy

    def _workers(self) -> list[BaseProcess]:
        return [child for child in multiprocessing.active_children() if child not in self._others]


def begin_helper() -> None:
    """First thing in a child process: Ctrl-C is the parent's business, and its end is ours."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Around the start of a child, which inherits it: Ctrl-C cannot hit before `begin_helper`.

    In this process, Ctrl-C only comes a moment later.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
