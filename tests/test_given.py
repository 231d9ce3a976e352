"""Pools of given things: an object for each, or the things themselves."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import (
    FORK,
    Gate,
    Interrupted,
    Tool,
    Worker,
    acquire,
    all_idle,
    echo,
    interrupt,
    process_of,
    stopped,
)
from helpers import Beside, promptly, wait_until
from standins import Caller, ThingPool

from mppool import FactoryError, LeaseError, LeaseLost, ObjectPool, PoolManager, PoolTimeout

LINUX = sys.platform == "linux"


class Device(Tool):
    """Stands for one of the given things."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def which(self) -> Any:
        return self.item

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def items_of(pool: ObjectPool[Any], leases: int) -> list[Any]:
    """What is lent when so many hold something at once."""
    handles = [pool.acquire() for _ in range(leases)]
    items = [each.which() for each in handles]
    for each in handles:
        pool.release(each)
    return items


# -- an object for each ---------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_each_item_has_an_object(manager: PoolManager) -> None:
    pool = manager.create_pool(Device, each=(f"cuda:{number}" for number in range(3)), min_size=3)
    pool.wait()
    assert pool.stats().max_size == pool.stats().size == 3
    assert sorted(items_of(pool, 3)) == ["cuda:0", "cuda:1", "cuda:2"]
    with pool.lease() as device:
        assert [each.item for each in pool.leases()] == [device.which()]


@pytest.mark.everywhere
@pytest.mark.parametrize("end", ["discard", "refresh", "max_uses", "kill"])
def test_the_next_object_is_made_of_the_same_item(manager: PoolManager, worker: Worker, end: str) -> None:
    more = {"max_uses": 1} if end == "max_uses" else {}
    pool = manager.create_pool(Device, each=["a", "b"], min_size=2, **more)
    pool.wait()
    with pool.lease() as other:
        if end == "kill":
            worker.do(acquire, pool)
            worker.do(echo, "called")
            worker.kill()
        else:
            handle = pool.acquire()
            if end == "refresh":
                pool.refresh()
            pool.release(handle, discard=end == "discard")
        wait_until(lambda: pool.stats().built == 3 and pool.stats().idle == 1)
        with pool.lease() as device:
            assert {device.which(), other.which()} == {"a", "b"}


@pytest.mark.everywhere("process")
def test_an_object_that_crashed_is_made_of_the_same_item_again(
    manager: PoolManager,
) -> None:
    pool = manager.create_pool(Device, each=["a", "b"])
    with pool.lease() as first, pool.lease() as second:
        items = [first.which(), second.which()]
        with pytest.raises(LeaseLost, match=rf"was killed by SIGKILL \(item '{items[0]}'\)"):
            first.crash()
        with pool.lease() as again:
            assert again.which() == items[0]


@pytest.mark.manager(restart=True)
def test_a_restarted_manager_knows_the_items(manager: PoolManager) -> None:
    pool = manager.create_pool(Device, each=["a", "b"])
    process_of(manager).kill()
    wait_until(lambda: is_served(pool))
    assert sorted(items_of(pool, 2)) == ["a", "b"]


def is_served(pool: ObjectPool[Any]) -> bool:
    try:
        return bool(pool.stats())
    except ConnectionError:
        return False


class Picky(Device):
    """Of one of the items there is none."""

    def __init__(self, item: str) -> None:
        super().__init__(item)
        if item == "b":
            raise OSError("no such device")


@pytest.mark.everywhere
def test_a_failed_build_names_its_item(manager: PoolManager) -> None:
    pool = manager.create_pool(Picky, each=["a", "b"])
    with pool.lease(), pytest.raises(FactoryError, match=r"factory failed \(item 'b'\): OSError: no such"):
        pool.acquire()


@pytest.mark.bounds(hook_in_process=0.3)
def test_a_build_that_hangs_leaves_its_item_to_the_next(gate: Gate, manager: PoolManager) -> None:
    pool = manager.create_pool(hang_first, each=["only"], build_timeout=0.2)
    with pytest.raises(FactoryError, match=r"\(item 'only'\): no object after 0.2 s"):
        pool.acquire()
    assert pool.apply(Device.which) == "only"


def hang_first(item: str, _built: list[str] = []) -> Device:  # noqa: B006  # it counts in the manager
    _built.append(item)
    device = Device(item)
    if len(_built) == 1:
        device.wait_at_gate()
    return device


