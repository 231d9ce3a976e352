"""What goes in wrong gets its error at once, and the pool works on."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import threading
import zipapp
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from actors import FORK, Worker
from helpers import GREETING, PROMPT, Beside, RunPython, promptly, wait_until

from mppool import (
    FactoryError,
    LeaseError,
    ManagerLost,
    ObjectPool,
    PoolClosed,
    PoolError,
    PoolManager,
    PoolTimeout,
    RemoteError,
    RemoteTraceback,
)

KEY = b"the right key, and long"


class Thing:
    """What the pools here hold."""

    def echo(self, value: Any = None, **_: Any) -> Any:
        return value

    def fail(self, error: type[BaseException], *args: Any) -> NoReturn:
        raise error(*args)

    def lock(self) -> Any:
        return threading.Lock()

    def homebody(self) -> Homebody:
        return Homebody()


class Homebody:
    """Pickles, but unpickles only in the process that pickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return come_home, (os.getpid(),)


def come_home(pid: int) -> Homebody:
    if os.getpid() != pid:
        raise LookupError("far from home")
    return Homebody()


@contextmanager
def at_once(error: type[BaseException], match: str = "") -> Iterator[pytest.ExceptionInfo[Any]]:
    """The block raises this error, with this text, and nobody waited for it."""
    with promptly(), pytest.raises(error, match=match) as caught:
        yield caught
    assert caught.type is error


pytestmark = [pytest.mark.manager(authkey=KEY, watch_interval=1.0), pytest.mark.pool(Thing, max_size=1)]


@pytest.fixture(autouse=True)
def _works_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does with its pool, the pool works afterwards."""
    pool = request.getfixturevalue("pool") if "pool" in request.fixturenames else None
    yield
    if pool is not None:
        with pool.lease(timeout=2) as thing:
            assert thing.echo("still there") == "still there"
        assert pool.stats().leased == 0


def import_from(directory: Path) -> None:
    sys.path.insert(0, str(directory))


@pytest.fixture
def library(manager: PoolManager, tmp_path: Path) -> Path:
    """A directory where the manager, but not this process, finds modules."""
    manager.create_pool(functools.partial(import_from, tmp_path)).apply(bool)
    return tmp_path


# -- making a pool ------------------------------------------------------------------------------------


def local_function() -> Any:
    def local() -> None:
        pass

    return local


def local_class() -> type:
    class Local:
        pass

    return Local


@pytest.fixture
def _no_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it functions and classes travel by value."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)


@pytest.mark.usefixtures("_no_cloudpickle")
@pytest.mark.parametrize(
    "factory",
    [lambda: Thing().echo(), local_function(), local_class(), functools.partial(lambda: Thing().echo())],
    ids=["lambda", "local function", "local class", "partial of a lambda"],
)
def test_a_factory_that_does_not_pickle(manager: PoolManager, factory: Callable[[], Any]) -> None:
    with at_once(TypeError, "factory .* does not pickle.*top level of a module.*import string"):
        manager.create_pool(factory)


@pytest.mark.usefixtures("_no_cloudpickle")
@pytest.mark.parametrize("hook", ["check", "reset", "close"])
def test_a_hook_that_does_not_pickle(manager: PoolManager, hook: str) -> None:
    options: dict[str, Any] = {hook: lambda thing: None}
    with at_once(TypeError, f"{hook} .* does not pickle.*top level of a module"):
        manager.create_pool(Thing, **options)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_size": 0}, ValueError, "max_size"),
        ({"timeout": "soon"}, TypeError, "timeout"),
        ({"check": "ping"}, TypeError, "check"),
        ({"maximum": 3}, TypeError, "maximum"),
        ({"name": 7}, TypeError, "name"),
        ({"name": "wrong", "max_uses": -1}, ValueError, "max_uses"),
    ],
)
def test_options_that_are_wrong(
    manager: PoolManager, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with at_once(error, said):
        manager.create_pool(Thing, **options)
    with at_once(PoolError, "there is no pool named 'wrong'"):
        manager.get_pool("wrong")


@pytest.mark.parametrize("factory", [None, 7, Thing()])
def test_a_factory_that_cannot_be_called(manager: PoolManager, factory: Any) -> None:
    with at_once(TypeError, "factory must be callable or an import string"):
        manager.create_pool(factory)


@pytest.mark.parametrize(
    ("target", "error", "said"),
    [
        ("collections", ValueError, "reads 'package.module:callable'"),
        ("collections:", ValueError, "reads 'package.module:callable'"),
        ("no.such.module:Thing", FactoryError, "No module named 'no'"),
        ("collections:Stack", FactoryError, "no attribute 'Stack'"),
        ("collections:abc", TypeError, "factory must be callable"),
        ("broken_module:Thing", FactoryError, "ZeroDivisionError"),
    ],
)
def test_import_strings_that_lead_nowhere(
    manager: PoolManager, library: Path, target: str, error: type[Exception], said: str
) -> None:
    (library / "broken_module.py").write_text("1 / 0\n")
    with at_once(error, said):
        manager.create_pool(target)


def test_an_import_string_is_resolved_in_the_manager(manager: PoolManager, library: Path) -> None:
    (library / "good_module.py").write_text("class Things:\n    make = list\n")
    pool = manager.create_pool("good_module:Things.make", max_size=1)
    with pool.lease() as thing:
        assert thing == []


MAIN = """
import sys
sys.modules["cloudpickle"] = None
from mppool import FactoryError, PoolManager

