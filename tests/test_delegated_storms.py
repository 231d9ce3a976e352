"""Delegated leases under all that can happen to their holders: an object is never with two, and none is lost.

MPPOOL_STRESS_SECONDS is the length of the random parts, MPPOOL_STRESS_SEED their seed. How often the fast way
was gone is counted by what the manager granted: what is acquired beyond that was taken again without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import (
    Exclusive,
    Interrupted,
    KillStorm,
    Tool,
    Worker,
    all_idle,
    descriptors_for,
    hang_up,
    process_of,
    stopped,
    tokens,
)
from backends import Backend
from helpers import stress_seconds, stress_seed, stress_times, wait_until
from standins import side_by_side

import mppool
import mppool._client.pool
from mppool import (
    FactoryError,
    LeaseError,
    LeaseLost,
    ManagerLost,
    ObjectPool,
    PoolClosed,
    PoolManager,
    PoolTimeout,
)
from mppool._wire.delegation import AVAILABLE, Parking

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no lease is delegated on this platform")

PACKAGE = os.path.dirname(mppool.__file__)

_TOOL = 4

SIZE = 4

# -- at each step -----------------------------------------------------------------------------------------


class Step:
    """Something happens at one step of what the package does in a block, as a signal or a thread would."""

    def __init__(self, number: int, happens: Callable[[], object]) -> None:
        self._left = number
        self._happens = happens
        self._thread = threading.get_ident()  # no signal comes to another one
        self.place = ""

    @property
    def was_reached(self) -> bool:
        return self._left < 0

    def __enter__(self) -> Step:  # noqa: PYI034  # `Self` came with Python 3.11
        self._trace(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._trace(False)

    def _trace(self, on: bool) -> None:
        if sys.version_info < (3, 12):
            sys.settrace(self._on_call if on else None)
            return
        seen = sys.monitoring.events.INSTRUCTION
        if sys.monitoring.get_tool(_TOOL) is None:
            sys.monitoring.use_tool_id(_TOOL, "steps")
        sys.monitoring.register_callback(_TOOL, seen, self._on_step if on else None)
        sys.monitoring.set_events(_TOOL, seen if on else 0)

    def _on_call(self, frame: Any, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._on_step(frame.f_code, frame.f_lasti)
        return self._on_call

    def _on_step(self, code: types.CodeType, _: int) -> None:
        if code.co_filename.startswith(PACKAGE) and threading.get_ident() == self._thread:
            self._left -= 1
            if self.was_reached:
                self._trace(False)
                self.place = code.co_name
                self._happens()


def raise_interrupted() -> None:
    raise Interrupted


def acquire_delegated(pool: ObjectPool[Any]) -> Any:
    """A handle of a lease that is delegated by now."""
    while not tokens():
        pool.release(pool.acquire(10))
    return pool.acquire(10)


def take(pool: ObjectPool[Any], step: Step) -> None:
    pool.release(acquire_delegated(pool))
    with step:
        handle = pool.acquire(10)
    pool.release(handle)


def give(pool: ObjectPool[Any], step: Step) -> None:
    handle = acquire_delegated(pool)
    with step:
        pool.release(handle)


def throw_away(pool: ObjectPool[Any], step: Step) -> None:
    handle = acquire_delegated(pool)
    with step:
        pool.release(handle, discard=True)


def forget(pool: ObjectPool[Any], step: Step) -> None:
    handle = acquire_delegated(pool)
    with step:
        del handle


def lease_and_call(pool: ObjectPool[Any], step: Step) -> None:
    pool.release(acquire_delegated(pool))
    with step, pool.lease() as tool:
        tool.echo(1)


def go_through(
    things: dict[str, Any], pool: ObjectPool[Any], do: Callable[[ObjectPool[Any], Step], None], seed: int
) -> int:
    """Interrupt at each step, or at some of them; how many that were."""
    dice, longest = random.Random(seed), 2 if stress_times(2) else 25
    warnings.simplefilter("ignore")  # of handles that were never known, and so never released
    sys.unraisablehook = lambda _: None  # it came in a finalizer
    kept = acquire_delegated(pool)  # an old handle keeps nothing
    pool.release(kept)
    number = times = 0
    while True:
        step = Step(number, raise_interrupted)
        with contextlib.suppress(Interrupted):
            do(pool, step)
        if not step.was_reached:
            return times
        number, times = number + dice.randrange(1, longest), times + 1
        # No acquire waits here: for a while after that no lease is delegated.
        wait_until(lambda: not pool.stats().leased, message=f"lost at step {number} in {step.place}")


@pytest.mark.everywhere("none", "process")
@pytest.mark.stress
@pytest.mark.pool(Tool, max_size=1)
@pytest.mark.parametrize("do", [take, give, throw_away, forget, lease_and_call])
def test_an_interrupt_at_any_step_loses_no_object(
    worker: Worker, pool: ObjectPool[Any], do: Callable[..., None]
) -> None:
    worker.begin(go_through, pool, do, stress_seed())
    steps = worker.result(100)
    assert steps > 5
    wait_until(lambda: all_idle(pool, pool.stats().size))
    print(f"interrupted at {steps} steps")


@pytest.mark.pool(Tool, max_size=1)
def test_an_interrupted_acquire_gives_back_its_object_though_its_error_is_kept(
    worker: Worker, pool: ObjectPool[Any]
) -> None:
    worker.do(keep_the_error, pool)
    wait_until(lambda: all_idle(pool, 1))


def keep_the_error(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    pool.release(acquire_delegated(pool))
    mppool._client.pool.make_handle = lambda *_: raise_interrupted()  # type: ignore[assignment, return-value]
    with pytest.raises(Interrupted) as things["kept"]:
        pool.acquire()


# -- two that release, and one that takes -----------------------------------------------------------------


def release_twice(things: dict[str, Any], pool: ObjectPool[Any], number: int) -> tuple[bool, list[str], str]:
    """At one step of a release, release and acquire: whether there is such a step, who failed, and where."""
    handle = acquire_delegated(pool)
    again: list[Any] = []
    refused = []

    def come_between() -> None:
        try:
            pool.release(handle)
        except LeaseError:
            refused.append("other")
        with contextlib.suppress(PoolTimeout):  # the token is about to be put back
            if pool.stats().idle:
                again.append(pool.acquire(0))

    step = Step(number, come_between)
    try:
        with step:
            pool.release(handle)
    except LeaseError:
        refused.append("first")
    again = again or [pool.acquire(10)]
    assert again[0].echo(number) == number
    assert pool.stats().idle == 0  # the object is not there for another one as well
    pool.release(again[0])
    return step.was_reached, refused, step.place


@pytest.mark.pool(Tool, max_size=1)
def test_of_two_that_release_one_ends_the_lease(worker: Worker, pool: ObjectPool[Any]) -> None:
    """Else the second puts back a token that another thread has taken meanwhile."""
    number = firsts = 0
    while (answer := worker.do(release_twice, pool, number))[0]:
        number += 1
        assert len(answer[1]) == 1, (number, answer)
        firsts += answer[1] == ["first"]
    assert 0 < firsts < number
    assert all_idle(pool, 1)


def be_interrupted_late(things: dict[str, Any], pool: ObjectPool[Any], number: int) -> tuple[bool, bool]:
    """At one step of a release, acquire if that is possible, and be interrupted: whether either was so."""
    handle = acquire_delegated(pool)
    again: list[Any] = []

    def come_between() -> None:
        with contextlib.suppress(PoolTimeout):  # the token is about to be put back
            if pool.stats().idle:
                again.append(pool.acquire(0))
        raise Interrupted

    step = Step(number, come_between)
    with contextlib.suppress(Interrupted), step:
        pool.release(handle)
    for each in again:  # the other thread's, which was not interrupted
        assert pool.stats().leased == 1
        assert each.echo(number) == number
        pool.release(each)
    with contextlib.suppress(LeaseError):  # it was interrupted before it began
        pool.release(handle)
    wait_until(lambda: all_idle(pool, 1), message=step.place)
    return step.was_reached, bool(again)


@pytest.mark.pool(Tool, max_size=1)
def test_an_interrupted_release_does_not_end_the_lease_of_the_next_one(
    worker: Worker, pool: ObjectPool[Any]
) -> None:
    number = taken = 0
    while (answer := worker.do(be_interrupted_late, pool, number))[0]:
        number += 1
        taken += answer[1]
    assert 0 < taken < number


# -- storms -----------------------------------------------------------------------------------------------


class Meeting(Exclusive):
    """Is called with others like it, each by its own holder."""

    def meet(self, token: object, other: Exclusive, others: object) -> None:
        self.step(token)
        other.step(others)


@pytest.fixture
def lent(manager: PoolManager, tmp_path: Path) -> Iterator[ObjectPool[Any]]:
    """A pool of objects that prove from inside that each has one holder. None is lost at the end."""
    complaints = tmp_path / "complaints"
    complaints.touch()
    pool = manager.create_pool(partial(Meeting, complaints), max_size=SIZE, timeout=60.0)
    yield pool
    wait_until(lambda: is_at_rest(pool), timeout=20)
    with contextlib.ExitStack() as stack:
        for number in range(SIZE):
            stack.enter_context(pool.lease(10)).step(number)
        assert pool.stats().leased == SIZE
    assert complaints.read_text() == ""


def is_at_rest(pool: ObjectPool[Any]) -> bool:
    now = pool.stats()
    return (now.idle, now.leased, now.waiting) == (now.size, 0, 0)


def count_resumes(counts: Any) -> None:
    """From now on counts[1] is how often this process has taken an object again by itself."""
    resume = Parking.resume

    def counting(self: Parking) -> bool:
        resumed = resume(self)
        counts[1] += resumed
        return resumed

    Parking.resume = counting  # type: ignore[method-assign]


def use(pool: ObjectPool[Any], token: object, dice: random.Random) -> None:
    """One lease, with a call more or less."""
    with pool.lease() as thing:
        for _ in range(dice.choice((0, 1, 1, 2))):
            assert thing.step(token, dice.choice((0.0,) * 9 + (0.001,))) == token


def work_until_killed(pool: ObjectPool[Any], seed: float, counts: Any) -> None:
    """Use objects, with pauses now and then: what waited meanwhile has come and gone."""
    count_resumes(counts)
    dice = random.Random(seed)
    for number in range(10**9):
        use(pool, (os.getpid(), number), dice)
        counts[0] += 1
        if dice.random() < 0.002:
            threading.Event().wait(dice.uniform(0, 0.15))


def work_on_loop_until_killed(pool: ObjectPool[Any], seed: float, counts: Any) -> None:
    count_resumes(counts)
    dice = random.Random(seed)
    for number in range(10**9):
        asyncio.run(work_on_loop(pool, dice, number, counts))


async def work_on_loop(pool: ObjectPool[Any], dice: random.Random, number: int, counts: Any) -> None:
    """The loop ends with one task under way."""

    async def work(task: int) -> None:
        for turn in range(dice.randrange(1, 400)):
            async with pool.aio.lease() as thing:
                token = os.getpid(), number, task, turn
                for _ in range(dice.choice((0, 1, 1, 2))):
                    assert await thing.step(token) == token
            counts[0] += 1

    tasks = [asyncio.create_task(work(task)) for task in range(2)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


@pytest.mark.everywhere
@pytest.mark.stress
@pytest.mark.parametrize(("work", "workers"), [(work_until_killed, SIZE), (work_on_loop_until_killed, 2)])
def test_holders_that_are_killed_and_stopped(
    manager: PoolManager, lent: ObjectPool[Any], work: Callable[..., None], workers: int
) -> None:
    """In use, parked, and in between. Now and then the manager stands still, too."""
    dice = random.Random(stress_seed())
    end = time.monotonic() + stress_seconds()
    standing = 0
    with KillStorm(Worker, partial(work, lent), dice, workers) as storm:
        while time.monotonic() < end or storm.kills < 20:
            storm.strike((0.0, 0.01, 0.05, 0.2), stops=True)
            if dice.random() < 0.2:
                with stopped(process_of(manager)):
                    threading.Event().wait(dice.uniform(0, 0.05))
                standing += 1
        storm.all_go_on(timeout=30)
    print(f"{storm.kills} kills and stops, {standing} of the manager, {storm.served} leases")
    print(f"{storm.refused} of them without a word, {lent.stats().reclaimed} reclaimed")
    assert storm.refused > storm.served / 100


class Struck:
    """Where a signal handler has raised."""

    def __init__(self) -> None:
        self.doing = ""
        self.taking = self.ending = self.elsewhere = 0

    def strike(self, signum: int, frame: Any) -> None:
        names = []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        if self.doing == "taking" and "request" not in names and is_a_token_taken():
            self.taking += 1
        elif "_end_delegated" in names and "notify" not in names:
            self.ending += 1
        else:
            self.elsewhere += 1
        raise Interrupted


def is_a_token_taken() -> bool:
    return any(count_in(name) == 0 for name in os.listdir("/proc/self/fdinfo"))


def count_in(descriptor: str) -> int | None:
    """What an event counter holds; None if it is none."""
    try:
        lines = Path("/proc/self/fdinfo", descriptor).read_text().split()
    except FileNotFoundError:  # that of this listing
        return None
    return int(lines[lines.index("eventfd-count:") + 1], 16) if "eventfd-count:" in lines else None


def be_interrupted(
    things: dict[str, Any], pool: ObjectPool[Any], seed: int, seconds: float, wanted: int
) -> dict[str, int]:
    warnings.simplefilter("ignore")  # of handles that were never known
    sys.unraisablehook = lambda _: None  # it came in a finalizer
    counts = [0, 0]
    count_resumes(counts)
    dice, struck = random.Random(seed), Struck()
    signal.signal(signal.SIGALRM, struck.strike)
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end or min(struck.taking, struck.ending) < wanted:
        pool.release(acquire_delegated(pool))  # no interrupt comes while it connects: it would not end
        handle = None
        try:
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.0008))
            for _ in range(1000):
                number += 1
                struck.doing = "taking"
                handle = pool.acquire()
                struck.doing = "calling"
                if dice.random() < 0.05:
                    assert handle.step((os.getpid(), number)) == (os.getpid(), number)
                struck.doing = "giving back"
                pool.release(handle)
                handle = None
        except Interrupted:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        if handle is not None:
            with contextlib.suppress(LeaseError):  # it had begun to be given back
                pool.release(handle)
        counts[0] = number
    things["left"] = None
    return {"acquires": number, "resumed": counts[1], **vars(struck)}


@pytest.mark.everywhere
@pytest.mark.stress
def test_interrupts_between_taking_and_knowing(lent: ObjectPool[Any]) -> None:
    seed, wanted = stress_seed(), max(5, stress_times(1000))
    with Worker() as one, Worker() as other:
        for number, worker in enumerate((one, other)):
            worker.begin(be_interrupted, lent, seed + number, stress_seconds(), wanted)
        for worker in (one, other):
            told = worker.result(55 + 3 * stress_seconds())
            print(told)
            assert min(told["taking"], told["ending"]) >= wanted
            assert told["resumed"] > told["acquires"] / 100
        wait_until(lambda: is_at_rest(lent))


# -- forks ------------------------------------------------------------------------------------------------


def fork_again_and_again(
    things: dict[str, Any], pool: ObjectPool[Any], seed: int, seconds: float
) -> tuple[int, int, int]:
    """In leases, between them, beside a thread that uses the pool; returns forks, resumes and acquires."""
    counts = [0, 0]
    count_resumes(counts)
    over = threading.Event()
    failed: list[BaseException] = []

    def work(name: str) -> None:
        dice = random.Random(f"{seed}{name}")
        try:
            while not over.is_set():
                counts[0] += 1
                use(pool, (os.getpid(), name, counts[0]), dice)
        except BaseException as error:
            failed.append(error)

    beside = threading.Thread(target=work, args=("thread",))
    beside.start()
    dice = random.Random(seed)
    end, forks = time.monotonic() + seconds, 0
    while time.monotonic() < end or forks < 20:
        for _ in range(dice.randrange(5)):
            counts[0] += 1
            use(pool, (os.getpid(), "main", counts[0]), dice)
        if dice.random() < 0.5:
            with pool.lease() as thing:
                child = fork_a_user(pool, thing, dice.random())
                token = os.getpid(), "parent", forks
                assert thing.step(token) == token
                if dice.random() < 0.5:
                    await_child(child)
                    child = 0
                assert thing.step(token) == token
        else:
            child = fork_a_user(pool, None, dice.random())
        if child:  # which ends while objects lie parked here
            use(pool, (os.getpid(), "while", forks), dice)
            await_child(child)
        forks += 1
    over.set()
    beside.join()
    if failed:
        raise failed[0]
    return forks, counts[1], counts[0]


def await_child(pid: int) -> None:
    assert os.waitpid(pid, 0)[1] == 0


def fork_a_user(pool: ObjectPool[Any], inherited: Any, seed: float) -> int:
    """A child that takes objects of its own, for a while; that of its parent it may not call."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        dice = random.Random(seed)
        for number in range(dice.choice((0, 1, 20))):
            use(pool, (os.getpid(), number), dice)
        if inherited is not None:
            with pytest.raises(LeaseError):
                inherited.step("child")
            with pytest.raises(LeaseError):
                pool.release(inherited)
        if dice.random() < 0.3:
            pool.acquire()  # and ends with it
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@pytest.mark.everywhere
@pytest.mark.stress
def test_forks_inside_leases_and_between_them(lent: ObjectPool[Any]) -> None:
    with Worker() as worker:
        worker.begin(fork_again_and_again, lent, stress_seed(), stress_seconds())
        forks, resumed, acquires = worker.result(40 + 2 * stress_seconds())
        print(f"{forks} forks, {resumed} of {acquires} acquires without a word")
        assert resumed > acquires / 100
        wait_until(lambda: is_at_rest(lent), timeout=20)


