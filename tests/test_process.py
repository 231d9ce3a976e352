"""Objects that live in processes of their own: how they start, crash, hang, and leave nothing behind."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing.connection import wait
from operator import le
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import (
    START_METHODS,
    Diary,
    Exclusive,
    Gate,
    Interrupted,
    Tool,
    Traveller,
    Witness,
    Worker,
    acquire,
    all_idle,
    count_descriptors,
    echo,
    interrupt,
    lives,
    manager_in,
    print_to_nobody,
    process_of,
    release,
    stopped,
    wait_at_gate,
)
from helpers import PROMPT, do_without_linux, promptly, stress_times, wait_until
from standins import side_by_side
from wire import CallAgain, socket_to

from mppool import CallTimeout, FactoryError, LeaseLost, ObjectPool, PoolError, PoolManager
from mppool._process.fence import LeaseFence


class Fragile(Tool):
    """Dies as it is told."""

    def abort(self) -> None:
        os.abort()

    def segfault(self) -> None:
        ctypes.string_at(0)

    def leave(self, code: int = 3) -> None:
        os._exit(code)

    def be_killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out

    def in_main_thread(self) -> bool:
        return threading.current_thread() is threading.main_thread()


class Mother(Witness, Fragile):
    def start_a_grandchild(self) -> int:
        """One whose parent has ended: it descends from nobody any more."""
        done = subprocess.run(
            ["/bin/sh", "-c", "sleep 1000 >/dev/null & echo $!"], stdout=subprocess.PIPE, check=True
        )
        return int(done.stdout)


pytestmark = pytest.mark.pool(Fragile, isolation="process")


def process_with(pool: ObjectPool[Any]) -> psutil.Process:
    """The process of the object that is lent next."""
    return psutil.Process(pool.apply(Tool.pid))


def socket_of_its_object(manager: PoolManager) -> Path:
    """Where the one object of the manager listens: beside the manager's own socket."""
    own = Path(str(manager.address))
    (other,) = (path for path in own.parent.iterdir() if path.is_socket() and path != own)
    return other


# -- where it lives -------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
def test_an_object_lives_in_the_main_thread_of_a_process_of_its_own(start_method: str) -> None:
    with manager_in(start_method) as manager:
        pool = manager.create_pool(Fragile, isolation="process", max_size=2)
        with pool.lease() as one, pool.lease() as other:
            pids = {os.getpid(), process_of(manager).pid, one.pid(), other.pid()}
            assert len(pids) == 4
            assert one.in_main_thread()
            process = psutil.Process(one.pid())
            if start_method == "forkserver":
                assert process.ppid() not in {os.getpid(), process_of(manager).pid}
            elif start_method == "fork":  # by the launcher
                assert psutil.Process(process.ppid()).ppid() == process_of(manager).pid
            else:
                assert process.ppid() == process_of(manager).pid
            assert ("spawn_main" in str(process.cmdline())) == (start_method == "spawn")
        with pytest.raises(LeaseLost, match="killed by SIGABRT"), pool.lease() as tool:
            tool.abort()
        assert pool.apply(Tool.echo, 1) == 1


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
@pytest.mark.parametrize("portable", [False, True], ids=["linux", "portable"])
def test_it_is_called_at_the_address_of_its_manager(
    monkeypatch: pytest.MonkeyPatch, address: Any, portable: bool
) -> None:
    if portable:
        do_without_linux(monkeypatch)
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    with manager_in("fork", address=address, watch_interval=0.1) as manager, Worker() as worker:
        pool = manager.create_pool(Fragile, isolation="process", max_size=1)
        worker.do(acquire, pool)
        assert worker.do(echo, "there") == "there"
        worker.kill()
        with pool.lease(timeout=10) as tool:
            assert tool.echo("here") == "here"
            with pytest.raises(LeaseLost, match="killed by SIGKILL"):
                tool.be_killed()
        with pool.lease() as tool:
            assert tool.echo(bytes(10**6)) == bytes(10**6)
        assert pool.stats().retired == {"reclaimed": 1, "died": 1}


