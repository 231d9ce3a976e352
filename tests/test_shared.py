"""Pools by name: the first program that comes starts the manager, the last one out ends it."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import lives
from helpers import ROOT, RunPython, wait_until

import mppool
from mppool import _system

THINGS = """
import os, sys, time

def note(what):
    with open(os.environ["DIARY"], "a") as diary:
        diary.write(f"{what} {os.getpid()}\\n")

class Thing:
    def __init__(self):
        note("made")
    def ask(self, expression):
        return eval(expression)
    def nap(self, seconds):
        note("begun")
        time.sleep(seconds)

def close(thing):
    note("closed")
"""

COMER = """
import multiprocessing, os, pickle, resource, signal, sys, time
import mppool
from mppool import PoolManager, shared_pool
from things import Thing, close

def come(linger=0.2, **options):
    global pool
    pool = shared_pool("things", Thing, close=close, linger=linger, **{"max_size": 2, **options})
    return manager()

def manager():
    return ask("os.getsid(0)")

def ask(expression):
    with pool.lease() as thing:
        return thing.ask(expression)

def nap(seconds):
    with pool.lease() as thing:
        thing.nap(seconds)
"""

ASKED = """
if __name__ == "__main__":
    for line in sys.stdin:
        try:
            print(repr(eval(line)), flush=True)
        except Exception as error:
            print(f"!{type(error).__name__}: {error}".replace("\\n", " "), flush=True)
"""


class Comer:
    """A program that evaluates what it is asked, a line at a time."""

    def __init__(self, directory: Path, name: str = "comer", text: str = "", **more: Any) -> None:
        self.script, self._errors = directory / f"{name}.py", directory / f"{name}.errors"
        self.script.write_text(COMER + text + ASKED)
        with self._errors.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(self.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                **more,
            )

    def begin(self, expression: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip()
        assert line, self.errors()
        return line if line.startswith("!") else eval(line)

    def do(self, expression: str) -> Any:
        self.begin(expression)
        return self.result()

    def errors(self) -> str:
        return self._errors.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Its program comes to its end, where it is not killed yet."""
        with self.process:
            pass


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the managers of the test have their directories. In the end none is left there."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        monkeypatch.setenv("MPPOOL_RUNTIME_DIR", f"{directory}/p")
        yield Path(directory, "p")


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """The processes in which something was noted."""
    path = tmp_path / "diary"
    path.touch()
    monkeypatch.setenv("DIARY", str(path))
    (tmp_path / "things.py").write_text(THINGS)

    def read(what: str) -> list[int]:
        lines = [line.split() for line in path.read_text().splitlines()]
        return [int(pid) for verb, pid in lines if verb == what]

    return read