class Thing:
    pass

_, address, key = sys.argv
manager = PoolManager(address, bytes.fromhex(key))
manager.connect()
try:
    manager.create_pool(Thing)
except FactoryError as error:
    print(error)
print(manager.create_pool("collections:deque").apply(len))
"""


def test_a_factory_from_a_main_script_that_the_manager_never_saw(
    manager: PoolManager, run_python: RunPython, tmp_path: Path
) -> None:
    script = tmp_path / "main_script.py"
    script.write_text(MAIN)
    done = run_python(script, str(manager.address), KEY.hex())
    assert done.stderr == ""
    said, length = done.stdout.splitlines()
    assert "cannot find the factory" in said
    assert "'Thing'" in said
    assert "another program's main file" in said
    assert "import string" in said
    assert length == "0"


MAIN_OF_PACKAGE = """
import multiprocessing, sys
sys.modules["cloudpickle"] = None  # which would bring the class by value
from mppool import FactoryError, PoolManager
class Thing:
    pass
if __name__ == "__main__":
    with PoolManager(ctx=multiprocessing.get_context(sys.argv[1])) as manager:
        try:
            manager.create_pool(Thing)
        except FactoryError as error:
            print(error)
"""


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
@pytest.mark.parametrize("is_zipped", [False, True])
def test_a_factory_of_a_main_file_that_no_other_process_imports(
    run_python: RunPython, tmp_path: Path, start_method: str, is_zipped: bool
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(MAIN_OF_PACKAGE)
    zipapp.create_archive(package, tmp_path / "package.pyz")
    how = [tmp_path / "package.pyz"] if is_zipped else ["-m", "package"]
    said = run_python(*how, start_method).stdout
    assert "'Thing'" in said
    assert "no __main__.py again" in said
    assert "main script" not in said


def fail_to_build() -> NoReturn:
    raise OSError(28, "No space left on device")


def test_a_factory_that_fails(manager: PoolManager) -> None:
    pool = manager.create_pool(fail_to_build, name="unbuildable")
    for _ in range(2):
        with at_once(FactoryError, "'unbuildable'.*No space left") as caught:
            pool.acquire()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == 28
        assert isinstance(caught.value.__cause__.__cause__, RemoteTraceback)
        assert "in fail_to_build" in str(caught.value.__cause__.__cause__)


# -- names ----------------------------------------------------------------------------------------------


def test_a_name_that_is_taken(manager: PoolManager) -> None:
    pool = manager.create_pool(Thing, name="taken")
    with at_once(ValueError, "'taken'.*exists already.*get_pool"):
        manager.create_pool(Thing, name="taken")
    assert manager.get_pool("taken").stats() == pool.stats()
    pool.close()
    assert manager.create_pool(Thing, name="taken").stats().acquired == 0, "free again"


def test_a_name_that_is_not_known(manager: PoolManager) -> None:
    manager.create_pool(Thing, name="known")
    with at_once(PoolError, "no pool named 'unknown'; known: .*'known'"):
        manager.get_pool("unknown")


# -- managers ---------------------------------------------------------------------------------------------


def test_a_manager_that_was_not_started() -> None:
    manager = PoolManager()
    for use in (lambda: manager.create_pool(Thing), lambda: manager.get_pool("any")):
        with at_once(PoolError, "not running.*start.*connect"):
            use()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"watch_interval": 0}, ValueError, "watch_interval"),
        ({"watch_interval": None}, TypeError, "watch_interval"),
        ({"watch_interval": "1"}, TypeError, "watch_interval must be a number of seconds: '1'"),
        ({"restart": 1}, TypeError, "restart must be True or False"),
        ({"ctx": "spawn"}, TypeError, "ctx must be a context, such as .*: 'spawn'"),
        ({"authkey": "key"}, TypeError, "authkey must be bytes or None: .*str"),
        ({"address": 3}, TypeError, "address must be a path, a tuple .* or None: 3"),
        ({"address": "127.0.0.1:5000"}, ValueError, "one of TCP is a tuple, such as"),
    ],
)
def test_managers_that_are_wrong(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with at_once(error, said):
        PoolManager(**options)


def test_a_manager_that_is_passed_on(manager: PoolManager) -> None:
    with at_once(TypeError, "a PoolManager does not pickle: pass a pool, or connect"):
        pickle.dumps(manager)


def test_a_manager_has_one_process(manager: PoolManager) -> None:
    with at_once(multiprocessing.ProcessError, "[Aa]lready started"):
        manager.start()
    with at_once(multiprocessing.ProcessError, "started or connected"):
        manager.get_server()


def test_an_initializer_that_is_wrong() -> None:
    with at_once(TypeError, "initializer must be callable"):
        PoolManager().start(initializer="callable")  # type: ignore[arg-type]


def test_an_initializer_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with at_once(ManagerLost, "ended while it started"):
        PoolManager(ctx=FORK).start(initializer=fail_to_build)
    assert "No space left" in capfd.readouterr().err


@pytest.mark.parametrize("address", [("127.0.0.1", 0), None], ids=["tcp", "unix"])
def test_an_address_that_is_in_use(address: Any) -> None:
    with PoolManager(address, KEY, ctx=FORK) as first:
        pool = first.create_pool(Thing)
        second = PoolManager(first.address, KEY, ctx=FORK)
        with at_once(ManagerLost, "no manager can listen at .*: .*Address already in use"):
            second.start()
        with at_once(OSError, "Address already in use"):
            second.get_server()
        with pytest.raises(PoolError, match="not running"):
            second.get_pool("any")
        assert pool.apply(Thing.echo, "the first works on") == "the first works on"


def test_a_key_that_is_wrong(manager: PoolManager, pool: ObjectPool[Thing]) -> None:
    with at_once(ManagerLost, "refused the authkey"):
        PoolManager(manager.address, b"a wrong key").connect()


def ask_as_another_user(_: object, pool: ObjectPool[Thing]) -> None:
    os.setuid(65534)
    pool.stats()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_user(pool: ObjectPool[Thing], method: str) -> None:
    said = r"belongs to .*\(uid 0\), and this process runs as .*uid 65534"
    with Worker(multiprocessing.get_context(method)) as worker, pytest.raises(ManagerLost, match=said):
        worker.do(ask_as_another_user, pool)


@pytest.fixture(params=["no socket", "a socket left behind", "no directory", "a directory", "a closed port"])
def nowhere(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An address where no manager listens."""
    with tempfile.TemporaryDirectory() as directory, socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # so that the port stays free
        left_behind = f"{directory}/left behind"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(left_behind)
        yield {
            "no socket": f"{directory}/none",
            "a socket left behind": left_behind,
            "no directory": f"{directory}/none/none",
            "a directory": directory,
            "a closed port": unheard.getsockname(),
        }[request.param]


