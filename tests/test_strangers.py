"""Another user of the machine, who may make files and sockets of any name and speaks mppool's language."""

from __future__ import annotations

import gc
import hmac
import logging
import multiprocessing
import os
import pickle
import random
import re
import shutil
import socket
import struct
import tempfile
import threading
import traceback
import tracemalloc
import types
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from multiprocessing.managers import dispatch  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import pytest
from actors import FORK, Tool, Worker, all_idle, child_process, home_of, manager_in, process_of, stop, stopped
from helpers import GREETING, promptly, stress_seed, wait_until
from wire import ERROR, Connection, connect, encode

from mppool import ManagerLost, ObjectPool, PoolManager

SPAWN = multiprocessing.get_context("spawn")  # its processes know only what they are sent
KEY = b"a key that nothing shows"
OTHER = 12345
"""The other user. Most systems have no name for it."""

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

pytestmark = [pytest.mark.manager(authkey=KEY)]


def become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def use(_: object, pickled: bytes) -> None:
    """In a worker, which never saw the manager."""
    pickle.loads(pickled).stats()


def find(_: object, address: str) -> None:
    PoolManager(address).connect()


WAYS = pytest.mark.parametrize("way", [use, find], ids=["a pickled pool", "connect"])


def refusal(way: Callable[..., None], pool: ObjectPool[Any], address: Any) -> str:
    """What is said to a worker that comes this way."""
    with Worker(SPAWN) as worker, promptly(), pytest.raises(ManagerLost) as caught:
        worker.do(way, pickle.dumps(pool) if way is use else address)
    assert KEY.decode() not in repr(caught.value)
    return str(caught.value)


# -- the attack -------------------------------------------------------------------------------------


