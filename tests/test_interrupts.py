"""Calls that are interrupted: by Ctrl-C, by a signal handler that raises, by an alarm, again and again.

No later call may get the answer of an earlier one, and no object may be lost on the way.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from actors import (
    Gate,
    Interrupted,
    Tool,
    Worker,
    acquire,
    all_idle,
    echo,
    hang_up,
    interrupt,
    release,
    wait_at_gate,
)
from backends import Backend
from helpers import stress_seconds, stress_seed, wait_until

import mppool._client.pool
from mppool import ObjectPool, PoolManager, PoolStats, PoolTimeout

pytestmark = pytest.mark.pool(Tool, max_size=1)

# -- jobs for a worker ------------------------------------------------------------------------------


def interruptible(things: dict[str, Any], job: Callable[..., Any], *args: Any) -> str:
    """Do another job until a signal ends it."""
    signal.signal(signal.SIGUSR1, interrupt)
    try:
        things["result"] = job(things, *args)
    except Interrupted:
        return "interrupted"
    return "done"


def ask_held(things: dict[str, Any], pool: ObjectPool[Any]) -> Any:
    return echo(things, "before")


def ask_at_length(things: dict[str, Any], pool: ObjectPool[Any]) -> Any:
    # The manager has the first half of it; the handle, whose grant nothing but this call would have
    # confirmed, stays good.
    return echo(things, bytes(10_000_000))


def apply(things: dict[str, Any], pool: ObjectPool[Any], value: Any = "before") -> Any:
    return pool.apply(Tool.echo, value)


def apply_at_gate(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    pool.apply(Tool.wait_at_gate)


def lease(things: dict[str, Any], pool: ObjectPool[Any], value: Any = "before") -> Any:
    with pool.lease() as tool:
        return tool.echo(value)


def stats(things: dict[str, Any], pool: ObjectPool[Any]) -> PoolStats:
    return pool.stats()


def leases(things: dict[str, Any], pool: ObjectPool[Any]) -> int:
    return len(pool.leases())


def interrupted(worker: Worker) -> bool:
    """Signal the worker: whether that ended what it does."""
    os.kill(worker.pid, signal.SIGUSR1)
    answer: str = worker.result()
    return answer == "interrupted"


def assert_right_answers(worker: Worker, pool: ObjectPool[Any]) -> None:
    """Everything that the worker asks has its own answer. It holds an object, and another is free."""
    assert worker.do(echo, "asked later") == "asked later"
    assert isinstance(worker.do(stats, pool), PoolStats)
    assert worker.do(apply, pool, "applied later") == "applied later"
    assert worker.do(leases, pool) == 1
    assert worker.do(lease, pool, "leased later") == "leased later"
    assert worker.do(echo, "last") == "last"
    worker.do(release, pool)
    wait_until(lambda: pool.stats().leased == 0)


# -- one interruption, at a known place -------------------------------------------------------------


@pytest.mark.far
@pytest.mark.everywhere
@pytest.mark.pool(Tool, max_size=2)
def test_an_interrupted_call(gate: Gate, worker: Worker, pool: ObjectPool[Any]) -> None:
    worker.do(acquire, pool)
    worker.begin(interruptible, wait_at_gate)
    gate.wait_for_somebody()
    assert interrupted(worker)
    gate.open()
    assert_right_answers(worker, pool)


@pytest.mark.far
@pytest.mark.everywhere
def test_an_interrupted_apply_gives_back_its_object(
    gate: Gate, worker: Worker, pool: ObjectPool[Any]
) -> None:
    worker.begin(interruptible, apply_at_gate, pool)
    gate.wait_for_somebody()
    assert interrupted(worker)
    gate.open()
    assert worker.do(apply, pool, 2) == 2
    wait_until(lambda: all_idle(pool, 1))  # what a worker gives back it does not wait for


@pytest.mark.far
@pytest.mark.everywhere
@pytest.mark.pool(Tool, max_size=2)
@pytest.mark.parametrize("job", [ask_held, ask_at_length, apply, lease, stats, leases])
def test_interrupted_between_question_and_answer(
    backend: Backend, worker: Worker, manager: PoolManager, pool: ObjectPool[Any], job: Callable[..., Any]
) -> None:
    worker.do(acquire, pool)
    with backend.standstill(manager):
        worker.begin(interruptible, job, pool)
        wait_until(lambda: asleep_in_a_call(worker))
        assert interrupted(worker)
    assert_right_answers(worker, pool)


def raising(things: dict[str, Any], kind: type[Exception], job: Callable[..., Any], *args: Any) -> str:
    """Do another job until a signal ends it with an error of this type."""

    def handle(signum: int, frame: object) -> None:
        raise kind("the handler's")

    signal.signal(signal.SIGUSR1, handle)
    try:
        job(things, *args)
    except Exception as error:
        return repr(error)
    return "done"


def lease_anew(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    hang_up(things, pool)
    lease(things, pool)


def release_anew(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    handle = things["handle"]
    hang_up(things, pool)
    pool.release(handle)


@pytest.mark.everywhere("none")
@pytest.mark.pool(Tool, max_size=2)
@pytest.mark.parametrize("kind", [TimeoutError, ConnectionResetError, EOFError])
@pytest.mark.parametrize("job", [ask_held, ask_at_length, apply, lease_anew, release_anew])
def test_what_a_signal_handler_raises_is_no_sign_of_the_manager(
    backend: Backend,
    worker: Worker,
    manager: PoolManager,
    pool: ObjectPool[Any],
    job: Callable[..., Any],
    kind: type[Exception],
) -> None:
    worker.do(acquire, pool)
    with backend.standstill(manager):
        worker.begin(raising, kind, job, pool)
        wait_until(lambda: asleep_in_a_call(worker))
        os.kill(worker.pid, signal.SIGUSR1)
        assert worker.result() == repr(kind("the handler's"))
    if job is release_anew:  # it is told all the same
        wait_until(lambda: all_idle(pool, 1))
        worker.do(acquire, pool)
    assert_right_answers(worker, pool)


def asleep_in_a_call(worker: Worker) -> bool:
    """The manager and its objects stand still, so whatever the worker sleeps for can only be its answer."""
    process = psutil.Process(worker.pid)
    return not worker.idle() and process.status() == psutil.STATUS_SLEEPING


@pytest.mark.far
@pytest.mark.everywhere
def test_an_interrupted_waiter_takes_no_object(worker: Worker, pool: ObjectPool[Any]) -> None:
    handle = pool.acquire()
    worker.begin(interruptible, acquire, pool, None)
    wait_until(lambda: pool.stats().waiting == 1)
    assert interrupted(worker)
    wait_until(lambda: pool.stats().waiting == 0)
    pool.release(handle)
    assert worker.do(lease, pool, 3) == 3
    wait_until(lambda: all_idle(pool, 1))


@pytest.mark.everywhere("none")
def test_interrupted_with_the_grant_on_its_way(worker: Worker, pool: ObjectPool[Any]) -> None:
    worker.do(lease, pool, 0)
    for _ in range(20):
        handle = pool.acquire()
        worker.begin(interruptible, acquire, pool, None)
        wait_until(lambda: pool.stats().waiting == 1)
        worker.stop()
        pool.release(handle)
        wait_until(lambda: pool.stats().leased == 1)  # granted, and nobody reads it
        os.kill(worker.pid, signal.SIGUSR1)
        worker.go_on()
        if worker.result() == "done":
            worker.do(release, pool)
        wait_until(lambda: all_idle(pool, 1))


@pytest.mark.everywhere
def test_interrupted_with_the_grant_in_hand(worker: Worker, pool: ObjectPool[Any]) -> None:
    worker.do(fail_to_make_a_handle, pool)
    wait_until(lambda: all_idle(pool, 1))
    assert worker.do(lease, pool, 1) == 1


def fail_to_make_a_handle(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    make_handle = mppool._client.pool.make_handle
    mppool._client.pool.make_handle = lambda *args: interrupt(0, None)  # type: ignore[assignment]
    try:
        pool.acquire()
    except Interrupted:
        return
    finally:
        mppool._client.pool.make_handle = make_handle
    raise AssertionError("not interrupted")


def connect_interrupted(things: dict[str, Any], pool: ObjectPool[Any]) -> tuple[int, int]:
    """Connect, interrupted at each line of the module `socket`: at how many, and how many files that left."""
    pool.stats()
    before = psutil.Process().num_fds()
    for number in itertools.count():
        hang_up(things, pool)
        lines = iter(range(number))

        def trace(frame: Any, event: str, _: object, lines: Any = lines) -> Any:
            in_socket = event == "line" and frame.f_code.co_filename == socket.__file__
            if in_socket and next(lines, None) is None:
                raise Interrupted  # which ends the tracing
            return trace

        sys.settrace(trace)
        try:  # `contextlib.suppress` has lines, too
            pool.stats()
        except Interrupted:
            continue
        if sys.gettrace() is not None:
            sys.settrace(None)
            break
    return number, psutil.Process().num_fds() - before


def test_an_interrupted_connect_leaves_no_descriptor(pool: ObjectPool[Any], worker: Worker) -> None:
    lines, left = worker.do(connect_interrupted, pool)
    assert lines > 3
    assert left == 0


@pytest.mark.everywhere
@pytest.mark.pool(Tool, max_size=2)
def test_a_signal_handler_may_use_the_pool_itself(gate: Gate, worker: Worker, pool: ObjectPool[Any]) -> None:
    worker.do(acquire, pool)
    worker.begin(nested, pool)
    gate.wait_for_somebody()
    os.kill(worker.pid, signal.SIGUSR1)
    wait_until(lambda: pool.stats().acquired == 2)
    gate.open()
    assert worker.result() == [17]
    assert_right_answers(worker, pool)


def nested(things: dict[str, Any], pool: ObjectPool[Any]) -> list[Any]:
    answers: list[Any] = []
    signal.signal(signal.SIGUSR1, lambda *_: answers.append(pool.apply(Tool.echo, 17)))
    wait_at_gate(things)
    return answers


@pytest.mark.everywhere
def test_keyboard_interrupt_in_a_lease(gate: Gate, worker: Worker, pool: ObjectPool[Any]) -> None:
    worker.begin(lease_until_ctrl_c, pool)
    gate.wait_for_somebody()
    os.kill(worker.pid, signal.SIGINT)
    assert worker.result() == "KeyboardInterrupt"
    gate.open()
    assert worker.do(lease, pool, 1) == 1


def lease_until_ctrl_c(things: dict[str, Any], pool: ObjectPool[Any]) -> str:
    try:
        with pool.lease() as tool:
            tool.wait_at_gate()
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    return "done"


class Bell:
    """Rings the first time that it is pickled: a signal comes at that moment."""

    def __init__(self) -> None:
        self._rings = True

    def __reduce__(self) -> tuple[Any, ...]:
        rings, self._rings = self._rings, False
        if rings:
            signal.raise_signal(signal.SIGUSR1)
        return int, (7,)


@pytest.mark.pool(Tool, max_size=2)
@pytest.mark.parametrize("kind", [Interrupted, TypeError, AttributeError])
@pytest.mark.parametrize(
    "use",
    [
        lambda manager, pool, tool: tool.echo(Bell()),
        lambda manager, pool, tool: tool.echo([tool, Bell()]),
        lambda manager, pool, tool: pool.apply(Tool.echo, Bell()),
        lambda manager, pool, tool: manager.create_pool(partial(Tool, Bell())),
    ],
    ids=["a call", "a call with a handle", "apply", "a new pool"],
)
def test_what_a_signal_handler_raises_while_arguments_are_pickled_is_raised(
    manager: PoolManager, pool: ObjectPool[Any], use: Callable[..., Any], kind: type[Exception]
) -> None:
    def handle(signum: int, frame: object) -> None:
        raise kind("it rings")

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pool.lease() as tool:
            with pytest.raises(kind, match="it rings"):
                use(manager, pool, tool)
            assert tool.echo(7) == 7
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_while_an_error_is_packed_is_raised(
    manager: PoolManager, kind: type[BaseException]
) -> None:
    def handle(signum: int, frame: object) -> None:
        raise kind("it rings")

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with manager.create_pool(threading.Lock).lease() as lock:
            with pytest.raises(kind, match="it rings"), lock:
                raise ValueError([Bell()])
            assert lock.locked(), "it was interrupted before it was left"
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- what nobody refers to any more ----------------------------------------------------------------


def forget_and_be_interrupted(things: dict[str, Any], pool: ObjectPool[Any], uses: int) -> str:
    """A finalizer of the package is interrupted before it has done anything: as a signal may find it."""
    for _ in range(uses):
        pool.release(pool.acquire())
    handle = pool.acquire()
    interrupted = []

    def on_call(frame: Any, event: str, _: object) -> None:
        if frame.f_code.co_name == "__del__" and "mppool" in frame.f_code.co_filename:
            interrupted.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else "__del__")
            sys.settrace(None)
            raise Interrupted

    with patch("sys.unraisablehook", lambda _: None):  # Python only tells of it
        sys.settrace(on_call)
        del handle
        sys.settrace(None)
    assert len(interrupted) == 1
    return str(interrupted[0])


@pytest.mark.everywhere
@pytest.mark.parametrize("uses", [0, 1, 20])  # after which a lease may be delegated
def test_a_finalizer_that_never_begins_loses_no_object(
    worker: Worker, pool: ObjectPool[Any], uses: int
) -> None:
    assert "__del__" in worker.do(forget_and_be_interrupted, pool, uses)
    wait_until(lambda: all_idle(pool, 1))


class Ringing:
    """Has results that ring the first time that they are rebuilt."""

    def bell(self) -> Any:
        return RingsWhenRebuilt()


class RingsWhenRebuilt:
    def __reduce__(self) -> tuple[Any, ...]:
        return ring_once, ()


def ring_once(rung: list[int] = []) -> int:  # noqa: B006  # it is to last
    if not rung:
        rung.append(1)
        signal.raise_signal(signal.SIGUSR1)
    return len(rung)


def be_interrupted_while_an_answer_is_rebuilt(things: dict[str, Any], pool: ObjectPool[Any]) -> str:
    things["handle"] = pool.acquire()
    gc.collect()
    gc.disable()  # a cluster's worker does other things afterwards
    try:
        return interruptible(things, ring_the_bell)
    finally:
        del things["handle"]
        gc.enable()


def ring_the_bell(things: dict[str, Any]) -> Any:
    return things["handle"].bell()


@pytest.mark.everywhere
@pytest.mark.pool(Ringing, max_size=1)
def test_an_error_that_an_answer_is_met_with_keeps_no_object(worker: Worker, pool: ObjectPool[Any]) -> None:
    """Else it waits for the garbage collector, which has nothing to do in an idle process."""
    assert worker.do(be_interrupted_while_an_answer_is_rebuilt, pool) == "interrupted"
    wait_until(lambda: all_idle(pool, 1))


def be_interrupted_when_the_grant_is_acknowledged(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    def interrupted(_: object) -> None:
        pool.stats()  # as where the object's process is asked for, and does not answer
        raise Interrupted

    with patch("mppool._client.pool.class_for", interrupted), pytest.raises(Interrupted):
        pool.acquire()


@pytest.mark.everywhere
def test_an_acquire_that_is_interrupted_late_gives_back_what_was_granted(
    worker: Worker, pool: ObjectPool[Any]
) -> None:
    worker.do(be_interrupted_when_the_grant_is_acknowledged, pool)
    wait_until(lambda: all_idle(pool, 1))


# -- storms -----------------------------------------------------------------------------------------


class Storm:
    """Signals at random moments, to this process, by its own timer."""

    def __init__(self, dice: random.Random, handler: Callable[..., None], again: bool) -> None:
        self._dice = dice
        self._again = again
        self._handler = handler
        self.strokes = 0

    def _strike(self, signum: int, frame: object) -> None:
        self.strokes += 1
        if self._again:
            self.arm()
        self._handler(signum, frame)

    def arm(self) -> None:
        # Mostly within one round trip, and now and then long enough to get something done.
        signal.setitimer(signal.ITIMER_REAL, self._dice.choice((0.00003, 0.0001, 0.0003, 0.003)))

    def __enter__(self) -> Storm:  # noqa: PYI034  # `Self` came with Python 3.11
        signal.signal(signal.SIGALRM, self._strike)
        self.arm()
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def in_a_storm(
    things: dict[str, Any], pool: ObjectPool[Any], seed: int, seconds: float, raising: bool
) -> tuple[int, int]:
    """Ask everything, interrupted again and again; returns how much was answered and interrupted.

    For so many seconds, and longer where a busy machine has not come far by then.
    """
    warnings.simplefilter("ignore")  # handles that an interruption left behind are collected
    dice = random.Random(seed)
    answered = 0
    deadline = time.monotonic() + seconds
    storm = Storm(dice, interrupt if raising else lambda *_: None, not raising)
    held: list[Any] = []
    while time.monotonic() < deadline or min(answered, storm.strokes) <= 50:
        try:
            with storm:
                for _ in range(50):  # the stroke may fall into a finalizer, where nothing can be raised
                    ask_something(pool, dice, held)
                    answered += 1
        except Interrupted:
            continue
        except PoolTimeout:
            held.clear()
    signal.setitimer(signal.ITIMER_REAL, 0)
    held.clear()
    gc.collect()
    return answered, storm.strokes


def ask_something(pool: ObjectPool[Any], dice: random.Random, held: list[Any]) -> None:
    value = dice.random()
    what = dice.randrange(6)
    if what == 0:
        assert pool.apply(Tool.echo, value) == value
    elif what == 1:
        with pool.lease(timeout=0.1) as tool:
            assert tool.echo(value) == value
    elif what == 2 and not held:
        held.append(pool.acquire(timeout=0.1))
    elif what == 3 and held:
        pool.release(held.pop())
    elif what == 4:
        assert pool.stats().name == pool.name
    elif held:
        assert held[0].echo([value]) == [value]


@pytest.mark.far
@pytest.mark.everywhere("none", "process")
@pytest.mark.stress
@pytest.mark.pool(Tool, max_size=3)
@pytest.mark.parametrize("raising", [True, False])
def test_a_storm_of_alarms(backend: Backend, pool: ObjectPool[Any], raising: bool) -> None:
    seed, seconds = stress_seed(), stress_seconds()
    with backend.worker() as one, backend.worker() as other:
        for number, worker in enumerate((one, other)):
            worker.begin(in_a_storm, pool, seed + number, seconds, raising)
        for worker in (one, other):
            answered, strokes = worker.result(seconds + 40)
            assert min(answered, strokes) > 10
        wait_until(lambda: all_idle(pool, pool.stats().size))
        for worker in (one, other):
            assert worker.do(lease, pool, 5) == 5