def test_items_are_copied_once(manager: PoolManager) -> None:
    item = ["as it was"]
    pool = manager.create_pool(Device, each=[item])
    item.append("later")
    with pool.lease() as device:
        device.which().append("by a holder")  # of a handle or a copy
        pool.release(device, discard=True)
    assert pool.apply(Device.which) == ["as it was"]


def test_fewer_places_than_items() -> None:
    """The item longest unused comes first. Nothing is built of two places beyond the bound."""
    pool = ThingPool(items="abc", max_size=2, order="fifo")
    seen = []
    for _ in range(6):
        with pool.lease() as thing:
            seen.append(thing.item)
        pool.refresh()
    assert "".join(seen) == "abcabc"
    first, second = Caller(pool), Caller(pool)
    assert {first.thing.item, second.thing.item} == {"a", "b"}
    assert Caller(pool).waiting


def test_an_item_is_free_when_its_object_counts_no_more() -> None:
    pool = ThingPool(items="a", by_hand=True)
    asker = Caller(pool)
    pool.threads.do_all()
    asker.give_back(discard=True)
    other = Caller(pool)
    assert len(pool.threads.jobs) == 1, "it is being closed"
    pool.after(11.0)  # which takes too long
    pool.threads.do(1)
    assert other.thing.item == "a"
    pool.threads.do_all()
    other.give_back()
    assert Caller(pool).thing.item == "a"


def test_the_log_names_the_item(caplog: pytest.LogCaptureFixture) -> None:
    pool = ThingPool(items="a", check=refuse, warn_hold=1.0, max_hold=2.0)
    asker = Caller(pool)
    pool.after(1.0)
    asker.give_back()
    asker = Caller(pool)  # for which a new one is made: the check refuses the old one
    pool.after(2.0)
    with pytest.raises(LeaseLost, match=r"held longer than max_hold \(item 'a'\)"):
        pool.held(asker.lease.id)
    pool.things.fail_builds = OSError("no such device")
    assert r"failed (item 'a'): OSError: no such device" in str(Caller(pool).error)
    pool.things.fail_builds = None
    pool.reclaim(Caller(pool).lease.holder)
    lines = [each for each in caplog.text.splitlines() if each.startswith("WARNING")]
    assert len(lines) == 5
    for line, said in zip(lines, ("still out", "gave back", "check", "took back", "took back"), strict=True):
        assert said in line
        assert "(item 'a')" in line


def refuse(_: object) -> bool:
    raise OSError("refused")


# -- what is refused --------------------------------------------------------------------------------------


class Unpicklable:
    """An item that does not travel."""

    def __reduce__(self) -> Any:
        raise TypeError("stays here")

    def __repr__(self) -> str:
        return "<a lock>"


def without_argument() -> None:
    raise AssertionError("built")


