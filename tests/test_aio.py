"""`pool.aio`: tasks of event loops acquire, call, and are cancelled. Nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psutil
import pytest
from actors import (
    FORK,
    Gate,
    Tool,
    count_descriptors,
    hang_up,
    lives,
    manager_in,
    my_threads,
    no_descriptors,
    process_of,
    stop,
    stopped,
)
from helpers import RunPython, do_without_linux, promptly, wait_until

import mppool
from mppool import (
    CallTimeout,
    LeaseError,
    LeaseLost,
    ManagerLost,
    ObjectPool,
    PoolClosed,
    PoolError,
    PoolManager,
    PoolTimeout,
)
from mppool._client.aio import channel, connecting

R = TypeVar("R")

Run = Callable[[Coroutine[Any, Any, R]], R]


class Same(Tool):
    """Tells objects apart, and returns what stops its process where it arrives."""

    def is_same(self, other: object) -> bool:
        return other is self

    def stopping(self) -> Stopping:
        return Stopping()


class Stopping:
    """Cannot be rebuilt elsewhere: in its place a handle is asked for."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["home"] != os.getpid():
            stop(psutil.Process(state["home"]))
            raise ValueError("not here")


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run[Any]]:
    """`asyncio.run` with a loop of each kind; afterwards no thread is left."""
    module = asyncio if request.param == "asyncio" else pytest.importorskip("uvloop")
    before = my_threads()
    yield module.run
    gc.collect()
    wait_until(lambda: my_threads() <= before, message="no thread is left")


@pytest.fixture(params=["unix", "tcp"])
def tools(request: pytest.FixtureRequest) -> Iterator[ObjectPool[Tool]]:
    """Two tools, over each kind of socket."""
    address = ("127.0.0.1", 0) if request.param == "tcp" else None
    with manager_in(address=address, authkey=b"the right key, and long") as manager:
        yield manager.create_pool(Tool, max_size=2)


def nothing_is_out(pool: ObjectPool[Any]) -> bool:
    """Whether nothing is lent, wanted or under way."""
    now = pool.stats()
    return (now.leased, now.waiting, now.size) == (0, 0, now.idle)


async def until(predicate: Callable[[], Awaitable[object]], seconds: float = 10) -> None:
    """`wait_until` for a task."""
    deadline = time.monotonic() + seconds
    while not await predicate():
        assert time.monotonic() < deadline, "not so in time"
        await asyncio.sleep(0.005)


async def waiting(pool: ObjectPool[Any], number: int) -> None:
    """Wait until so many acquires wait."""

    async def they_do() -> bool:
        return (await pool.aio.stats()).waiting == number

    await until(they_do)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for each in tasks:
        each.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in outcomes), outcomes


# -- lending ------------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_tasks_take_turns_at_objects(manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(Tool, max_size=2)

    async def work(number: int) -> int:
        async with pool.aio.lease() as tool:
            return await tool.echo(number)  # type: ignore[no-any-return]

    async def main() -> list[int]:
        return await asyncio.gather(*map(work, range(50)))

    assert run(main()) == list(range(50))
    wait_until(lambda: nothing_is_out(pool))


def test_an_object_is_acquired_and_released(tools: Any, run: Run[Any]) -> None:
    async def main() -> None:
        aio = tools.aio
        handle = await aio.acquire()
        assert await handle.echo(1) == 1
        [lease] = await aio.leases()
        assert lease.pid == os.getpid()
        await aio.release(handle)
        with pytest.raises(LeaseError, match="released"):
            await aio.release(handle)
        with pytest.raises(LeaseError, match="released"):
            await handle.echo(1)
        held = [await aio.acquire(0), await aio.acquire(0)]
        with pytest.raises(PoolTimeout):
            await aio.acquire(0)
        with pytest.raises(PoolTimeout):
            await aio.acquire(0.01)
        for each in held:
            await aio.release(each, discard=True)
        assert await aio.apply(Tool.echo, "beside it") == "beside it"

    run(main())
    wait_until(lambda: tools.stats().retired.get("discarded") == 2 and tools.stats().leased == 0)