# -- threads ----------------------------------------------------------------------------------------------


def share_handles(
    things: dict[str, Any], pool: ObjectPool[Any], seed: int, seconds: float, meet: bool
) -> tuple[int, int, int, int, int]:
    """Threads that acquire, call and release, now and then what another one has at that moment."""
    counts = [0, 0]
    count_resumes(counts)
    end = time.monotonic() + seconds
    shared: list[Any] = [None] * 3
    refused: list[None] = []
    stolen: list[None] = []
    met: list[None] = []

    def work(index: int) -> None:
        dice = random.Random(seed + index)
        number = 0
        # What is released elsewhere is replaced, which others wait for: no lease is delegated meanwhile.
        while time.monotonic() < end or not (counts[1] and stolen and refused):
            assert time.monotonic() < end + 40, (counts, len(stolen), len(refused))
            number += 1
            counts[0] += 1
            token = os.getpid(), index, number
            handle = pool.acquire()
            shared[index] = handle, token
            try:
                for _ in range(dice.randrange(4)):
                    assert handle.step(token) == token
                other, others = shared[dice.randrange(3)] or (handle, token)
                if meet and dice.random() < 0.1:
                    handle.meet(token, other, others)
                    met.append(None)
                if dice.random() < 0.01:
                    pool.release(other)
                    stolen.append(None)
            except LeaseError:
                refused.append(None)
            with contextlib.suppress(LeaseError):
                pool.release(handle)

    side_by_side(3, work, timeout=seconds + 60)
    return counts[0], counts[1], len(stolen), len(refused), len(met)