def test_calls_take_no_detour(manager: PoolManager, pool: ObjectPool[Fragile]) -> None:
    with pool.lease() as tool:
        tool.echo(0)
        with stopped(process_of(manager)):
            for number in range(100):
                assert tool.echo(number) == number


# -- start ----------------------------------------------------------------------------------------


class Slow(Tool):
    def __init__(self) -> None:
        self.wait_at_gate()


def test_objects_are_started_side_by_side_and_ahead() -> None:
    with Gate.set_up() as gate, manager_in() as manager:
        pool = manager.create_pool(Slow, isolation="process", min_size=3, max_size=4)
        for _ in range(3):
            gate.wait_for_somebody()
        assert pool.stats().building == 3
        gate.open()
        wait_until(lambda: all_idle(pool, 3))


def fail() -> None:
    raise LookupError("nothing to be found")


def leave() -> None:
    os._exit(7)


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


said: list[str] = []


def say(text: str) -> None:
    said.append(text)


def what_was_said(_: Tool) -> list[str]:
    return said


@pytest.mark.parametrize("start_method", START_METHODS)
def test_the_initializer_of_the_manager_is_called_there(start_method: str) -> None:
    manager = PoolManager(ctx=multiprocessing.get_context(start_method))
    manager.start(say, ("once",))
    try:
        pool = manager.create_pool(Tool, isolation="process", max_size=1)
        assert pool.apply(what_was_said) == ["once"]
    finally:
        manager.shutdown()


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_factory_that_fails_there(start_method: str) -> None:
    with manager_in(start_method) as manager:
        for factory, said in [
            (fail, "LookupError: nothing to be found"),
            (leave, "process of its object ended with exit code 7"),
            (die, "process of its object was killed by SIGSEGV"),
            ("test_process:fail", "LookupError"),
        ]:
            pool = manager.create_pool(factory, isolation="process", max_size=1)
            for _ in range(2 if start_method == "fork" else 1):
                with pytest.raises(FactoryError, match=said) as caught:
                    pool.acquire()
            if factory is fail:
                assert "in fail" in str(caught.value.__cause__.__cause__), "where it failed over there"
        # Under fork there is the launcher, under spawn a tracker.
        assert len(process_of(manager).children(recursive=True)) <= 1


def test_an_import_string_that_leads_nowhere_is_an_error_at_once(manager: PoolManager) -> None:
    with pytest.raises(FactoryError, match="leads nowhere"):
        manager.create_pool("test_process:nothing", isolation="process")


# -- crash ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crash", "said"),
    [
        ("abort", "killed by SIGABRT"),
        ("segfault", "killed by SIGSEGV"),
        ("leave", "ended with exit code 3"),
        ("be_killed", "killed by SIGKILL"),
    ],
)
def test_a_crash_is_a_lost_lease_to_its_holder_only(pool: ObjectPool[Fragile], crash: Any, said: str) -> None:
    with pool.lease() as other:
        pid = other.pid()
        handle = pool.acquire()
        for attempt in (getattr(handle, crash), partial(handle.echo, 1), handle.pid):
            with pytest.raises(LeaseLost, match=rf"'pool-1'.*process of its object.*{said}"):
                attempt()
        pool.release(handle)
        with pytest.raises(LeaseLost, match=said):
            pool.apply(getattr(Fragile, crash))
        assert other.pid() == pid
    wait_until(lambda: pool.stats().leased == 0)
    assert pool.stats().retired == {"died": 2}


