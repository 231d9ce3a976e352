"""A pool works in whichever process it gets to, and gets there small, without the key."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import re
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection as Pipe
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal

import loky
import psutil
import pytest
from actors import FORK, START_METHODS, Worker, acquire, child_process, home_of, process_of, release
from helpers import Beside, RunPython, wait_until
from wire import Connection

import mppool._version
from mppool import ManagerLost, ObjectPool, PoolClosed, PoolError, PoolManager

Report = tuple[int, int]
"""Pids: of the worker, which the pool names as the holder, and of the process where its object lives."""

SPAWN = multiprocessing.get_context("spawn")
KEY = b"not to be found in any pickle"


class Session:
    """An object that tells where it lives."""

    def pid(self) -> int:
        return os.getpid()


def borrow(pool: ObjectPool[Session], _: object = None) -> Report:
    with pool.lease(timeout=10) as session:
        assert [each.pid for each in pool.leases()] == [os.getpid()]
        return os.getpid(), session.pid()


kept: ObjectPool[Session]
"""The pool of a process that got it in an initializer or by fork."""


def keep(pool: ObjectPool[Session]) -> None:
    global kept
    kept = pool


def borrow_kept(_: object = None) -> Report:
    return borrow(kept)


def call_and_tell(pipe: Pipe, function: Callable[..., Any], *args: Any) -> None:
    """The whole of a process: call, and tell what came out."""
    try:
        pipe.send(function(*args))
    except BaseException as error:
        pipe.send(error)


def in_process(context: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process, and return what it returned there."""
    with child_process(call_and_tell, function, *args, context=context) as (process, pipe):
        result = pipe.recv()
        process.join()
        assert process.exitcode == 0
    if isinstance(result, BaseException):
        raise result
    return result


# -- the matrix ---------------------------------------------------------------------------------------


def argument_of_a_task(pool: ObjectPool[Session], context: BaseContext) -> Report:
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(borrow, pool).result()


def partial_over_map(pool: ObjectPool[Session], context: BaseContext) -> Report:
    with context.Pool(1) as workers:
        first, second = workers.map(partial(borrow, pool), range(2))
    assert first == second
    return first


def initargs(pool: ObjectPool[Session], context: BaseContext) -> Report:
    with ProcessPoolExecutor(1, mp_context=context, initializer=keep, initargs=(pool,)) as executor:
        return executor.submit(borrow_kept).result()


def argument_of_a_process(pool: ObjectPool[Session], context: BaseContext) -> Report:
    return in_process(context, borrow, pool)


KEYS = pytest.mark.parametrize(
    "authkey", [None, b"a key of our own"], ids=["default key", "custom key"], scope="module"
)


@pytest.fixture(scope="module", params=START_METHODS)
def context(request: pytest.FixtureRequest) -> BaseContext:
    return multiprocessing.get_context(request.param)


@pytest.fixture(scope="module")
def maker(context: BaseContext, authkey: bytes | None) -> Iterator[PoolManager]:
    with PoolManager(authkey=authkey, ctx=context) as manager:
        yield manager


WAYS = [argument_of_a_task, partial_over_map, initargs, argument_of_a_process]


# A pool carries no key, neither kind of it: which one the manager has is no matter of the way.
@pytest.mark.parametrize(
    ("authkey", "way"),
    [*((None, way) for way in WAYS), (b"a key of our own", argument_of_a_task)],
    scope="module",
)
def test_a_pool_works_where_it_was_sent(
    maker: PoolManager, context: BaseContext, way: Callable[[Any, BaseContext], Report]
) -> None:
    pool = maker.create_pool(Session, max_size=1)
    here, manager_pid = os.getpid(), pool.apply(Session.pid)
    worker, lives_in = way(pool, context)
    assert lives_in == manager_pid
    assert len({here, worker, manager_pid}) == 3
    wait_until(lambda: pool.stats().leased == 0)
    assert pool.stats().reclaimed == 0, "what the worker held, it gave back"


@pytest.fixture(scope="module")
def forked(authkey: bytes | None) -> Iterator[PoolManager]:
    """A manager where nothing depends on the start method."""
    with PoolManager(authkey=authkey, ctx=FORK) as manager:
        yield manager


