"""Where a manager has its files and listens: what is taken over, what is refused, what cleaners may do."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import (
    FORK,
    START_METHODS,
    Tool,
    Worker,
    acquire,
    echo,
    home_of,
    lives,
    manager_in,
    process_of,
    stop,
)
from helpers import do_without_linux, promptly, wait_until
from programs import Program
from standins import side_by_side
from wire import KEY, Connection, Stranger, connect

from mppool import ManagerLost, ObjectPool, PoolClosed, PoolError, PoolManager, _system
from mppool._system.runtime_dir import HeldDir
from mppool._wire.handshake import Key
from mppool._wire.listener import Listener, claim, listen

OTHER = 12345
"""Another user."""

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
OF_LINUX = pytest.mark.skipif(
    _system.PORTABLE or not os.path.exists("/proc/net/unix"), reason="only Linux tells who listens"
)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path leaves room for that of a socket, which `tmp_path` may not."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def place(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the managers of the test have their directories."""
    place = short / "place"
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(place))
    return place


def assert_refused(manager: PoolManager, said: str) -> None:
    with promptly(), pytest.raises(ManagerLost, match=said):
        manager.start()


SPAWN = multiprocessing.get_context("spawn")  # its processes find the key only where it lies


def assert_works(pool: ObjectPool[Any]) -> None:
    """Also for a newcomer, which needs all the files."""
    with Worker(SPAWN) as worker:
        worker.do(acquire, pool)
        assert worker.do(echo, 1) == 1


# -- the place ------------------------------------------------------------------------------------------


def test_it_is_one_whatever_a_shell_has_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPPOOL_RUNTIME_DIR")
    with manager_in() as manager:
        default = home_of(manager).parent
    for name in ("TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(place.parent))
    with manager_in() as manager:
        assert home_of(manager).parent == default
    assert stat.S_IMODE(default.stat().st_mode) == 0o700
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(place))
    with manager_in() as manager, manager_in(address=str(place.parent / "s")) as other:
        assert home_of(manager).parent == home_of(other).parent == place
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert not list(place.iterdir())


@AS_ROOT
def test_another_user_who_made_it_first_is_named(place: Path) -> None:
    place.mkdir(0o700)
    os.chown(place, OTHER, OTHER)
    said = (
        f"'{place}' belongs to uid {OTHER}, and this process runs as user 'root' .*: have it removed, or set "
    )
    assert_refused(PoolManager(), said)
    assert not list(place.iterdir())


def test_one_that_is_open_to_others_is_refused(place: Path) -> None:
    place.mkdir()
    place.chmod(0o770)
    assert_refused(PoolManager(), r"is open to other users \(mode 770\)")
    assert not list(place.iterdir())


def test_one_that_is_a_link_is_refused(place: Path) -> None:
    (place.parent / "elsewhere").mkdir(0o700)
    place.symlink_to("elsewhere")
    assert_refused(PoolManager(), "is a symbolic link")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("mppool", "MPPOOL_RUNTIME_DIR='mppool' has to be an absolute path"),
        ("/tmp/" + 80 * "x", "MPPOOL_RUNTIME_DIR=.* is too long"),
        ("/no/such/directory", "No such file or directory: '/no/such/directory'"),
        ("/dev/null", "'/dev/null'"),
    ],
)
def test_one_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, chosen: str, said: str) -> None:
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", chosen)
    assert_refused(PoolManager(), f"no manager can be started: .*{said}")


# -- directories of managers that were killed -----------------------------------------------------------

TO_BE_KILLED = """
if __name__ == "__main__":
    manager = PoolManager(ADDRESS, ctx=multiprocessing.get_context(START_METHOD), restart=RESTART)
    manager.start()
    tell(manager, home=manager._runtime_dir)
    sleep_long()
"""