@pytest.fixture
def comer(
    tmp_path: Path, place: Path, diary: Callable[[str], list[int]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Comer]]:
    """Start a program. After the last one has ended nothing is left of a manager that lingers shortly."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    comers: list[Comer] = []

    def start(*args: Any, **more: Any) -> Comer:
        comers.append(Comer(tmp_path, *args, **more))
        return comers[-1]

    try:
        yield start
    finally:
        for each in comers:
            each.kill()
            each.end()
    wait_until(lambda: not is_there(place), timeout=30, message="the last one is out")
    wait_until(lambda: not any(map(psutil.pid_exists, diary("made"))))


def is_there(place: Path) -> list[Path]:
    return list(place.iterdir()) if place.exists() else []


# -- one for all ----------------------------------------------------------------------------------------


def test_the_first_one_starts_it_and_the_others_find_it(
    comer: Callable[..., Comer], diary: Callable[[str], list[int]]
) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    assert second.do("come()") == manager
    first.end()
    assert second.do("manager()") == manager
    second.end()
    wait_until(lambda: diary("closed") == diary("made") == [manager])


def test_twenty_at_once(comer: Callable[..., Comer], diary: Callable[[str], list[int]]) -> None:
    comers = [comer(f"comer-{number}") for number in range(20)]
    for each in comers:
        each.begin("come(), nap(0.01)")
    managers = {each.result()[0] for each in comers}
    assert len(managers) == 1
    assert {*diary("made")} == managers
    assert len(diary("made")) <= 2
    assert not "".join(each.errors() for each in comers)


def test_it_is_a_fresh_interpreter_in_a_session_of_its_own(
    comer: Callable[..., Comer], place: Path, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    first = comer(env={**os.environ, "SPOKEN": "yes"}, cwd=tmp_path / "sub")
    first.do("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])")
    first.do("sys.path.append('/added')")
    manager = psutil.Process(first.do("come()"))
    assert os.getsid(manager.pid) == os.getpgid(manager.pid) == manager.pid
    assert first.process.pid not in [each.pid for each in manager.parents()]
    assert first.do("ask('os.getcwd()')") == str(tmp_path / "sub")
    assert first.do("ask('os.environ[\"SPOKEN\"]')") == "yes"
    assert first.do("ask('sys.path') == sys.path")
    assert first.do("ask('os.readlink(\"/proc/self/fd/0\")')") == "/dev/null"
    first.do("ask('print(\"here\")')")
    first.do("ask('sys.stderr.write(\"and here\")')")
    wait_until(lambda: (place / "shared-things" / "log").read_text() == "here\nand here")
    manager.terminate()
    wait_until(lambda: not lives(manager))


def test_the_log_is_bounded(comer: Callable[..., Comer], place: Path) -> None:
    first = comer()
    first.do("come()")
    first.do("ask('print(\"x\" * (3 << 20))')")
    log = place / "shared-things" / "log"
    wait_until(lambda: log.stat().st_size == 0)
    assert log.with_name("log.old").stat().st_size == 1 << 20
    first.do("ask('print(\"on\")')")
    assert log.read_text() == "on\n"


# -- who comes and goes ---------------------------------------------------------------------------------


def test_the_first_one_is_killed(comer: Callable[..., Comer]) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    second.do("come()")
    first.kill()
    assert second.do("manager()") == manager


def test_the_first_one_is_killed_while_it_starts_the_manager(
    comer: Callable[..., Comer], place: Path
) -> None:
    first, second = comer(), comer()
    first.begin("come()")
    wait_until((place / "shared-things").exists)
    first.kill()
    assert isinstance(second.do("come()"), int)


def test_ctrl_c_and_the_end_of_the_terminal_are_for_the_program(
    comer: Callable[..., Comer], tmp_path: Path
) -> None:
    second = comer()
    told = tmp_path / "told"
    script = tmp_path / "first.py"
    script.write_text(COMER + f"\nopen({str(told)!r}, 'w').write(str(come(linger=20)))\ntime.sleep(1000)")
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, str(script)])
    wait_until(lambda: told.exists() and told.read_text())
    assert second.do("come()") == int(told.read_text())
    os.write(terminal, b"\x03")
    os.waitpid(pid, 0)
    os.close(terminal)
    assert second.do("manager()") == int(told.read_text())
    second.do("PoolManager.shared('things').shutdown()")


def test_the_last_one_is_killed(comer: Callable[..., Comer], diary: Callable[[str], list[int]]) -> None:
    first = comer()
    manager = first.do("come(isolation='process', min_size=2)")
    wait_until(lambda: len(diary("made")) == 2)
    first.kill()
    wait_until(lambda: len(diary("closed")) == 2)
    assert {*diary("closed")} == {*diary("made")}
    wait_until(lambda: not psutil.pid_exists(manager))


def test_it_lingers_for_as_long_as_its_users_asked(comer: Callable[..., Comer], place: Path) -> None:
    first, second, third = comer(), comer(), comer()
    manager = first.do("come(linger=1000)")
    second.do("come(linger=0)")
    second.end()
    first.end()
    assert third.do("come(linger=0)") == manager
    third.end()
    wait_until(lambda: not is_there(place))


def test_without_an_end_it_stays_until_it_is_told(comer: Callable[..., Comer], place: Path) -> None:
    first, second = comer(), comer()
    manager = first.do("come(linger=None)")
    first.end()
    assert second.do("come()") == manager
    second.do("PoolManager.shared('things').shutdown()")
    wait_until(lambda: not psutil.pid_exists(manager) and not is_there(place))


def test_who_comes_in_the_moment_of_the_end_gets_a_new_one(comer: Callable[..., Comer]) -> None:
    program = """
