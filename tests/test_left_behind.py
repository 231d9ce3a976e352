"""However a program ends: no process, no socket and no directory stay, and every object is closed once."""

from __future__ import annotations

import signal
from functools import partial
from itertools import product
from pathlib import Path

import psutil
import pytest
from actors import START_METHODS, Diary, Witness, home_of, lives, print_to_nobody, process_of
from helpers import PROMPT, Beside, wait_until
from programs import Program, Terminal

from mppool import ObjectPool, PoolManager

# -- the creating process is killed ---------------------------------------------------------------

HELD_AND_IDLE = """
if __name__ == "__main__":
    context = multiprocessing.get_context(START_METHOD)
    manager = PoolManager(ctx=context)
    manager.start()
    pool = manager.create_pool(make_witness, close=Witness.close_slowly, min_size=3, max_size=3)
    held = pool.acquire()
    child = pool.apply(Witness.start_a_child)
    siblings = []
    if len(sys.argv) > 3:
        sibling = context.Process(target=sleep_long)
        sibling.start()
        siblings = [sibling.pid, subprocess.Popen(["sleep", "1000"], close_fds=False).pid]
    wait_until(lambda: pool.stats().size == 3)
    tell(manager, siblings=siblings)
    sleep_long()
"""


# Siblings inherit what tells of the creator's end: how much of it depends on the start method.
@pytest.mark.parametrize(
    ("start_method", "how", "sibling"),
    [
        *((method, signal.SIGKILL, True) for method in START_METHODS),
        *((method, signal.SIGTERM, False) for method in START_METHODS),
        ("fork", signal.SIGKILL, False),
        ("fork", signal.SIGTERM, True),
    ],
)
def test_a_killed_creator_leaves_nothing(
    tmp_path: Path, start_method: str, how: signal.Signals, sibling: bool
) -> None:
    text = HELD_AND_IDLE.replace("len(sys.argv) > 3", str(sibling))
    with Program(tmp_path, text, start_method) as program:
        program.read_facts()
        assert program.family, "an object in the manager has a child"
        program.process.send_signal(how)
        wait_until(program.nothing_is_left, PROMPT)
        assert len(program.diary.made()) == 3
        assert program.diary.all_closed_once()
        assert all(lives(psutil.Process(pid)) for pid in program.facts["siblings"])


# -- orderly ends -------------------------------------------------------------------------------------

IN_A_BLOCK = """
    with PoolManager(ctx=context) as manager:
        pool = prepare(manager)
"""
STARTED = """
    manager = PoolManager(ctx=context)
    manager.start()
    pool = prepare(manager)
"""
A_WORKER_LEAVES = """
        worker = context.Process(target=leave_a_lease, args=(pool, LEAVE))
        worker.start()
        worker.join()
        assert worker.exitcode == 3
"""
ENDS = {
    "leaving the with block": IN_A_BLOCK,
    "shutdown": STARTED + "    manager.shutdown()\n" * 2,
    "close, and then the end": IN_A_BLOCK + "        pool.close(timeout=0.1); pool.close()",
    "the end of the interpreter": STARTED,
    "sys.exit": STARTED + "    sys.exit()",
    "sys.exit within a lease": IN_A_BLOCK
    + "        with pool.lease() as witness: witness.name(); sys.exit()",
    "sys.exit within a lease, without a with block around the manager": STARTED
    + "    with pool.lease(): sys.exit()",
    "the end while a thread holds an object": STARTED
    + """
    threading.Thread(target=lambda: (pool.acquire(), sleep_long()), daemon=True).start()
    wait_until(lambda: pool.stats().leased == 2)
""",
    "sys.exit in a worker": IN_A_BLOCK + A_WORKER_LEAVES.replace("LEAVE", "sys.exit"),
    "os._exit in a worker": IN_A_BLOCK + A_WORKER_LEAVES.replace("LEAVE", "os._exit"),
    "an executor whose worker leaves": IN_A_BLOCK
    + """
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            executor.submit(leave_a_lease, pool, sys.exit).exception()
            names = set(executor.map(partial(name_of, pool), range(20)))
""",
    "a manager in a forgotten variable": """
    def forget():
        manager = PoolManager(ctx=context)
        manager.start()
        prepare(manager)
    forget()
""",
}

ORDERLY = """
def prepare(manager):
    pool = manager.create_pool(make_witness, close=Witness.close, min_size=2, max_size=3)
    global held
    held = pool.acquire()
    held.name()
    wait_until(lambda: pool.stats().idle)
    tell(manager)
    sys.stdin.readline()
    return pool

def leave_a_lease(pool, leave):
    with pool.lease() as witness:
        witness.name()
        leave(3)

def name_of(pool, number):
    with pool.lease() as witness:
        return witness.name()

if __name__ == "__main__":
    context = multiprocessing.get_context(START_METHOD)
"""


WITH_OTHER_START_METHODS = ["shutdown", "the end of the interpreter", "an executor whose worker leaves"]