@pytest.mark.everywhere
@pytest.mark.stress
def test_threads_that_release_what_others_call(backend: Backend, lent: ObjectPool[Any]) -> None:
    """That is replaced. No call comes to an object that another thread has by then."""
    with Worker() as worker:
        meet = backend.isolation == "none"  # elsewhere objects cannot
        worker.begin(share_handles, lent, stress_seed(), stress_seconds(), meet)
        acquires, resumed, stolen, refused, met = worker.result(70 + 2 * stress_seconds())
        print(f"{acquires} acquires, {resumed} without a word, {met} calls with two")
        print(f"{stolen} released elsewhere, {refused} refused")
        assert bool(met) == meet
        assert min(resumed, stolen, refused) > 0
        wait_until(lambda: is_at_rest(lent), timeout=20)


# -- old objects, and their managers ----------------------------------------------------------------------


@pytest.mark.everywhere
@pytest.mark.stress
def test_no_object_is_taken_again_after_a_refresh(manager: PoolManager, tmp_path: Path) -> None:
    """Nor after a close, while bounds change as well."""
    made = tmp_path / "made"
    made.touch()
    pool = manager.create_pool(partial(Dated, made), max_size=SIZE, timeout=60.0)
    dice = random.Random(stress_seed())
    end, times = time.monotonic() + stress_seconds(), 0
    with Worker() as one, Worker() as other:
        for worker in (one, other):
            worker.begin(look_at_dates, pool, made, stress_seconds() + 0.2)
        while time.monotonic() < end:
            threading.Event().wait(dice.uniform(0, 0.2))
            size = dice.randrange(2, SIZE + 1)
            pool.resize(max_size=size)
            before = time.monotonic()
            pool.refresh()
            made.write_text(str(before))
            times += 1
        told = [worker.result(30 + stress_seconds()) for worker in (one, other)]
        print(f"{times} times; acquires and resumes: {told}")
        assert all(resumed for _, resumed in told)
        wait_until(lambda: is_at_rest(pool))
        pool.resize(max_size=1)
        pool.refresh()
        wait_until(lambda: pool.stats().size <= 1)  # those that are closed count until that has returned
        for worker in (one, other):
            worker.begin(look_at_dates, pool, made, 0.3)
        wait_until(lambda: pool.stats().size)
        pool.close(20)
        for worker in (one, other):
            with pytest.raises(PoolClosed):
                worker.result()