def test_many_tasks_cost_few_threads_and_connections(manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(Tool, max_size=4)
    before = my_threads(), count_descriptors(psutil.Process())
    most = [0, 0]

    async def work(number: int) -> None:
        async with pool.aio.lease(timeout=30) as tool:
            assert await tool.echo(number) == number
            if number % 50 == 0:
                now = my_threads(), count_descriptors(psutil.Process())
                most[:] = [max(pair) for pair in zip(most, now, strict=True)]

    async def main() -> None:
        await asyncio.gather(*map(work, range(400)))

    run(main())
    assert most[0] - before[0] <= 9
    assert most[1] - before[1] <= 12 + 4  # and the loop's own


# -- cancelled ----------------------------------------------------------------------------------------


def test_an_acquire_that_is_cancelled_is_out_of_the_queue(tools: Any, run: Run[Any]) -> None:
    async def main() -> None:
        aio = tools.aio
        async with aio.lease(), aio.lease():
            tasks = [asyncio.create_task(aio.acquire()) for _ in range(20)]
            await waiting(tools, 20)
            await cancelled(*tasks[:15])
            await waiting(tools, 5)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(aio.acquire(), 0.01)
            await waiting(tools, 5)
            await cancelled(*tasks[15:])
            await waiting(tools, 0)

    run(main())
    wait_until(lambda: nothing_is_out(tools))


def test_an_acquire_is_cancelled_in_the_iteration_in_which_it_is_granted(tools: Any, run: Run[Any]) -> None:
    """The grant is read, and then the task is cancelled before it runs again."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await tools.aio.apply(Tool.echo, 1)
        for _ in range(5):
            tasks = [asyncio.create_task(tools.aio.acquire()) for _ in range(2)]
            for _ in range(2):  # they ask, and then that is sent
                await asyncio.sleep(0)
            wait_until(lambda: tools.stats().leased == 2)  # while the loop stands still
            for each in tasks:
                loop.call_later(0, each.cancel)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert any(isinstance(each, asyncio.CancelledError) for each in outcomes)
            for each in outcomes:
                if not isinstance(each, asyncio.CancelledError):
                    await tools.aio.release(each)

    run(main())
    wait_until(lambda: nothing_is_out(tools))


@pytest.mark.far
@pytest.mark.everywhere
def test_a_call_that_is_cancelled_leaves_the_lease(manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(Tool, max_size=1)

    async def main() -> None:
        async with pool.aio.lease() as tool:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(tool.nap(0.1), 0.02)
            assert await tool.echo("when that has ended") == "when that has ended"

    run(main())
    wait_until(lambda: nothing_is_out(pool))
    assert pool.stats().retired == {}


@pytest.mark.far
@pytest.mark.everywhere
def test_an_object_in_a_cancelled_call_is_replaced(gate: Gate, manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(Tool, max_size=1)

    async def main() -> None:
        async with pool.aio.lease() as tool:
            call = asyncio.create_task(tool.wait_at_gate())
            await asyncio.to_thread(gate.wait_for_somebody)
            await cancelled(call)
        async with pool.aio.lease() as tool:
            assert await tool.echo(1) == 1
        gate.open()

    run(main())
    wait_until(lambda: pool.stats().retired.get("interrupted") == 1)


def test_a_task_group_that_fails_gives_all_back(tools: Any, run: Run[Any]) -> None:
    async def hold_and_fail(aio: Any) -> None:
        async with aio.lease() as tool:
            await tool.nap(0.01)
            raise ZeroDivisionError

    async def main() -> None:
        aio = tools.aio
        tasks = [asyncio.create_task(hold_and_fail(aio)) for _ in range(2)]
        tasks += [asyncio.create_task(aio.apply(Tool.nap, 20)) for _ in range(5)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main())
    wait_until(lambda: nothing_is_out(tools))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="came with Python 3.11")
def test_a_task_group_and_a_timeout_end_what_is_under_way(tools: Any, run: Run[Any]) -> None:
    new: Any = asyncio  # which mypy sees as that of Python 3.10

    async def hold(failing: bool) -> None:
        async with tools.aio.lease() as tool:
            assert await tool.echo(1) == 1
            await waiting(tools, 3)
            if failing:
                raise ZeroDivisionError
            await tool.nap(0.1)

    async def hold_and_wait() -> None:
        async with new.TaskGroup() as group:
            for failing in (False, True):
                group.create_task(hold(failing))
            for _ in range(3):
                group.create_task(tools.aio.acquire(None))

    async def within(seconds: float, slow: Awaitable[Any]) -> Any:
        async with new.timeout(seconds):
            return await slow

    async def main() -> None:
        with pytest.raises(Exception, match="unhandled errors in a TaskGroup") as caught:
            await hold_and_wait()
        group_: Any = caught.value
        assert [type(each) for each in group_.exceptions] == [ZeroDivisionError]
        async with tools.aio.lease() as tool, tools.aio.lease():
            for slow in (tools.aio.acquire(None), tool.nap(0.1), tools.aio.apply(Tool.echo, 1)):
                with pytest.raises(TimeoutError):
                    await within(0.02, slow)
            await waiting(tools, 0)
            assert await within(20, tool.echo(2)) == 2

    run(main())
    wait_until(lambda: nothing_is_out(tools))


def test_what_a_loop_gave_back_is_there_for_what_runs_beside(manager: PoolManager, run: Run[Any]) -> None:
    """In the same turn of the loop, which comes to nothing else meanwhile."""
    pool: Any = manager.create_pool(Tool, max_size=1)

    async def main() -> None:
        for _ in range(20):
            await pool.aio.release(await pool.aio.acquire())
            pool.release(pool.acquire(timeout=5))
        await pool.aio.release(await pool.aio.acquire())
        with promptly():
            pool.close(timeout=60)

    run(main())


def test_a_task_is_cancelled_while_a_connection_is_made(manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(Tool, max_size=1)

    async def main() -> None:
        for _ in range(2):
            with stopped(process_of(manager)):
                tasks = [asyncio.create_task(pool.aio.acquire()) for _ in range(5)]
                await asyncio.sleep(0.05)
                await cancelled(*tasks)
            hang_up(None, pool)
        async with pool.aio.lease() as tool:
            assert await tool.echo(1) == 1

    run(main())
    wait_until(lambda: nothing_is_out(pool))


@pytest.mark.bounds(idle_memory=0.1)
@pytest.mark.parametrize("portable", [False, True])
def test_large_data_lets_other_tasks_run(
    tools: Any, run: Run[Any], portable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        do_without_linux(monkeypatch)
    data = bytearray(64 * 1024 * 1024)
    data[-1] = 7
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def bring() -> None:
        async with tools.aio.lease() as tool:
            await tool.echo(data[:100])
            began = turns
            assert (await tool.echo(data))[-1] == 7
            assert turns - began > 20

    async def cut_short() -> None:
        async with tools.aio.lease() as tool:
            call = asyncio.create_task(tool.echo(data))
            for _ in range(5):
                await asyncio.sleep(0)
            await cancelled(call)
            assert await tool.echo(1) == 1

    async def main() -> None:
        counting = asyncio.create_task(count())
        await asyncio.gather(bring(), bring())
        await cut_short()
        await cancelled(counting)

    run(main())
    wait_until(lambda: nothing_is_out(tools))


# -- misuse -------------------------------------------------------------------------------------------


def test_a_handle_belongs_to_its_loop_and_to_aio(manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(Tool, max_size=3)
    other_pool: Any = manager.create_pool(Tool)

    async def use(handle: Any) -> None:
        with pytest.raises(LeaseError, match="loop"):
            await handle.echo(1)
        with pytest.raises(LeaseError, match="loop"):
            await pool.aio.release(handle)

    async def main() -> None:
        handle = await pool.aio.acquire()
        await asyncio.to_thread(run, use(handle))
        with pytest.raises(LeaseError):
            await other_pool.aio.release(handle)
        with pytest.raises(LeaseError):
            pool.release(handle)
        with pool.lease() as of_threads, pytest.raises(LeaseError):
            await pool.aio.release(of_threads)
        with pytest.raises(TypeError):
            await pool.aio.release("no handle")
        for wrong in ("1", -1, float("nan"), True):
            with pytest.raises((TypeError, ValueError)):
                await pool.aio.acquire(wrong)
        with pytest.raises(TypeError):
            pool.aio.lease(discard_on_error=1)
        with pytest.raises(TypeError):
            pool.aio.map(Tool.echo, 7)
        await pool.aio.release(handle)

    run(main())
    wait_until(lambda: nothing_is_out(pool))


def test_frameworks_see_what_is_awaited(pool: Any) -> None:
    is_awaited = (inspect if sys.version_info >= (3, 12) else asyncio).iscoroutinefunction
    face = pool.aio
    for method in (face.acquire, face.release, face.apply, face.stats, face.leases, face.close):
        assert is_awaited(method), method
    assert not any(map(is_awaited, (face.lease, face.map, pool.acquire)))


def test_it_travels_as_the_pool_does(pool: Any, run: Run[Any]) -> None:
    face = pickle.loads(pickle.dumps(pool.aio))
    assert {face} == {pool.aio} != {pool}

    async def main() -> None:
        assert await face.apply(Tool.echo, 3) == 3

    run(main())


def test_handles_of_a_loop_and_of_threads_meet(manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(Same, max_size=2)

    def use(of_loop: Any) -> None:
        with pool.lease() as of_threads, pytest.raises(LeaseError, match="event loop in which it was"):
            of_threads.is_same(of_loop)

    async def main() -> None:
        async with pool.aio.lease() as of_loop:
            with pool.lease() as of_threads:
                assert not of_threads.is_same(of_loop)
                assert not await of_loop.is_same(of_threads)
                assert await of_loop.is_same(of_loop)
            await asyncio.to_thread(use, of_loop)

    run(main())
    with closing(asyncio.new_event_loop()) as loop:
        leasing = pool.aio.lease()
        handle = loop.run_until_complete(leasing.__aenter__())
        use(handle)  # where no loop runs
        loop.run_until_complete(leasing.__aexit__(None, None, None))
    wait_until(lambda: nothing_is_out(pool))


def test_outside_of_a_loop_methods_say_so(pool: Any, recwarn: pytest.WarningsRecorder) -> None:
    calls = [
        pool.aio.acquire,
        pool.aio.stats,
        pool.aio.leases,
        pool.aio.close,
        lambda: pool.aio.release(1),
        lambda: pool.aio.apply(Tool.pid),
        lambda: pool.aio.map(Tool.echo, [1]),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="no event loop runs"):
            call()
    gc.collect()
    assert not recwarn.list


def test_a_blocking_method_in_a_loop_is_named_in_debug_mode(
    run_python: RunPython, pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pool").write_bytes(pickle.dumps(pool))
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, logging, pickle\n"
        "logging.getLogger('asyncio').setLevel(logging.ERROR)\n"
        "pool = pickle.load(open('pool', 'rb'))\n"
        "async def main():\n"
        "    for _ in range(3):\n"
        "        with pool.lease() as tool:\n"  # line 6
        "            tool.pid()\n"  # line 7
        "    await asyncio.to_thread(pool.stats)\n"
        "pool.stats()\n"
        "asyncio.run(main())\n"
    )
    assert not run_python(program).stderr
    modes: list[list[str]] = [["-X", "dev", "-W", "ignore"], []]
    for mode in modes:
        named = run_python(*mode, program).stderr.splitlines()
        assert [line.partition(" makes ")[0] for line in named] == [f"{program}:6", f"{program}:7"]
        monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")


# -- the other side -----------------------------------------------------------------------------------


@pytest.mark.bounds(silence=1.0)  # a busy machine, too, makes a connection within it
def test_a_manager_that_freezes_is_lost(tools: Any, run: Run[Any]) -> None:
    async def main() -> None:
        async with tools.aio.lease() as tool, tools.aio.lease():
            pid = await tool.pid()
            waiter, call = asyncio.create_task(tools.aio.acquire(None)), asyncio.create_task(tool.nap(20))
            await waiting(tools, 1)
            with stopped(psutil.Process(pid)):
                outcomes = await asyncio.gather(waiter, call, return_exceptions=True)
                assert [type(each) for each in outcomes] == [ManagerLost, ManagerLost]

    with promptly():
        run(main())
    wait_until(lambda: tools.stats().waiting == 0)


@pytest.mark.bounds(silence=1.0)
@pytest.mark.parametrize("connects_late", [False, True])
def test_a_call_is_looked_after_however_many_objects_are_called(
    connects_late: bool, manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_MAX_OBJECTS", 1)
    pool: Any = manager.create_pool(Tool, max_size=3, isolation="process")
    others_are_called, in_thread = threading.Event(), connecting.in_thread

    def in_thread_later(do: Callable[[], Any], then: Callable[[Any], object]) -> None:
        monkeypatch.setattr(connecting, "in_thread", in_thread)  # the next one is not late
        in_thread(lambda: (others_are_called.wait(30), do())[1], then)

    async def main() -> None:
        async with pool.aio.lease() as one, pool.aio.lease() as two, pool.aio.lease() as three:
            if connects_late:
                monkeypatch.setattr(connecting, "in_thread", in_thread_later)
            call = asyncio.create_task(one.nap(30))
            for each in (two, three, two, three):
                await asyncio.sleep(0)
                assert await each.echo(1) == 1
            others_are_called.set()
            with stopped(process_of(manager)), pytest.raises(ManagerLost):
                await call

    with promptly():
        asyncio.run(main())


def test_a_failure_to_connect_is_that_of_the_calls_that_waited_for_it(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: Any = manager.create_pool(Tool, max_size=2)
    begun, other_waits, in_thread = asyncio.Event(), threading.Event(), connecting.in_thread

    def fail() -> NoReturn:
        other_waits.wait(30)
        raise OSError("no room")

    def in_thread_in_vain(_: object, then: Callable[[Any], object]) -> None:
        monkeypatch.setattr(connecting, "in_thread", in_thread)  # the next one is not in vain
        in_thread(fail, then)
        begun.set()

    async def main() -> None:
        async with pool.aio.lease() as one, pool.aio.lease() as other:
            monkeypatch.setattr(connecting, "in_thread", in_thread_in_vain)
            first = asyncio.create_task(one.echo(1))
            await begun.wait()
            second = asyncio.create_task(other.echo(2))
            await asyncio.sleep(0)
            other_waits.set()
            with pytest.raises(OSError, match="no room"):
                await first
            assert await second == 2

    with promptly():
        asyncio.run(main())


def test_a_manager_wakes_up(tools: Any, run: Run[Any]) -> None:
    async def main() -> None:
        async with tools.aio.lease() as tool:
            pid = await tool.pid()
            with stopped(psutil.Process(pid)):
                calls = [tool.echo(0), *(tools.aio.apply(Tool.echo, number) for number in range(1, 30))]
                tasks = [asyncio.create_task(each) for each in calls]
                given_up = [asyncio.create_task(tools.aio.acquire(None)) for _ in range(5)]
                for _ in range(10):
                    await asyncio.sleep(0)
                await cancelled(*given_up, *tasks[20:])
            assert await asyncio.gather(*tasks[:20]) == list(range(20))

    run(main())
    wait_until(lambda: nothing_is_out(tools))


def forward(listening: socket.socket, address: Any) -> None:
    """What a proxy does; its end cuts all that goes through it."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100_000):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(*address)
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    async def main() -> None:
        await (await asyncio.start_server(serve, sock=listening)).serve_forever()

    asyncio.run(main())


@contextmanager
def proxy(listening: socket.socket, address: Any) -> Iterator[None]:
    process = FORK.Process(target=forward, args=(listening, address))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def test_the_network_is_cut_in_mid_call(gate: Gate, run: Run[Any]) -> None:
    key = b"the right key, and long"
    with manager_in(address=("127.0.0.1", 0), authkey=key) as manager, socket.create_server(("", 0)) as here:
        pool: Any = manager.create_pool(Tool, max_size=1)
        rebuild, (*state, (address, *others)) = pool.__reduce__()
        through = rebuild(*state, (("127.0.0.1", here.getsockname()[1]), *others))

        async def main() -> None:
            with proxy(here, address):
                tool = await through.aio.acquire()
                assert await tool.echo(1) == 1
                call = asyncio.create_task(tool.wait_at_gate())
                waiter = asyncio.create_task(through.aio.acquire(None))
                await asyncio.to_thread(gate.wait_for_somebody)
                await waiting(pool, 1)
            outcomes = await asyncio.gather(call, waiter, return_exceptions=True)
            assert [type(each) for each in outcomes] == [ManagerLost, ManagerLost]
            gate.open()
            with proxy(here, address):
                with suppress(LeaseLost):
                    assert await tool.echo(2) == 2
                await through.aio.release(tool)
                assert await through.aio.apply(Tool.echo, 3) == 3
                # This process has told by then: it lives, so nothing else takes back what it had.
                await asyncio.to_thread(wait_until, lambda: nothing_is_out(pool))

        run(main())


@pytest.mark.parametrize("restart", [False, True])
def test_a_manager_is_killed(run: Run[Any], restart: bool) -> None:
    with manager_in(restart=restart) as manager:
        pool: Any = manager.create_pool(Tool, max_size=1)

        async def main() -> None:
            async with pool.aio.lease() as tool:
                waiters = [asyncio.create_task(pool.aio.acquire(None)) for _ in range(5)]
                call = asyncio.create_task(tool.nap(20))
                await waiting(pool, 5)
                process_of(manager).kill()
                outcomes = await asyncio.gather(*waiters, call, return_exceptions=True)
                assert all(isinstance(each, (ManagerLost, LeaseLost)) for each in outcomes), outcomes
            if restart:
                await pool.aio.apply(Tool.pid)
                await asyncio.gather(*(pool.aio.apply(Tool.pid) for _ in range(5)))
            else:
                with pytest.raises(ManagerLost):
                    await pool.aio.acquire()

        with promptly():
            run(main())
        if restart:
            wait_until(lambda: nothing_is_out(pool))


async def replaced(pool: ObjectPool[Any]) -> None:
    """Kill the manager, and wait for the next one while the loop stands still."""
    before = pool.apply(Tool.pid)
    psutil.Process(before).kill()

    def is_new() -> bool:
        with suppress(PoolError):
            return pool.apply(Tool.pid) != before
        return False

    wait_until(is_new)


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
def test_a_loop_stands_still_while_the_manager_is_replaced(run: Run[Any], address: Any) -> None:
    """It has not seen that its connections have ended: what it sends then was read by none."""
    with manager_in(restart=True, address=address, authkey=b"the right key, and long") as manager:
        pool: Any = manager.create_pool(Tool, max_size=8)

        async def main() -> None:
            await asyncio.gather(*(pool.aio.apply(Tool.nap, 0.05) for _ in range(8)))
            await replaced(pool)
            assert (await pool.aio.stats()).leased == 0
            await replaced(pool)
            assert await pool.aio.apply(Tool.echo, 1) == 1

        run(main())
        wait_until(lambda: nothing_is_out(pool))


def test_a_manager_is_shut_down(run: Run[Any]) -> None:
    with manager_in() as manager:
        pool: Any = manager.create_pool(Tool, max_size=1)

        async def main() -> None:
            async with pool.aio.lease():
                waiter = asyncio.create_task(pool.aio.acquire(None))
                await waiting(pool, 1)
                await asyncio.to_thread(manager.shutdown)
                with pytest.raises((PoolClosed, ManagerLost)):
                    await waiter
                with pytest.raises(PoolClosed):
                    await pool.aio.acquire()

        run(main())


def test_a_pool_is_closed(tools: Any, run: Run[Any]) -> None:
    async def main() -> None:
        async with tools.aio.lease(), tools.aio.lease():
            waiter = asyncio.create_task(tools.aio.acquire(None))
            await waiting(tools, 1)
            await tools.aio.close(0)
            for attempt in (waiter, tools.aio.acquire()):
                with pytest.raises(PoolClosed):
                    await attempt

    run(main())


def test_an_objects_process_dies_or_hangs(manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(Tool, max_size=1, isolation="process", call_timeout=0.5)

    async def main() -> None:
        async with pool.aio.lease() as tool:
            call, pid = asyncio.create_task(tool.nap(0.4)), await tool.pid()
            psutil.Process(pid).kill()
            with pytest.raises(LeaseLost):
                await tool.echo(1)
            await asyncio.gather(call, return_exceptions=True)
        async with pool.aio.lease() as tool:
            with pytest.raises(CallTimeout):
                await tool.nap(20)
        async with pool.aio.lease() as tool:
            assert await tool.echo(1) == 1

    run(main())
    wait_until(lambda: nothing_is_out(pool))


@pytest.mark.parametrize("way", ["sharing", "keeping"])
def test_the_bound_of_a_call_holds_for_what_goes_before_and_after(
    manager: PoolManager, run: Run[Any], way: str
) -> None:
    """The object's process stands still when both sides are to agree on memory, or it is to keep a result."""
    pool: Any = manager.create_pool(Same, max_size=1, isolation="process", call_timeout=0.3)

    async def main() -> None:
        async with pool.aio.lease() as thing:
            process = psutil.Process(await thing.pid())
            if way == "sharing":
                stop(process)
            with pytest.raises(CallTimeout):
                await (thing.is_same(bytearray(2**25)) if way == "sharing" else thing.stopping())
        async with pool.aio.lease() as thing:
            assert await thing.pid() != process.pid

    with promptly():
        run(main())
    wait_until(lambda: nothing_is_out(pool))


@pytest.mark.bounds(silence=0.5)
@pytest.mark.everywhere
def test_a_call_is_silent_for_long(manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(Tool, max_size=1)

    async def main() -> None:
        async with pool.aio.lease() as tool:
            waiter = asyncio.create_task(pool.aio.acquire())
            assert await tool.nap(1.2) == 1.2  # more than two silences
        await pool.aio.release(await waiter)

    run(main())
    wait_until(lambda: nothing_is_out(pool))


def test_no_thread_can_be_started(tools: Any, run: Run[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(connecting, "start_new_thread", refuse)
            attempts = [asyncio.create_task(tools.aio.acquire()) for _ in range(3)]
            attempts += [asyncio.create_task(tools.aio.stats()) for _ in range(3)]
            for each in await asyncio.gather(*attempts, return_exceptions=True):
                assert isinstance(each, RuntimeError)
        await tools.aio.apply(Tool.echo, 1)

    with promptly():
        run(main())
    wait_until(lambda: nothing_is_out(tools))


def test_no_descriptor_is_free(tools: Any, run: Run[Any]) -> None:
    async def main() -> None:
        await tools.aio.stats()  # there is one connection for calls
        tasks = []
        with no_descriptors(), pytest.raises(ManagerLost):
            await tools.aio.acquire()
        async with tools.aio.lease() as tool:
            with no_descriptors():
                assert await tool.echo(1) == 1
                tasks = [asyncio.create_task(tool.echo(2)), asyncio.create_task(tools.aio.stats())]
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert any(not isinstance(each, BaseException) for each in outcomes)
            assert await tool.echo(3) == 3

    run(main())
    wait_until(lambda: nothing_is_out(tools))


def test_a_shared_manager_is_started_anew_by_acquires(
    run: Run[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(tmp_path / "r"))
    with PoolManager.shared("aio", linger=0.0) as manager:
        pool: Any = mppool.shared_pool("aio", Tool, max_size=2, linger=0.0)
        try:

            async def main() -> None:
                for _ in range(2):
                    threads = my_threads()
                    pids = await asyncio.gather(*(pool.aio.apply(Tool.pid) for _ in range(50)))
                    assert my_threads() < threads + 10
                    process = psutil.Process(pids[0])
                    process.kill()
                    wait_until(lambda process=process: not lives(process))  # type: ignore[misc]

            run(main())
        finally:
            manager.shutdown()


# -- values, and map ----------------------------------------------------------------------------------


def test_values_are_lent(manager: PoolManager, run: Run[Any]) -> None:
    pool: Any = manager.create_pool(each=[10, 20])

    async def half(value: int) -> float:
        await asyncio.sleep(0)
        return value / 2

    async def main() -> None:
        async with pool.aio.lease() as one:
            other = await pool.aio.acquire()
            assert sorted([one, other]) == [10, 20]
            with pytest.raises(PoolTimeout):
                await pool.aio.acquire(0)
            await pool.aio.release(other)
            with pytest.raises(LeaseError):
                await pool.aio.release(other)
        assert await pool.aio.apply(half) in (5, 10)
        assert await pool.aio.apply(str, timeout=1) in ("10", "20")
        found = [each async for each in pool.aio.map(lambda value, item: (value > 0, item), range(5))]
        assert found == [(True, each) for each in range(5)]
        held = await pool.aio.acquire()
        waiter = asyncio.create_task(pool.aio.acquire())
        await cancelled(waiter)
        await pool.aio.release(held)

    run(main())
    wait_until(lambda: nothing_is_out(pool))


def ratio(_: object, number: int) -> float:
    return 1 / number


def test_a_map_brings_results_in_order(tools: Any, run: Run[Any]) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in (4, 2, 1):
            await asyncio.sleep(0)
            yield number

    async def main() -> None:
        aio = tools.aio
        assert [each async for each in aio.map(ratio, (4, 2, 1))] == [0.25, 0.5, 1]
        assert [each async for each in aio.map(ratio, numbers())] == [0.25, 0.5, 1]
        assert [each async for each in aio.map(ratio, ())] == []
        results = aio.map(ratio, (2, 4, 0, 1))
        assert [await anext(results), await anext(results)] == [0.5, 0.25]
        with pytest.raises(ZeroDivisionError):
            await anext(results)

    run(main())
    wait_until(lambda: nothing_is_out(tools))


def test_a_map_reads_no_more_than_it_says_and_ends_when_closed(tools: Any, run: Run[Any]) -> None:
    read: list[int] = []

    def without_end() -> Iterator[int]:
        number = 1
        while True:
            read.append(number)
            yield number
            number += 1

    async def main() -> None:
        results = tools.aio.map(ratio, without_end())
        for number in range(1, 6):
            assert await anext(results) == 1 / number
            assert len(read) <= number + 4
        await results.aclose()
        await waiting(tools, 0)
        slow = tools.aio.map(Tool.nap, (0.0, 20, 20, 20), timeout=0.3)
        assert await anext(slow) == 0.0
        with pytest.raises(PoolTimeout):
            await anext(slow)

    run(main())


def test_results_of_a_map_need_not_wait_for_input(tools: Any, run: Run[Any]) -> None:
    """Each further item comes when the result before it was there; then one that is an error."""

    async def main() -> None:
        items: asyncio.Queue[int] = asyncio.Queue()

        async def input_() -> AsyncIterator[int]:
            for _ in range(3):
                yield await items.get()
            raise KeyError("of the input")

        results = tools.aio.map(ratio, input_())
        for number in (1, 2, 4):
            items.put_nowait(number)
            assert await asyncio.wait_for(anext(results), 10) == 1 / number
        with pytest.raises(KeyError, match="of the input"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    run(main())
    wait_until(lambda: nothing_is_out(tools))