@pytest.mark.parametrize(
    ("factory", "each", "error", "said"),
    [
        (Device, [], ValueError, r"each=\[\]: there is no item in it"),
        (Device, iter(()), ValueError, "each=.*: there is no item"),
        (Device, "cuda", TypeError, "each must be an iterable of items, which a string is not: 'cuda'"),
        (Device, 4, TypeError, "each must be an iterable"),
        (Device, [1, Unpicklable()], TypeError, r"item 1 of each, <a lock>, does not pickle.*\(stays here\)"),
        (
            without_argument,
            [1],
            TypeError,
            "with each the factory is called with an item, .*without_argument",
        ),
        ("actors:Tool", [1], TypeError, "with each the factory is called with an item, .*Tool"),
        ([0, 1], None, TypeError, r"given things go into each\): \[0, 1\]"),
    ],
)
def test_items_that_are_wrong(
    shared_manager: PoolManager, factory: Any, each: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        shared_manager.create_pool(factory, each=each, name="wrong", min_size=1)
    assert "wrong" not in shared_manager.pools()


def test_no_more_places_than_items(shared_manager: PoolManager) -> None:
    pool = shared_manager.create_pool(Device, each=[1, 2])
    for sizes in ({"max_size": 3}, {"min_size": 3, "max_size": 3}):
        with pytest.raises(ValueError, match="max_size=3 is more than the 2 items of each"):
            shared_manager.create_pool(Device, each=[1, 2], **sizes)
        with pytest.raises(ValueError, match="max_size=3 is more than the 2 items of each"):
            pool.resize(**sizes)
    with pytest.raises(ValueError, match="min_size=3 is more than max_size=2"):
        shared_manager.create_pool(Device, each=[1, 2], min_size=3)
    pool.resize(max_size=1)
    assert all_idle(pool, 0)


def test_a_pool_of_the_same_items_is_found(shared_manager: PoolManager) -> None:
    make = partial(shared_manager.create_pool, Device, name="of paths", exist_ok=True)
    pool = make(each=[Path("a"), Path("b")])
    assert make(each=(Path(name) for name in "ab")) == pool
    with pytest.raises(ValueError, match=r"its each is \[.*'a'.*'b'.*\], not \[.*'b'.*\]"):
        make(each=[Path("b")])
    with pytest.raises(ValueError, match=r"its each is \[.*\], not \[\]"):
        make()


def test_a_number_of_places_that_is_left_out_matches_any(shared_manager: PoolManager) -> None:
    make = partial(shared_manager.create_pool, each=[1, 2], name="one place", exist_ok=True)
    pool = make(max_size=1)
    assert make() == pool
    assert pool.options.max_size == 1
    with pytest.raises(ValueError, match="its max_size is 1, not 2"):
        make(max_size=2)
    assert shared_manager.create_pool(each=[1, 2]).options.max_size == 2


# -- values -------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(manager: PoolManager) -> ObjectPool[int]:
    return manager.create_pool(each=[0, 1])


def test_a_value_is_lent_as_it_is(gpus: ObjectPool[int]) -> None:
    with gpus.lease() as gpu, gpus.lease() as other:
        assert type(gpu) is int
        assert {gpu, other} == {0, 1}
        assert json.dumps(sorted([gpu, other])) == "[0, 1]"
        assert f"cuda:{gpu}" in ("cuda:0", "cuda:1")
        assert subprocess.check_output(["/bin/echo", str(gpu)]) == f"{gpu}\n".encode()
        assert [each.item for each in gpus.leases()] == [gpu, other]
        with pytest.raises(PoolTimeout):
            gpus.acquire(0)
    assert gpus.stats().leased == 0
    assert gpus.apply(int.__add__, 7) in (7, 8)
    assert gpus.apply(lambda gpu, lock: lock.locked(), threading.Lock()) is False, "here"


@pytest.mark.manager(start_method="spawn")
def test_values_need_not_hash(manager: PoolManager) -> None:
    pool = manager.create_pool(each=[{"host": "a"}, {"host": "b"}, Path("c"), array("i", [1])])
    for value in [pool.acquire() for _ in range(4)]:
        pool.release(copy.copy(value))
    assert pool.stats().leased == 0
    with pool.lease() as value:
        assert value == {"host": "a"} or value
        with pytest.raises(LeaseError, match=r"this process does not hold \['a'\]"):
            pool.release(["a"])


class Odd:
    """A value that neither compares nor has a text."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise ValueError("not to be shown")


def test_values_need_neither_compare_nor_have_a_text(manager: PoolManager) -> None:
    pool = manager.create_pool(each=[Odd(), float("nan"), Odd()])
    values = [pool.acquire() for _ in range(3)]
    with pytest.raises(LeaseError, match=r"this process does not hold <.*Odd"):
        pool.release(Odd())
    with pytest.raises(LeaseError, match="this process does not hold nan"):
        pool.release(float("nan"))
    for value in values:
        pool.release(value)
    assert pool.stats().leased == 0


def test_equal_items_are_interchangeable(manager: PoolManager) -> None:
    pool = manager.create_pool(each=["seat"] * 3)
    seats = [pool.acquire() for _ in range(3)]
    for left in (2, 1, 0):
        pool.release(seats[0])
        assert pool.stats().leased == left
    with pytest.raises(LeaseError, match="does not hold 'seat'"):
        pool.release("seat")


def test_a_lease_ends_itself_and_not_that_of_an_equal_value(manager: PoolManager) -> None:
    pool = manager.create_pool(each=[1, 1])
    pool.acquire()
    (mine,) = pool.leases()
    with pool.lease():
        assert len(pool.leases()) == 2
    assert [each.lease_id for each in pool.leases()] == [mine.lease_id]
    with pool.lease() as value:
        pool.release(value)  # the oldest one
        assert mine.lease_id not in [each.lease_id for each in pool.leases()]
    assert pool.leases() == []
    with pool.lease():
        pool.release(pool.acquire())  # not the block's, though that is older
        assert len(pool.leases()) == 1
    assert pool.leases() == []


def test_this_threads_lease_before_anothers(manager: PoolManager, beside: Beside) -> None:
    pool = manager.create_pool(each=[1, 1])
    beside(pool.acquire).result(20)
    (other,) = pool.leases()
    pool.release(pool.acquire())
    assert pool.leases()[0].lease_id == other.lease_id
    pool.release(1)
    assert pool.leases() == [], "another thread's if there is none of this one"


def test_a_forked_child_holds_nothing_of_its_parents(gpus: ObjectPool[int]) -> None:
    gpu = gpus.acquire()
    with Worker() as child:
        with pytest.raises(LeaseError, match=f"this process does not hold {gpu}"):
            child.do(release_value, gpus, gpu)
        assert child.do(borrow, gpus) == 1 - gpu
    wait_until(lambda: [each.item for each in gpus.leases()] == [gpu])  # a release is not waited for
    gpus.release(gpu)


def release_value(_: object, pool: ObjectPool[Any], value: Any) -> None:
    pool.release(value)


def borrow(_: object, pool: ObjectPool[Any]) -> Any:
    with pool.lease() as value:
        return value


@pytest.mark.manager(watch_interval=60.0)
def test_a_killed_holders_value_comes_back(manager: PoolManager, worker: Worker) -> None:
    pool = manager.create_pool(each=[7])
    worker.do(acquire, pool)
    worker.kill()
    with promptly():
        assert pool.acquire(timeout=20) == 7
    pool.release(7)


def test_a_holder_that_ends_in_order_gives_its_value_back(gpus: ObjectPool[int]) -> None:
    holder = FORK.Process(target=gpus.acquire)
    holder.start()
    holder.join()
    wait_until(lambda: gpus.stats().acquired == 1 and gpus.stats().leased == 0)
    assert gpus.stats().reclaimed == 0


def test_a_closed_connection_is_no_proof_of_death(manager: PoolManager, worker: Worker) -> None:
    """A process that is killed closes its files one by one: perhaps the socket before a device's lock."""
    pool = manager.create_pool(each=[7])
    worker.do(acquire, pool)
    worker.do(end_first_connection, manager.address)
    with pytest.raises(PoolTimeout):
        pool.acquire(0.3)
    assert [each.pid for each in pool.leases()] == [worker.pid]
    worker.kill()
    with promptly():
        assert pool.apply(int, timeout=20) == 7


def end_first_connection(_: object, address: str) -> None:
    """End it in the way in which a dying process does."""
    for number in sorted(int(name) for name in os.listdir("/proc/self/fd" if LINUX else "/dev/fd")):
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
            if connection.getpeername() == address:
                connection.shutdown(socket.SHUT_RDWR)
                return
    raise AssertionError("there is none")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer, interrupted
@pytest.mark.parametrize("waits", [True, False])
def test_an_interrupted_acquire_holds_no_value(manager: PoolManager, waits: bool) -> None:
    pool = manager.create_pool(each=[7])
    with signal_as_interrupt():
        for number in range(30):
            held = [pool.acquire()] if waits else []
            try:  # a `with` block could be interrupted between its end and its exit
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + number / 50_000)
                end = time.monotonic() + 0.1  # where the error of a handler is lost, as in a finalizer
                while time.monotonic() < end:
                    with pool.lease():
                        pass
            except Interrupted:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            for value in held:
                pool.release(value)
            with promptly():
                assert pool.apply(int, timeout=20) == 7