@pytest.mark.stress
def test_a_thousand_crashes_leave_nothing_behind(manager: PoolManager) -> None:
    pool = manager.create_pool(Fragile, isolation="process", max_size=2)
    pool.apply(Tool.echo, 0)
    wait_until(lambda: all_idle(pool, 1) or all_idle(pool, 2))
    pool.resize(0, 1)
    wait_until(lambda: all_idle(pool, 1))
    before = traces(manager)
    times = stress_times(1000)
    for number in range(times):
        with pool.lease() as tool:
            assert tool.echo(number) == number
            with pytest.raises(LeaseLost, match="killed by SIGKILL"):
                tool.be_killed()
    pool.apply(Tool.echo, 0)
    no_more_traces(manager, before)
    assert pool.stats().retired["died"] == times


def traces(manager: PoolManager) -> tuple[int, int, int]:
    """What objects in processes of their own cost their manager: descriptors, children, files."""
    process = process_of(manager)
    files = Path(str(manager.address)).parent.iterdir()
    return count_descriptors(process), len(process.children()), len(list(files))


def no_more_traces(manager: PoolManager, before: tuple[int, int, int]) -> None:
    wait_until(
        lambda: all(map(le, traces(manager), before)), message=f"before: {before}, then: {traces(manager)}"
    )


def test_what_a_crashed_object_had_started_goes_with_it(tmp_path: Path, manager: PoolManager) -> None:
    diary = Diary(tmp_path / "diary")
    pool = manager.create_pool(partial(Mother, diary.path), isolation="process", max_size=1)
    with pool.lease() as mother:
        family = [psutil.Process(mother.start_a_child()), psutil.Process(mother.start_a_grandchild())]
        assert all(map(lives, family))
        with pytest.raises(LeaseLost, match="SIGKILL"):
            mother.be_killed()
    wait_until(lambda: not any(map(lives, family)), PROMPT)


def test_an_object_that_dies_idle_is_replaced_before_it_is_lent(pool: ObjectPool[Fragile]) -> None:
    for number in range(20):
        process = process_with(pool)
        pidfd = os.pidfd_open(process.pid)
        process.kill()
        assert wait([pidfd], 10), "all its threads are gone"
        os.close(pidfd)
        with pool.lease() as tool:  # at once, whether the manager knows already or not
            assert tool.echo(number) == number
    assert pool.stats().retired["died"] == 20


def test_one_that_dies_idle_is_replaced_ahead(manager: PoolManager) -> None:
    pool = manager.create_pool(Fragile, isolation="process", min_size=2, max_size=2)
    wait_until(lambda: all_idle(pool, 2))
    process_with(pool).kill()
    wait_until(lambda: pool.stats().built == 3)
    wait_until(lambda: all_idle(pool, 2))


@pytest.mark.parametrize("hook", ["check", "reset", "close"])
def test_a_hook_that_kills_its_process(manager: PoolManager, hook: str) -> None:
    pool = manager.create_pool(Fragile, isolation="process", max_size=1, **{hook: Fragile.be_killed})
    for number in range(3):
        handle = pool.acquire(timeout=10) if hook != "check" or not number else None
        if handle is not None:
            assert handle.echo(number) == number
            pool.release(handle, discard=hook == "close")
        else:
            assert pool.apply(Tool.echo, number) == number
    assert set(pool.stats().retired) == {"discarded" if hook == "close" else hook}


class Forking(Fragile):
    def fork(self) -> int:
        pid = os.fork()
        if not pid:
            time.sleep(1000)
        return pid


def test_a_child_that_has_inherited_its_files_hides_no_death(manager: PoolManager) -> None:
    pool = manager.create_pool(Forking, isolation="process", max_size=1)
    with pool.lease() as tool:
        child = tool.fork()
        try:
            with pytest.raises(LeaseLost, match="killed by SIGKILL"):
                tool.be_killed()
            assert pool.apply(Tool.echo, 1, timeout=5) == 1
        finally:
            os.kill(child, signal.SIGKILL)


# -- hang -----------------------------------------------------------------------------------------