class Evil:
    """Its pickle makes a directory where it is loaded."""

    def __init__(self, sign: Path) -> None:
        self._sign = str(sign)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._sign,)


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ObjectPool[Any], Path]]:
    """A pool whose manager has ended, and the directory of that, whose name is free for all."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o1777)  # as the system's
        place = Path(directory, "mppool-0")
        monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(place))
        with PoolManager(authkey=KEY, ctx=FORK) as manager:
            pool = manager.create_pool(Tool)
        place.rmdir()  # as a cleaner of temporary directories does: the manager's is gone
        yield pool, home_of(manager)


def impersonate(pipe: Any, home: Path, user: int, key: bytes, sign: Path) -> None:
    """Be a manager in the place of another, which answers the first request with something that runs."""
    become(user)
    os.umask(0)
    home.parent.mkdir(0o755)
    home.mkdir(0o755)
    Path(home, "key").write_bytes(key)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
        listener.listen()
        pipe.send(None)
        while True:
            peer = listener.accept()[0]
            with peer, suppress(OSError):
                nonce = os.urandom(32)
                peer.sendall(GREETING + nonce)
                theirs = peer.recv(64)[:32]
                peer.sendall(hmac.digest(key, b"manager" + theirs + nonce, "sha256"))
                peer.recv(1000)
                peer.sendall(encode(Evil(sign)))
                peer.recv(1000)


@AS_ROOT
@WAYS
@pytest.mark.parametrize("key", [KEY, b"another's key"], ids=["the key", "another key"])
def test_what_took_the_place_of_a_manager_runs_nothing_in_a_worker(
    gone: tuple[ObjectPool[Any], Path], tmp_path: Path, way: Callable[..., None], key: bytes
) -> None:
    pool, home = gone
    sign = tmp_path / "it ran"
    with child_process(impersonate, home, OTHER, key, sign) as (_, pipe):
        pipe.recv()
        said = refusal(way, pool, str(home / "socket"))
    assert not sign.exists()
    assert f"{str(home)!r} belongs to uid {OTHER}, and this process runs as user 'root' (uid 0)" in said


@AS_ROOT
def test_the_kernel_tells_who_listens_before_anything_is_believed(
    gone: tuple[ObjectPool[Any], Path], tmp_path: Path
) -> None:
    """Directory and key are this user's, and the key is right: only the socket is another's."""
    pool, home = gone
    sign = tmp_path / "it ran"
    with child_process(impersonate, home, OTHER, KEY, sign) as (process, pipe):
        pipe.recv()
        for path in (home.parent, home, home / "key"):
            os.chown(path, 0, 0)
        home.chmod(0o700)
        (home / "key").chmod(0o600)
        for way in (use, find):
            said = refusal(way, pool, str(home / "socket"))
            assert f"(pid {process.pid}) belongs to uid {OTHER}, and this process runs as user 'root'" in said
    assert not sign.exists()


# -- directory and key ----------------------------------------------------------------------------------


def give_away(path: Path) -> None:
    os.chown(path, OTHER, OTHER)


def open_up(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o040)


def make_a_link(path: Path) -> None:
    path.replace(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


@WAYS
@pytest.mark.parametrize("which", ["", "key"], ids=["the directory", "the key"])
@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        pytest.param(give_away, f"belongs to uid {OTHER}, and this process runs as", marks=AS_ROOT),
        (open_up, r"is open to other users \(mode 7?[46]?40\)"),
        (make_a_link, "symbolic link"),
    ],
)
def test_directory_and_key_are_this_users_closed_to_others_and_no_links(
    manager: PoolManager,
    pool: ObjectPool[Any],
    way: Callable[..., None],
    which: str,
    tamper: Callable[[Path], None],
    said: str,
) -> None:
    home = home_of(manager)
    tamper(home / which)
    try:
        assert re.search(said, refusal(way, pool, manager.address))
    finally:
        moved = home.with_suffix(".moved")
        if moved.exists():
            home.unlink()
            moved.replace(home)


@WAYS
def test_a_key_that_is_a_pipe_is_not_waited_for(
    manager: PoolManager, pool: ObjectPool[Any], way: Callable[..., None]
) -> None:
    key = home_of(manager) / "key"
    key.unlink()
    os.mkfifo(key, 0o600)
    assert manager.address in refusal(way, pool, manager.address)


@AS_ROOT
def test_a_successor_takes_no_pools_from_another_users_directory(tmp_path: Path) -> None:
    """What lies there is a pickle, which it would load."""
    with manager_in(restart=True, authkey=KEY) as manager:
        home = home_of(manager)
        stop(process_of(manager))  # it would put its files back
        shutil.rmtree(home)
        home.mkdir()
        (home / "pool-1").write_bytes(pickle.dumps(Evil(tmp_path / "it ran")))
        give_away(home)
        process_of(manager).kill()
        wait_until(lambda: "mppool supervisor" not in [thread.name for thread in threading.enumerate()])
    shutil.rmtree(home, ignore_errors=True)
    assert not (tmp_path / "it ran").exists()


# -- which manager ------------------------------------------------------------------------------------


def test_a_pool_opens_no_manager_with_another_key(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    (home_of(manager) / "key").write_bytes(b"the key of another manager of this user")
    assert "another manager listens at" in refusal(use, pool, None)


@pytest.mark.manager(address=("127.0.0.1", 0), authkey=KEY)
def test_on_tcp_a_pool_opens_no_manager_with_another_key(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    (home_of(manager) / "key").write_bytes(b"the key of another manager of this user")
    assert "another manager listens at" in refusal(use, pool, None)
    with stopped(process_of(manager)):  # it would put its files back
        shutil.rmtree(home_of(manager))  # as on another machine
        assert "the authkey of this process is not that of the manager" in refusal(use, pool, None)


def test_on_tcp_short_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="authkey has 15 bytes: on TCP it has to have 16"):
        PoolManager(("127.0.0.1", 0), KEY[:15])
    PoolManager(("127.0.0.1", 0), KEY[:16])
    PoolManager("/somewhere", b"short")


# -- other users, who mean well ------------------------------------------------------------------------


def start_a_manager(pipe: Any) -> None:
    """As another user; until the test has seen enough."""
    become(OTHER)
    with PoolManager(authkey=KEY, ctx=FORK) as manager:
        pipe.send((pickle.dumps(manager.create_pool(Tool)), manager.address))
        pipe.recv()


@AS_ROOT
def test_root_is_no_worker_of_a_users_manager() -> None:
    with child_process(start_a_manager) as (process, pipe):
        pickled, address = pipe.recv()
        said = [refusal(use, pickle.loads(pickled), None), refusal(find, pickle.loads(pickled), address)]
        with pytest.raises(ManagerLost) as caught:
            connect(address, KEY)
        pipe.send(None)
        process.join()
    for each in [*said, str(caught.value)]:
        assert f"belongs to uid {OTHER}, and this process runs as user 'root' (uid 0): start the" in each


def give_up_privileges(log: Path) -> None:
    """In the manager."""
    logging.getLogger("mppool").addHandler(logging.FileHandler(log))
    become(OTHER)


@AS_ROOT
def test_a_manager_that_gave_up_its_privileges_says_whose_it_is(tmp_path: Path) -> None:
    """Its creator listened: to the kernel the socket is still root's."""
    privileges = {"initializer": give_up_privileges, "initargs": (tmp_path / "log",)}
    refused = pytest.raises(ManagerLost, match=f"belongs to uid {OTHER}, and this process runs")
    with manager_in(authkey=KEY, **privileges) as manager, promptly(), refused:
        manager.create_pool(Tool)
    shutil.rmtree(home_of(manager), ignore_errors=True)
    logged = (tmp_path / "log").read_text()
    assert (
        f"(pid {os.getpid()}) belongs to user 'root' (uid 0), and this process runs as uid {OTHER}" in logged
    )


