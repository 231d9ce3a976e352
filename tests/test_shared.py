"""Pools by name: the first program that comes starts the manager, the last one out ends it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
from actors import FORK, lives
from helpers import ROOT, RunPython, wait_until

import mppool
from mppool import _system

THINGS = """
import os, sys, time

def note(what):
    with open(os.environ["DIARY"], "a") as diary:
        diary.write(f"{what} {os.getpid()}\\n")

class Thing:
    def __init__(self, *item):
        note("made")
    def ask(self, expression):
        return eval(expression)
    def nap(self, seconds):
        note("begun")
        time.sleep(seconds)
    def meet(self, other):
        return type(other).__name__

def close(thing):
    note("closed")

def close_late(thing):
    note("closing")
    while not os.path.exists(os.environ["DIARY"] + "-go-on"):
        time.sleep(0.01)
"""

COMER = """
import multiprocessing, os, pickle, resource, signal, sys, time
import mppool
from mppool import PoolManager, shared_pool
from things import Thing, close, close_late

def come(linger=0.2, **options):
    global pool
    pool = shared_pool("things", Thing, linger=linger, **{"max_size": 2, "close": close, **options})
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
    """A process that evaluates what it is asked. It is a fork of the test's, which has used nothing yet."""

    process: Any

    def __init__(self, directory: Path, errors: Path, text: str) -> None:
        self._errors = errors
        self._pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self._run, args=(theirs, directory, text))
        self.process.start()
        theirs.close()

    def _run(self, pipe: Connection, directory: Path, text: str) -> None:
        with self._errors.open("w") as errors:
            for descriptor in (1, 2):
                os.dup2(errors.fileno(), descriptor)
        sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.path.insert(0, str(directory))
        names: dict[str, Any] = {"__name__": "comer"}
        exec(COMER + text, names)
        while (expression := pipe.recv()) is not None:
            try:
                result = repr(eval(expression, names))
            except Exception as error:
                result = f"!{type(error).__name__}: {error}"
            pipe.send(result)

    def begin(self, expression: str) -> None:
        self._pipe.send(expression)

    def _answer(self) -> str:
        with contextlib.suppress(EOFError, ConnectionResetError):
            return str(self._pipe.recv())
        return ""

    def result(self) -> Any:
        answer = self._answer()
        assert answer, self.errors()
        return answer if answer.startswith("!") else eval(answer)

    def do(self, expression: str) -> Any:
        self.begin(expression)
        return self.result()

    def refused(self) -> str:
        said = self.do("come()")
        assert said.startswith("!ManagerLost: "), said
        return str(said)

    def errors(self) -> str:
        return self._errors.read_text()

    def kill(self) -> None:
        self.process.kill()
        self._await_end()

    def _await_end(self) -> None:
        self.process.join()

    def end(self) -> None:
        """It comes to its end, where it is not killed yet."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(None)
        self._await_end()


class Script(Comer):
    """The same, a program of its own."""

    def __init__(self, script: Path, errors: Path, text: str, *flags: str, **more: Any) -> None:
        self.path, self._errors = script, errors
        script.write_text(COMER + text + ASKED)
        pipe = subprocess.PIPE
        command = [sys.executable, *flags, str(script)]
        with errors.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=stream, text=True, **more
            )

    def begin(self, expression: str) -> None:
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def _answer(self) -> str:
        return str(self.process.stdout.readline()).rstrip()

    def _await_end(self) -> None:
        self.process.wait()

    def end(self) -> None:
        with self.process:
            pass


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the managers of the test have their directories."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        monkeypatch.setenv("MPPOOL_RUNTIME_DIR", f"{directory}/p")
        yield Path(directory, "p")


@pytest.fixture
def home(place: Path) -> Path:
    """The directory of the manager."""
    return place / "shared-things"


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
def comers(place: Path, diary: Callable[[str], list[int]]) -> Iterator[list[Comer]]:
    """After the last one has ended nothing is left of a manager that lingers shortly."""
    comers: list[Comer] = []
    try:
        yield comers
    finally:
        for each in comers:
            each.kill()
            each.end()
    wait_until(lambda: not is_there(place), timeout=30, message="the last one is out")
    wait_until(lambda: not any(map(psutil.pid_exists, diary("made"))))


@pytest.fixture
def comer(comers: list[Comer], tmp_path: Path) -> Callable[..., Comer]:
    """Start a process, with what else it knows."""

    def start(text: str = "") -> Comer:
        comers.append(Comer(tmp_path, tmp_path / f"errors-{len(comers)}", text))
        return comers[-1]

    return start


@pytest.fixture
def script(comers: list[Comer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    """Start a program of its own: what else is in it, flags of the interpreter, arguments of `Popen`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def start(text: str = "", *flags: str, **more: Any) -> Script:
        number = len(comers)
        script = Script(tmp_path / f"script-{number}.py", tmp_path / f"errors-{number}", text, *flags, **more)
        comers.append(script)
        return script

    return start