class Dated(Tool):
    """Knows when it was begun."""

    def __init__(self, _: Path) -> None:
        self.date = time.monotonic()

    def born(self) -> float:
        return self.date


def look_at_dates(
    things: dict[str, Any], pool: ObjectPool[Any], made: Path, seconds: float
) -> tuple[int, int]:
    """What is acquired after a refresh has returned was begun after that had been asked for."""
    counts = [0, 0]
    count_resumes(counts)
    end = time.monotonic() + seconds
    while time.monotonic() < end or not counts[1]:
        refreshed = float(made.read_text() or 0)
        with pool.lease() as dated:
            assert dated.born() >= refreshed
        counts[0] += 1
    return counts[0], counts[1]


@pytest.mark.everywhere("none", "process")
@pytest.mark.bounds(restarts=10**6, restarts_within=0.0)  # a successor comes without a pause
@pytest.mark.stress
def test_the_next_acquire_after_the_death_of_a_manager_is_its_successors(backend: Backend) -> None:
    end, times, resumed = time.monotonic() + stress_seconds(), 0, 0
    with backend.manager(restart=True) as manager, Worker() as worker:
        pool = manager.create_pool(Tool, max_size=2, timeout=30.0)
        while time.monotonic() < end or times < 3:
            resumed += worker.do(park_and_hold, pool)
            dead = process_of(manager)
            dead.kill()
            wait_until(lambda dead=dead: not dead.is_running())  # until then a thread of it keeps its files
            worker.do(use_successor, pool)
            wait_until(lambda: is_at_rest(pool))
            times += 1
    print(f"{times} managers killed, {resumed} acquires without a word")
    assert resumed > 5 * times