@contextlib.contextmanager
def killed(
    tmp_path: Path, start_method: str = "fork", restart: bool = False, address: Any = None
) -> Iterator[Path]:
    """The directory of a manager that was killed together with its creator."""
    text = TO_BE_KILLED.replace("RESTART", str(restart)).replace("ADDRESS", repr(address))
    with Program(tmp_path, text, start_method) as program:
        program.read_facts()
        others = psutil.Process(program.process.pid).children(
            recursive=True
        )  # they hold it for a moment, too
        for process in (program.process, program.manager):
            process.send_signal(signal.SIGSTOP)  # neither sees the end of the other
        for process in (program.process, program.manager):
            process.kill()
        program.process.wait()
        wait_until(
            lambda: not any(each.is_running() for each in others)
        )  # reaped: all their threads have ended
        yield Path(program.facts["home"])


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("start_method", START_METHODS)
def test_the_next_manager_sweeps_what_a_killed_one_left(
    tmp_path: Path, place: Path, start_method: str, restart: bool
) -> None:
    with killed(tmp_path, start_method, restart) as left:
        assert {each.name for each in left.iterdir()} >= {"key", "socket"}
        (place / "of the user's own").mkdir()
        with manager_in() as manager:
            assert {each.name for each in place.iterdir()} == {home_of(manager).name, "of the user's own"}


@pytest.mark.bounds(restart_pause=30)  # so that there is no manager for long
def test_nobody_sweeps_a_directory_that_has_a_creator_or_a_manager() -> None:
    with manager_in(restart=True) as dying, manager_in() as dead, manager_in() as living:
        pools = [each.create_pool(Tool) for each in (dying, dead, living)]
        for _ in range(2):  # the first successor comes at once
            process = psutil.Process(pools[0].apply(Tool.pid))
            process.kill()
            wait_until(lambda gone=process: not lives(gone))
        process_of(dead).kill()
        dead.join()
        with manager_in():
            assert all(home_of(each).exists() for each in (dying, dead, living))
        with pytest.raises(ManagerLost):  # not `PoolClosed`: it has not shut down
            pools[1].stats()
        assert_works(pools[2])


def test_directories_that_are_made_while_others_sweep_are_whole() -> None:
    def make(_: int) -> None:
        for _ in range(50):
            held = HeldDir.create(KEY)
            assert held.key() == KEY
            held.remove()
            held.close()

    side_by_side(4, make)


def test_a_directory_that_is_swept_before_it_is_held_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, swept = fcntl.flock, []

    def sweep_once(descriptor: int, operation: int) -> None:
        if not swept:
            swept.extend(place.iterdir())
            swept[0].rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_once)
    with manager_in() as manager:
        assert_works(manager.create_pool(Tool))
        assert home_of(manager).exists()
        assert swept


# -- cleaners of temporary directories ------------------------------------------------------------------


@AS_ROOT
@pytest.mark.skipif(not shutil.which("systemd-tmpfiles"), reason="no systemd-tmpfiles")
@pytest.mark.parametrize("restart", [False, True])
def test_systemd_tmpfiles_passes_by(short: Path, restart: bool) -> None:
    (short / "rules").write_text(f"d {short} 1777 root root 0\n")
    (short / "waste").mkdir()
    with manager_in(restart=restart) as manager:
        pool = manager.create_pool(Tool)
        process = process_of(manager)
        stop(process)  # nothing is put back
        before = sorted(home_of(manager).iterdir())
        subprocess.run(["systemd-tmpfiles", "--clean", short / "rules"], check=True)
        assert not (short / "waste").exists()
        assert sorted(home_of(manager).iterdir()) == before
        process.resume()
        assert_works(pool)


def test_the_files_of_a_manager_never_look_old(short: Path) -> None:
    with manager_in(address=str(short / "s")) as manager:
        pool = manager.create_pool(Tool, isolation="process", min_size=1)
        wait_until(lambda: pool.stats().idle)
        home = home_of(manager)
        paths = [short / "s", home.parent, home, *home.iterdir()]
        assert len(paths) == 6, "the key, the address, and the socket of the object's process"
        for path in paths:
            os.utime(path, (0, 0))
        for path in paths:
            wait_until(lambda path=path: path.lstat().st_mtime and path.lstat().st_atime)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("which", ["place", "directory", "key", "socket", "socket elsewhere"])
def test_what_is_removed_all_the_same_comes_back(
    short: Path, monkeypatch: pytest.MonkeyPatch, which: str, portable: bool
) -> None:
    if portable:
        do_without_linux(monkeypatch)
    address = str(short / "s") if which == "socket elsewhere" else None
    with manager_in(address=address, authkey=KEY) as manager:
        pool = manager.create_pool(Tool)
        home = home_of(manager)
        paths = {"place": home.parent, "directory": home, "socket elsewhere": short / "s"}
        with pool.lease() as held:
            remove(paths.get(which, home / which))
            if portable:  # nothing tells a manager without a directory from one that has shut down
                wait_until(Path(str(manager.address)).exists)
            assert_works(pool)
            assert held.echo(1) == 1
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert (home / "key").read_bytes() == KEY
    assert not home.exists()
    assert not Path(str(manager.address)).exists()