def test_a_call_that_hangs_is_killed_with_all_its_children(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "diary")
    with Gate.set_up(), manager_in() as manager:
        pool = manager.create_pool(
            partial(Witness, diary.path), isolation="process", call_timeout=1, max_size=1
        )
        handle = pool.acquire()
        family = [psutil.Process(handle.pid()), psutil.Process(handle.start_a_child())]
        with pytest.raises(CallTimeout, match="its process is killed, and its object replaced"):
            handle.wait_at_gate()
        wait_until(lambda: not any(map(lives, family)), PROMPT)
        with pytest.raises(LeaseLost):
            handle.echo(1)
        pool.release(handle)
        assert pool.apply(Tool.echo, 2) == 2
        assert pool.stats().retired == {"call": 1}


def test_a_killed_call_leaves_nothing_of_its_object_in_the_manager() -> None:
    with Gate.set_up(), manager_in() as manager:
        pool = manager.create_pool(Fragile, isolation="process", call_timeout=0.5, max_size=1)
        pool.apply(Tool.echo, 0)
        before = traces(manager)
        for _ in range(3):
            handle = pool.acquire()
            with pytest.raises(CallTimeout):
                handle.wait_at_gate()
            pool.release(handle)
        pool.apply(Tool.echo, 0)
        no_more_traces(manager, before)


@pytest.mark.parametrize("on_reclaim", ["close", "reset"])
def test_the_running_call_of_a_dead_holder(tmp_path: Path, on_reclaim: str) -> None:
    diary = Diary(tmp_path / "diary")
    with Gate.set_up() as gate, manager_in() as manager, Worker() as worker:
        pool = manager.create_pool(
            partial(Witness, diary.path),
            isolation="process",
            max_size=1,
            on_reclaim=on_reclaim,
            close=Witness.close,
        )
        process = process_with(pool)
        worker.do(acquire, pool)
        worker.begin(wait_at_gate)
        gate.wait_for_somebody()
        worker.kill()
        with pool.lease(timeout=10) as another:
            assert another.pid() != process.pid
        if on_reclaim == "close":
            wait_until(lambda: not lives(process), PROMPT)
        else:
            assert lives(process)
            gate.open()
            wait_until(lambda: len(diary.closed()) == 1)
            wait_until(lambda: not lives(process), PROMPT)


@pytest.mark.parametrize("hook", ["check", "reset", "close"])
@pytest.mark.bounds(hook_in_process=0.3)
def test_a_hook_that_hangs_is_killed(hook: str) -> None:
    with Gate.set_up(), manager_in() as manager:
        pool = manager.create_pool(
            Tool, isolation="process", max_size=1, max_uses=3, **{hook: Tool.wait_at_gate}
        )
        for number in range(2):
            handle = pool.acquire(timeout=10)
            assert handle.echo(number) == number
            process = psutil.Process(handle.pid())
            pool.release(handle, discard=hook == "close")
        if hook == "check":
            pool.apply(Tool.echo, 1)
        wait_until(lambda: not lives(process), PROMPT)


@pytest.mark.parametrize(
    "closes",
    [
        pytest.param(False, marks=pytest.mark.bounds(hook=0.5, last_call=0.1)),
        pytest.param(True, marks=pytest.mark.bounds(hook=1000.0, last_call=0.1)),
    ],
)
def test_a_hanging_call_that_was_given_up_by_its_holder_is_killed(closes: bool) -> None:

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with Gate.set_up() as gate, manager_in() as manager:
            pool = manager.create_pool(Fragile, isolation="process", max_size=1)
            process = process_with(pool)
            with pool.lease() as tool:
                killer = threading.Thread(target=lambda: (gate.wait_for_somebody(), interrupt_main()))
                killer.start()
                with pytest.raises(Interrupted):
                    tool.wait_at_gate()
            killer.join()
            if closes:
                pool.close()
            else:
                assert pool.apply(Tool.pid) != process.pid
            wait_until(lambda: not lives(process), PROMPT)
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