def come_and_go(times):
    managers = []
    for _ in range(times):
        with PoolManager.shared("things", linger=0.0) as shared:
            with shared.create_pool(Thing, name="things", exist_ok=True).lease() as thing:
                managers.append(thing.ask("os.getsid(0)"))
    return managers
"""
    comers = [comer(f"comer-{number}", program) for number in range(2)]
    for each in comers:
        each.begin("come_and_go(8)")
    managers = [each.result() for each in comers]
    assert all(isinstance(each, list) for each in managers), managers
    assert len({*managers[0], *managers[1]}) > 2


def test_a_forked_child_is_a_user_once_it_uses_it(comer: Callable[..., Comer]) -> None:
    program = """
def fork():
    ours, theirs = multiprocessing.Pipe()
    if os.fork():
        return ours.recv()
    theirs.send(manager())
    os.read(0, 1)  # to the end of the test
    os._exit(0)
"""
    first, second = comer("first", program), comer()
    manager = first.do("come(linger=0)")
    assert first.do("fork()") == manager
    first.kill()  # not its child, which has its standard input
    assert second.do("come(linger=0)") == manager


def test_a_program_that_is_replaced_has_ended(comer: Callable[..., Comer], place: Path) -> None:
    first = comer()
    first.do("come()")
    first.begin("os.execv('/bin/sleep', ['sleep', '1000'])")
    wait_until(lambda: not is_there(place))


def test_a_child_that_is_forked_without_a_word_to_python_is_no_user(
    comer: Callable[..., Comer], place: Path
) -> None:
    program = """
import ctypes
def fork():
    return ctypes.PyDLL(None).fork() or time.sleep(1000)
"""
    first = comer("first", program)
    first.do("come()")
    child = first.do("fork()")
    first.kill()
    wait_until(lambda: not is_there(place))
    os.kill(child, signal.SIGKILL)


def test_a_daemonic_process_may_be_the_first(comer: Callable[..., Comer]) -> None:
    program = """
def in_a_daemon(pipe):
    pipe.send(come())

def daemon():
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=in_a_daemon, args=(theirs,), daemon=True)
    child.start()
    told = ours.recv()
    child.join()
    return told
"""
    assert isinstance(comer("first", program).do("daemon()"), int)


# -- it dies --------------------------------------------------------------------------------------------


def test_the_manager_is_killed_under_calls(
    comer: Callable[..., Comer], diary: Callable[[str], list[int]]
) -> None:
    comers = [comer(f"comer-{number}") for number in range(5)]
    (manager,) = {each.do("come()") for each in comers}
    for each in comers:
        each.begin("nap(1000)")
    wait_until(lambda: len(diary("begun")) == 2)
    wait_until(lambda: len(psutil.Process(manager).net_connections("unix")) > 5)
    os.kill(manager, signal.SIGKILL)
    assert {each.result().partition(":")[0] for each in comers} == {"!ManagerLost"}
    for each in comers:
        each.begin("manager()")
    (new,) = {each.result() for each in comers}
    assert new != manager
    assert {*diary("made")} == {manager, new}


def test_a_handle_of_before_is_lost(comer: Callable[..., Comer]) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    second.do("come()")
    first.do("globals().update(thing=pool.acquire())")
    os.kill(manager, signal.SIGKILL)
    assert first.do("thing.ask('1')").startswith("!ManagerLost: ")
    new = second.do("manager()")
    assert first.do("thing.ask('1')").startswith("!LeaseLost: ")
    assert first.do("pool.release(thing), manager()") == (None, new)


def test_a_pickled_pool_brings_all_that_is_needed(comer: Callable[..., Comer]) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    pickled = first.do("pickle.dumps(pool)")
    first.end()
    wait_until(lambda: not psutil.pid_exists(manager))
    assert second.do(f"globals().update(pool=pickle.loads({pickled!r}))") is None
    assert isinstance(second.do("manager()"), int)
    assert second.do("come()") == second.do("manager()")


# -- how it is made -------------------------------------------------------------------------------------


def test_a_pool_that_was_found_brings_all_that_is_needed(comer: Callable[..., Comer]) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    second.do("globals().update(pool=PoolManager.shared('things', linger=0).get_pool('things'))")
    os.kill(manager, signal.SIGKILL)
    assert second.do("manager()") not in (manager, None)


def test_another_recipe_is_refused(comer: Callable[..., Comer]) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    said = second.do("come(max_size=3)")
    assert (
        said == "!ValueError: name='things': a pool of this name exists already, and its max_size is 2, not 3"
    )
    assert second.do("come(isolation='none')") == manager
    assert second.do("shared_pool('things', 'things:Thing', linger=0) == pool")


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_factory_of_the_main_file_is_found(comer: Callable[..., Comer], isolation: str) -> None:
    program = """