@contextmanager
def signal_as_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.manager(watch_interval=0.1)
def test_a_value_that_is_held_too_long(manager: PoolManager) -> None:
    pool = manager.create_pool(each=[7], max_hold=0.3)
    late = pool.acquire()
    with promptly(), pool.lease(20) as value:
        assert value == late
        pool.release(late)  # this thread's present one
        pool.release(late)  # the late one: silent, as with handles
        assert pool.stats().late_releases == 1
    with pytest.raises(LeaseError):
        pool.release(late)


@pytest.mark.manager(watch_interval=0.1)
def test_a_late_release_is_none_of_another_threads(manager: PoolManager, beside: Beside) -> None:
    pool = manager.create_pool(each=[7], max_hold=1.0)
    late = pool.acquire()
    assert beside(pool.acquire, 20).result(20) == late
    pool.release(late)
    assert pool.stats().leased == 1
    assert pool.stats().late_releases == 1


@pytest.mark.parametrize("end", ["discard", "refresh", "check"])
def test_the_same_value_comes_again(manager: PoolManager, end: str) -> None:
    more = {"check": is_even} if end == "check" else {}
    pool = manager.create_pool(each=[4], **more)
    for _ in range(3):
        value = pool.acquire()
        assert value == 4
        if end == "refresh":
            pool.refresh()
        pool.release(value, discard=end == "discard")


