"""Objects that are asynchronous themselves: each has an event loop, and callers that have none."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import re
import signal
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import Diary, Gate, Witness, Worker, acquire, lives, manager_in, process_of
from helpers import Beside, RunPython, do_without_linux, promptly, wait_until

from mppool import (
    AsyncObjectPool,
    CallTimeout,
    FactoryError,
    LeaseLost,
    ObjectPool,
    PoolManager,
    RemoteError,
    shared_pool,
)

pytestmark = pytest.mark.everywhere("thread", "process")


class Client(Witness):
    """Complains where it is not on the event loop on which it was made, or not alone with its caller."""

    def __init__(self, diary: Path) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.ticks = 0
        self._ticking = asyncio.create_task(self._tick())
        super().__init__(diary)

    async def _tick(self) -> None:
        try:
            while True:
                await asyncio.sleep(0.001)
                self.ticks += 1
        finally:
            self._note("stopped")

    def _note(self, what: str) -> None:
        at_home = asyncio.get_running_loop() is self._loop and threading.get_ident() == self._thread
        super()._note(what if at_home else "betrayed")

    async def get(self, url: str) -> str:
        self._note("called")
        await asyncio.sleep(0)
        return url.upper()

    def plain(self, value: Any) -> Any:
        self._note("called")
        return value

    async def fail(self, error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    async def fail_with_cancel(self) -> None:
        raise asyncio.CancelledError

    async def hang(self) -> None:
        self._note("hanging")
        try:
            await asyncio.Event().wait()
        finally:
            self._note("cancelled")

    async def hang_whatever_happens(self) -> None:
        self._note("hanging")
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self._note("cancelled")

    async def block(self) -> None:
        self.wait_at_gate()

    async def numbers(self, count: int, pause: float = 0.0) -> AsyncIterator[int]:
        try:
            for number in range(count):
                await asyncio.sleep(pause)
                yield number
        finally:
            await asyncio.sleep(0.01)
            self._note("exhausted")

    async def one_then_hang(self) -> AsyncIterator[int]:
        yield 1
        yield 2
        await asyncio.Event().wait()

    async def echoes(self) -> AsyncIterator[Any]:
        got: Any = "begun"
        while got is not None:
            try:
                got = yield got
            except LookupError as error:
                got = f"caught {error}"

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[str]:
        self._note("begin")
        try:
            yield "transaction"
        except BaseException as error:
            await asyncio.sleep(0)
            self._note(f"rollback:{type(error).__name__}")
            raise
        await asyncio.sleep(0)
        self._note("commit")

    async def __aenter__(self) -> Client:  # noqa: PYI034  # `Self` came with Python 3.11
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> bool:
        await asyncio.sleep(0)
        return isinstance(error, KeyError)

    def of_another_loop(self) -> Any:
        with closing(asyncio.new_event_loop()) as loop:
            return loop.create_future()

    def begin(self, error: type[BaseException]) -> None:
        self.begun = asyncio.create_task(self.fail(error()))

    async def begin_generator(self) -> None:
        self.generator = self.numbers(9)
        await anext(self.generator)

    async def is_fine(self) -> bool:
        await asyncio.sleep(0)
        self._note("checked")
        return True

    async def refuse(self) -> bool:
        await asyncio.sleep(0)
        return False

    async def clean(self) -> None:
        await asyncio.sleep(0)
        self._note("cleaned")

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self._note("closed")

    def odd(self) -> Any:
        return Odd()

    def child(self) -> int:
        """A child that returns from here."""
        return os.fork() or 0

    async def child_that_awaits(self) -> int:
        pid = os.fork()
        await asyncio.sleep(0)
        return pid

    def replace(self) -> None:
        os.execv(sys.executable, [sys.executable, "-c", ""])


async def connect(diary: Path) -> Client:
    await asyncio.sleep(0)
    return Client(diary)


class Connector:
    """Makes clients in two ways."""

    def __init__(self, diary: Path) -> None:
        self._diary = diary

    async def connect(self) -> Client:
        return await connect(self._diary)

    __call__ = connect


async def get(client: Client, url: str) -> str:
    return await client.get(url)


def get_later(client: Client, url: str) -> Any:
    return client.get(url)


FEW_THREADS = pytest.mark.bounds(idle_thread=0.2)
"""A manager keeps threads that build and close for ten seconds: as long as a test waits for one to end."""


@pytest.fixture
def make(manager: PoolManager, diary: Diary) -> Callable[..., ObjectPool[Any]]:
    """A pool of one client, with the options that are given."""
    options: dict[str, Any] = {"max_size": 1, "close": Client.aclose}
    return lambda **more: manager.create_pool(partial(connect, diary.path), **{**options, **more})


@pytest.fixture(autouse=True)
def _all_on_their_loops(request: pytest.FixtureRequest, diary: Diary) -> Iterator[None]:
    yield
    assert diary.names("betrayed") == []


# -- how they are made ------------------------------------------------------------------------------


def test_what_is_a_coroutine_function(manager: PoolManager, diary: Diary) -> None:
    connector = Connector(diary.path)
    for factory in (partial(connect, diary.path), connector.connect, connector, partial(connector)):
        with manager.create_pool(factory, max_size=1) as pool, pool.lease() as client:
            assert type(pool) is type(pickle.loads(pickle.dumps(pool))) is AsyncObjectPool
            assert client.get("a") == "A"
    assert type(manager.create_pool("test_async_objects:connect", max_size=1)) is AsyncObjectPool
    pool = manager.create_pool(connect, name="each", each=[diary.path] * 2, close=Client.close)
    with pool.lease() as one, manager.get_pool("each").lease() as other:
        assert {one.get("a"), other.get("b")} == {"A", "B"}
    assert type(manager.pools()["each"]) is AsyncObjectPool


def test_all_that_is_done_with_an_object_is_done_on_its_loop(
    make: Callable[..., ObjectPool[Any]], diary: Diary
) -> None:
    pool = make(check=Client.is_fine, reset=Client.clean)
    for _ in range(2):
        with pool.lease() as client:
            assert (client.get("a"), client.plain(2), client.ticks >= 0) == ("A", 2, True)
    assert [pool.apply(func, "b") for func in (get, get_later, Client.get, Client.plain)] == [
        "B",
        "B",
        "B",
        "b",
    ]
    assert list(pool.map(get, "cd")) == ["C", "D"]
    wait_until(lambda: pool.stats().idle == 1)
    pool.close()
    assert len(diary.names("checked")) == len(diary.names("cleaned")) - 1 == 7, "not when it was just built"
    assert len(diary.made()) == 1
    assert diary.made() == diary.closed() == diary.names("stopped")


def test_its_tasks_go_on_between_calls(make: Callable[..., ObjectPool[Any]]) -> None:
    pool = make()
    with pool.lease() as client:
        before = client.ticks
    wait_until(lambda: pool.apply(_ticks) > before + 20)


def _ticks(client: Client) -> int:
    return client.ticks


@pytest.mark.parametrize("hook", [Client.refuse, Client.hang])
@pytest.mark.bounds(hook=0.2, hook_in_process=0.2)
@pytest.mark.manager(watch_interval=0.05)
def test_a_hook_that_refuses_or_hangs(hook: Any, make: Callable[..., ObjectPool[Any]], diary: Diary) -> None:
    pool = make(check=hook, timeout=20)
    assert pool.apply(get, "a") == "A"  # what was just built is not checked
    with promptly():
        assert pool.apply(get, "b") == "B"
        wait_until(lambda: pool.stats().size == 1)
    (reason,) = pool.stats().retired
    assert reason == "check" or hook is Client.hang


@pytest.mark.bounds(hook_on_loop=0.2, hook_in_process=0.2)
def test_a_close_that_hangs_is_cancelled(make: Callable[..., ObjectPool[Any]], diary: Diary) -> None:
    with promptly(), make(close=Client.hang) as pool:
        assert pool.apply(get, "a") == "A"


# -- protocols --------------------------------------------------------------------------------------


def test_asynchronous_protocols_have_the_names_of_the_others(
    make: Callable[..., ObjectPool[Any]], diary: Diary
) -> None:
    with make().lease() as client:
        assert list(client.numbers(2000)) == list(range(2000))
        numbers = client.numbers(3)
        assert [next(numbers), *numbers] == [0, 1, 2]
        with client as entered:
            assert entered is client
            raise KeyError("which it takes")
        with client.transaction() as what:
            assert what == "transaction"
        for error in (LookupError(), KeyboardInterrupt(), asyncio.CancelledError(), _Unknown()):
            with pytest.raises(type(error)), client.transaction():
                raise error
            assert diary.names(f"rollback:{type(error).__name__}")
        assert len(diary.names("commit")) == 1
        with pytest.raises(TypeError):
            iter(client)


class _Unknown(Exception):
    pass


def test_callers_with_a_loop_of_their_own(make: Callable[..., ObjectPool[Any]], diary: Diary) -> None:
    async def use(pool: ObjectPool[Any]) -> None:
        async with pool.aio.lease() as client:
            assert await client.get("a") == "A"
            assert [number async for number in await client.numbers(2000)] == list(range(2000))
            async with await client.transaction() as what:
                assert what == "transaction"
            with pytest.raises(LookupError):
                async with client.transaction():
                    raise LookupError
        assert await pool.aio.apply(get, "b") == "B"

    pool = make()
    asyncio.run(use(pool))
    assert len(diary.names("commit")) == len(diary.names("rollback:LookupError")) == 1
    wait_until(lambda: pool.stats().idle == 1)
    assert pool.stats().retired == {}


@pytest.mark.filterwarnings("error")
def test_what_its_own_users_do_not_await(make: Callable[..., ObjectPool[Any]], diary: Diary) -> None:
    async def use(pool: ObjectPool[Any]) -> None:
        async with pool.aio.lease() as client:
            assert [number async for number in client.numbers(2000)] == list(range(2000))
            async with client.transaction() as what:
                assert what == "transaction"
            async with aclosing(client.numbers(2000)) as numbers:
                async for number in numbers:
                    if number == 3:
                        break
            async with aclosing(client.numbers(2000)):
                """Not one is taken."""
            both = asyncio.gather(client.plain(1), asyncio.create_task(client.plain(2)))
            assert await both == [1, 2]
            assert inspect.iscoroutinefunction(client.get)
            with pytest.raises(TypeError, match="1 is not for `async with`: await the call"):
                async with client.plain(1):
                    """Not come to."""
            with pytest.raises(TypeError, match="not an async iterable"):
                await anext(client.plain(1))

    asyncio.run(use(make()))
    assert diary.names("commit")


def test_generators_have_their_methods_under_both_names(make: Callable[..., ObjectPool[Any]]) -> None:
    with make().lease() as client:
        for send, throw, end in (("send", "throw", StopIteration), ("asend", "athrow", StopAsyncIteration)):
            echoes = client.echoes()
            assert next(echoes) == "begun"
            assert getattr(echoes, send)(1) == 1
            assert getattr(echoes, throw)(LookupError("a")) == "caught a"
            with pytest.raises(end):
                getattr(echoes, send)(None)
        for close in ("close", "aclose"):
            echoes = client.echoes()
            assert next(echoes) == "begun"
            getattr(echoes, close)()
            assert next(echoes, "over") == "over"


def test_items_do_not_wait_for_a_late_one(make: Callable[..., ObjectPool[Any]]) -> None:
    pool = make(call_timeout=1)
    handle = pool.acquire()
    numbers = handle.one_then_hang()
    assert [next(numbers), next(numbers)] == [1, 2]
    with pytest.raises(CallTimeout):
        next(numbers)
    pool.release(handle)
    assert pool.apply(get, "a") == "A"


def test_what_a_lease_leaves_behind_is_closed_before_the_next(
    make: Callable[..., ObjectPool[Any]], diary: Diary
) -> None:
    pool = make()
    with pool.lease() as client:
        numbers, transaction = client.numbers(9), client.transaction()
        assert next(numbers) == 0
        transaction.__enter__()
    with pool.lease() as client:
        assert client.plain(1) == 1
        assert len(diary.names("exhausted")) == len(diary.names("rollback:GeneratorExit")) == 1
    assert pool.stats().retired == {}
    del numbers, transaction


# -- errors -----------------------------------------------------------------------------------------


def test_errors_come_as_from_any_object(make: Callable[..., ObjectPool[Any]]) -> None:
    pool = make()
    with pool.lease() as client:
        for error in (LookupError("a"), SystemExit(3), KeyboardInterrupt("b"), StopAsyncIteration(4)):
            with pytest.raises(type(error)) as caught:
                client.fail(error)
            assert caught.value.args == error.args
            assert "in fail" in str(caught.value.__cause__)
        with pytest.raises(RemoteError, match="was cancelled on the event loop of its object"):
            client.fail_with_cancel()
        with pytest.raises(RuntimeError, match=r"different loop|belong"):
            client.of_another_loop()
        for kind in (SystemExit, KeyboardInterrupt, LookupError):  # in a task that nothing awaits
            client.begin(kind)
            assert client.get("a") == "A"
    assert pool.stats().retired == {}


async def refuse(error: BaseException) -> Client:
    await asyncio.sleep(0)
    raise error


@FEW_THREADS
@pytest.mark.parametrize(
    "error", [OSError("refused"), SystemExit("refused"), asyncio.CancelledError("refused")]
)
def test_a_factory_that_fails_leaves_nothing(error: BaseException, manager: PoolManager) -> None:
    pool, process = manager.create_pool(partial(refuse, error), max_size=1), process_of(manager)
    for turn in range(6):
        with pytest.raises(FactoryError, match=r"refused|cancelled"):
            pool.acquire()
        if turn == 2:
            before = process.num_threads(), process.num_fds()
    wait_until(lambda: process.num_threads() <= before[0] + 1)
    wait_until(lambda: process.num_fds() <= before[1] + 3)


# -- ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hang", "one_then_hang"])
def test_a_call_that_takes_too_long_is_cancelled(
    name: str, make: Callable[..., ObjectPool[Any]], diary: Diary
) -> None:
    pool = make(call_timeout=0.5)
    handle = pool.acquire()
    with pytest.raises(CallTimeout):
        list(handle.one_then_hang()) if name == "one_then_hang" else handle.hang()
    with pytest.raises(LeaseLost):
        handle.get("a")
    pool.release(handle)
    assert pool.apply(get, "b") == "B"
    assert pool.stats().retired == {"call": 1}
    wait_until(lambda: _has_ended(pool, diary, 1))


def _has_ended(pool: ObjectPool[Any], diary: Diary, count: int) -> bool:
    """Whether so many were closed, or killed: then nothing tells of it but the pool."""
    killed = pool.options.isolation == "process"
    return pool.stats().size == 1 and (killed or len(diary.closed()) == count)


def test_a_call_whose_holder_died_is_cancelled(
    make: Callable[..., ObjectPool[Any]], worker: Worker, diary: Diary
) -> None:
    pool = make()
    worker.do(acquire, pool)
    worker.begin(_hang)
    wait_until(lambda: diary.names("hanging"))
    worker.kill()
    with promptly():
        assert pool.apply(get, "a") == "A"
        wait_until(lambda: _has_ended(pool, diary, 1))
    assert pool.stats().retired == {"reclaimed": 1}


def _hang(things: dict[str, Any]) -> None:
    things["handle"].hang()


@pytest.mark.manager(watch_interval=0.05)
def test_a_call_under_which_the_lease_ends(
    make: Callable[..., ObjectPool[Any]], diary: Diary, beside: Beside
) -> None:
    pool = make(max_hold=0.3, call_timeout=0.6)
    with promptly():
        hanging = beside(pool.apply, Client.hang)
        wait_until(lambda: pool.stats().retired == {"expired": 1})
        with pytest.raises((LeaseLost, CallTimeout)):
            hanging.result(10)
        assert pool.apply(get, "a") == "A"
        wait_until(lambda: _has_ended(pool, diary, 1))


def test_a_call_that_blocks_the_loop_or_defies_the_cancel(
    gate: Gate, make: Callable[..., ObjectPool[Any]], diary: Diary
) -> None:
    pool = make(call_timeout=0.5)
    for name in ("block", "hang_whatever_happens"):
        handle = pool.acquire()
        with pytest.raises(CallTimeout):
            getattr(handle, name)()
        pool.release(handle)
        assert pool.apply(get, "a") == "A"
    gate.open()
    wait_until(lambda: _has_ended(pool, diary, 1))
    with promptly():
        pool.close()


async def hang(diary: Path) -> Client:
    client = Client(diary)
    await client.hang()
    return client


@FEW_THREADS
@pytest.mark.manager(watch_interval=0.05)
def test_a_factory_that_hangs_is_cancelled(manager: PoolManager, diary: Diary) -> None:
    process = process_of(manager)
    pool = manager.create_pool(partial(hang, diary.path), max_size=1, build_timeout=0.3)
    for turn in range(6):  # of threads that go on there may be no more than two
        with pytest.raises(FactoryError, match="build_timeout"):
            pool.acquire()
        if turn == 2:
            before = process.num_threads()
    wait_until(lambda: process.num_threads() <= before + 1)
    if pool.options.isolation == "thread":
        wait_until(lambda: len(diary.names("stopped")) == 6)
        assert len(diary.names("cancelled")) == 6
    wait_until(lambda: pool.stats().size == 0)


@FEW_THREADS
def test_the_thread_ends_with_its_object(make: Callable[..., ObjectPool[Any]], manager: PoolManager) -> None:
    pool, process = make(), process_of(manager)
    for turn in range(12):
        pool.release(pool.acquire(), discard=True)
        if turn == 4:
            wait_until(lambda: pool.stats().size == 0)
            before = process.num_threads(), process.num_fds()
    wait_until(lambda: process.num_threads() <= before[0])
    wait_until(lambda: process.num_fds() <= before[1])


SCRIPT = """
import asyncio
from mppool import PoolManager