def park_and_hold(things: dict[str, Any], pool: ObjectPool[Any]) -> int:
    """Two delegated leases, one in use, one parked; returns how often objects were taken without a word."""
    counts = [0, 0]
    count_resumes(counts)
    deadline = time.monotonic() + 10
    while counts[1] < 10 and time.monotonic() < deadline:
        with pool.lease():
            pass
    things["held"] = pool.acquire()
    before = counts[1]
    while counts[1] < before + 10 and time.monotonic() < deadline:
        with pool.lease():
            pass
    return counts[1]


def use_successor(things: dict[str, Any], pool: ObjectPool[Any]) -> None:
    for _ in range(3):
        with pool.lease() as tool:
            assert tool.echo(1) == 1
    held = things.pop("held")
    with pytest.raises((LeaseLost, ManagerLost)):
        held.echo(2)
    pool.release(held)
    with pool.lease() as one, pool.lease() as other:
        assert (one.echo(1), other.echo(2)) == (1, 2)


# -- few descriptors --------------------------------------------------------------------------------------


def use_with_few(things: dict[str, Any], pool: ObjectPool[Any], seed: int, seconds: float) -> tuple[int, int]:
    """With no descriptor free, now and then, when a token would come; returns acquires and resumes."""
    counts = [0, 0]
    count_resumes(counts)
    dice = random.Random(seed)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    end = time.monotonic() + seconds
    while time.monotonic() < end or not counts[1]:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        fewest = dice.choice((3, highest))  # of which none is free, or a few
        resource.setrlimit(resource.RLIMIT_NOFILE, (fewest + dice.randrange(6), hard))
        with contextlib.suppress(ManagerLost, FactoryError), contextlib.ExitStack() as stack:
            if dice.random() < 0.5:
                counts[0] += 1
                stack.enter_context(pool.lease())
            for _ in range(dice.randrange(200)):
                counts[0] += 1
                use(pool, (os.getpid(), counts[0]), dice)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if dice.random() < 0.3:
            hang_up(things, pool)
    return counts[0], counts[1]