def test_objects_whose_sockets_were_removed_are_replaced() -> None:
    with manager_in() as manager:
        pool = manager.create_pool(Tool, isolation="process", max_size=1)
        with pool.lease() as tool:
            before = tool.pid()
            shutil.rmtree(home_of(manager))
            wait_until((home_of(manager) / "socket").exists)
            assert tool.echo(1) == 1
        wait_until(lambda: pool.apply(Tool.pid) != before)
        assert_works(pool)


def test_on_tcp_a_key_that_was_removed_comes_back() -> None:
    with manager_in(address=("127.0.0.1", 0), authkey=KEY) as manager:
        pool = manager.create_pool(Tool)
        (home_of(manager) / "key").unlink()
        assert_works(pool)
        shutil.rmtree(home_of(manager))
        wait_until((home_of(manager) / "key").exists)
        assert_works(pool)


def is_reached(pool: ObjectPool[Any]) -> bool:
    try:
        pool.stats()
    except ManagerLost:
        return False
    return True


def test_a_successor_finds_what_was_put_back() -> None:
    with manager_in(restart=True) as manager:
        pool = manager.create_pool(Tool, name="tools")
        process = psutil.Process(pool.apply(Tool.pid))
        shutil.rmtree(home_of(manager))
        wait_until(lambda: list(home_of(manager).glob("pool-*")))
        process.kill()
        wait_until(lambda: not lives(process))
        wait_until(lambda: is_reached(pool))  # it listens anew, and until then nobody does
        assert pool.apply(Tool.pid) != process.pid
        assert_works(pool)
    assert not home_of(manager).exists()


@pytest.mark.parametrize("which", [pytest.param("", marks=OF_LINUX), "key", "socket"])
def test_what_does_not_come_back_is_told_from_an_end(which: str) -> None:
    with manager_in() as manager:
        pool = manager.create_pool(Tool)
        stop(process_of(manager))
        remove(home_of(manager) / which)
        with (
            Worker(SPAWN) as worker,
            pytest.raises(ManagerLost, match=r"files of the manager at .* were removed, perhaps"),
        ):
            worker.do(acquire, pool)
        process_of(manager).resume()
        assert_works(pool)
    with promptly(), pytest.raises(PoolClosed, match="has shut down"):
        pool.stats()


def log_to(path: str) -> None:
    import logging

    logging.getLogger("mppool").addHandler(logging.FileHandler(path))


@AS_ROOT
def test_a_manager_says_once_that_it_cannot_put_back_its_files(
    short: Path, place: Path, tmp_path: Path
) -> None:
    manager = PoolManager(ctx=FORK)
    manager.start(log_to, (str(tmp_path / "log"),))
    with manager:
        pool = manager.create_pool(Tool)
        shutil.rmtree(place)
        place.mkdir()
        os.chown(place, OTHER, OTHER)
        logged = wait_until((tmp_path / "log").read_text)
        assert f"cannot see to its files: '{place}' belongs to uid {OTHER}" in logged
        with Worker() as worker, pytest.raises(PoolError):
            worker.do(acquire, pool)  # for as long as the manager's next looks
        assert pool.apply(Tool.echo, 1) == 1
        assert (tmp_path / "log").read_text() == logged
    assert not list(place.iterdir())


# -- a path of the user's own ---------------------------------------------------------------------------


def leave_a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize("restart", [False, True])
def test_a_socket_that_a_killed_manager_left_is_taken_over(
    short: Path, tmp_path: Path, restart: bool
) -> None:
    with (
        killed(tmp_path, address=str(short / "s")),
        manager_in(address=str(short / "s"), restart=restart) as manager,
    ):
        assert (short / "s").is_socket()
        assert_works(manager.create_pool(Tool))
        assert {each.name for each in short.iterdir()} == {"s", "place"}
    assert {each.name for each in short.iterdir()} == {"place"}


@pytest.mark.parametrize("full", [False, True])
def test_a_socket_where_a_process_listens_is_not(short: Path, place: Path, full: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(short / "s"))
        listener.listen(0)
        while full:
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.setblocking(False)
            full = peer.connect_ex(str(short / "s")) != errno.EAGAIN
        assert_refused(PoolManager(str(short / "s")), "Address already in use: a process listens there")
        assert (short / "s").is_socket()
    assert not list(place.iterdir())


