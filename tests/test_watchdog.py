"""The end of a process is noticed at once, and only what is proved to have ended counts as gone."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from actors import (
    Gate,
    Tool,
    Worker,
    acquire,
    all_idle,
    echo,
    hang_up,
    manager_in,
    no_descriptors,
    pool_of,
    process_of,
    release,
    wait_at_gate,
)
from backends import Backend
from helpers import PROMPT, do_without_linux, wait_until
from standins import side_by_side
from wire import KEY, Stranger

from mppool import LeaseLost, ObjectPool, PoolManager, PoolTimeout
from mppool._server.session import Session
from mppool._server.watchdog import Watchdog
from mppool._system.processes import ProcessId, is_gone, kill, kill_group

pytestmark = pytest.mark.pool(Tool, max_size=1)

MOMENT = PROMPT
"""Seconds that a death may take to be noticed, on a busy machine; a sweep would take 60."""


# -- who is gone ------------------------------------------------------------------------------------


def test_a_living_process_is_not_gone_nor_is_a_stopped_one(worker: Worker) -> None:
    owner = ProcessId.of(worker.pid)
    assert not is_gone(owner)
    assert not is_gone(ProcessId.of(os.getpid()))
    worker.stop()
    assert not is_gone(owner)


def test_without_a_descriptor_nothing_is_known_of_a_process_and_nothing_fails(worker: Worker) -> None:
    owner = ProcessId.of(worker.pid)
    with no_descriptors():
        assert not is_gone(owner)
        kill(owner)
        kill_group(owner)
    assert worker.do(echo_here, 1) == 1, "it may have been another one"


def echo_here(_: object, value: int) -> int:
    return value


def test_a_process_that_has_ended_is_gone(worker: Worker) -> None:
    owner = ProcessId.of(worker.pid)
    worker.kill()
    wait_until(worker.is_zombie)
    assert is_gone(owner)
    worker.process.join()
    assert is_gone(owner)
    assert is_gone(ProcessId.of(worker.pid)), "it had ended before anybody looked"


def born_earlier(pid: int) -> ProcessId:
    """Whoever had this pid before the process that has it now."""
    process = psutil.Process(pid)
    process._ident = (pid, 0.0)  # by which psutil knows a process from a later one with its pid
    return ProcessId(pid, process)


def test_a_pid_that_is_used_again_belongs_to_another(worker: Worker) -> None:
    assert is_gone(born_earlier(worker.pid))
    assert born_earlier(worker.pid) != ProcessId.of(worker.pid)


@pytest.mark.parametrize("hours", [-1, 1])
def test_no_step_of_the_wall_clock_makes_a_living_process_look_dead(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    owner = ProcessId.of(worker.pid)
    now = time.time
    step_start_times(monkeypatch, lambda: hours * 3600.0)
    monkeypatch.setattr(time, "time", lambda: now() + hours * 3600)
    assert not is_gone(owner)
    assert ProcessId.of(worker.pid) == owner


def step_start_times(monkeypatch: pytest.MonkeyPatch, by: Callable[[], float]) -> None:
    """As the wall clock does: the kernel keeps the time since the boot, and what psutil adds to it steps."""
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + by())


EVERYTHING = ["_get_ident", "create_time", "status"]
"""That psutil is asked for about a process."""


def refuse(monkeypatch: pytest.MonkeyPatch, error: type[psutil.Error], methods: list[str]) -> None:
    def refused(self: psutil.Process, *args: object) -> None:
        raise error(self.pid)

    for name in methods:
        monkeypatch.setattr(psutil.Process, name, refused)


@pytest.mark.parametrize("known_before", [True, False])
@pytest.mark.parametrize(
    ("error", "methods"),
    [
        (psutil.AccessDenied, ["create_time"]),
        (psutil.AccessDenied, ["status"]),
        (psutil.AccessDenied, ["create_time", "status"]),
        (psutil.NoSuchProcess, EVERYTHING),
    ],
)
def test_a_process_of_which_psutil_tells_nothing_is_alive_until_it_ends(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    error: type[psutil.Error],
    methods: list[str],
    known_before: bool,
) -> None:
    known = ProcessId.of(worker.pid)
    refuse(monkeypatch, error, methods)
    owner = known if known_before else ProcessId.of(worker.pid)
    assert not is_gone(owner)
    worker.kill()
    worker.process.join()
    assert is_gone(owner)


def test_without_a_free_descriptor_everybody_is_alive(worker: Worker) -> None:
    known = ProcessId.of(worker.pid)
    with no_descriptors():
        seen = is_gone(known), is_gone(ProcessId.of(worker.pid))
    assert seen == (False, False)


# -- one sweep ----------------------------------------------------------------------------------------


_kept: list[Watchdog] = []


@pytest.fixture(autouse=True, scope="module")
def watchdogs() -> Iterator[None]:
    # One lives as long as its process: it has no way to end before, nor to close what it opened.
    yield
    for watchdog in _kept:
        watchdog._wakeup_r.close()
        watchdog._wakeup_w.close()


class Ledger:
    """Stands for the pools: who holds something, who was buried, and when to look again."""

    def __init__(self, *owners: ProcessId) -> None:
        self.owners = set(owners)
        self.buried: list[ProcessId] = []
        self.dead: set[ProcessId] = set()
        self.tended: list[float] = []
        self.due = math.inf
        self.on_tend: Callable[[], None] = lambda: None

    def tend(self) -> float:
        now = time.monotonic()
        self.tended.append(now)
        due = self.due if self.due > now else math.inf
        self.on_tend()
        return due

    def ask_for(self, moment: float, watchdog: Watchdog) -> None:
        """As a pool does where somebody begins to wait."""
        self.due = moment
        watchdog.wake_at(moment)

    def bury(self, owner: ProcessId) -> None:
        self.buried.append(owner)
        self.owners.discard(owner)

    def watchdog(self, interval: float = 60.0, **options: Any) -> Watchdog:
        watchdog = Watchdog(
            interval=interval,
            on_gone=self.bury,
            tick=self.tend,
            **{"is_gone": lambda owner: owner in self.dead, "holders": lambda: set(self.owners), **options},
        )
        _kept.append(watchdog)
        return watchdog


def owner_number(number: int) -> ProcessId:
    return ProcessId(2**22 + number, None)  # more than the kernel gives out


def test_a_sweep_buries_the_dead_once_and_nobody_else() -> None:
    one, two, three = map(owner_number, (1, 2, 3))
    ledger = Ledger(one, two, three)
    ledger.dead = {two}
    watchdog = ledger.watchdog()
    for _ in range(2):
        watchdog.sweep()
        assert ledger.buried == [two]


def test_a_sweep_asks_psutil(worker: Worker) -> None:
    ledger = Ledger(ProcessId.of(worker.pid), born_earlier(worker.pid), ProcessId.of(os.getpid()))
    watchdog = ledger.watchdog(is_gone=is_gone)
    watchdog.sweep()
    assert ledger.buried == [born_earlier(worker.pid)]
    worker.kill()
    wait_until(worker.is_zombie)
    watchdog.sweep()
    assert len(ledger.buried) == 2
    assert ledger.owners == {ProcessId.of(os.getpid())}


def test_a_process_that_had_ended_before_it_was_watched_is_buried_at_once(worker: Worker) -> None:
    ledger = Ledger(born_earlier(worker.pid))
    ledger.watchdog(is_gone=is_gone).watch(born_earlier(worker.pid))
    assert ledger.buried == [born_earlier(worker.pid)]


def test_a_descriptor_is_only_a_hint(worker: Worker) -> None:
    # It says that the process ended; while there is no proof, the owner keeps what he has.
    owner = ProcessId.of(worker.pid)
    ledger = Ledger(owner)
    asked: list[ProcessId] = []

    def is_dead(asked_of: ProcessId) -> bool:
        asked.append(asked_of)
        return asked_of in ledger.dead

    watchdog = ledger.watchdog(is_gone=is_dead)
    watchdog.watch(owner)
    watchdog.start()
    wait_until(lambda: len(asked) == 2)  # as it was watched, and in the first sweep
    worker.kill()
    wait_until(lambda: len(asked) > 5)
    assert not ledger.buried
    ledger.dead = {owner}
    wait_until(lambda: ledger.buried == [owner], MOMENT)


def test_the_interval_is_the_backstop() -> None:
    ledger = Ledger(owner_number(1))
    watchdog = ledger.watchdog(interval=0.02)
    watchdog.start()
    ledger.dead = set(ledger.owners)
    wait_until(lambda: ledger.buried)


def test_a_hint_is_followed_until_the_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    # A process closes its files a moment before it is gone: one look after the hint is too early.
    do_without_linux(monkeypatch)
    ledger = Ledger(owner_number(1))
    looks: list[ProcessId] = []

    def is_dead(owner: ProcessId) -> bool:
        looks.append(owner)
        return len(looks) > 5

    watchdog = ledger.watchdog(is_gone=is_dead)
    watchdog.watch(owner_number(1))
    watchdog.start()
    watchdog.look_soon()
    wait_until(lambda: ledger.buried, MOMENT)


def test_who_comes_back_in_the_moment_of_its_proof_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mppool._server.watchdog._SILENT_SECONDS", 0.0)
    process = owner_number(1)
    ledger = Ledger(process)

    def comes_back() -> set[ProcessId]:
        watchdog.connected(process, "another")
        return {process}

    watchdog = ledger.watchdog(interval=0.02, holders=comes_back)
    watchdog.connected(process, "one")
    watchdog.disconnected(process, "one")
    watchdog.start()
    wait_until(lambda: len(ledger.tended) > 3)
    assert not ledger.buried


class Mistaken(selectors.DefaultSelector):
    """Says once of a socket that it is readable: as of the descriptor that had its number just before."""

    def __init__(self) -> None:
        super().__init__()
        self.mistaken_for: socket.socket | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found, wrong = super().select(timeout), self.mistaken_for
        if wrong is not None:
            key, self.mistaken_for = self.get_key(wrong), None
            found.append((key, selectors.EVENT_READ))
        return found


def test_what_happened_at_the_number_that_a_lifeline_has_now_is_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where another thread closes what was readable, and a lifeline comes, before that is looked up."""
    selector = Mistaken()
    monkeypatch.setattr(selectors, "DefaultSelector", lambda: selector)
    ledger = Ledger(owner_number(1))
    watchdog = ledger.watchdog(interval=0.02)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watchdog.attend(owner_number(1), ours)
        watchdog.start()
        selector.mistaken_for = ours
        wait_until(lambda: selector.mistaken_for is None)
        seen = len(ledger.tended)
        wait_until(lambda: len(ledger.tended) > seen + 1)
        assert ours.fileno() >= 0
        theirs.close()
        wait_until(lambda: ours.fileno() < 0)