@pytest.mark.bounds(hook=60, hook_in_process=60)  # nobody waits for such a hook
@pytest.mark.parametrize("hook", ["check", "reset", "close"])
def test_a_hook_that_is_not_known_where_the_object_lives(manager: PoolManager, hook: str) -> None:
    pool = manager.create_pool(Tool, isolation="process", max_size=1, **{hook: Traveller()})
    for number in range(3):
        assert pool.apply(Tool.echo, number, timeout=PROMPT) == number
    process = process_with(pool)
    with promptly():
        pool.close()
    wait_until(lambda: not lives(process), PROMPT)


class Selfish(Fragile):
    def keep_the_interpreter(self, seconds: float) -> float:
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # as C code does that does not know of it
        return seconds

    def keep_the_interpreter_beside(self, seconds: float) -> None:
        """Soon, in another thread."""
        threading.Timer(0.2, self.keep_the_interpreter, (seconds,)).start()


@pytest.mark.bounds(silence=0.2)
def test_code_that_lets_nothing_else_run_is_only_busy() -> None:
    with manager_in() as manager:
        pool = manager.create_pool(Selfish, isolation="process", max_size=1)
        with pool.lease() as tool:
            assert tool.keep_the_interpreter(2.0) == 2.0
            assert tool.echo(1) == 1


@pytest.mark.bounds(silence=0.2)
def test_who_connects_to_one_that_is_only_busy_waits() -> None:
    with manager_in() as manager, Worker() as worker:
        pool = manager.create_pool(Selfish, isolation="process", max_size=1)
        with pool.lease() as tool:
            tool.keep_the_interpreter_beside(1.5)
        worker.do(acquire, pool)
        assert worker.do(echo, 1) == 1


class Blob(Tool):
    def data(self, size: int) -> bytes:
        return bytes(size)