def test_an_address_nobody_listens_on(nowhere: Any) -> None:
    with at_once(ManagerLost, "no manager can be reached at"):
        PoolManager(nowhere, KEY).connect()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (b"\x00\x00\x00\x23#CHALLENGE#{sha256}of another library", "no mppool manager of this version"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no mppool manager of this version"),
        (b"mppool: 0.0.1".ljust(64, b"\0") + bytes(32), "is of mppool 0.0.1, and this process has mppool "),
        (GREETING + bytes(32) + bytes(range(32)), "has another authkey"),
        (b"", "closed during the handshake"),
        (b"mpp", "closed during the handshake"),
    ],
    ids=["another manager", "another server", "another version", "another key", "nothing", "too little"],
)
def test_an_address_where_somebody_else_listens(beside: Beside, words: bytes, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            with listener.accept()[0] as peer, suppress(OSError):  # who has heard enough hangs up
                peer.sendall(words)
                peer.shutdown(socket.SHUT_WR)
                peer.recv(1024)

        beside(talk)
        with at_once(ManagerLost, said):
            PoolManager(listener.getsockname(), KEY).connect()


def start_a_manager(_: object) -> None:
    PoolManager().start()


def test_a_daemonic_process_that_wants_a_manager(worker: Worker) -> None:
    with at_once(PoolError, "daemonic.*start it in the parent and pass the pool"):
        worker.do(start_a_manager)


# -- the end -------------------------------------------------------------------------------------------------


USES: list[Callable[[ObjectPool[Any]], Any]] = [
    lambda pool: pool.acquire(),
    lambda pool: pool.lease().__enter__(),
    lambda pool: pool.apply(Thing.echo, 1),
    lambda pool: pool.stats(),
    lambda pool: pool.leases(),
    lambda pool: pool.resize(max_size=3),
    lambda pool: pool.refresh(),
]


def test_a_pool_is_made_by_a_manager() -> None:
    with pytest.raises(TypeError, match=r"create_pool.*get_pool"):
        ObjectPool()


def test_a_lease_that_is_only_asked_for_is_seen_as_one(pool: ObjectPool[Thing]) -> None:
    assert repr(pool.lease()) == f"<a lease of pool {pool.name!r}, for a `with` block>"


def test_use_after_close(manager: PoolManager, pool: ObjectPool[Thing]) -> None:
    closed = manager.create_pool(Thing, name="closed")
    thing = closed.acquire()
    closed.close(timeout=0)
    for use in USES:
        with at_once(PoolClosed, "pool 'closed' is closed"):
            use(closed)
    with at_once(PoolClosed, "pool 'closed' is closed"):
        thing.echo(1)
    closed.release(thing)
    closed.close()  # it stays so
    assert "closed" in repr(closed)
    with at_once(PoolError, "no pool named 'closed'"):
        manager.get_pool("closed")


def test_use_after_shutdown() -> None:
    with PoolManager(ctx=FORK) as manager:
        pool = manager.create_pool(Thing, max_size=2)
        thing = pool.acquire()
        forgotten = pool.acquire()
    for use in USES:
        with at_once(PoolClosed, "has shut down"):
            use(pool)
    with at_once(PoolClosed, "has shut down"):
        thing.echo(1)
    pool.release(thing)
    with pytest.warns(ResourceWarning, match="never released"):
        del forgotten
    assert "has shut down" in repr(pool)
    for make in (lambda: manager.create_pool(Thing), lambda: manager.get_pool("any")):
        with at_once(PoolClosed, "has shut down"):
            make()
    with at_once(multiprocessing.ProcessError, "shut down"):
        manager.start()
    manager.shutdown()


def test_those_who_wait_learn_of_the_shutdown(beside: Beside) -> None:
    with PoolManager(ctx=FORK) as manager:
        pool = manager.create_pool(Thing, max_size=1)
        thing = pool.acquire()
        waiter = beside(pool.acquire, timeout=None)
        wait_until(lambda: pool.stats().waiting == 1)
    assert type(waiter.exception(PROMPT)) is PoolClosed
    pool.release(thing)


# -- handles and leases -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), (float("nan"), ValueError), ("soon", TypeError), (True, TypeError)],
)
def test_timeouts_that_are_wrong(pool: ObjectPool[Thing], timeout: Any, error: type[Exception]) -> None:
    for use in (
        lambda: pool.acquire(timeout),
        lambda: pool.lease(timeout).__enter__(),
        lambda: pool.apply(Thing.echo, timeout=timeout),
        lambda: pool.close(timeout),
    ):
        with at_once(error, "timeout"):
            use()