@pytest.mark.everywhere("none", "process")
@pytest.mark.stress
def test_tokens_that_do_not_come(manager: PoolManager, lent: ObjectPool[Any]) -> None:
    """The manager has none to spare, or the holder has no room for it."""
    dice = random.Random(stress_seed())
    with Worker() as one, Worker() as other:
        for number, worker in enumerate((one, other)):
            worker.begin(use_with_few, lent, dice.randrange(10**6) + number, stress_seconds())
        while not (one.idle() and other.idle()):
            with descriptors_for(manager, dice.randrange(4)):
                threading.Event().wait(dice.uniform(0, 0.1))
            threading.Event().wait(dice.uniform(0, 0.1))
        for worker in (one, other):
            acquires, resumed = worker.result()
            print(f"{acquires} acquires, {resumed} without a word")
            assert acquires > resumed > 0


# -- contention -------------------------------------------------------------------------------------------


def hold_and_come_back(things: dict[str, Any], pool: ObjectPool[Any]) -> str:
    things["handle"] = acquire_delegated(pool)
    return "delegated"


def give_and_take(things: dict[str, Any], pool: ObjectPool[Any]) -> float:
    """When it had the object again, which another one was waiting for."""
    pool.release(things.pop("handle"))
    with pool.lease() as tool:
        assert tool.echo(1) == 1
        return time.monotonic()