def make():
    return Thing()

def make_it(isolation):
    global pool
    pool = shared_pool("mine", make, linger=0.2, isolation=isolation, check=is_fine)
    return manager()

def is_fine(thing):
    return True
"""
    first, second = comer("first", program), comer("second", program)
    assert isinstance(first.do(f"make_it({isolation!r})"), int)
    assert second.do(f"make_it({isolation!r})") == (
        f"!ValueError: name='mine': a pool of this name exists already, and its __main__ is "
        f"'{first.script}', not '{second.script}'"
    )
    os.kill(first.do("manager()"), signal.SIGKILL)
    assert isinstance(second.do(f"make_it({isolation!r})"), int)
    assert "not '" in first.do("manager()")


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_module_may_have_its_own_pool(comer: Callable[..., Comer], tmp_path: Path, isolation: str) -> None:
    """It makes it when it is imported, in the manager, too."""
    text = f"""
from things import Thing
import mppool
def make():
    return Thing()
pool = mppool.shared_pool("things", make, linger=0.2, isolation={isolation!r})
"""
    (tmp_path / "app.py").write_text(text)
    first, second = comer("first", "from app import pool"), comer("second", "from app import pool")
    assert first.do("manager()") == second.do("manager()")
    # What an object asks of a pool does not make its manager wait for it.
    assert first.do("ask('__import__(\"app\").pool.stats().leased')") == 1


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("shared_pool('x', lambda: 1, linger=0)", "!TypeError: factory .* does not pickle .* can import"),
        ("shared_pool('x', 'no.such:thing', linger=0)", "!FactoryError: .*'no.such:thing' leads nowhere"),
        ("shared_pool('x', Thing, linger=0, max_sise=1)", "!TypeError: .*did you mean 'max_size'"),
        ("shared_pool('x', linger=0)", "!TypeError: factory must be callable"),
        ("shared_pool('a/b', Thing)", "!ValueError: name='a/b': the name of a manager is of letters"),
        ("shared_pool('', Thing)", "!ValueError: name=''"),
        ("shared_pool('ä', Thing)", "!ValueError: name='ä'"),
        ("shared_pool(None, Thing)", "!TypeError: name must be a string"),
        ("shared_pool('x' * 100, Thing)", "!ValueError: .* bytes too long for the path of a socket"),
        ("shared_pool('x', Thing, linger=-1)", "!ValueError: linger must be 0 or more seconds"),
        ("shared_pool('x', Thing, linger='1')", "!TypeError: linger must be a number of seconds"),
    ],
)
def test_what_cannot_be_is_refused(comer: Callable[..., Comer], made: str, said: str) -> None:
    first = comer()
    first.do("come()")
    first.do("str(PoolManager.shared('x', linger=0.2))")
    assert re.match(said, first.do(made))


def test_what_was_typed_in_is_refused(comer: Callable[..., Comer], run_python: RunPython) -> None:
    comer().do("come()")
    code = "import mppool\ndef make(): pass\nmppool.shared_pool('things', make, linger=0)"
    assert "a notebook or was typed in" in run_python("-c", code, status=1).stderr


def test_a_closed_pool_is_made_anew(comer: Callable[..., Comer], diary: Callable[[str], list[int]]) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    second.do("come()")
    first.do("pool.close()")
    assert diary("closed") == [manager]
    assert second.do("manager()") == "!PoolClosed: pool 'things' is closed"
    assert second.do("come()") == manager
    assert first.do("manager()").startswith("!PoolClosed")


def test_the_end_of_a_block_ends_the_use(comer: Callable[..., Comer], place: Path) -> None:
    program = """