@pytest.mark.parametrize(
    ("bounds", "error", "said"),
    [
        ({"max_size": 0}, ValueError, "max_size"),
        ({"max_size": 1.5}, TypeError, "max_size"),
        ({"min_size": 2}, ValueError, "min_size=2 is more than max_size=1"),
    ],
)
def test_bounds_that_are_wrong(
    pool: ObjectPool[Thing], bounds: dict[str, Any], error: type[Exception], said: str
) -> None:
    with at_once(error, said):
        pool.resize(**bounds)


def test_nothing_free(pool: ObjectPool[Thing]) -> None:
    with pool.lease(), at_once(PoolTimeout, f"1 held.*pid {os.getpid()}.*max_size=1"):
        pool.acquire(timeout=0)


def test_a_handle_that_was_released(pool: ObjectPool[Thing]) -> None:
    thing = pool.acquire()
    pool.release(thing)
    with at_once(LeaseError, "was released"):
        pool.release(thing)
    with at_once(LeaseError, "was released"):
        thing.echo(1)
    with pool.lease() as leased:
        pool.release(leased)
    with at_once(LeaseError, "was released"):
        leased.echo(1)


def test_a_handle_of_another_pool(manager: PoolManager, pool: ObjectPool[Thing]) -> None:
    other = manager.create_pool(Thing, name="other", max_size=1)
    with pool.lease() as thing:
        with at_once(LeaseError, "'other': this handle is of another pool"):
            other.release(thing)
        assert thing.echo("still held") == "still held"