class Thing:
    def __init__(self):
        self.tasks = [asyncio.create_task(each) for each in (self.hang(), self.fail_at_end())]
    async def hang(self):
        await asyncio.Event().wait()
    async def fail_at_end(self):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
    async def numbers(self):
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            print("closed generator", flush=True)
    async def begin(self):
        self.generator = self.numbers()
        await anext(self.generator)
        await asyncio.to_thread(bool)

async def make():
    return Thing()

def main():
    with PoolManager() as manager:
        for isolation in ("thread", "process"):
            pool = manager.create_pool(make, isolation=isolation, max_size=1, call_timeout=0.5)
            with pool.lease() as thing:
                thing.begin()
            pool.refresh()
            pool.apply(Thing.begin)
            try:
                pool.apply(Thing.hang)
            except TimeoutError:
                pass
            pool.apply(Thing.begin)
            pool.close()

if __name__ == "__main__":
    main()
"""


@pytest.mark.everywhere("thread")  # the script has both
def test_no_noise_at_the_end(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_python("-X", "dev", tmp_path / "script.py")
    assert done.stderr == ""
    assert done.stdout.split("\n")[:-1] == ["closed generator"] * 5, "all but that of the killed process"


STUBBORN = """
import asyncio
from mppool import PoolManager

async def defy():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