def is_even(value: int) -> bool:
    return value % 2 == 0


def test_a_value_that_is_not_fine_is_not_lent(manager: PoolManager) -> None:
    pool = manager.create_pool(each=[3, 4], check=is_even)
    assert [pool.apply(int) for _ in range(5)] == [4] * 5
    assert pool.stats().retired == {"check": 1}


def test_a_value_that_was_refused_is_not_tried_again_at_once() -> None:
    health = Health()
    pool = ThingPool(values=[3], check=health.is_fine, close=None, timeout=20.0)
    asker = Caller(pool)
    assert health.asked == 1
    with pytest.raises(PoolTimeout):
        pool.acquire(0)
    pool.after(0.9)
    assert health.asked == 1
    health.is_good = True
    pool.after(0.2)
    assert asker.thing == 3


class Health:
    """What a check finds out."""

    is_good = False
    asked = 0

    def is_fine(self, _: object) -> bool:
        self.asked += 1
        return self.is_good


def test_values_longest_unused_first(manager: PoolManager) -> None:
    pool = manager.create_pool(each=range(3), max_size=1, max_uses=1)
    assert [pool.apply(int) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_value_outlives_the_thread_that_acquired_it(gpus: ObjectPool[int], beside: Beside) -> None:
    gpu = run_in_thread(gpus.acquire)
    gpus.release(gpus.acquire(20))
    gc.collect()
    assert [each.item for each in gpus.leases()] == [gpu]
    gpus.release(gpu)
    assert gpus.leases() == []


def test_a_value_outlives_the_pool_that_lent_it(manager: PoolManager, worker: Worker) -> None:
    pool = manager.create_pool(each=[7])
    assert worker.do(take_from_a_copy, pickle.dumps(pool)) == 7
    assert pool.stats().leased == 1
    worker.do(release_value, pool, 7)
    wait_until(lambda: pool.stats().leased == 0)


def take_from_a_copy(_: object, pool: bytes) -> Any:
    value = pickle.loads(pool).acquire()
    gc.collect()
    return value


def run_in_thread(function: Callable[[], Any]) -> Any:
    """In one that has ended when this returns."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_one_round_trip(gpus: ObjectPool[int], manager: PoolManager) -> None:
    """None waits for the manager at a release."""
    gpus.release(gpus.acquire())
    value = gpus.acquire()
    with stopped(process_of(manager)), promptly():
        gpus.release(value)


@pytest.mark.parametrize(
    "option",
    [
        *({"isolation": "none"}, {"call_timeout": 1.0}, {"build_timeout": 1.0}, {"expose": ["real"]}),
        *({"keep": [int]}, {"reset": is_even}, {"close": is_even}),
        *({"max_batch_size": 2}, {"batch_wait": 0}),
    ],
)
def test_options_that_make_no_sense_for_values(shared_manager: PoolManager, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} has no meaning without a factory"):
        shared_manager.create_pool(each=[1], **option)


def test_neither_factory_nor_items(shared_manager: PoolManager) -> None:
    with pytest.raises(TypeError, match="factory must be callable"):
        shared_manager.create_pool(max_size=3)  # type: ignore[call-overload]


def test_a_pool_of_the_same_values_is_found(shared_manager: PoolManager) -> None:
    pool = shared_manager.create_pool(each=[1, 2], name="values", exist_ok=True)
    assert shared_manager.create_pool(each=[1.0, 2], name="values", exist_ok=True) == pool
    with pytest.raises(ValueError, match="its factory is None, not <class 'int'>"):
        shared_manager.create_pool(int, each=[1, 2], name="values", exist_ok=True)
    with pytest.raises(ValueError, match=r"its each is \[1, 2\], not \[1, 3\]"):
        shared_manager.create_pool(each=[1, 3], name="values", exist_ok=True)