def wait_and_take(things: dict[str, Any], pool: ObjectPool[Any]) -> float:
    with pool.lease() as tool:
        had = time.monotonic()
        assert tool.echo(1) == 1
        return had


@pytest.mark.everywhere("none", "process")
@pytest.mark.stress
@pytest.mark.pool(Tool, max_size=1, timeout=30.0)
def test_no_holder_takes_its_object_again_before_one_that_waits(pool: ObjectPool[Any]) -> None:
    with Worker() as holder, Worker() as waiter:
        for _ in range(5 + stress_times(100)):
            assert holder.do(hold_and_come_back, pool) == "delegated"
            waiter.begin(wait_and_take, pool)
            wait_until(lambda: pool.stats().waiting == 1)
            holder.begin(give_and_take, pool)
            assert waiter.result() < holder.result()
            wait_until(lambda: is_at_rest(pool))


@pytest.mark.everywhere
@pytest.mark.stress
def test_contention_that_comes_and_goes(lent: ObjectPool[Any]) -> None:
    """Delegations are granted and recalled all the time. Each client goes on."""
    with Worker() as one, Worker() as other, Worker() as third:
        workers = (one, other, third)
        for number, worker in enumerate(workers):
            worker.begin(come_and_go, lent, stress_seed() + number, stress_seconds())
        for worker in workers:
            acquires, resumed, longest = worker.result(60 + stress_seconds())
            print(f"{acquires} acquires, {resumed} without a word, the longest after {longest:.2f} s")
            assert acquires > resumed > 0


def come_and_go(
    things: dict[str, Any], pool: ObjectPool[Any], seed: int, seconds: float
) -> tuple[int, int, float]:
    """A thread takes objects one after the other; now and then more threads than there are objects do."""
    counts, longest = [0, 0], 0.0
    count_resumes(counts)
    dice = random.Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end or not counts[1]:
        for _ in range(dice.randrange(300)):
            counts[0] += 1
            asked = time.monotonic()
            use(pool, (os.getpid(), counts[0]), dice)
            longest = max(longest, time.monotonic() - asked)
        if dice.random() < 0.3:
            counts[0] += SIZE
            side_by_side(SIZE, lambda index: use(pool, (os.getpid(), counts[0], index), random.Random(index)))
        threading.Event().wait(dice.choice((0.0, 0.01, 0.12)))
    return counts[0], counts[1], longest