def is_there(place: Path) -> list[Path]:
    return list(place.iterdir()) if place.exists() else []


# -- one for all ----------------------------------------------------------------------------------------


def test_the_first_one_starts_it_and_the_others_find_it(
    script: Callable[..., Script], diary: Callable[[str], list[int]]
) -> None:
    first, second = script(), script()
    manager = first.do("come()")
    assert second.do("come()") == manager
    first.end()
    assert second.do("manager()") == manager
    second.end()
    wait_until(lambda: diary("closed") == diary("made") == [manager])
    assert first.errors() + second.errors() == ""


def test_the_line_of_the_readme_runs(run_python: RunPython, tmp_path: Path, place: Path) -> None:
    (line,) = re.findall(r"`(pool = mppool\.shared_pool\(.*?\))`", (ROOT / "README.md").read_text())
    program = f"""
import mppool
def load():
    return ["model"]
{line}
if __name__ == "__main__":
    print(pool.apply(len))
    mppool.PoolManager.shared("models").shutdown()
"""
    (tmp_path / "program.py").write_text(program)
    assert run_python(tmp_path / "program.py").stdout == "1\n"
    wait_until(lambda: not is_there(place))


def test_twenty_at_once(comer: Callable[..., Comer], diary: Callable[[str], list[int]]) -> None:
    comers = [comer() for _ in range(20)]
    for each in comers:
        each.begin("come(), nap(0.01)")
    managers = {each.result()[0] for each in comers}
    assert len(managers) == 1
    assert {*diary("made")} == managers
    assert len(diary("made")) <= 2
    assert "".join(each.errors() for each in comers) == ""