@KEYS
def test_a_pool_works_in_loky(forked: PoolManager) -> None:
    pool = forked.create_pool(Session, max_size=1)
    with loky.ProcessPoolExecutor(1, initializer=keep, initargs=(pool,)) as executor:
        worker, lives_in = executor.submit(borrow, pool).result()
        assert executor.submit(borrow_kept).result() == (worker, lives_in)
    assert lives_in == pool.apply(Session.pid)
    assert worker != os.getpid()


@KEYS
def test_a_manager_that_was_inherited_by_fork_makes_pools(forked: PoolManager) -> None:
    forked.create_pool(list)
    in_process(FORK, partial(forked.create_pool, list, name="made by a child"))
    assert forked.get_pool("made by a child").apply(len) == 0


# -- one manager for the rest ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pools() -> Iterator[PoolManager]:
    with PoolManager(authkey=KEY, ctx=FORK) as manager:
        yield manager


def borrow_and_exit(pool: ObjectPool[Session]) -> None:
    borrow(pool)
    os._exit(0)


def have_it_borrowed(pool: ObjectPool[Session], times: int) -> None:
    """By so many processes at once, each of which ends with the release."""
    workers = [FORK.Process(target=borrow_and_exit, args=(pool,)) for _ in range(times)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_what_was_given_back_with_the_last_breath_is_not_reclaimed(pools: PoolManager) -> None:
    pool = pools.create_pool(Session, max_size=1)
    for _ in range(20):
        have_it_borrowed(pool, 3)
    wait_until(lambda: pool.stats().leased == 0)
    now = pool.stats()
    assert (now.acquired, now.built, now.reclaimed, now.late_releases) == (60, 1, 0, 0)


class Hog:
    def burn(self, times: int) -> None:
        for _ in range(times):
            pow(7, 250_000)  # in one step of the interpreter: no other thread runs meanwhile


def test_a_busy_manager_reads_what_was_given_back_with_the_last_breath(
    pools: PoolManager, beside: Beside
) -> None:
    hogs, pool = pools.create_pool(Hog, max_size=3), pools.create_pool(Session, max_size=4)
    burning = [beside(hogs.apply, Hog.burn, 12) for _ in range(3)]
    while not all(each.done() for each in burning):
        have_it_borrowed(pool, 4)
    for each in burning:
        each.result()
    wait_until(lambda: pool.stats().leased == 0)
    now = pool.stats()
    assert now.acquired >= 4
    assert (now.reclaimed, now.late_releases) == (0, 0)


@pytest.mark.everywhere("none")
def test_a_pickle_is_small_and_holds_no_key(pools: PoolManager) -> None:
    pool = pools.create_pool(Session)
    pool.stats()
    copy = pickle.loads(pickle.dumps(pool))
    for data in pickle.dumps(pool), pickle.dumps(copy):
        assert len(data) < 300
        assert KEY not in data


UNPICKLE = """
import pickle, sys

connects = []
sys.addaudithook(lambda event, args: connects.append(args) if event == "socket.connect" else None)
pool = pickle.loads(bytes.fromhex(sys.argv[1]))
before = len(connects)
pool.stats()
print(pool.name, before, len(connects))
"""


def test_unpickling_opens_no_connection(pools: PoolManager, run_python: RunPython) -> None:
    pool = pools.create_pool(list, name="pickled")
    done = run_python("-c", UNPICKLE, pickle.dumps(pool).hex())
    assert (done.stdout, done.stderr) == ("pickled 0 1\n", "")


BORROW = """
import pickle, sys

pool = pickle.loads(bytes.fromhex(sys.argv[1]))
with pool.lease() as things:
    things.append("a call")
slow = {"asyncio", "dataclasses", "inspect", "logging", "psutil", "subprocess", "tempfile", "traceback"}
print(slow & {*sys.modules}, pool.stats().acquired, pool.options.max_size)
"""


def test_a_worker_that_borrows_loads_nothing_that_takes_long(
    pools: PoolManager, run_python: RunPython
) -> None:
    pool = pools.create_pool(list, max_size=3)
    done = run_python("-c", BORROW, pickle.dumps(pool).hex())
    assert (done.stdout, done.stderr) == ("set() 1 3\n", "")


@pytest.mark.everywhere("none")
def test_copies_of_a_pool_are_equal_and_hash_alike(pools: PoolManager) -> None:
    pool = pools.create_pool(Session, name="copied")
    one, other = pickle.loads(pickle.dumps(pool)), pools.get_pool("copied")
    assert pool == one == other
    assert len({pool, one, other}) == 1
    assert pool not in (pools.create_pool(Session), "copied", None)


@pytest.mark.everywhere("none")
@pytest.mark.parametrize("more", [(), ("what a later version tells besides",)])
def test_a_pickle_of_another_version_is_refused(pools: PoolManager, more: tuple[Any, ...]) -> None:
    restore, (version, *values) = pools.create_pool(Session).__reduce__()
    assert version == mppool._version.__version__
    with pytest.raises(ManagerLost, match=rf"mppool 0\.7\.1.*has mppool {re.escape(version)}"):
        restore("0.7.1", *values, *more)
    with pytest.raises(ManagerLost, match=r"mppool 0\.7\.1"):
        restore("0.7.1")


@pytest.mark.parametrize("which", ["manager", "client"])
def test_a_manager_of_another_version_is_lost(
    monkeypatch: pytest.MonkeyPatch, beside: Beside, which: str
) -> None:
    ours = mppool._version.__version__
    theirs = "0.7.1.dev20+g0123456789.d20260101"
    monkeypatch.setattr(mppool._version, "__version__", theirs if which == "manager" else ours)
    with PoolManager(ctx=FORK) as manager:
        pool = manager.create_pool(Session)
        assert pool.stats().name == pool.name
        monkeypatch.setattr(mppool._version, "__version__", ours if which == "manager" else theirs)
        names_both = rf"is of mppool {re.escape(theirs if which == 'manager' else ours)}, .* has mppool "
        with pytest.raises(ManagerLost, match=names_both):
            PoolManager(manager.address).connect()
        with pytest.raises(ManagerLost, match=names_both):
            beside(pool.stats).result()


def hash_of(_: object, value: object) -> int:
    return hash(value)


@pytest.mark.parametrize("isolation", ["none", "process"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_lease_tells_whether_strings_hash_alike_where_its_object_is(
    method: str, isolation: Literal["none", "process"]
) -> None:
    with PoolManager(ctx=multiprocessing.get_context(method)) as manager:
        pool = manager.create_pool(tuple, isolation=isolation)
        handle = pool.acquire()
        same_hashes = has_hash(handle)
        pool.release(handle)
        assert same_hashes == (pool.apply(hash_of, "a string") == hash("a string"))
        assert same_hashes or method == "spawn"


def has_hash(handle: object) -> bool:
    try:
        hash(handle)
    except TypeError:
        return False
    return True


ENDING = """
import sys, threading, types

sys.modules["earlier"] = earlier = types.ModuleType("earlier")  # its globals outlive those of mppool

import mppool

def run(done):
    earlier.pool.stats()
    done.set()
    try:
        if "call" in sys.argv:
            earlier.pool.apply(threading.Event.wait)
    except mppool.PoolError:
        pass
    threading.Event().wait()

if __name__ == "__main__":
    earlier.manager = mppool.PoolManager()
    earlier.manager.start()
    earlier.pool = earlier.manager.create_pool(threading.Event, max_size=2)
    earlier.pool.stats()
    if "thread" in sys.argv or "call" in sys.argv:
        done = threading.Event()
        threading.Thread(target=run, args=(done,), daemon=True).start()
        done.wait()
    if "handle" in sys.argv:
        earlier.handle = earlier.pool.acquire()
    if "large" in sys.argv or "process" in sys.argv:
        isolation = "process" if "process" in sys.argv else "none"
        earlier.lists = earlier.manager.create_pool(list, isolation=isolation)
        earlier.handle = earlier.lists.acquire()
        earlier.handle.extend([bytes(1_000_000)] * 2)
        earlier.handle.append(bytearray(1_000_000))
        earlier.array = earlier.handle.pop()
"""


@pytest.mark.parametrize(
    "state",
    [(), ("thread",), ("call",), ("thread", "handle"), ("thread", "large"), ("thread", "process")],
    ids="+".join,
)
def test_a_program_that_ends_with_an_open_pool_prints_nothing(
    run_python: RunPython, state: tuple[str, ...]
) -> None:
    done = run_python("-c", ENDING, *state)
    assert (done.stdout, done.stderr) == ("", "")


STRANGER = """
import os, sys
from mppool import PoolManager

_, address, name, key = sys.argv
manager = PoolManager(address, bytes.fromhex(key) or None)
manager.connect()
with manager.get_pool("of the family").lease() as thing:
    print(thing[0])
with manager.create_pool("collections:deque", name=name).lease() as thing:
    thing.append(os.getpid())
    print(len(thing))
"""


def test_a_process_that_is_no_relative_connects_with_address_and_key_or_as_the_same_user(
    pools: PoolManager, run_python: RunPython
) -> None:
    family = pools.create_pool(list, name="of the family", max_size=1)
    with family.lease() as thing:
        thing.append("hello")
    for name, key in ("of a stranger", KEY), ("of the same user", b""):
        done = run_python("-c", STRANGER, pools.address, name, key.hex())
        assert (done.stdout, done.stderr) == ("hello\n1\n", "")
        assert pools.get_pool(name).stats().acquired == 1


@pytest.mark.everywhere("none")
@pytest.mark.parametrize("option", ["warn_hold", "max_hold"])
def test_leases_tell_the_line_that_acquired(pools: PoolManager, option: str) -> None:
    pool = pools.create_pool(list, max_size=2, **{option: 60})
    handle = pool.acquire()
    with pool.lease():
        lines = [str(each.where) for each in pool.leases()]
    pool.release(handle)
    here = test_leases_tell_the_line_that_acquired.__code__.co_firstlineno
    assert lines == [f"{__file__}:{here + step}" for step in (4, 5)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The frames that this process sends and receives, as they come."""
    frames: list[str] = []

    def count(name: str) -> None:
        original = getattr(Connection, name)

        def method(self: Connection, *args: Any) -> Any:
            frames.append(name)
            return original(self, *args)

        monkeypatch.setattr(Connection, name, method)

    count("send_frame")
    count("recv_pickle")
    return frames


@pytest.mark.everywhere("none")
def test_an_acquire_is_one_round_trip_and_a_release_half_of_one(
    pools: PoolManager, counted: list[str]
) -> None:
    pool = pools.create_pool(Session, max_size=1)
    with pool.lease():
        pass  # the object is built, the connection made, the shape told
    counted.clear()
    session = pool.acquire()
    assert counted == ["send_frame", "recv_pickle"]
    counted.clear()
    pool.release(session)
    assert counted == ["send_frame"]


def test_an_apply_beside_the_manager_is_one_round_trip(pools: PoolManager, counted: list[str]) -> None:
    pool = pools.create_pool(Session, max_size=1)
    pool.apply(Session.pid)
    counted.clear()
    pool.apply(Session.pid)
    assert counted == ["send_frame", "recv_pickle"]


def release_to_a_waiter(things: dict[str, Any], pool: ObjectPool[Session]) -> None:
    wait_until(lambda: pool.stats().waiting)
    release(things, pool)


@pytest.mark.everywhere
def test_an_acquire_that_waits_is_one_round_trip(
    pools: PoolManager, worker: Worker, counted: list[str]
) -> None:
    pool = pools.create_pool(Session, max_size=1)
    worker.do(acquire, pool)
    worker.begin(release_to_a_waiter, pool)
    counted.clear()
    pool.release(pool.acquire())
    assert counted == ["send_frame", "recv_pickle", "send_frame"]
    worker.result()
    assert pool.stats().wait_longest > 0


# -- where a manager listens, and who it is ------------------------------------------------------------


def assert_serves_others(manager: PoolManager) -> None:
    pool = manager.create_pool(Session, max_size=1)
    _, lives_in = in_process(SPAWN, borrow, pool)
    assert lives_in == pool.apply(Session.pid)


@pytest.mark.everywhere
@pytest.mark.local
def test_tcp() -> None:
    with PoolManager(("127.0.0.1", 0), KEY, ctx=FORK) as manager:
        host, port = manager.address
        assert (host, port > 0) == ("127.0.0.1", True)
        assert_serves_others(manager)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name, which `tmp_path` may not."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def test_a_path_of_the_users_own(short: Path) -> None:
    path = short / "socket"
    with PoolManager(str(path), KEY, ctx=FORK) as manager:
        assert manager.address == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert_serves_others(manager)
    assert not path.exists()


def test_a_path_of_the_users_own_is_free_again_when_the_manager_was_killed(short: Path) -> None:
    path = short / "socket"
    with PoolManager(str(path), KEY, ctx=FORK) as manager:
        home, process = home_of(manager), process_of(manager)
        process.kill()
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        assert path.exists()
    assert not path.exists()
    assert not home.exists()
    with PoolManager(str(path), KEY, ctx=FORK) as manager:
        assert manager.create_pool(list).apply(len) == 0


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_a_manager_that_follows_another_at_its_address(short: Path, family: str) -> None:
    address: Any = str(short / "socket") if family == "unix" else ("127.0.0.1", 0)
    with PoolManager(address, KEY, ctx=FORK) as first:
        address = first.address
        old = first.create_pool(list)
        assert old.apply(len) == 0
    with PoolManager(address, b"the key of another", ctx=FORK) as second:
        new = second.create_pool(list)
        assert new.apply(len) == 0
        assert in_process(FORK, new.apply, len) == 0
        with pytest.raises(PoolError):
            old.apply(len)
        assert new.apply(len) == 0


class Will:
    """An object that writes down its end, and whether its manager's directory is still there then."""

    def __init__(self, path: Path, home: Path) -> None:
        self._path, self._home = path, home

    def close(self) -> None:
        self._path.write_text(f"closed, directory there: {self._home.exists()}")


def serve(pipe: Pipe) -> None:
    """Be the manager, of a program that has another child."""
    server = PoolManager(authkey=KEY).get_server()
    child = subprocess.Popen(["/bin/sleep", "1000"])
    pipe.send((server.address, child.pid))
    server.serve_forever()


def test_a_process_can_be_the_manager_itself(tmp_path: Path) -> None:
    with child_process(serve) as (process, pipe):
        address, child = pipe.recv()
        home = Path(address).parent
        manager = PoolManager(address, KEY)
        manager.connect()
        pool = manager.create_pool(partial(Will, tmp_path / "diary", home), close=Will.close)
        with pool.lease():
            assert pool.stats().leased == 1
        process.terminate()
        process.join()
        os.kill(child, signal.SIGKILL)  # it is none of the manager's business
        assert process.exitcode == 0
    assert (tmp_path / "diary").read_text().startswith("closed")
    assert not home.exists(), "neither socket nor key are left behind"
    with pytest.raises(PoolClosed):
        pool.stats()


NEVER_SERVES = """
import os, sys
from mppool import PoolManager

server = PoolManager(sys.argv[1] or None, b"key").get_server()
print(server.address, server.runtime_dir.path)
assert os.path.exists(server.address)
"""


@pytest.mark.parametrize("own", ["", "socket"], ids=["a path of its home", "a path of the user's"])
def test_a_server_that_never_serves_leaves_nothing(short: Path, run_python: RunPython, own: str) -> None:
    done = run_python("-c", NEVER_SERVES, own and str(short / own))
    assert done.stderr == ""
    socket, home = map(Path, done.stdout.split())
    assert not socket.exists()
    assert not home.exists()


start_thread = threading.Thread.start


def be_told_to_end(thread: threading.Thread) -> None:
    """What starts the server's watchdog is a SIGTERM here."""
    if thread.name == "mppool watchdog":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        start_thread(thread)


def test_a_server_that_is_told_to_end_as_it_begins_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", be_told_to_end)
    with child_process(serve) as (process, pipe):
        address, child = pipe.recv()
        process.join(10)
        os.kill(child, signal.SIGKILL)
        assert process.exitcode == 0
    assert not Path(address).parent.exists()


def test_a_manager_that_is_forgotten_ends_in_order(tmp_path: Path) -> None:
    manager = PoolManager(ctx=FORK)
    manager.start()
    home = Path(manager.address).parent
    manager.create_pool(partial(Will, tmp_path / "diary", home), close=Will.close).apply(bool)
    process = process_of(manager)
    del manager
    gc.collect()
    # Asked to end, it closes its objects first; terminated, it first removes the directory.
    assert (tmp_path / "diary").read_text() == "closed, directory there: True"
    assert not home.exists()
    assert not process.is_running()


class Counter:
    """An object shared in the way of the standard library."""

    def __init__(self, start: int) -> None:
        self._count = start

    def increment(self) -> int:
        self._count += 1
        return self._count


class OwnManager(PoolManager):
    """A manager with a type of the user's own."""


OwnManager.register("Counter", Counter)


def test_a_type_registered_as_with_any_manager() -> None:
    with OwnManager(authkey=KEY, ctx=FORK) as manager:
        counter = manager.Counter(5)  # type: ignore[attr-defined]
        assert (counter.increment(), counter.increment()) == (6, 7)
        assert manager.create_pool(list).apply(len) == 0, "pools beside it"
        assert not hasattr(PoolManager, "Counter")
