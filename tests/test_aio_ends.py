"""Programs with event loops end in all ways there are: what they had comes back, without noise."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import RunPython, wait_until

from mppool import ObjectPool

PROLOGUE = """\
import asyncio, gc, logging, os, pickle, sys, threading, time, warnings
from functools import partial

import psutil

POOL, KIND = sys.argv[1:]
if KIND == "uvloop":
    from uvloop import new_event_loop as new_loop, run
else:
    from asyncio import new_event_loop as new_loop, run
with open(POOL, "rb") as file:
    pool = pickle.load(file)
aio = pool.aio
logging.getLogger("asyncio").setLevel(logging.ERROR)  # a busy machine is slow
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # has threads

async def use(number=3):
    async with aio.lease() as tool:
        assert await tool.echo(number) == number

async def acquire():
    return await aio.acquire()

async def release(handle):
    await aio.release(handle)

async def hold(taken):
    async with aio.lease() as tool:
        assert await tool.echo(1) == 1
        taken.set()
        await asyncio.Event().wait()

async def call(taken):
    async with aio.lease() as tool:
        taken.set()
        await tool.nap(0.3)

async def under_way():
    "Both objects are taken, and five tasks wait."
    tasks = []
    for each in (hold, call):
        taken = asyncio.Event()
        tasks.append(asyncio.create_task(each(taken)))
        await taken.wait()
    tasks += [asyncio.create_task(use()) for _ in range(5)]
    while (await aio.stats()).waiting < 5:
        await asyncio.sleep(0.005)
    return tasks

def await_all_home():
    while (now := pool.stats()).leased or now.waiting:
        time.sleep(0.005)

"""

ENDS = {
    "run ends with tasks under way": "run(under_way())",
    "run ends with an error": """
async def main():
    tasks = await under_way()
    sys.exit()
run(main())
""",
    "a loop is closed with tasks under way": """
loop = new_loop()
tasks = loop.run_until_complete(under_way())
loop.close()
await_all_home()
os._exit(0)  # else Python complains of the tasks
""",
    "exit in a block": """
async def main():
    async with aio.lease() as tool:
        await tool.echo(1)
        sys.exit()
run(main())
""",
    "os._exit": """
async def main():
    await under_way()
    os._exit(0)
run(main())
""",
    "exec": """
async def main():
    await under_way()
    os.execv("/bin/sleep", ["sleep", "0"])
run(main())
""",
    "a loop that runs twice": """
loop = new_loop()
for number in range(2):
    handle = loop.run_until_complete(acquire())
    assert loop.run_until_complete(handle.echo(number)) == number
    loop.run_until_complete(release(handle))
loop.close()
""",
    "loops in threads beside threads": """
async def main():
    for number in range(20):
        await use(number)

def sync():
    for number in range(20):
        with pool.lease() as tool:
            assert tool.echo(number) == number

threads = [threading.Thread(target=sync) for _ in range(2)]
threads += [threading.Thread(target=lambda: run(main())) for _ in range(3)]
for each in threads:
    each.start()
for each in threads:
    each.join()
""",
    "loops in the workers of an executor": """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def work(pool, number):
    async def main():
        async with pool.aio.lease() as tool:
            return await tool.echo(number)
    return run(main())

with ProcessPoolExecutor(2, get_context("fork")) as executor:
    assert list(executor.map(partial(work, pool), range(10))) == list(range(10))
""",
    "loops in spawned workers of an executor": """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

async def work(pool, number):
    async with pool.aio.lease() as tool:
        return await tool.echo(number)

def work_in_loop(pool, number):
    return run(work(pool, number))

if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn")) as executor:
        assert list(executor.map(partial(work_in_loop, pool), range(10))) == list(range(10))
""",
    "a fork within a loop that runs": """
from mppool import LeaseError

def be_child(handle):
    try:
        gc.collect()
        with pool.lease() as own:
            assert own.echo(2) == 2
        run(use())
        try:
            run(release(handle))
        except LeaseError:
            os._exit(7)
    finally:
        os._exit(1)