# -- the key is shown nowhere -----------------------------------------------------------------------------


def reachable(*roots: object) -> Iterator[object]:
    """All that these refer to, and so on; not what whole modules and types do."""
    seen: dict[int, object] = {}
    left = list(roots)
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(
            each, (type, types.ModuleType, types.FunctionType, types.FrameType)
        ):
            continue
        seen[id(each)] = each
        yield each
        left += gc.get_referents(each)


def test_no_repr_shows_the_key(manager: PoolManager, pool: ObjectPool[Any]) -> None:
    server = PoolManager(authkey=KEY).get_server()
    with closing(connect(manager.address, KEY)) as connection:
        shown = [repr(each) for each in reachable(manager, pool, connection, server)]
    assert len(shown) > 100
    assert [text for text in shown if "<key>" in text], "it was looked for where it is"
    assert not [text for text in shown if KEY.decode() in text]
    assert f"{server.authkey}" == "<key>"  # type: ignore[attr-defined]


def test_no_traceback_shows_the_key(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(ManagerLost) as caught:
            connect(str(tmp_path / "s"), KEY)
    stack = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    text = "\n".join(str(frame.locals) for frame in stack if "/mppool/" in frame.filename)
    assert "<key>" in text
    assert KEY.decode() not in text


# -- those who have the key, and speak nonsense -------------------------------------------------------------


def test_memory_grows_with_what_has_come_not_with_what_is_announced() -> None:
    ours, theirs = socket.socketpair()
    with theirs, closing(Connection(ours, "")) as connection:
        sender = threading.Thread(target=theirs.sendall, args=(struct.pack("<Q", 2**33) + bytes(2**20),))
        sender.start()
        tracemalloc.start()
        threading.Thread(target=lambda: (sender.join(), theirs.shutdown(socket.SHUT_WR))).start()
        with pytest.raises(EOFError):
            connection.recv()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memory files here")
def test_a_memory_file_that_is_shorter_than_announced_is_not_read(
    manager: PoolManager, pool: ObjectPool[Any]
) -> None:
    with closing(connect(manager.address, KEY)) as connection:
        dispatch(connection, None, "serve_pools", (os.getpid(), "liar", "its mark"))
        connection.send(("share_memory",))
        connection.recv()
        connection.share_memory()
        descriptor = os.memfd_create("short")
        parcel = (0, 2**21, 1, [(0, 2**20)])
        with socket.socket(fileno=os.dup(connection.fileno())) as sock:
            socket.send_fds(sock, [encode((parcel, True, []), 2)], [descriptor])
        os.close(descriptor)
        assert connection.recv()[0] == ERROR
    with promptly():
        assert pool.apply(Tool.echo, 1) == 1


def number_of(pool: ObjectPool[Any]) -> int:
    number: int = pool.__reduce__()[1][1]
    return number


def ask_without_reading(pipe: Any, address: Any, pool_id: int) -> None:
    """Wait for an object, and ask so much meanwhile that the answers fill all room."""
    connection = connect(address, KEY)
    dispatch(connection, None, "serve_pools", (os.getpid(), "unread", "its mark"))
    connection.send(("acquire", pool_id, 1000.0, None))
    connection.set_deadline(None)
    with suppress(Exception):
        # The manager reads no further once it cannot answer.
        sock = socket.socket(fileno=os.dup(connection.fileno()))
        sock.settimeout(0.5)
        while True:
            sock.sendall(1000 * encode(("stats", pool_id)))
    pipe.send(None)
    pipe.recv()


@pytest.mark.pool(Tool, max_size=1)
@pytest.mark.parametrize("outcome", ["an object", "an error"])
def test_a_client_that_waits_and_does_not_read_holds_up_no_other(
    manager: PoolManager, pool: ObjectPool[Any], outcome: str
) -> None:
    tool = pool.acquire()
    with child_process(ask_without_reading, manager.address, number_of(pool)) as (_, pipe):
        pipe.recv()
        with promptly():
            if outcome == "an object":
                pool.release(tool)  # the client that does not read was before, and is passed over
                assert pool.apply(Tool.echo, 1) == 1
            else:
                pool.close(0)
                pool.release(tool)
            manager.create_pool(Tool, max_size=1).apply(Tool.echo, 2)


class Unloadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class Nonsense:
    """One who says something of this kind, over and over, and keeps some connections."""

    def __init__(self, address: Any, pool_id: int, seed: int) -> None:
        self._address = address
        self._pool_id = pool_id
        self._dice = random.Random(seed)
        self._kept: list[Any] = []

    def talk(self, times: int) -> None:
        for _ in range(times):
            with suppress(OSError, EOFError, ManagerLost, pickle.UnpicklingError):
                self._dice.choice([self._strange, self._known, self._known])()
            if len(self._kept) > 30:
                self._dice.shuffle(self._kept)
                self._kept.pop().close()

    def _strange(self) -> None:
        peer = socket.socket(socket.AF_UNIX)
        self._kept.append(peer)
        peer.settimeout(0.2)
        peer.connect(self._address)
        peer.sendall(self._dice.randbytes(self._dice.choice([0, 1, 63, 64, 1000, 100_000])))

    def _known(self) -> None:
        connection = connect(self._address, KEY)
        self._kept.append(connection)
        dispatch(connection, None, "serve_pools", (os.getpid(), "me", "its mark"))
        sock = socket.socket(fileno=os.dup(connection.fileno()))
        with sock:
            sock.settimeout(0.05)
            for _ in range(self._dice.randrange(20)):
                sock.sendall(self._words())

    def _words(self) -> bytes:
        pool_id = self._pool_id
        return self._dice.choice(
            [
                encode(("acquire", pool_id, 1000.0, None)),
                encode(("acquire", pool_id, 0.001, None)),
                encode(("apply", pool_id, 1000.0, None, Tool.pid, (), {})),
                encode(("release", pool_id, self._dice.randrange(100), True)),
                encode(("acknowledge", [])),
                encode(("call", pool_id, 1, 0, "echo", (bytes(300_000),), {})),
                500 * encode(("stats", pool_id)),
                encode((None, [], {}, Tool())),
                encode(("acquire", Unloadable())),
                struct.pack("<Q", self._dice.choice([2**33, 2**62, 2**64 - 1, 1 << 56 | 3, 2 << 56 | 3]))
                + b"nop",
                self._dice.randbytes(self._dice.randrange(100)),
            ]
        )


@pytest.mark.manager(authkey=KEY, watch_interval=1.0)
@pytest.mark.pool(Tool, max_size=3)
def test_a_storm_of_nonsense_leaves_all_objects_idle_and_a_manager_that_answers(
    manager: PoolManager, pool: ObjectPool[Any]
) -> None:
    seed = stress_seed()
    talkers = [Nonsense(manager.address, number_of(pool), seed + number) for number in range(4)]
    storm = [FORK.Process(target=each.talk, args=(60,)) for each in talkers]
    other = manager.create_pool(Tool, max_size=1)
    for process in storm:
        process.start()
    while any(process.is_alive() for process in storm):
        with promptly():
            assert other.apply(Tool.echo, 1) == 1
            pool.stats()
    for process in storm:
        process.join()
        assert process.exitcode == 0
    wait_until(lambda: all_idle(pool, pool.stats().size))
    with promptly():
        assert pool.apply(Tool.echo, 1) == 1
        assert PoolManager(manager.address, KEY).connect() is None  # type: ignore[func-returns-value]