def within():
    with PoolManager.shared("things", linger=0) as shared:
        return list(shared.pools())
"""
    first = comer("first", program)
    assert first.do("within()") == []
    wait_until(lambda: not is_there(place))
    assert isinstance(first.do("come()"), int)


# -- where it is ----------------------------------------------------------------------------------------


def refused(first: Comer) -> str:
    said = first.do("come()")
    assert said.startswith("!ManagerLost: ")
    return str(said)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_place_of_another_user_is_refused(comer: Callable[..., Comer], place: Path) -> None:
    first = comer()
    place.mkdir(0o700)
    os.chown(place, 12345, 12345)
    assert "belongs to uid 12345, and this process runs as user 'root'" in refused(first)
    os.chown(place, 0, 0)
    (place / "shared-things").mkdir(0o700)
    os.chown(place / "shared-things", 12345, 12345)
    assert "belongs to uid 12345" in refused(first)
    (place / "shared-things").rmdir()


def test_a_directory_that_is_open_to_others_is_refused(comer: Callable[..., Comer], place: Path) -> None:
    first = comer()
    (place / "shared-things").mkdir(0o700, parents=True)
    place.chmod(0o750)
    assert "is open to other users (mode 750)" in refused(first)
    place.chmod(0o700)
    (place / "shared-things").chmod(0o755)
    assert "is open to other users (mode 755)" in refused(first)
    (place / "shared-things").rmdir()
    (place / "shared-things").touch(0o600)
    assert "Not a directory" in refused(first)
    (place / "shared-things").unlink()


def test_what_a_killed_manager_left_is_taken_over(comer: Callable[..., Comer], place: Path) -> None:
    directory = place / "shared-things"
    directory.mkdir(0o700, parents=True)
    place.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "socket"))
    for name in ("key", "draft-key"):
        (directory / name).write_bytes(b"half")
        (directory / name).chmod(0o600)
    assert isinstance(comer().do("come()"), int)


def test_a_full_disk_is_told(comer: Callable[..., Comer]) -> None:
    first = comer()
    first.do("resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))")
    assert "no manager 'things' can be started: [Errno 27] File too large" in refused(first)
    first.do("resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))")
    assert isinstance(first.do("come()"), int)


def test_a_manager_that_does_not_start_leaves_its_last_words(comer: Callable[..., Comer]) -> None:
    first = comer()
    first.do("sys.path.insert(0, '/tmp/nowhere'), os.environ.update(PYTHONHOME='/nowhere')")
    said = refused(first)
    assert "no manager 'things' can be started: it ended while it started; its last words: " in said
    assert "Fatal Python error" in said
    first.do("os.environ.pop('PYTHONHOME')")
    assert isinstance(first.do("come()"), int)


@pytest.mark.skipif(
    _system.PORTABLE or not os.path.exists("/proc/net/unix"), reason="only Linux tells who listens"
)
def test_a_cleaner_has_come(comer: Callable[..., Comer], place: Path) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    shutil.rmtree(place)
    assert second.do("come()") == manager
    first.do("ask('print(1)')")
    wait_until(lambda: (place / "shared-things" / "log").read_text() == "1\n")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            "mppool._version.__version__ = '0.1.9'",
            f"is of mppool {mppool.__version__}, and this process has mppool 0.1.9",
        ),
        ("sys.version_info = (3, 1, 4)", "and this process Python 3.1"),
    ],
)
def test_another_version_is_told(comer: Callable[..., Comer], other: str, said: str) -> None:
    first, second = comer(), comer("second", f"{other}\n")
    manager = first.do("come()")
    assert said in refused(second)
    assert first.do("manager()") == manager


def test_who_uses_a_pool_loads_nothing_that_starts_a_manager(run_python: RunPython) -> None:
    heavy = {"tempfile", "subprocess", "shutil", "runpy", "multiprocessing.spawn", "psutil"}
    assert run_python("-c", f"import sys, mppool; print({heavy} & {{*sys.modules}})").stdout == "set()\n"