def test_one_of_several_comers_gets_it(short: Path) -> None:
    for _ in range(20):
        leave_a_socket(short / "s")
        sockets: list[socket.socket] = []
        refused: list[str] = []

        def come(_: int, sockets: list[socket.socket] = sockets, refused: list[str] = refused) -> None:
            try:
                sockets.append(claim(str(short / "s")))
            except OSError as error:
                refused.append(str(error))

        side_by_side(4, come)
        (listener,) = sockets
        assert len([text for text in refused if "in use" in text]) == 3
        with listener, socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(short / "s"))
            listener.accept()[0].close()
        (short / "s").unlink()


@pytest.mark.parametrize("restart", [False, True])
def test_a_late_shutdown_removes_nothing_of_the_next_manager(short: Path, restart: bool) -> None:
    """Neither of one that took over from a dead manager, nor of one that came after a cleaner."""
    first = PoolManager(str(short / "s"), ctx=FORK, restart=restart)
    first.start()
    stop(process_of(first))
    if restart:
        (short / "s").unlink()
    else:
        process_of(first).kill()
        first.join()
    with manager_in(address=str(short / "s")) as second:
        pool = second.create_pool(Tool)
        first.shutdown()
        assert_works(pool)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_stays(short: Path, place: Path, kind: str) -> None:
    leave_a_socket(short / "target")
    path = short / "s"
    {"file": path.touch, "directory": path.mkdir, "link": partial(path.symlink_to, "target")}[kind]()
    assert_refused(PoolManager(str(path)), "what lies at .* is no socket: choose another path")
    assert path.exists()
    assert not list(place.iterdir())


@AS_ROOT
def test_another_users_socket_stays(short: Path) -> None:
    leave_a_socket(short / "s")
    os.chown(short / "s", OTHER, OTHER)
    assert_refused(PoolManager(str(short / "s")), f"'{short}/s' belongs to uid {OTHER}")
    assert (short / "s").is_socket()


def listen_as_another_user(_: object, path: str) -> None:
    os.environ["MPPOOL_RUNTIME_DIR"] = f"{path}-place"
    os.setgid(OTHER)
    os.setuid(OTHER)
    PoolManager(path).get_server()


@AS_ROOT
def test_a_directory_that_is_not_writable(short: Path) -> None:
    short.chmod(0o755)
    place = Path(f"{short}/s-place")
    place.mkdir(0o700)
    os.chown(place, OTHER, OTHER)
    with (
        Worker() as worker,
        pytest.raises(PermissionError, match=r"Permission denied: .*/s\.mppool-lock"),
    ):
        worker.do(listen_as_another_user, str(short / "s"))
    assert not list(place.iterdir())


# -- other addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        (("127.0.0.1", 99999), ValueError, "a port is a number from 0, a free one, to 65535"),
        (("127.0.0.1", -1), ValueError, "a port is a number"),
        (("127.0.0.1", "http"), TypeError, "a tuple .host, port. of a string and a number"),
        ((b"127.0.0.1", 1), TypeError, "of a string and a number"),
        ((), TypeError, "a tuple .host, port."),
        (("::1", 0, 0, 0), TypeError, "a tuple .host, port."),
        (["127.0.0.1", 0], TypeError, "a path, a tuple .host, port., or None"),
        (b"/path", TypeError, "a path"),
        ("", ValueError, "give a path, or None"),
        ("\0abstract", ValueError, "abstract names are open to all users: give a path"),
        ("/tmp/a\0b", ValueError, "give a path"),
        ("/" + 108 * "x", ValueError, "the path of a socket has 10[37] bytes at most"),
        ("/" + 60 * "ä", ValueError, "the path of a socket has"),
    ],
)
def test_addresses_that_are_none(address: Any, error: type[Exception], said: str, place: Path) -> None:
    with pytest.raises(error, match=said):
        PoolManager(address, KEY)
    assert not place.exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/no/such/directory/s", "there is no directory '/no/such/directory': make it first"),
        ("/dev/null/s", "Not a directory"),
        (("no.such.host.invalid", 0), "no manager can listen at"),
        ((70 * "x", 0), f"'{70 * 'x'}' is no name of a host"),
        (("192.0.2.1", 0), "Cannot assign requested address|Can't assign"),
    ],
)
def test_addresses_that_cannot_be_had(address: Any, said: str, place: Path) -> None:
    assert_refused(PoolManager(address, KEY), said)
    assert not list(place.iterdir())
    if isinstance(address, tuple):
        with pytest.raises(ManagerLost, match="no manager can be reached"):
            PoolManager((address[0], 1), KEY).connect()


