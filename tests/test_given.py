"""Pools of given things: an object for each, or the things themselves."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import Gate, Tool, Worker, acquire, all_idle, echo, process_of
from helpers import wait_until
from standins import Caller, ThingPool

from mppool import FactoryError, LeaseLost, ObjectPool, PoolManager


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