def test_who_comes_while_the_pools_are_tended_is_tended_in_time() -> None:
    ledger = Ledger()
    watchdog = ledger.watchdog()
    moment = time.monotonic() + 0.2

    def come_too_late_for_this_pass() -> None:
        if len(ledger.tended) > 2:
            ledger.on_tend = lambda: None
            ledger.ask_for(moment, watchdog)

    ledger.on_tend = come_too_late_for_this_pass
    watchdog.start()
    wait_until(lambda: len(ledger.tended) == 2)  # with the first sweep behind it, it sleeps
    watchdog.wake_at(time.monotonic() + 0.05)
    wait_until(lambda: ledger.tended[-1] >= moment, MOMENT)


def test_a_watchdog_that_stumbles_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(owner_number(1))
    ledger.dead = set(ledger.owners)

    def stumble() -> None:
        ledger.on_tend = lambda: None
        raise RuntimeError("once")

    ledger.on_tend = stumble
    ledger.watchdog(interval=0.02).start()
    wait_until(lambda: ledger.buried)
    assert "the watchdog failed" in caplog.text


@pytest.mark.parametrize("interval", [60.0, float("inf"), 1e300])
def test_the_pools_are_tended_when_they_ask_and_hints_followed_however_rare_sweeps_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, interval: float
) -> None:
    do_without_linux(monkeypatch)
    ledger = Ledger(owner_number(1))
    watchdog = ledger.watchdog(interval)
    watchdog.watch(owner_number(1))
    watchdog.start()
    wait_until(lambda: len(ledger.tended) == 2)  # with the first sweep behind it, it sleeps
    moment = time.monotonic() + 0.05
    ledger.ask_for(moment, watchdog)
    wait_until(lambda: ledger.tended[-1] >= moment, MOMENT)
    ledger.dead = set(ledger.owners)
    watchdog.look_soon()
    wait_until(lambda: ledger.buried, MOMENT)
    assert len(ledger.tended) < 20
    assert not caplog.text


