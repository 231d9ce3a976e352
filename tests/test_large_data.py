"""Large arguments and results: the same whichever way they travel, never changed under who holds them."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from actors import Interrupted, Worker, interrupt, manager_in, no_descriptors, process_of
from helpers import Beside, do_without_linux, wait_until
from standins import side_by_side

from mppool import ManagerLost, ObjectPool, PoolManager, RemoteError
from mppool._wire import shared_memory as memory
from mppool._wire.connection import Connection
from mppool._wire.shared_memory import HELD, LARGE, SharedFiles

MIB = 2**20
Array = npt.NDArray[Any]


class Store:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def echo(self, value: Any) -> Any:
        return value

    def keep(self, name: str, value: Any) -> None:
        self.kept[name] = value

    def get(self, name: str) -> Any:
        return self.kept[name]

    def sum(self, name: str) -> float:
        return float(np.sum(self.kept[name]))

    def fill(self, name: str, value: float) -> None:
        self.kept[name][:] = value

    def length(self, value: Any) -> int:
        return len(value)

    def make(self, size: int, value: float) -> Array:
        return np.full(size, value)

    def fail_with(self, value: Any) -> NoReturn:
        raise ValueError(value)

    def is_writable(self, value: Array) -> bool:
        return bool(value.flags.writeable)

    def sum_in_a_fork_is(self, name: str, expected: float) -> bool:
        pid = os.fork()
        if not pid:
            os._exit(self.sum(name) != expected)
        return os.waitpid(pid, 0)[1] == 0


pytestmark = pytest.mark.pool(Store, max_size=1)


@pytest.fixture(params=["files", "stream", "tcp"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "stream":
        do_without_linux(monkeypatch)
    return str(request.param)


@pytest.fixture
def stores(way: str) -> Iterator[ObjectPool[Store]]:
    """Through memory files, or in the stream where there are none."""
    with manager_in(address=("127.0.0.1", 0) if way == "tcp" else None) as manager:
        yield manager.create_pool(Store, max_size=2)


@pytest.fixture
def store(pool: ObjectPool[Store]) -> Iterator[Store]:
    """With memory files, and both sides agreed on them."""
    with pool.lease() as store:
        assert store.length(bytes(LARGE)) == LARGE
        yield store


def memory_files(pid: int | str = "self") -> int:
    """How many memory files a process has open."""
    open_files = 0
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            open_files += "memfd:mppool" in os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            pass  # it was the one that listed them
    return open_files


def shared_memory(process: psutil.Process) -> int:
    """Bytes of shared memory that a process has in use. (What psutil calls so counts code as well.)"""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(status.partition("RssShmem:")[2].split()[0])


# -- the same, whichever way --------------------------------------------------------------------------

VALUES = {
    "array": np.arange(MIB, dtype=np.int16),
    "array of Fortran's order": np.asfortranarray(np.arange(MIB, dtype=np.float32).reshape(1024, 1024)),
    "scattered array": np.arange(MIB)[::2],
    "empty array": np.zeros((0, 3)),
    "several arrays": [np.full(size, size) for size in (10, LARGE, 100, 2 * LARGE, LARGE // 8, 7)],
    "array among others": {"big": np.ones(LARGE), "small": np.ones(3), "text": "x" * LARGE, "n": 1},
    "bytes": os.urandom(LARGE),
    "large bytes": os.urandom(3 * MIB),
    "bytearray": bytearray(os.urandom(2 * MIB)),
    "text": "ä€𐍈" * LARGE,
    "list": list(range(LARGE)),
    "just below the bound": bytes(LARGE - 50),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return type(other) is type(one) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


@pytest.mark.everywhere("none", "process")
def test_what_is_large_comes_as_it_went(stores: ObjectPool[Store]) -> None:
    for name, value in VALUES.items():
        with stores.lease() as store:
            for _ in range(2):
                assert same(value, store.echo(value)), name
        for _ in range(2):
            assert same(value, stores.apply(Store.echo, value)), name


@pytest.mark.everywhere("none", "process")
def test_what_is_large_comes_to_an_event_loop_as_it_went(stores: ObjectPool[Store]) -> None:
    async def echo_all() -> None:
        async with stores.aio.lease() as store:
            for name, value in VALUES.items():
                for _ in range(2):
                    assert same(value, await store.echo(value)), name

    asyncio.run(echo_all())


def test_in_the_stream_arrays_lie_where_they_were_received(beside: Beside) -> None:
    ends = socket.socketpair()
    sender, receiver = (Connection(end, "") for end in ends)
    arrays = [np.arange(size, dtype=np.float64) for size in (LARGE, 10, 2 * LARGE)]
    with closing(sender), closing(receiver):
        for is_apart in (False, True):  # it takes a large message to learn that there are some
            sent = beside(lambda: sender.send_frame(sender.encode(arrays)))
            pickled, buffers = receiver.recv_pickle()
            sent.result()
            assert len(buffers) == 2 * is_apart
        received = pickle.loads(pickled, buffers=buffers)
    assert all(map(np.array_equal, arrays, received))
    assert all(each.flags.writeable and each.flags.aligned for each in received)
    assert all(each.ctypes.data % 16 == 0 for each in received)


@pytest.mark.everywhere("none", "process")
def test_who_waited_for_an_apply_gets_large_results_too(stores: ObjectPool[Store], beside: Beside) -> None:
    stores.resize(max_size=1)
    value = os.urandom(2 * MIB)
    with stores.lease():
        waiting = [beside(stores.apply, Store.echo, value) for _ in range(3)]
        wait_until(lambda: stores.stats().waiting == 3)
    assert [each.result(10) for each in waiting] == [value] * 3


@pytest.mark.everywhere("none", "process")
def test_both_sides_may_write_to_what_they_received(stores: ObjectPool[Store]) -> None:
    mine = np.ones(LARGE)
    with stores.lease() as store:
        store.keep("mine", mine)
        store.fill("mine", 2)
        assert np.all(mine == 1)
        his = store.get("mine")
        his[:] = 3
        assert store.sum("mine") == 2 * LARGE
        assert np.all(his == 3)
        again = store.get("mine")
        assert np.all(again == 2)
        assert np.all(his == 3)


@pytest.mark.everywhere("none", "process")
def test_what_may_not_be_written_to_may_not_be_over_there(stores: ObjectPool[Store]) -> None:
    fixed = np.ones(LARGE)
    fixed.flags.writeable = False
    with stores.lease() as store:
        for _ in range(2):
            assert not store.is_writable(fixed)
            assert store.is_writable(np.ones(LARGE))
            assert not store.echo(fixed).flags.writeable


@pytest.mark.everywhere("none", "process")
def test_an_array_never_changes_under_who_holds_it(stores: ObjectPool[Store]) -> None:
    with stores.lease() as store:
        held = [store.make(LARGE, number) for number in range(12)]
        part = store.make(LARGE, 12)[5:7]  # keeps all of it
        for number in range(6):
            store.keep(str(number), np.full(LARGE, number))
        for number in range(12):
            store.length(np.full(LARGE, -1.0))
            store.make(LARGE, -1.0)
            assert np.all(held[number] == number)
        assert list(part) == [12, 12]
        assert [store.sum(str(number)) for number in range(6)] == [number * LARGE for number in range(6)]
        assert store.length(held[3]) == LARGE


def test_an_array_outlives_lease_pool_and_manager(way: str) -> None:
    with manager_in(address=("127.0.0.1", 0) if way == "tcp" else None) as manager:
        pool = manager.create_pool(Store)
        with pool.lease() as store:
            kept = [store.make(LARGE, number) for number in range(3)]
        pool.close()
    assert [float(each[-1]) for each in kept] == [0, 1, 2]
    kept[0][:] = 9
    assert np.all(kept[0] == 9)


def test_errors_that_are_large_travel(stores: ObjectPool[Store]) -> None:
    with stores.lease() as store:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^x+$") as caught:
                store.fail_with("x" * LARGE)
            assert len(str(caught.value)) == LARGE


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise TypeError("not this one")


def test_an_argument_that_does_not_pickle_harms_nothing(stores: ObjectPool[Store]) -> None:
    with stores.lease() as store:
        for _ in range(3):
            with pytest.raises(TypeError, match="not this one"):
                store.echo([np.ones(LARGE), Unpicklable()])
            assert store.length(np.ones(LARGE)) == LARGE


def test_a_large_result_that_does_not_pickle_comes_as_a_handle(stores: ObjectPool[Store]) -> None:
    with stores.lease() as store:
        store.keep("it", np.ones(LARGE))
        for _ in range(2):
            items = stores.apply(Store.echo, np.ones(LARGE))
            assert len(items) == LARGE


def test_sizes_around_the_bounds(stores: ObjectPool[Store]) -> None:
    with stores.lease() as store:
        for _ in range(2):
            for size in (60 * 1024, 64 * 1024, 80 * 1024, LARGE - 1, LARGE, LARGE + 1):
                assert same(np.zeros(size, "u1"), store.echo(np.zeros(size, "u1")))


def nothing_is_left_to_tidy() -> bool:
    """Whether the thread that frees idle memory has ended, which does so when all is freed."""
    return not memory._tidying.locked()


def resting(files: SharedFiles) -> Any:
    """The files that wait for the next large message: what they keep is to be seen on them only."""
    return files._resting


# -- memory files -----------------------------------------------------------------------------------


def test_a_file_is_used_again(store: Store) -> None:
    for number in range(20):
        assert float(store.make(LARGE, number)[-1]) == number
        assert store.length(np.ones(LARGE)) == LARGE
    gc.collect()
    assert memory_files() <= 4


def test_arrays_that_are_kept_cost_no_descriptors(manager: PoolManager, store: Store) -> None:
    before = memory_files()
    held = [store.make(LARGE, number) for number in range(60)]
    for number in range(30):
        store.keep(str(number), np.full(LARGE, number))
    assert memory_files() - before <= 10
    assert memory_files(process_of(manager).pid) <= 10
    assert [float(each[0]) for each in held] == list(range(60))
    assert store.sum("29") == 29 * LARGE


@pytest.mark.bounds(idle_memory=0.2)
def test_what_lay_idle_gives_its_memory_back(manager: PoolManager, store: Store) -> None:
    process, me = process_of(manager), psutil.Process()
    before, mine = shared_memory(process), shared_memory(me)
    for _ in range(3):
        store.length(np.ones(4 * MIB))
        store.make(4 * MIB, 1.0)
    assert shared_memory(process) - before > 32 * MIB
    wait_until(lambda: shared_memory(process) - before < 4 * MIB)
    wait_until(lambda: shared_memory(me) - mine < 4 * MIB)
    wait_until(nothing_is_left_to_tidy)
    assert float(store.make(4 * MIB, 7.0)[-1]) == 7, "it is used again all the same"
    assert store.length(np.ones(4 * MIB)) == 4 * MIB


def test_a_connection_may_end_while_its_files_are_tidied(monkeypatch: pytest.MonkeyPatch) -> None:
    files, truncate = SharedFiles(), os.ftruncate
    parcel, _ = files.write([[bytes(MIB)]])
    files.on_news(([parcel[2]], []))
    (file,) = resting(files)
    monkeypatch.setattr(memory, "IDLE", 0)

    def end_meanwhile(descriptor: int, size: int) -> None:
        files.close()
        truncate(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", end_meanwhile)
    file.since = 1.0
    files.tidy()
    assert file.used == 0
    descriptor = file.descriptor
    assert os.fstat(descriptor).st_blocks == 0
    resting(files).clear()
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_memory_at_rest_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "HELD", MIB)
    assert HELD > MIB
    sender, receiver = SharedFiles(), SharedFiles()
    for _ in range(3):
        parcel, descriptor = sender.write([[bytes(3 * MIB)]])
        mine = os.dup(descriptor) if descriptor is not None else None
        (part,) = receiver.map(parcel, mine)
        assert len(part) == 3 * MIB
        del part
        sender.on_news(receiver.take_news())
        (file,) = resting(sender)
        assert file.used == 0
        assert os.stat(file.descriptor).st_blocks == 0


def steps_of(do: Callable[[], object]) -> int:
    """How many functions are called meanwhile."""
    events: list[str] = []
    sys.setprofile(lambda _, event, __: events.append(event))
    try:
        do()
    finally:
        sys.setprofile(None)
    return len(events)


def test_other_connections_cost_a_message_nothing() -> None:
    def send_one() -> None:
        parcel, _ = sender.write([[bytes(MIB)]])
        sender.on_news(([parcel[2]], []))

    sender = SharedFiles()
    send_one()
    steps = steps_of(send_one)
    others = [SharedFiles() for _ in range(300)]
    assert steps_of(send_one) <= steps + 20
    del others


inherited: dict[str, Array] = {}
"""What a worker is forked with."""


def sum_inherited(_: object) -> float:
    return float(inherited["array"].sum())


def fill_inherited(_: object, value: float) -> None:
    inherited["array"][:] = value


def test_a_forked_child_and_its_parent_have_an_array_each(store: Store) -> None:
    inherited["array"] = array = store.make(LARGE, 1.0)
    with Worker() as writer, Worker() as reader:
        writer.do(fill_inherited, 2)
        assert writer.do(sum_inherited) == 2 * LARGE
        assert float(array.sum()) == LARGE
        inherited.clear()
        del array
        for _ in range(10):  # the manager has time to use its file again
            store.make(LARGE, 3.0)
            store.length(np.full(LARGE, 4.0))
        assert reader.do(sum_inherited) == LARGE


@pytest.mark.bounds(idle_memory=0.1)
def test_a_child_keeps_what_its_parent_lets_lie(store: Store) -> None:
    inherited["array"] = store.make(LARGE, 1.0)
    with Worker() as worker:
        inherited.clear()
        wait_until(nothing_is_left_to_tidy)
        assert worker.do(sum_inherited) == LARGE


def test_a_small_array_pins_no_large_file(store: Store) -> None:
    kept = []
    for number in range(6):
        store.make(8 * MIB, 1.0)
        kept.append(store.make(LARGE, number))
    assert [float(each[0]) for each in kept] == list(range(6))
    # What a process has mapped tells nothing of which file an array lies in.
    assert all(
        file.used < 4 * MIB or file.number < 2 for each in memory._all() for file in each._received.values()
    )


def test_an_object_in_the_manager_may_fork_with_what_it_was_given(store: Store) -> None:
    store.keep("it", np.ones(LARGE))
    assert store.sum_in_a_fork_is("it", LARGE)
    for _ in range(6):
        store.length(np.zeros(LARGE))
    assert store.sum_in_a_fork_is("it", LARGE)
    assert store.sum("it") == LARGE


def use_large(things: dict[str, Any], pool: ObjectPool[Store]) -> float:
    things["store"] = pool.acquire()
    things["array"] = things["store"].make(MIB, 1.0)
    things["store"].keep("it", things["array"])
    return float(things["array"].sum())


@pytest.mark.pool(Store, max_size=2)
def test_a_worker_that_is_killed_leaves_no_file(
    manager: PoolManager, pool: ObjectPool[Store], worker: Worker
) -> None:
    process = process_of(manager)
    with pool.lease() as mine:
        assert worker.do(use_large, pool) == MIB
        for _ in range(2):
            mine.length(bytes(LARGE))
        assert memory_files(process.pid) > 1
        worker.kill()
        wait_until(lambda: pool.stats().leased == 1)
        wait_until(lambda: memory_files(process.pid) <= 1)


def test_a_manager_that_is_killed_takes_no_array_with_it(manager: PoolManager, store: Store) -> None:
    array = store.make(LARGE, 5.0)
    process_of(manager).kill()
    with pytest.raises(ManagerLost):
        store.make(LARGE, 6.0)
    assert float(array.sum()) == 5 * LARGE


def no_file(*_: object) -> NoReturn:
    raise OSError(24, "Too many open files")


def test_without_a_descriptor_it_goes_in_the_stream(store: Store) -> None:
    held = store.make(LARGE, 1.0)
    with no_descriptors():
        for number in range(6):
            store.keep(str(number), np.full(LARGE, number))  # those that could be lent are lent already
    assert [store.sum(str(number)) for number in range(6)] == [number * LARGE for number in range(6)]
    assert np.all(held == 1)


def test_who_cannot_see_a_large_result_is_told_and_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [store.make(LARGE, 1.0)]
    with monkeypatch.context() as without:
        without.setattr(memory, "map_file", no_file)  # `mmap` itself maps other things meanwhile
        with pytest.raises(RemoteError, match=r"cannot be mapped here.*Too many open files"):
            held.append(store.make(LARGE, 2.0))
    # The descriptor that was lost has to be sent once more.
    held += [store.make(LARGE, number) for number in range(3, 9)]
    assert [float(each[0]) for each in held] == [1, 3, 4, 5, 6, 7, 8]


def work_and_check(_: object, pool: ObjectPool[Store], number: int) -> None:
    with pool.lease() as store:
        held: list[tuple[float, Array]] = []
        for turn in range(25):
            value = float(number * 100 + turn)
            held = [*held[-3:], (value, store.echo(np.full(LARGE, value)))]
            assert all(np.all(array == value) for value, array in held)


@pytest.mark.pool(Store, max_size=4)
def test_threads_have_files_of_their_own(pool: ObjectPool[Store]) -> None:
    side_by_side(4, lambda number: work_and_check(None, pool, number))
    assert pool.stats().acquired == 4


def test_processes_that_are_forked_with_a_connection_make_their_own(
    manager: PoolManager, store: Store
) -> None:
    pool = manager.create_pool(Store, max_size=2)
    mine = store.make(LARGE, 1.0)
    with Worker() as one, Worker() as other:
        one.begin(work_and_check, pool, 1)
        other.begin(work_and_check, pool, 2)
        for _ in range(10):
            assert float(store.make(LARGE, 2.0)[0]) == 2
        one.result()
        other.result()
    assert np.all(mine == 1)


def echo_in_a_storm(things: dict[str, Any], pool: ObjectPool[Store], turns: int) -> int:
    """In a process of its own: where an alarm meets a destructor it raises into nothing, as ever."""
    signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    with pool.lease() as store:
        for turn in range(turns):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + turn % 30 / 20000)
                array = store.echo(np.full(LARGE, float(turn)))
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert np.all(array == turn)
            except Interrupted:
                interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert float(store.make(LARGE, 8.0)[-1]) == 8
    return interrupted


def test_an_interrupt_at_any_moment_mixes_nothing_up(worker: Worker, pool: ObjectPool[Store]) -> None:
    assert worker.do(echo_in_a_storm, pool, 200) > 10
    wait_until(lambda: pool.stats().idle == 1)