def test_it_is_a_fresh_interpreter_in_a_session_of_its_own(
    script: Callable[..., Script], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    more = {"env": {**os.environ, "SPOKEN": "yes"}, "cwd": tmp_path / "sub"}
    first = script("", "-O", "-X", "utf8", "-W", "ignore:spoken", **more)
    first.do("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])")
    first.do("sys.path.append('/added')")
    manager = psutil.Process(first.do("come()"))
    assert os.getsid(manager.pid) == os.getpgid(manager.pid) == manager.pid
    assert first.process.pid not in [each.pid for each in manager.parents()]
    assert first.do("ask('os.getcwd()')") == str(tmp_path / "sub")
    assert first.do("ask('os.environ[\"SPOKEN\"]')") == "yes"
    for each in ("path", "flags", "_xoptions", "warnoptions"):
        assert first.do(f"ask('repr(sys.{each})') == repr(sys.{each})"), each
    assert first.do("ask('os.readlink(\"/proc/self/fd/0\")')") == "/dev/null"
    first.do("ask('print(\"here\")')")
    first.do("ask('sys.stderr.write(\"and here\")')")
    log = home / "log"
    wait_until(lambda: log.read_text() == "here\nand here")
    first.do('ask(\'print("x" * (3 << 20), "last")\')')
    wait_until(lambda: log.stat().st_size == 0)
    assert log.with_name("log.old").stat().st_size == 1 << 20
    assert log.with_name("log.old").read_text().endswith("x last\n")
    first.do("ask('print(\"on\")')")
    assert log.read_text() == "on\n"
    manager.terminate()
    wait_until(lambda: not lives(manager))


# -- who comes and goes ---------------------------------------------------------------------------------


def pid_of(listener: Path) -> int:
    """The process that listens at this path."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(listener))
        pid: int = struct.unpack("iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells so who listens")
def test_the_first_one_is_killed_while_it_starts_the_manager(comer: Callable[..., Comer], home: Path) -> None:
    program = """
from mppool._system import detached
detached.wait = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # until it says that it is ready
"""
    first, second = comer(program), comer()
    first.begin("come()")
    first.process.join()
    wait_until((home / "socket").exists, timeout=50)
    manager = pid_of(home / "socket")
    assert second.do("come()") == manager
    assert (home / "log").read_text() == ""


def test_ctrl_c_the_end_of_the_terminal_and_kill_are_for_the_program(
    comer: Callable[..., Comer], tmp_path: Path
) -> None:
    second, third = comer(), comer()
    told = tmp_path / "told"
    pid, terminal = pty.fork()
    if not pid:
        script = f"{COMER}\nopen({str(told)!r}, 'w').write(str(come(linger=20)))\ntime.sleep(1000)"
        path = f"{ROOT}{os.pathsep}{tmp_path}"
        os.execve(sys.executable, [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": path})
    wait_until(lambda: told.exists() and told.read_text(), timeout=50)
    assert second.do("come()") == third.do("come()") == int(told.read_text())
    os.write(terminal, b"\x03")
    os.waitpid(pid, 0)
    os.close(terminal)
    second.kill()
    assert third.do("manager()") == int(told.read_text())
    third.do("PoolManager.shared('things').shutdown()")


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
    pickled = first.do("pickle.dumps(pool)")
    second.do("come(linger=0)")
    first.end()
    second.do(f"globals().update(pool=pickle.loads({pickled!r})) or manager()")  # which asks for as long
    second.end()
    assert third.do("come(linger=0)") == manager
    third.end()
    wait_until(lambda: not is_there(place))


def test_without_an_end_it_stays_until_it_is_told(comer: Callable[..., Comer], place: Path) -> None:
    first, second = comer(), comer()
    manager = first.do("come(linger=None)")
    first.end()
    assert second.do("come()") == manager
    second.do("globals().update(shared=PoolManager.shared('things')) or shared.shutdown()")
    wait_until(lambda: not psutil.pid_exists(manager) and not is_there(place))
    assert second.do("shared.shutdown()") is None


def test_who_comes_in_the_moment_of_the_end_gets_a_new_one(
    comer: Callable[..., Comer], diary: Callable[[str], list[int]], tmp_path: Path
) -> None:
    program = """
def come_and_go(times):
    managers = []
    for _ in range(times):
        with PoolManager.shared("things", linger=0.0) as shared:
            with shared.create_pool(Thing, name="things", exist_ok=True).lease() as thing:
                managers.append(thing.ask("os.getsid(0)"))
    return managers
"""
    first, second = comer(program), comer(program)
    manager = first.do("come(linger=0, close=close_late)")
    first.kill()
    wait_until(lambda: diary("closing"))
    assert second.do("come_and_go(1)") != [manager]
    (tmp_path / "diary-go-on").touch()

    comers = second, comer(program)
    for each in comers:
        each.begin("come_and_go(2)")
    managers = [each.result() for each in comers]
    assert all(isinstance(each, list) for each in managers), managers


def test_a_daemonic_process_may_be_the_first_and_a_forked_child_is_a_user_once_it_uses_it(
    comer: Callable[..., Comer],
) -> None:
    program = """
fork_context = multiprocessing.get_context("fork")

def in_a_daemon(pipe):
    pipe.send(come())

def daemon():
    ours, theirs = fork_context.Pipe()
    child = fork_context.Process(target=in_a_daemon, args=(theirs,), daemon=True)
    child.start()
    told = ours.recv()
    child.join()
    return told

def fork():
    ours, theirs = fork_context.Pipe()
    if os.fork():
        return ours.recv()
    theirs.send(manager())
    del ours
    os._exit(not theirs.recv())  # until it is killed

def in_a_child():
    ours, theirs = fork_context.Pipe()
    child = fork_context.Process(target=lambda: (theirs.send(manager()), time.sleep(1000)))
    child.start()
    return ours.recv(), child.pid
"""
    first, second = comer(program), comer()
    manager = first.do("daemon()")
    assert first.do("come(linger=0)") == manager
    of_child, child = first.do("in_a_child()")
    assert of_child == manager
    first.kill()
    assert second.do("come(linger=0)") == manager
    os.kill(child, signal.SIGKILL)


def test_a_program_that_is_replaced_has_ended_and_a_child_that_python_knows_nothing_of_is_no_user(
    comer: Callable[..., Comer], place: Path
) -> None:
    program = """
import ctypes
def fork():
    return ctypes.PyDLL(None).fork() or time.sleep(50)
"""
    first, second = comer(program), comer()
    assert first.do("come()") == second.do("come()")
    child = first.do("fork()")
    first.kill()
    second.begin("os.execv('/bin/sleep', ['sleep', '1000'])")
    wait_until(lambda: not is_there(place))
    os.kill(child, signal.SIGKILL)


def test_the_end_of_a_block_ends_that_use(comer: Callable[..., Comer], place: Path) -> None:
    program = """
def within():
    with PoolManager.shared("things", linger=0) as shared:
        return list(shared.pools())
"""
    first, second = comer(program), comer()
    assert first.do("within()") == []
    wait_until(lambda: not is_there(place))
    manager = first.do("come(linger=0)")
    first.do("within()")
    assert second.do("come(linger=0)") == manager
    second.end()
    wait_until(lambda: first.do("len(pool.leases())") == 0)
    assert first.do("manager()") == manager


def test_where_no_lifeline_can_be_passed(comer: Callable[..., Comer], place: Path) -> None:
    first, second = comer("mppool._client.connect.pair = lambda _: (None, None)"), comer()
    manager = first.do("come(linger=0)")
    assert second.do("come(linger=0)") == manager
    second.end()
    assert first.do("manager()") == manager
    first.end()
    wait_until(lambda: not is_there(place))


# -- it dies --------------------------------------------------------------------------------------------


def test_the_manager_is_killed_under_calls(
    comer: Callable[..., Comer], diary: Callable[[str], list[int]]
) -> None:
    *comers, onlooker = [comer() for _ in range(6)]
    (manager,) = {each.do("come()") for each in (*comers, onlooker)}
    for each in comers:
        each.begin("nap(1000)")
    wait_until(lambda: len(diary("begun")) == 2)
    # What it has not read of is asked again, of the next manager.
    wait_until(lambda: onlooker.do("pool.stats().waiting") == 3)
    os.kill(manager, signal.SIGKILL)
    assert {each.result().partition(":")[0] for each in comers} == {"!ManagerLost"}
    for each in comers:
        each.begin("manager()")
    (new,) = {each.result() for each in comers}
    assert new != manager
    assert {*diary("made")} == {manager, new}


def test_all_that_have_a_pool_bring_what_makes_it_anew(comer: Callable[..., Comer]) -> None:
    program = """
names = "abc"
def make_all(**options):
    global shared, pools
    shared = PoolManager.shared("things", linger=0.2)
    pools = {name: shared.create_pool(Thing, name=name, exist_ok=True, **options) for name in names}
def managers():
    managers = set()
    for name in names:
        with pools[name].lease() as thing:
            managers.add(thing.ask("os.getsid(0)"))
    return managers
def find_all(pickled):
    global pools
    shared = PoolManager.shared("things", linger=0.2)
    pools = {"a": shared.get_pool("a"), "b": shared.pools()["b"], "c": pickle.loads(pickled)}
"""
    first, second, third = comer(program), comer(program), comer(program)
    first.do("make_all(max_size=7, isolation='none')")
    (manager,) = first.do("managers()")
    first.do("globals().update(thing=pools['a'].acquire())")
    second.do(f"find_all({first.do('pickle.dumps(pools[chr(99)])')!r})")
    third.do("make_all()")  # an option that is left out matches any, now and later
    os.kill(manager, signal.SIGKILL)
    assert first.do("thing.ask('1')").startswith("!ManagerLost: ")
    (new,) = second.do("managers()")
    assert new != manager
    assert first.do("thing.ask('1')").startswith("!LeaseLost: ")
    assert first.do("pools['a'].release(thing), managers()") == (None, {new})

    os.kill(new, signal.SIGKILL)
    (new,) = third.do("managers()")
    assert first.do("managers()") == second.do("managers()") == {new}
    assert first.do("[pools[name].options.max_size for name in names]") == [7, 7, 7]

    # In the next one these pools have other ids than the first one knows them by.
    first.do("shared.shutdown()")
    second.do("make_all(max_size=7, isolation='none')")
    assert first.do("pools['a'].acquire().meet(pools['b'].acquire())") == "Thing"


# -- how it is made -------------------------------------------------------------------------------------


def test_another_recipe_is_refused(comer: Callable[..., Comer]) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    said = second.do("come(max_size=3)")
    assert (
        said == "!ValueError: name='things': a pool of this name exists already, and its max_size is 2, not 3"
    )
    assert second.do("come(isolation='none')") == manager
    assert second.do("shared_pool('things', 'things:Thing', linger=0) == pool")


def test_a_factory_of_the_main_file_is_found(script: Callable[..., Script]) -> None:
    program = """
class Part:
    pass

def make():
    thing = Thing()
    thing.part = Part()
    return thing

def is_fine(thing):
    return isinstance(thing.part, Part)

def make_it(isolation):
    global pool
    options = dict(linger=0.2, isolation=isolation, check=is_fine, keep=[Part])
    pool = shared_pool("things", make, **options)
    with pool.lease() as thing:
        return type(thing.part).__name__, thing.ask("os.getsid(0)")
"""
    first, second = script(program), script(program)
    for isolation in ("none", "process"):
        made = first.do(f"make_it({isolation!r})")
        assert made[0].startswith("Handle["), made
        assert second.do(f"make_it({isolation!r})") == (
            f"!ValueError: name='things': a pool of this name exists already, and its __main__ is "
            f"'{first.path}', not '{second.path}'"
        )
        first.do("pool.close(0)")
    os.kill(made[1], signal.SIGKILL)
    assert second.do("make_it('none')")[1] != made[1]
    assert "not '" in first.do("make_it('none')")


def test_a_module_may_have_its_own_pools(comer: Callable[..., Comer], tmp_path: Path) -> None:
    """It makes them when it is imported, in the manager, too."""
    text = """
from things import Thing
import mppool
def make():
    return Thing()
pool = mppool.shared_pool("things", make, linger=0.2)
apart = mppool.PoolManager.shared("things", linger=0.2).create_pool(
    make, name="apart", exist_ok=True, isolation="process"
)
"""
    (tmp_path / "app.py").write_text(text)
    first, second = comer("import app; pool = app.pool"), comer("import app; pool = app.pool")
    manager = first.do("manager()")
    assert second.do("manager()") == manager
    # What an object asks of a pool does not make its manager wait for it.
    stats = "__import__('app').pool.stats().leased"
    assert first.do(f"ask({stats!r})") == 1
    for each in (first, second):
        each.do("globals().update(pool=app.apart)")
        assert each.do("manager()") == manager
        assert each.do(f"ask({stats!r})") == 0


WRONG = [
    ("shared_pool('x', lambda: 1)", "TypeError: factory .* does not pickle .* can import"),
    ("shared_pool('x', Thing, max_sise=1)", "TypeError: .*did you mean 'max_size'"),
    ("shared_pool('a/b', Thing)", "ValueError: name='a/b': the name of a manager is of letters"),
    ("shared_pool('', Thing)", "ValueError: name=''"),
    ("shared_pool('ä', Thing)", "ValueError: name='ä'"),
    ("shared_pool(None, Thing)", "TypeError: name must be a string"),
    ("shared_pool('x' * 100, Thing)", "ValueError: .* bytes too long for the path of a socket"),
    ("shared_pool('things', Thing, linger=-1)", "ValueError: linger must be 0 or more seconds"),
    ("shared_pool('things', Thing, linger='1')", "TypeError: linger must be a number of seconds"),
]

NOT_FOUND = [
    ("shared_pool('things', 'no.such:thing', linger=0)", "FactoryError: .*'no.such:thing' leads nowhere"),
    ("shared_pool('things', linger=0)", "TypeError: factory must be callable"),
]


def test_what_cannot_be_is_refused(comer: Callable[..., Comer], run_python: RunPython, place: Path) -> None:
    first = comer()
    for made, said in WRONG:
        assert re.match(f"!{said}", first.do(made)), made
    code = "import mppool\ndef make(): pass\nmppool.shared_pool('things', make)"
    assert "a notebook or was typed in" in run_python("-c", code, status=1).stderr
    assert not place.exists()
    for made, said in NOT_FOUND:
        assert re.match(f"!{said}", first.do(made)), made


def test_a_closed_pool_is_made_anew(comer: Callable[..., Comer], diary: Callable[[str], list[int]]) -> None:
    first, second = comer(), comer()
    manager = first.do("come()")
    second.do("come()")
    first.do("pool.close()")
    assert diary("closed") == [manager]
    assert second.do("manager()") == "!PoolClosed: pool 'things' is closed"
    assert second.do("come()") == manager
    assert first.do("manager()").startswith("!PoolClosed")
    os.kill(manager, signal.SIGKILL)
    assert second.do("manager()") != manager
    assert first.do("manager()").startswith("!PoolClosed")


# -- where it is ----------------------------------------------------------------------------------------


def test_where_it_can_not_be(comer: Callable[..., Comer], place: Path, home: Path) -> None:
    first = comer()
    home.mkdir(0o700, parents=True)
    place.chmod(0o750)
    assert "is open to other users (mode 750)" in first.refused()
    place.chmod(0o700)
    home.chmod(0o755)
    assert "is open to other users (mode 755)" in first.refused()
    home.rmdir()
    home.touch(0o600)
    assert "Not a directory" in first.refused()
    home.unlink()
    first.do("os.environ.update(MPPOOL_RUNTIME_DIR='here')")
    assert "has to be an absolute path" in first.refused()
    first.do(f"os.environ.update(MPPOOL_RUNTIME_DIR={str(place)!r}, PYTHONHOME='/nowhere')")
    said = first.refused()
    assert "no manager 'things' can be started: it ended while it started; its last words: " in said
    assert "Fatal Python error" in said
    first.do("os.environ.pop('PYTHONHOME')")
    first.do("multiprocessing.set_executable('')")
    assert "sys.executable names no interpreter" in first.refused()
    first.do("multiprocessing.set_executable('/no/python')")
    assert "No such file or directory" in first.refused()
    first.do("setattr(sys, 'frozen', True)")
    assert "this program is frozen" in first.refused()
    assert is_there(place) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user(comer: Callable[..., Comer], place: Path, home: Path) -> None:
    first, other = comer(), comer()
    place.mkdir(0o700)
    home.mkdir(0o700)
    os.chown(home, 12345, 12345)
    assert "belongs to uid 12345, and this process runs as user 'root'" in first.refused()
    os.chown(home, 0, 0)
    os.chown(place, 12345, 12345)
    assert "belongs to uid 12345, and this process runs as user 'root'" in first.refused()
    os.chown(place, 0, 0)
    manager = first.do("come()")
    place.parent.chmod(0o755)
    other.do("os.setresuid(12345, 12345, 12345)")
    assert "belongs to user 'root' (uid 0), and this process runs as uid 12345" in other.refused()
    assert first.do("manager()") == manager


@pytest.mark.skipif(
    os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="only root can mount a small disk"
)
def test_a_full_disk(comer: Callable[..., Comer], place: Path, home: Path) -> None:
    place.mkdir(0o700)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", place], check=False)
    if done.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        first = comer()
        full = place / "full"
        with contextlib.suppress(OSError):
            full.write_bytes(bytes(1 << 20))
        assert "no manager 'things' can be started: [Errno 28] No space left on device" in first.refused()
        full.unlink()
        manager = first.do("come()")
        with contextlib.suppress(OSError):
            full.write_bytes(bytes(1 << 20))
        (home / "key").unlink()
        wait_until(lambda: not (home / "draft-key").exists() or (home / "draft-key").stat().st_size == 0)
        assert first.do("manager()") == manager
        full.unlink()
        second = comer()
        assert second.do("come()") == manager
    finally:
        for each in (first, second):
            each.kill()
        wait_until(lambda: not is_there(place))
        subprocess.run(["umount", "--lazy", place], check=True)


def test_what_a_killed_manager_left_is_taken_over(comer: Callable[..., Comer], home: Path) -> None:
    home.mkdir(0o700, parents=True)
    home.parent.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "socket"))
    for name in ("key", "draft-key"):
        (home / name).write_bytes(b"half")
        (home / name).chmod(0o600)
    program = """
from mppool._client.shared import SharedChannel
find = SharedChannel._find_key

def find_of_before(channel):
    SharedChannel._find_key = find
    return type(find(channel))(b"half")  # then another one comes, and connects
"""
    first, second = comer(), comer(program)
    manager = first.do("come()")
    second.do("setattr(SharedChannel, '_find_key', find_of_before)")
    assert second.do("come()") == manager


def test_a_cleaner_has_come(comer: Callable[..., Comer], place: Path, home: Path) -> None:
    """Where the platform does not tell who listens, who comes then gets another one, which outlives it."""
    is_told = not _system.PORTABLE and os.path.exists("/proc/net/unix")
    first, second = comer(), comer()
    manager = first.do("come()")
    shutil.rmtree(place)
    of_second = second.do("come()")
    assert (of_second == manager) == is_told
    second.do("ask('print(1)')")
    wait_until(lambda: (home / "log").read_text() == "1\n")
    assert first.do("manager()") == manager
    first.end()
    wait_until(lambda: is_told or not psutil.pid_exists(manager))
    assert second.do("manager()") == of_second


def test_another_version_is_told(comer: Callable[..., Comer]) -> None:
    first = comer()
    manager = first.do("come()")
    second = comer()
    second.do("globals().update(shared=PoolManager.shared('things', linger=0))")
    second.do("vars(mppool._version).update(__version__='0.1.9')")
    of_both = f"is of mppool {mppool.__version__}, and this process has mppool 0.1.9"
    assert of_both in second.do("shared.shutdown()")
    second.do("shared.__exit__()")
    assert of_both in second.refused()
    third = comer("sys.version_info = (3, 1, 4)")
    assert "and this process Python 3.1" in third.refused()
    assert first.do("manager()") == manager


def test_who_uses_a_pool_loads_nothing_that_starts_a_manager(run_python: RunPython) -> None:
    heavy = {"tempfile", "subprocess", "shutil", "runpy", "multiprocessing.spawn", "psutil"}
    assert run_python("-c", f"import sys, mppool; print({heavy} & {{*sys.modules}})").stdout == "set()\n"