async def make():
    return [asyncio.create_task(defy())]

if __name__ == "__main__":
    with PoolManager() as manager, manager.create_pool(make, isolation="thread") as pool:
        print(pool.apply(len))
"""


@pytest.mark.everywhere("thread")
def test_a_task_that_defies_its_cancel_is_named(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(STUBBORN)
    (told,) = run_python("-X", "dev", tmp_path / "script.py").stderr.splitlines()
    assert re.fullmatch("mppool object of pool-1: a task goes on though it was cancelled: .*defy.*", told)


# -- processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["child", "child_that_awaits"])
def test_a_child_of_the_objects_code_ends(name: str, make: Callable[..., ObjectPool[Any]]) -> None:
    with make().lease() as client:
        pid = getattr(client, name)()
        assert pid != 0
        with promptly():
            wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
        assert client.get("a") == "A"
        before = client.ticks
        wait_until(lambda: client.ticks > before)


@pytest.mark.everywhere("process")
def test_an_object_that_crashes_or_replaces_itself(make: Callable[..., ObjectPool[Any]]) -> None:
    pool = make()
    for end in (Client.replace, _abort):
        with pytest.raises(LeaseLost), promptly():
            pool.apply(end)
        assert pool.apply(get, "a") == "A"
    assert pool.stats().retired == {"died": 2}


def _abort(_: Client) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_object_is_discarded_and_all_are_refreshed(
    make: Callable[..., ObjectPool[Any]], diary: Diary
) -> None:
    pool = make()
    pool.release(pool.acquire(), discard=True)
    assert pool.apply(get, "a") == "A"
    pool.refresh()
    assert pool.apply(get, "b") == "B"
    assert pool.stats().retired == {"discarded": 1, "refreshed": 1}
    pool.close()
    assert len(diary.made()) == 3
    assert diary.made() == diary.closed() == diary.names("stopped")


def test_portable(
    make: Callable[..., ObjectPool[Any]], manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.shutdown()
    do_without_linux(monkeypatch)
    with manager_in() as portable:
        pool = portable.create_pool(make_async, max_size=1)
        with pool.lease() as plain:
            assert plain.get() == 1
        assert asyncio.run(of_loop(pool)) == 1


async def of_loop(pool: Any) -> Any:
    async with pool.aio.lease() as plain:
        return await plain.get()


def test_names_of_what_is_asynchronous_are_exposed(make: Callable[..., ObjectPool[Any]]) -> None:
    async def use(pool: Any) -> None:
        async with pool.aio.lease() as client, client:
            assert await client.get("a") == "A"

    for names in (("get", "__aenter__", "__aexit__"), ("get", "__enter__", "__exit__")):
        pool = make(expose=names)
        with pool.lease() as client, client:
            assert client.get("a") == "A"
            with pytest.raises(AttributeError):
                client.plain(1)
        asyncio.run(use(pool))
        pool.close()
    refused = pytest.raises((TypeError, AttributeError))  # the latter from Python 3.10
    with make(expose=("get",)).lease() as client, refused, client:
        pass


def test_a_shared_pool_of_a_coroutine_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(tmp_path / "r"))
    with PoolManager.shared("loops", linger=0) as manager:
        pool = shared_pool("loops", make_async, max_size=1, isolation="thread", linger=0)
        try:
            for shared in (pool, pickle.loads(pickle.dumps(pool))):
                assert type(shared) is AsyncObjectPool
                assert shared.apply(Plain.get) == 1
                assert asyncio.run(of_loop(shared)) == 1
            process = psutil.Process(pool.apply(pid_of))
            process.kill()
            wait_until(lambda: not lives(process))
            assert asyncio.run(of_loop(pool)) == 1
        finally:
            manager.shutdown()


async def pid_of(_: Plain) -> int:
    return os.getpid()


class Hashless(type):
    """Its classes cannot be looked up in any cache."""

    __hash__ = None  # type: ignore[assignment]


class Odd(metaclass=Hashless):
    """Lies about its class."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise ZeroDivisionError

    def name(self) -> str:
        return "odd"