@pytest.mark.bounds(watchdog_pause=0.05)
@pytest.mark.parametrize("step", ["tend", "look"])
def test_a_watchdog_that_always_fails_does_not_spin(step: str) -> None:
    ledger = Ledger(owner_number(1))
    failing = [True]

    def fail(*_: object) -> Any:
        if failing:
            raise RuntimeError("always")

    if step == "tend":
        ledger.on_tend = fail
    ledger.watchdog(is_gone=fail).start()
    wait_until(lambda: len(ledger.tended) > 5)
    assert ledger.tended[5] - ledger.tended[0] > 4 * 0.05
    failing.clear()


# -- real processes -----------------------------------------------------------------------------------


@pytest.fixture(params=["pidfd", "portable"])
def way(request: pytest.FixtureRequest, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the manager learns of a death."""
    if request.param == "portable":
        backend.do_without_linux(monkeypatch)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd here")
    return str(request.param)


@pytest.fixture
def tools(way: str, pool: ObjectPool[Any]) -> ObjectPool[Any]:
    """A pool of one, whose manager learns of a death in this way."""
    return pool


@pytest.fixture
def holder(tools: ObjectPool[Any], worker: Worker) -> Worker:
    """Holds the one tool, and has used it."""
    worker.do(acquire, tools)
    worker.do(echo, 1)
    return worker


def assert_free(pool: ObjectPool[Any], timeout: float = MOMENT) -> None:
    with pool.lease(timeout) as tool:
        assert tool.echo(7) == 7


@pytest.mark.far
@pytest.mark.everywhere
def test_killed_while_holding(tools: ObjectPool[Any], holder: Worker) -> None:
    holder.kill()
    assert_free(tools)
    assert tools.stats().reclaimed == 1
    assert tools.stats().retired == {"reclaimed": 1}


@pytest.mark.everywhere
def test_killed_as_soon_as_it_holds(tools: ObjectPool[Any], worker: Worker) -> None:
    worker.do(acquire, tools)
    worker.kill()
    assert_free(tools)
    wait_until(worker.has_ended)  # the object came back when its last thread was about to end


@pytest.mark.far
@pytest.mark.everywhere
def test_what_the_dead_used_in_another_thread_counts_as_used(tools: ObjectPool[Any], worker: Worker) -> None:
    worker.do(acquire, tools)
    worker.do(_in_a_thread, echo, 1)
    worker.kill()
    assert_free(tools)
    assert tools.stats().retired == {"reclaimed": 1}


@pytest.mark.far
@pytest.mark.everywhere
def test_killed_while_holding_and_nobody_asks(tools: ObjectPool[Any], holder: Worker) -> None:
    holder.kill()
    # To ask for the figures is no hint.
    wait_until(lambda: tools.stats().reclaimed == 1, MOMENT)
    wait_until(lambda: tools.stats().leased == 0)


@pytest.mark.far
@pytest.mark.everywhere
def test_killed_while_another_waits(backend: Backend, tools: ObjectPool[Any], worker: Worker) -> None:
    worker.do(acquire, tools)
    with backend.worker() as other:
        other.begin(acquire, tools)
        wait_until(lambda: tools.stats().waiting == 1)
        worker.kill()
        other.result(MOMENT)
        assert other.do(echo, "mine") == "mine"


@pytest.mark.far
@pytest.mark.everywhere
def test_killed_in_a_call(gate: Gate, tools: ObjectPool[Any], worker: Worker) -> None:
    worker.do(acquire, tools)
    worker.begin(wait_at_gate)
    gate.wait_for_somebody()
    worker.kill()
    assert_free(tools)  # another object: in that one the call goes on
    assert tools.stats().retired == {"reclaimed": 1}
    assert tools.stats().size == 1
    gate.open()


@pytest.mark.everywhere("none")
@pytest.mark.parametrize("child", [False, True], ids=["alone", "with a child that holds the socket open"])
def test_killed_while_waiting(tools: ObjectPool[Any], worker: Worker, child: bool) -> None:
    worker.do(acquire, tools)
    worker.do(release, tools)
    if child:
        worker.leave_a_child()
    handle = tools.acquire()
    worker.begin(acquire, tools, None)
    wait_until(lambda: tools.stats().waiting == 1)
    worker.kill()
    if child:  # then a hint, should there be no better way to learn of it
        wait_until(worker.has_ended)
        with pytest.raises(PoolTimeout):
            tools.acquire(timeout=0)
    wait_until(lambda: tools.stats().waiting == 0, MOMENT)
    tools.release(handle)
    wait_until(lambda: all_idle(tools, 1))
    assert tools.stats().acquired == 2, "the dead took it with it"


@pytest.mark.everywhere
def test_killed_with_a_child_that_holds_the_socket_open(tools: ObjectPool[Any], worker: Worker) -> None:
    worker.do(acquire, tools)
    worker.leave_a_child()
    worker.kill()
    assert_free(tools)


@pytest.mark.everywhere
@pytest.mark.local
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
def test_killed_between_grant_and_reply(
    way: str, worker: Worker, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    step = "deliver" if waits else "grant"
    original = getattr(Session, step)

    def kill_and_go_on(self: Session, *args: Any) -> Any:
        if self.holder.pid == worker.pid:
            worker.kill()
            if waits:
                wait_until(worker.is_zombie)
        return original(self, *args)

    monkeypatch.setattr(Session, step, kill_and_go_on)
    with pool_of(max_size=1) as pool:
        handle = pool.acquire()
        if not waits:
            pool.release(handle)
        worker.begin(acquire, pool)
        if waits:
            wait_until(lambda: pool.stats().waiting == 1)
            pool.release(handle)
        wait_until(worker.is_zombie)
        assert_free(pool)
        assert waits or pool.stats().acquired == 3


@pytest.mark.bounds(unread=0.5)
def test_killed_and_its_pid_used_again(way: str, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    of = ProcessId.of

    def whoever_had_it_before(pid: int, name: str = "", token: str = "") -> ProcessId:
        return born_earlier(pid) if pid == worker.pid else of(pid, name, token)

    # The process that lives has the pid of one that died holding an object.
    monkeypatch.setattr(ProcessId, "of", whoever_had_it_before)
    with pool_of(min_size=1, max_size=1, watch_interval=0.05) as pool:
        wait_until(lambda: all_idle(pool, 1))  # a process that has died is told nothing, if it has to wait
        worker.do(acquire, pool)
        assert_free(pool)
        with pytest.raises(LeaseLost):
            worker.do(echo, 1)


@pytest.mark.far
@pytest.mark.everywhere
def test_many_killed_at_once(backend: Backend, tools: ObjectPool[Any]) -> None:
    tools.resize(max_size=8)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(backend.worker()) for _ in range(8)]
        for worker in workers:
            worker.do(acquire, tools)
            worker.do(echo, 1)
        for worker in workers:
            worker.kill()
        handles = [tools.acquire(MOMENT) for _ in range(8)]
        for handle in handles:
            tools.release(handle)
    assert tools.stats().reclaimed == 8


@pytest.mark.far
@pytest.mark.everywhere
@pytest.mark.pool(Tool, max_size=1, on_reclaim="reset", reset=Tool.pid)
def test_the_object_of_the_dead_can_be_reset_instead(tools: ObjectPool[Any], holder: Worker) -> None:
    holder.kill()
    assert_free(tools)
    assert (tools.stats().reclaimed, tools.stats().built) == (1, 1)


# -- the living are never robbed ------------------------------------------------------------------


def assert_not_robbed(pool: ObjectPool[Any], worker: Worker) -> None:
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.2)  # many sweeps long
    assert pool.stats().reclaimed == 0
    assert worker.do(echo, "still mine") == "still mine"


@pytest.mark.everywhere
@pytest.mark.manager(watch_interval=0.01)
def test_a_stopped_holder_is_not_robbed(tools: ObjectPool[Any], worker: Worker) -> None:
    worker.do(acquire, tools)
    worker.stop()
    with pytest.raises(PoolTimeout):
        tools.acquire(timeout=0.2)
    worker.go_on()
    assert_not_robbed(tools, worker)


@pytest.mark.parametrize("error", [psutil.AccessDenied, psutil.NoSuchProcess])
def test_a_holder_of_whom_psutil_tells_nothing_is_not_robbed(
    way: str, worker: Worker, monkeypatch: pytest.MonkeyPatch, error: type[psutil.Error]
) -> None:
    refuse(monkeypatch, error, EVERYTHING)
    with pool_of(max_size=1, watch_interval=0.01) as pool:
        worker.do(acquire, pool)
        assert_not_robbed(pool, worker)


def test_a_holder_is_not_robbed_when_the_wall_clock_steps(
    way: str, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepping = multiprocessing.get_context("fork").Value("d", 0.0)
    step_start_times(monkeypatch, lambda: stepping.value)
    with pool_of(max_size=1, watch_interval=0.01) as pool:
        worker.do(acquire, pool)
        for stepping.value in (3600.0, -3600.0):
            assert_not_robbed(pool, worker)


@pytest.mark.everywhere("none")
def test_a_holder_without_any_connection_is_not_robbed(tools: ObjectPool[Any], holder: Worker) -> None:
    holder.do(hang_up, tools)
    assert_not_robbed(tools, holder)


@pytest.mark.everywhere
def test_the_end_of_one_process_takes_nothing_from_another(
    backend: Backend, tools: ObjectPool[Any], worker: Worker
) -> None:
    tools.resize(max_size=2)
    worker.do(acquire, tools)
    with backend.worker() as other:
        other.do(acquire, tools)
        other.do(echo, 1)
        other.kill()
        wait_until(lambda: tools.stats().reclaimed == 1, MOMENT)
        assert worker.do(echo, 1) == 1


@pytest.mark.everywhere
def test_the_end_of_a_thread_takes_nothing_from_its_process(tools: ObjectPool[Any], worker: Worker) -> None:
    worker.do(_in_a_thread, acquire, tools)
    assert_not_robbed(tools, worker)


def _in_a_thread(things: dict[str, Any], job: Callable[..., Any], *args: Any) -> None:
    side_by_side(1, lambda _: job(things, *args))


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_a_death_is_noticed_by_a_manager_that_was_not_forked(start_method: str, worker: Worker) -> None:
    with manager_in(start_method) as manager:
        pool = manager.create_pool(Tool, max_size=1)
        worker.do(acquire, pool)
        worker.kill()
        assert_free(pool)


@pytest.mark.parametrize("interval", [float("inf"), 1e300])
def test_a_manager_that_never_sweeps_by_itself(interval: float, worker: Worker) -> None:
    with manager_in(watch_interval=interval) as manager:
        pool = manager.create_pool(Tool, max_size=1)
        worker.do(acquire, pool)
        process = process_of(manager)
        before = sum(process.cpu_times()[:2])
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.3)
        assert sum(process.cpu_times()[:2]) - before < 0.2
        worker.kill()
        assert_free(pool)


# -- over TCP, where a process is known by what it says only -------------------------------------------


TCP = pytest.mark.manager(address=("127.0.0.1", 0), authkey=KEY)


@TCP
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("pid", ["of nobody", "of another", "of the manager"])
def test_a_pid_that_is_only_claimed_ends_no_lease(
    manager: PoolManager, pool: ObjectPool[Any], worker: Worker, pid: str
) -> None:
    pids = {
        "of nobody": owner_number(1).pid,
        "of another": worker.pid,
        "of the manager": pool.apply(Tool.pid),
    }
    stranger, again = Stranger(manager, pids[pid]), Stranger(manager, pids[pid])
    lease_id = stranger.acquire(pool)
    assert stranger.echo(pool, lease_id, 1) == 1
    for end in (worker.kill, stranger.hang_up):
        end()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.2)
    assert again.echo(pool, lease_id, 2) == 2, "it is the same process's"
    assert pool.stats().reclaimed == 0
    again.hang_up()
    assert_free(pool)
    assert pool.stats().reclaimed == 1


@TCP
@pytest.mark.usefixtures("way")
@pytest.mark.pool(Tool, max_size=2)
def test_a_stranger_takes_nothing_from_one_with_the_same_pid(
    manager: PoolManager, pool: ObjectPool[Any], holder: Worker
) -> None:
    stranger = Stranger(manager, holder.pid)
    stranger.echo(pool, stranger.acquire(pool), 1)
    stranger.hang_up()
    wait_until(lambda: pool.stats().reclaimed == 1, MOMENT)
    assert holder.do(echo, 2) == 2
    assert [each.pid for each in pool.leases()] == [holder.pid]


@TCP
@pytest.mark.everywhere
@pytest.mark.local
def test_over_tcp_killed_while_holding(tools: ObjectPool[Any], holder: Worker) -> None:
    assert [each.pid for each in tools.leases()] == [holder.pid]
    holder.leave_a_child()  # the connections live on
    holder.kill()
    assert_free(tools)


@TCP
def test_over_tcp_a_holder_without_any_connection_is_not_robbed(
    tools: ObjectPool[Any], holder: Worker
) -> None:
    test_a_holder_without_any_connection_is_not_robbed(tools, holder)