def receive_with_a_stop(things: dict[str, Any]) -> int:
    """Stand still when the beginning of a large answer has come."""

    received = []

    def stop_before_the_rest(_: object, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ == "recv":
            received.append(event)
        if len(received) == 2:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.setprofile(stop_before_the_rest)
    return len(things["handle"].data(10_000_000))


@pytest.mark.bounds(silence=0.2)
def test_a_holder_that_stands_still_in_an_answer_gets_it_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    do_without_linux(monkeypatch)
    with manager_in() as manager, Worker() as worker:
        pool = manager.create_pool(Blob, isolation="process", max_size=1)
        worker.do(acquire, pool)
        worker.begin(receive_with_a_stop)
        wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
        stopped_at = time.monotonic()
        wait_until(lambda: time.monotonic() > stopped_at + 1.0)  # five times the bound
        worker.go_on()
        assert worker.result() == 10_000_000
        assert worker.do(echo, 1) == 1


@pytest.mark.parametrize("connected", [True, False])
def test_an_object_whose_process_stands_still_is_replaced(connected: bool) -> None:
    with manager_in() as manager, Worker() as worker:
        pool = manager.create_pool(Tool, isolation="process", call_timeout=0.5, max_size=1)
        process = process_with(pool)
        worker.do(acquire, pool)
        if connected:
            worker.do(echo, 1)
        process.suspend()
        with promptly(), pytest.raises(CallTimeout):
            worker.do(echo, bytes(10_000_000) if connected else 1)
        wait_until(lambda: not lives(process), PROMPT)
        worker.do(release, pool)
        assert pool.apply(Tool.echo, 2) == 2


def test_an_object_that_cannot_be_reached_is_replaced(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    pool.resize(max_size=1)
    with pool.lease() as tool:
        socket_of_its_object(manager).unlink()  # as programs do that tidy up behind others
        with pytest.raises(LeaseLost, match="cannot be reached, though it lives"):
            tool.echo(1)
    assert pool.apply(Tool.echo, 2) == 2
    assert manager.get_pool(pool.name).apply(Tool.echo, 3) == 3


def test_a_worker_has_one_connection_to_each_object(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, isolation="process", max_size=2)
    me = psutil.Process()

    def use(index: int) -> None:
        for _ in range(20):
            with pool.lease() as tool:
                side_by_side(3, tool.echo)
            assert pool.apply(Tool.echo, index) == index

    use(0)
    before = me.num_fds()
    side_by_side(8, use)
    wait_until(lambda: me.num_fds() <= before + 3, message="two objects, and threads that end just now")


def stop_in_the_middle(_: dict[str, Any], address: str) -> None:
    """Begin to send a request, and say no more."""
    with socket_to(address) as sock:
        sock.send((1000).to_bytes(8, "little") + b"the beginning")


@pytest.mark.bounds(silence=0.5)
def test_a_holder_that_stands_still_in_a_request_does_not_hold_up_the_next() -> None:
    with manager_in(watch_interval=0.1) as manager, Worker() as worker:
        pool = manager.create_pool(Tool, isolation="process", max_size=1, max_hold=0.3)
        worker.do(acquire, pool)
        assert worker.do(echo, 1) == 1
        worker.do(stop_in_the_middle, str(socket_of_its_object(manager)))
        with pool.lease(timeout=10) as tool:
            assert tool.echo(2) == 2


def test_a_factory_that_hangs_is_killed_when_its_pool_is_closed() -> None:
    with Gate.set_up() as gate, manager_in() as manager:
        pool = manager.create_pool(Slow, isolation="process", min_size=1, max_size=1)
        gate.wait_for_somebody()
        (child,) = process_of(manager).children(recursive=True)[1:]
        pool.close(timeout=0)
        wait_until(lambda: not lives(child), PROMPT)


# -- fencing --------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize("portable", [False, True], ids=["linux", "portable"])
def test_no_call_gets_through_after_the_end_of_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portable: bool
) -> None:
    if portable:
        do_without_linux(monkeypatch)
    complaints = tmp_path / "complaints"
    complaints.touch()
    with manager_in() as manager:
        made = partial(Exclusive, complaints)
        # Of which the manager is told each release: what calls on here has no lease that looks for its end.
        pool = manager.create_pool(made, isolation="process", max_size=1, warn_hold=60)
        refused = served = 0
        for number in range(stress_times(2500)):
            handle = pool.acquire()
            call_again, ended = CallAgain(handle), threading.Event()
            counts = [0, 0]

            def go_on(
                number: int = number,
                call_again: CallAgain = call_again,
                ended: threading.Event = ended,
                counts: list[int] = counts,
            ) -> None:
                while not ended.is_set() or not counts[1]:
                    try:
                        call_again("step", number)
                        counts[0] += 1
                    except PoolError:  # or the object was replaced, and its process is gone
                        counts[1] += 1

            going_on = threading.Thread(target=go_on)
            going_on.start()
            wait_until(lambda counts=counts: counts[0])
            pool.release(handle)
            with pool.lease(timeout=10) as mine:  # perhaps the same object, perhaps it had to be replaced
                for _ in range(5):
                    mine.step(-number - 1)
                ended.set()
                going_on.join()
                mine.step(-number - 1)
            served += counts[0]
            refused += counts[1]
        assert complaints.read_text() == ""
        assert served
        assert refused


def test_a_stale_caller_gets_nothing_from_the_next_holders_object(pool: ObjectPool[Fragile]) -> None:
    pool.resize(0, 1)
    handle = pool.acquire()
    handle.echo(0)
    call_again = CallAgain(handle)
    pool.release(handle)
    for number in range(20):
        with pool.lease() as mine:
            with pytest.raises(LeaseLost, match="is over"):
                call_again("echo", 1)
            assert mine.echo(number) == number
            with pytest.raises(LeaseLost, match="is over"):
                call_again("echo", 1)
    assert pool.stats().retired == {}


def test_a_baton_that_cannot_be_had_takes_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    eventfd, made = os.eventfd, []

    def only_one(*args: int) -> int:
        if made:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(eventfd(*args))
        return made[0]

    monkeypatch.setattr(os, "eventfd", only_one)
    before = psutil.Process().num_fds()
    with pytest.raises(OSError, match="Too many"):
        LeaseFence()
    assert len(made) == 1
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("portable", [False, True], ids=["linux", "portable"])
def test_only_the_present_lease_may_call(monkeypatch: pytest.MonkeyPatch, portable: bool) -> None:
    if portable:
        do_without_linux(monkeypatch)
    fence = LeaseFence()
    assert not fence.enter(1), "there is no lease"
    assert not fence.end()
    fence.begin(1)
    assert not fence.called
    assert fence.enter(1)
    assert fence.called
    assert not fence.enter(1), "a call is running"
    assert not fence.end(), "it is, indeed"
    fence.leave(False)
    assert fence.enter(1), "again"
    fence.leave(True)
    assert fence.end()
    assert fence.has_leftovers
    assert not fence.enter(1), "the lease is over"
    fence.begin(2)
    assert not fence.called
    assert not fence.enter(1)
    assert not fence.called, "that was not its holder"
    assert fence.enter(2)
    assert fence.called
    fence.leave(False)
    assert not fence.enter(1)
    assert not fence.enter(3), "that one is still to come"
    assert fence.end()
    assert not fence.has_leftovers
    fence.begin(4)
    assert not fence.enter(3), "it has never been lent"
    assert not fence.called
    assert fence.enter(4)
    assert fence.called, "though that one took the cell before"
    fence.close()


# -- nothing is left behind -----------------------------------------------------------------------


class Sleeper(Mother):
    def sleep(self) -> None:
        print_to_nobody(self, hung_up=False)  # which must not hold up the end, either
        self._note("asleep")
        time.sleep(1000)


@pytest.mark.parametrize(
    ("how", "start_method"),
    [
        *((signal.SIGKILL, each) for each in START_METHODS),
        (signal.SIGTERM, "fork"),
        (signal.SIGTERM, "forkserver"),
        (None, "spawn"),
    ],
)
def test_the_processes_go_when_the_manager_goes(
    tmp_path: Path, start_method: str, how: signal.Signals | None
) -> None:
    diary = Diary(tmp_path / "diary")
    with manager_in(start_method) as manager:
        pool = manager.create_pool(
            partial(Sleeper, diary.path), isolation="process", max_size=3, close=Witness.close
        )
        idle, held, busy = pool.acquire(), pool.acquire(), pool.acquire()
        family = [psutil.Process(each.pid()) for each in (idle, held, busy)]
        family.append(psutil.Process(held.start_a_child()))
        family.append(psutil.Process(held.start_a_grandchild()))
        home = Path(str(manager.address)).parent
        pool.release(idle)
        sleeping = threading.Thread(target=pytest.raises, args=((PoolError, EOFError), busy.sleep))
        sleeping.start()
        wait_until(lambda: diary.names("asleep"))
        if how is None:
            manager.shutdown()
        else:
            process_of(manager).send_signal(how)
        wait_until(lambda: not any(map(lives, family)), PROMPT)
        sleeping.join(10)
        assert not sleeping.is_alive()
        pool.release(held)
        pool.release(busy)
        if how is not signal.SIGKILL:
            assert len(diary.closed()) == 2, "all but the one that is in a call"
            assert not home.exists()


def test_objects_of_a_manager_before_are_gone_and_its_successor_has_new_ones() -> None:
    with manager_in(restart=True) as manager:
        pool = manager.create_pool(Tool, isolation="process", max_size=1)
        handle = pool.acquire()
        process = psutil.Process(handle.pid())
        process_of(manager).kill()
        wait_until(lambda: not lives(process), PROMPT)
        with pytest.raises(LeaseLost):
            handle.echo(1)
        assert pool.apply(Tool.pid) != process.pid
        pool.release(handle)


def test_a_process_without_a_peer_is_of_no_use_to_strangers(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, isolation="process", max_size=1)
    with pool.lease() as tool:
        address = str(socket_of_its_object(manager))
        for words in (b"", b"nonsense", bytes(200)):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(address)
                stranger.sendall(words)
        assert tool.echo(1) == 1