@pytest.mark.parametrize("other", [None, "a string", Thing()])
def test_something_that_is_no_handle(pool: ObjectPool[Thing], other: Any) -> None:
    with at_once(TypeError, "not a handle of a pool"):
        pool.release(other)


# -- what crosses ------------------------------------------------------------------------------------------


def error_of(
    pool: ObjectPool[Thing], error: type[BaseException], said: str, method: Callable[..., Any], *args: Any
) -> BaseException:
    """The call raises this, also from `apply`, and the lease goes on."""
    with pool.lease() as thing:
        with at_once(error, said) as caught:
            getattr(thing, method.__name__)(*args)
        assert thing.echo("the lease goes on") == "the lease goes on"
    with at_once(error, said):
        pool.apply(method, *args)
    return caught.value


@pytest.mark.usefixtures("_no_cloudpickle")
@pytest.mark.parametrize(
    "bad", [lambda: None, threading.Lock(), local_class()], ids=["lambda", "lock", "object of a local class"]
)
def test_arguments_that_do_not_pickle(pool: ObjectPool[Thing], bad: Any) -> None:
    said = "argument does not pickle"
    error_of(pool, TypeError, said, Thing.echo, bad)
    with pool.lease() as thing:
        for use in (lambda: thing.echo(1, more=[bad]), lambda: setattr(thing, "name", bad)):
            with at_once(TypeError, said):
                use()
    with at_once(TypeError, said):
        pool.apply(bad)


class Refusing:
    """Fails in its own way to be pickled."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __reduce__(self) -> NoReturn:
        raise self._error


@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError, TypeError])
def test_an_argument_that_fails_as_a_connection_does_is_none(
    pool: ObjectPool[Thing], kind: type[Exception]
) -> None:
    error = kind("refused")
    raised = error_of(pool, TypeError, "argument does not pickle.*refused", Thing.echo, Refusing(error))
    assert raised.__cause__ is error


def test_what_does_not_unpickle(pool: ObjectPool[Thing]) -> None:
    said = "request cannot be rebuilt.*far from home$"
    error_of(pool, RemoteError, said, Thing.echo, Homebody())
    with at_once(TypeError, "answer cannot be rebuilt.*far from home.*apply"):
        pool.apply(Thing.homebody)


def test_results_that_do_not_pickle(pool: ObjectPool[Thing]) -> None:
    with pool.lease() as thing:
        lock = thing.lock()
        with lock:
            assert lock.locked(), "it comes as a handle"
    with at_once(TypeError, "Thing.lock.* does not pickle, so apply"):
        pool.apply(Thing.lock)


@pytest.mark.parametrize(
    "error",
    [
        *(EOFError, ConnectionResetError, BrokenPipeError, BlockingIOError, TimeoutError, FileNotFoundError),
        *(SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, pickle.UnpicklingError, MemoryError),
    ],
)
def test_errors_of_the_object_are_not_mistaken_for_the_connections(
    pool: ObjectPool[Thing], error: type[BaseException]
) -> None:
    raised = error_of(pool, error, "the object's own", Thing.fail, error, "the object's own")
    assert isinstance(raised.__cause__, RemoteTraceback)