@pytest.mark.parametrize(
    ("start_method", "end"),
    [*product(["fork"], ENDS), *product(["spawn", "forkserver"], WITH_OTHER_START_METHODS)],
)
def test_an_orderly_end_closes_every_object_once(tmp_path: Path, start_method: str, end: str) -> None:
    with Program(tmp_path, ORDERLY + ENDS[end], start_method) as program:
        program.read_facts()
        program.go_on()
        assert program.process.wait(10) == 0, program.errors()
        assert program.nothing_is_left()
        assert len(program.diary.made()) in {2, 3}
        assert program.diary.all_closed_once()
        assert start_method != "fork" or "Traceback" not in program.errors()


# -- the manager is told to end -------------------------------------------------------------------------


@pytest.fixture
def witnesses(manager: PoolManager, diary: Diary) -> ObjectPool[Witness]:
    """Three, which close slowly."""
    pool = manager.create_pool(
        partial(Witness, diary.path), min_size=3, max_size=3, close=Witness.close_slowly
    )
    wait_until(lambda: pool.stats().idle == 3)
    return pool


@pytest.mark.everywhere
@pytest.mark.usefixtures("witnesses")
@pytest.mark.parametrize("times", [1, 3])
def test_sigterm_ends_a_manager_in_order(manager: PoolManager, diary: Diary, times: int) -> None:
    process, home = process_of(manager), home_of(manager)
    for _ in range(times):
        process.terminate()
        wait_until(lambda: not home.exists())  # it is about to end
    wait_until(lambda: not lives(process))
    assert diary.all_closed_once()


@pytest.mark.everywhere
def test_sigterm_while_it_shuts_down_changes_nothing(
    manager: PoolManager, diary: Diary, beside: Beside
) -> None:
    pool = manager.create_pool(
        partial(Witness, diary.path), min_size=3, max_size=3, close=Witness.close_when_told
    )
    wait_until(lambda: pool.stats().idle == 3)
    shutting = beside(manager.shutdown)
    wait_until(lambda: len(diary.names("closing")) == 3)
    process_of(manager).terminate()
    diary.path.with_name("go").touch()
    shutting.result()
    assert diary.all_closed_once()


@pytest.mark.everywhere
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_terminal_is_the_creators_business(
    manager: PoolManager, witnesses: ObjectPool[Witness], diary: Diary, signum: int
) -> None:
    process_of(manager).send_signal(signum)
    assert witnesses.stats().idle == 3
    manager.shutdown()
    assert diary.all_closed_once()


@pytest.mark.everywhere
@pytest.mark.parametrize("hung_up", [True, False])
def test_output_that_nobody_reads_does_not_hold_up_the_end(
    manager: PoolManager,
    witnesses: ObjectPool[Witness],
    diary: Diary,
    capfd: pytest.CaptureFixture[str],
    hung_up: bool,
) -> None:
    witnesses.apply(print_to_nobody, hung_up)
    process = process_of(manager)
    process.terminate()
    wait_until(lambda: not lives(process), PROMPT)
    assert diary.all_closed_once()
    assert "Error" not in capfd.readouterr().err


# -- a terminal -------------------------------------------------------------------------------------------

IN_A_TERMINAL = """
def work(pool, number):
    with pool.lease() as witness:
        return witness.nap(0.2)

def be_ready():
    if IGNORE:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    (DIARY.parent / f"ready-{os.getpid()}").touch()

if __name__ == "__main__":
    multiprocessing.set_start_method(START_METHOD)
    with PoolManager() as manager:
        pool = manager.create_pool(make_witness, close=Witness.close, max_size=2)
        with ProcessPoolExecutor(3, initializer=be_ready) as executor:
            results = executor.map(partial(work, pool), range(200))
            next(results)
            # An executor whose workers are interrupted while they start may hang by itself.
            wait_until(lambda: len(list(DIARY.parent.glob("ready-*"))) == 3)
            tell(manager)
            list(results)
"""


@pytest.mark.parametrize(
    ("ignore", "start_method"),
    [
        pytest.param(True, "fork", id="workers ignore it"),
        pytest.param(True, "spawn", id="workers ignore it, spawned"),
        pytest.param(False, "fork", id="workers are interrupted"),
    ],
)
def test_ctrl_c_ends_a_program_with_an_executor(tmp_path: Path, ignore: bool, start_method: str) -> None:
    text = IN_A_TERMINAL.replace("IGNORE", str(ignore))
    with Terminal(tmp_path, text, start_method) as program:
        program.read_facts()
        program.press_ctrl_c()
        wait_until(program.has_ended, PROMPT)
        wait_until(program.nothing_is_left, PROMPT)
        assert program.diary.all_closed_once()
        program.read()
        if ignore:
            assert program.text.count("Traceback") <= 1, program.text
            assert program.text.rstrip().endswith("KeyboardInterrupt")
            assert "mppool" not in program.text.replace(str(program.home), ""), program.text
        # Its workers may be interrupted in whatever they do; neither the manager nor a thread is.
        for sign in ("Process PoolManager", "Exception in thread mppool"):
            assert sign not in program.text, program.text


def test_a_terminal_that_is_closed_leaves_nothing(tmp_path: Path) -> None:
    with Terminal(tmp_path, IN_A_TERMINAL.replace("IGNORE", "False"), "fork") as program:
        program.read_facts()
        program.hang_up()
        wait_until(program.has_ended, PROMPT)
        wait_until(program.nothing_is_left, PROMPT)
        assert program.diary.all_closed_once()