@types.coroutine
def of_old(_: Client) -> Iterator[Any]:
    yield from asyncio.sleep(0).__await__()
    return "awaited"


def test_what_is_awaited_is_looked_at_safely(make: Callable[..., ObjectPool[Any]]) -> None:
    pool = make()
    with pool.lease() as client:
        assert client.odd().name() == "odd"
    assert pool.apply(of_old) == "awaited"


# -- bad input --------------------------------------------------------------------------------------


class Plain:
    async def get(self) -> int:
        return 1

    def soon(self) -> Any:
        return self.get()


def make_plain() -> Plain:
    return Plain()


async def make_async() -> Plain:
    return Plain()


def make_later() -> Any:
    return make_async()


async def hook(_: Any) -> None:
    pass


@pytest.mark.everywhere
def test_mistakes(manager: PoolManager) -> None:
    with pytest.raises(TypeError, match=r"isolation='thread'.*isolation='process'"):
        manager.create_pool(make_async, isolation="none")
    with pytest.raises(FactoryError, match="make its factory a coroutine function"):
        manager.create_pool(make_later).acquire()
    for name in ("check", "reset", "close"):
        with pytest.raises(TypeError, match=f"{name} is a coroutine function, and nothing awaits it"):
            manager.create_pool(make_plain, **{name: hook})
    pool = manager.create_pool(make_plain, max_size=1)
    with pool.lease() as plain:
        for method in (plain.get, plain.soon):
            with pytest.raises(TypeError, match=r"awaitable, .*make its factory a coroutine function"):
                method()
    with pytest.raises(TypeError, match="returned an awaitable"):
        pool.apply(Plain.get)
    assert pool.stats().retired == {}


@pytest.mark.everywhere("none")
def test_mistakes_leave_no_warning(tmp_path: Path, run_python: RunPython) -> None:
    (tmp_path / "script.py").write_text(
        "from mppool import PoolManager\n"
        "async def make(*_): pass\n"
        "def later(): return make()\n"
        "if __name__ == '__main__':\n"
        "    with PoolManager() as manager:\n"
        "        things = manager.create_pool(list)\n"
        "        for attempt in (lambda: manager.create_pool(make), manager.create_pool(later).acquire,\n"
        "                lambda: things.apply(make), lambda: manager.create_pool(list, reset=make)):\n"
        "            try: attempt()\n"
        "            except Exception as error: print(error)\n"
    )
    done = run_python("-X", "dev", tmp_path / "script.py")
    assert (done.stdout.count("isolation='thread'"), done.stdout.count("\n"), done.stderr) == (3, 4, "")
