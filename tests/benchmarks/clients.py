"""The processes that call: forked once, told over a pipe what to do, gone when the pipe is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from .things import Operation, Step

__all__ = ["Client", "ClientError", "Crew", "Opener", "in_a_process", "leave_terminal", "orderly", "run_for"]

T = TypeVar("T")

Opener = Callable[[], AbstractContextManager[Any]]
"""Opens a pool in a client's process. It pickles."""

PATIENCE = 120.0
"""Seconds for the slowest answer, the start of a cluster."""

_FORK = multiprocessing.get_context("fork")


class ClientError(Exception):
    """Something failed in another process; its traceback is the message."""


class Desk:
    """What a client keeps between two jobs."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.pools: dict[str, Any] = {}
        self.step: Step | None = None
        self.operation = ExitStack()


class Client:
    """One process."""

    def __init__(self) -> None:
        self._pipe, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=_obey, args=(theirs, self._pipe), daemon=True)
        self._process.start()
        theirs.close()
        self._opened: set[str] = set()

    def begin(self, job: Callable[..., Any], *args: Any) -> None:
        """Have it run `job(desk, *args)`."""
        self._pipe.send((job, args))

    def answer(self) -> Any:
        """What the job returned."""
        return _answer(self._pipe)

    def do(self, job: Callable[..., T], *args: Any) -> T:
        """Both."""
        self.begin(job, *args)
        return self.answer()  # type: ignore[no-any-return]

    def open(self, name: str, opener: Opener) -> None:
        """Have it open a pool, unless it has."""
        if name not in self._opened:
            self.do(_open, name, opener)
            self._opened.add(name)

    def close(self) -> None:
        """Let it close what it opened, and end."""
        _say_goodbye(self._pipe)
        self._process.join(20)
        self._process.kill()
        self._process.join()


class Crew:
    """So many clients, that can all run the same operation at the same time."""

    def __init__(self, size: int) -> None:
        self._clients = [Client() for _ in range(size)]

    def __enter__(self) -> Crew:  # noqa: PYI034  # `Self` came with Python 3.11
        return self

    def __exit__(self, *exc_info: object) -> None:
        for client in self._clients:
            client.close()

    @property
    def first(self) -> Client:
        """One of them."""
        return self._clients[0]

    def block(self, clients: int, name: str, opener: Opener, operation: Operation, seconds: float) -> float:
        """Run an operation for so long in so many clients. Seconds for each of all operations."""
        busy = self._clients[:clients]
        for client in busy:
            client.open(name, opener)
        _all(busy, _prepare, name, operation, seconds)
        try:
            results = _all(busy, _run, seconds)
        finally:
            _all(busy, _finish)
        rate: float = sum(count / elapsed for count, elapsed in results)
        return 1 / rate


@contextmanager
def orderly() -> Iterator[ExitStack]:
    """A stack of what is to be ended; a Ctrl-C on the way out waits until all is."""
    stack = ExitStack()
    pressed: list[int] = []
    try:
        yield stack
    finally:
        before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
        try:
            stack.close()
        finally:
            signal.signal(signal.SIGINT, before)
        if pressed:
            raise KeyboardInterrupt


def run_for(step: Step, seconds: float) -> tuple[int, float]:
    """How often it ran, at least once, and how long that took."""
    count = 0
    now = began = time.perf_counter()
    while now < began + seconds or not count:
        step()
        count += 1
        now = time.perf_counter()
    return count, now - began


@contextmanager
def in_a_process(serve: Callable[..., AbstractContextManager[T]], *args: Any) -> Iterator[T]:
    """What `serve` gives when it is entered in another process; it is left there at the end."""
    pipe, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_serve, args=(theirs, pipe, serve, args))
    process.start()
    theirs.close()
    try:
        yield _answer(pipe)
    finally:
        _say_goodbye(pipe)
        process.join(20)
        process.kill()
        process.join()


def _say_goodbye(pipe: Connection) -> None:
    with suppress(OSError):  # it has ended already
        pipe.send(None)  # closing says nothing while processes that were forked since hold the same end
    pipe.close()


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(PATIENCE):
        raise ClientError(f"no answer within {PATIENCE:g} s")
    try:
        failed, value = pipe.recv()
    except EOFError:
        raise ClientError("the process ended without an answer") from None
    if failed:
        raise ClientError(value)
    return value


def _all(clients: list[Client], job: Callable[..., Any], *args: Any) -> list[Any]:
    for client in clients:
        client.begin(job, *args)
    answers, errors = [], []
    for client in clients:
        try:
            answers.append(client.answer())
        except ClientError as error:  # only after all have answered: no answer shall be left over
            errors.append(error)
    if errors:
        raise errors[0]
    return answers


# -- in the other process -----------------------------------------------------------------------------


def leave_terminal() -> None:
    """Ctrl-C is for the process that can end all in good order: it tells this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setsid"):
        os.setsid()  # and what this process starts


def _obey(pipe: Connection, others: Connection) -> None:
    others.close()  # so that this process sees the end of the one that has it
    leave_terminal()
    with ExitStack() as stack:
        desk = Desk(stack)
        with suppress(EOFError, OSError):
            while (order := pipe.recv()) is not None:
                pipe.send(_outcome(desk, *order))
        with suppress(Exception):  # it was interrupted, and the pool may be gone
            desk.operation.close()


def _outcome(desk: Desk, job: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return False, job(desk, *args)
    except Exception:
        return True, traceback.format_exc()


def _serve(
    pipe: Connection, others: Connection, serve: Callable[..., AbstractContextManager[Any]], args: Any
) -> None:
    others.close()
    leave_terminal()
    try:
        with serve(*args) as given:
            pipe.send((False, given))
            pipe.poll(None)  # until it says goodbye, or is gone
    except Exception:
        pipe.send((True, traceback.format_exc()))


def _open(desk: Desk, name: str, opener: Opener) -> None:
    desk.pools[name] = desk.stack.enter_context(opener())


def _prepare(desk: Desk, name: str, operation: Operation, seconds: float) -> None:
    desk.step = desk.operation.enter_context(operation(desk.pools[name]))
    run_for(desk.step, seconds / 5)  # so that all is warm


def _run(desk: Desk, seconds: float) -> tuple[int, float]:
    assert desk.step is not None
    return run_for(desk.step, seconds)


def _finish(desk: Desk) -> None:
    desk.step = None
    desk.operation.close()