async def main():
    await use()
    async with aio.lease() as tool:
        assert await tool.echo(1) == 1
        if not (pid := os.fork()):
            be_child(tool)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert await tool.echo(4) == 4
    await use()
run(main())
""",
    "a fork beside a loop": """
loop = new_loop()
handle = loop.run_until_complete(acquire())
assert loop.run_until_complete(handle.echo(1)) == 1  # no thread need wake the loop for a connection again:
pid = os.fork()
if not pid:
    run(use())
    loop.close()  # takes that from the parent, with whom it shares the selector
    del handle, loop
    gc.collect()
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
assert loop.run_until_complete(handle.echo(4)) == 4
loop.run_until_complete(release(handle))
loop.run_until_complete(use())
loop.close()
""",
    "nothing is left in the process": """
async def main():
    tasks = await under_way()
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

def have():
    gc.collect()
    me = psutil.Process()
    return me.num_threads(), me.num_fds()

await_all_home()
run(use())
before = have()
for _ in range(3):
    run(main())
    await_all_home()
while any(now > was for now, was in zip(have(), before)):
    time.sleep(0.005)
""",
}

FORGOTTEN = {
    "at the end of what the loop runs": """
async def forget():
    handle = await aio.acquire()
    await handle.echo(1)
loop = new_loop()
loop.run_until_complete(forget())
await_all_home()
loop.close()
""",
    "while the loop stands still": """
loop = new_loop()
handle = loop.run_until_complete(acquire())
del handle
await_all_home()
loop.run_until_complete(use())
loop.close()
""",
    "by another thread while the loop runs": """
async def main():
    held = [await aio.acquire()]
    await asyncio.to_thread(held.clear)
    while (await aio.stats()).leased:
        await asyncio.sleep(0.005)
run(main())
""",
    "until the end of the process": """
async def main():
    global held
    held = await aio.acquire()
    await held.echo(1)
run(main())
""",
}

Programs = pytest.mark.parametrize("kind", ["asyncio", "uvloop"])


def run_program(
    run_python: RunPython, directory: Path, pool: ObjectPool[Any], text: str, kind: str, status: int = 0
) -> str:
    """What it says on stderr."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    (directory / "pool").write_bytes(pickle.dumps(pool))
    (directory / "program.py").write_text(PROLOGUE + text)
    return run_python("-X", "dev", directory / "program.py", "pool", kind, status=status).stderr


def all_home(pool: ObjectPool[Any]) -> bool:
    now = pool.stats()
    return (now.leased, now.waiting, now.size) == (0, 0, now.idle)


@Programs
@pytest.mark.parametrize("end", ENDS)
def test_what_a_program_had_comes_back_without_noise(
    run_python: RunPython, tmp_path: Path, pool: ObjectPool[Any], end: str, kind: str
) -> None:
    assert not run_program(run_python, tmp_path, pool, ENDS[end], kind)
    wait_until(lambda: all_home(pool))


@Programs
def test_what_a_killed_program_had_comes_back(
    run_python: RunPython, tmp_path: Path, pool: ObjectPool[Any], kind: str
) -> None:
    text = "async def main():\n    await under_way()\n    os.kill(os.getpid(), 9)\nrun(main())\n"
    run_program(run_python, tmp_path, pool, text, kind, status=-9)
    wait_until(lambda: all_home(pool))
    assert pool.stats().reclaimed


@Programs
@pytest.mark.parametrize("when", FORGOTTEN)
def test_a_handle_is_forgotten(
    run_python: RunPython, tmp_path: Path, pool: ObjectPool[Any], when: str, kind: str
) -> None:
    errors = run_program(run_python, tmp_path, pool, FORGOTTEN[when], kind)
    assert len(re.findall("ResourceWarning: pool .*: a handle was never released", errors)) == 1, errors
    assert "Traceback" not in errors
    assert "destroyed" not in errors
    wait_until(lambda: all_home(pool))