def test_a_manager_is_not_found_without_an_address() -> None:
    with pytest.raises(ValueError, match=r"connect\(\) needs an address"):
        PoolManager().connect()


def has_ipv6() -> bool:
    try:
        listen(("::1", 0)).close()
    except OSError:
        return False
    return True


OF_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


@OF_IPV6
@pytest.mark.parametrize("isolation", ["none", "process"])
def test_ipv6(isolation: Any) -> None:
    with manager_in(address=("::1", 0), authkey=KEY) as manager:
        assert manager.address[0] == "::1"
        pool = manager.create_pool(Tool, isolation=isolation)
        assert_works(pool)
        with Worker() as worker:
            worker.do(acquire, pool)
            assert [each.pid for each in pool.leases()] == [worker.pid]
            assert "elsewhere" not in str(pool.leases())


@OF_IPV6
@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_a_name_leads_to_both_families(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    getaddrinfo = socket.getaddrinfo

    def of_localhost(name: Any, *args: Any, **options: Any) -> Any:
        names = ["::1", "127.0.0.1"] if name == "localhost" else [name]
        return [found for each in names for found in getaddrinfo(each, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", of_localhost)
    with manager_in(address=(host, 0), authkey=KEY) as manager:
        visitor = PoolManager(("localhost", manager.address[1]), KEY)
        visitor.connect()
        assert visitor.create_pool(Tool).apply(Tool.echo, 1) == 1
    with manager_in(address=("localhost", 0), authkey=KEY) as manager:
        assert manager.address[0] == "127.0.0.1"


@OF_IPV6
def test_a_listener_of_both_families_knows_who_connects() -> None:
    with manager_in(address=("::", 0), authkey=KEY) as manager:
        visitor = PoolManager(("127.0.0.1", manager.address[1]), KEY)
        visitor.connect()
        pool = visitor.create_pool(Tool)
        with pool.lease() as tool:
            assert tool.echo(1) == 1
            assert [each.pid for each in pool.leases()] == [os.getpid()]


# -- machines that are lost ---------------------------------------------------------------------------------


def seconds_until_noticed(connection: Connection) -> int:
    """How long the other machine may be silent, whether something is sent to it or not."""
    with socket.socket(fileno=os.dup(connection.fileno())) as sock:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
            return 10**6
        idle, interval, count = (
            sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option, 0x10))  # TCP_KEEPALIVE of macOS
            for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        )
        timeout = (
            1 if sys.platform == "darwin" else sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        )
        return max(idle + interval * count, timeout // 1000 if timeout else 10**6)


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=OF_IPV6)])
def test_both_ends_notice_within_a_minute(host: str) -> None:
    sock = listen((host, 0))
    listener = Listener(sock)
    accepted: list[Connection] = []
    accepting = threading.Thread(target=lambda: accepted.append(next(listener.accept(Key(KEY)))))
    accepting.start()
    with contextlib.closing(connect(listener.address, KEY)) as connection:
        accepting.join()
        assert seconds_until_noticed(connection) <= 60
        assert seconds_until_noticed(accepted[0]) <= 60
        accepted[0].close()
    listener.close()


class Proxy:
    """Stands between a manager and machines that reach it through here."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self._listener.accept()[0], socket.create_connection(self._target)
                self._pairs += [near, far]
                for each, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(each, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(10000):
                other.sendall(data)

    def cut(self) -> None:
        """Both sides are reset, as the kernel does when it has waited long enough."""
        self._listener.close()
        for each in self._pairs:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RD)  # wakes the thread that reads
            each.close()


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_the_lease_of_a_machine_that_was_cut_off_comes_home(isolation: Any) -> None:
    with manager_in(address=("127.0.0.1", 0), authkey=KEY) as manager:
        pool = manager.create_pool(Tool, max_size=1, isolation=isolation)
        proxy = Proxy(manager.address)
        far: Any = types.SimpleNamespace(address=proxy.address)
        stranger = Stranger(far, 1)
        stranger.acquire(pool)
        assert [each.pid for each in pool.leases()] == [1]
        proxy.cut()
        with promptly():
            assert pool.apply(Tool.echo, 1) == 1
        stranger.hang_up()
