"""The command `mppool`."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from actors import FORK, home_of, lives, manager_in, process_of, stopped
from helpers import ROOT, Beside, RunPython, wait_until

import mppool
from mppool import PoolManager, PoolStats
from mppool._server.session import REQUESTS
from mppool._shell.command_line import main
from mppool._shell.tables import cell, duration, figures, plain, size, table

# A machine that is busy must not look like a manager that stands still.
pytestmark = pytest.mark.bounds(shell=30.0)

APP = """
import os
import threading
from mppool import PoolError, PoolManager

class Thing:
    def pid(self):
        return os.getpid()

def close(thing):
    print("closed", flush=True)

def setup(manager):
    manager.create_pool(Thing, name="web", max_size=2, min_size=1, close=close, warn_hold=1000.0)
    manager.create_pool(each=["cuda:0", "cuda:1"], name="gpus", warn_hold=1000.0)

def apart(manager):
    manager.create_pool(Thing, name="web", min_size=1, max_size=1, close=close, isolation="process")

def hang(manager):
    setup(manager)
    print("begun", flush=True)
    for _ in range(3):
        manager.get_pool("gpus").acquire(timeout=None)

def use_to_the_end(_):
    pool = PoolManager.shared("web").get_pool("web")
    held = pool.acquire()
    print("begun", flush=True)
    for _ in range(2):  # the end cuts off the first
        try:
            pool.acquire(timeout=None)
        except PoolError as error:
            print(error, flush=True)
    over.set()

over = threading.Event()

def close_late(thing):
    over.wait(20)

def beside(manager):
    manager.create_pool(Thing, name="web", max_size=1, close=close_late)
    use_to_the_end(manager)

def from_an_object(manager):
    manager.create_pool(Thing, name="web", max_size=1)
    manager.create_pool(Thing, name="users", max_size=1, isolation="process").apply(use_to_the_end)

def fail(manager):
    setup(manager)
    manager.get_pool("web").wait()
    1 / 0

def leave(manager):
    raise SystemExit(3)

number = 3
"""


def line_of(code: str) -> int:
    """Where this stands in the module `app`."""
    return 1 + [each.strip() for each in APP.splitlines()].index(code)


COMMAND = [sys.executable, "-m", "mppool"]

PROGRAM = "import sys; from mppool._shell.command_line import main; sys.exit(main())"

COMMANDS = ("ls", "top", "leases", "stats", "resize", "refresh", "stop", "serve")


@contextlib.contextmanager
def new_place() -> Iterator[Path]:
    """Where managers have their directories within the block, and a module `app` is found."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory, pytest.MonkeyPatch.context() as to:
        to.setenv("MPPOOL_RUNTIME_DIR", f"{directory}/p")
        to.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{directory}")
        Path(directory, "app.py").write_text(APP)
        yield Path(directory, "p")


class Service:
    """A `mppool serve` that leads a process group, as one that a shell starts does."""

    def __init__(
        self,
        place: Path,
        name: str = "web",
        *,
        setup: str = "setup",
        command: list[str] = COMMAND,
        abstract: bool = False,
    ) -> None:
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told_at = f"mppool-test-{os.getpid()}" if abstract else str(place.with_name("notify"))
        self.told.bind(f"\0{told_at}" if abstract else told_at)
        self.process = subprocess.Popen(
            [*command, "serve", f"app:{setup}", "--name", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": f"@{told_at}" if abstract else told_at},
            preexec_fn=os.setpgrp,  # noqa: PLW1509  # `process_group` came with Python 3.11
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()

    def __enter__(self) -> Service:  # noqa: PYI034  # `Self` came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.told.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One that most tests look at."""
    with new_place() as place, Service(place, abstract=sys.platform == "linux") as service:
        yield service


@pytest.fixture
def place() -> Iterator[Path]:
    """A place of the test's own."""
    with new_place() as place:
        yield place


class Said(NamedTuple):
    code: int
    out: str
    err: str


Tell = Callable[..., Said]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """The command, in this process."""

    def run(*arguments: str) -> Said:
        try:
            code = main(list(arguments))
        except SystemExit as error:
            code = int(error.code or 0)
        return Said(code, *capsys.readouterr())

    return run


def rows(text: str) -> list[dict[str, str]]:
    """What a table says, by its titles: columns are two spaces apart."""
    head, *lines = (re.split(r"  +", line.strip()) for line in text.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


# -- what is seen ---------------------------------------------------------------------------------------


def test_what_there_is(service: Service, tell: Tell) -> None:
    pid = str(service.process.pid)
    assert service.ready == f"mppool: manager 'web' is ready: pid {pid}, pools: gpus, web\n"
    assert service.told.recv(100) == b"READY=1"
    with PoolManager.shared("web") as manager, manager.get_pool("gpus").lease(timeout=0) as gpu:
        wait_until(lambda: manager.get_pool("web").stats().idle)
        code, out, err = tell("ls")
        assert (code, err) == (0, "")
        (row,) = rows(out)
        assert re.fullmatch(r"\d+ms|\d+\.\ds|\d+m\d\ds", row.pop("UPTIME"))
        assert row == {
            "NAME": "web",
            "PID": pid,
            "PYTHON": sys.version.split()[0],
            "MPPOOL": mppool.__version__,
            "STATE": "running",
            "USERS": "1",
            "POOLS": "gpus 1/2, web 1/2",
            "LOG": "-",
        }
        for name in ("web", "web/gpus", pid, f"{pid}/gpus"):
            (row,) = rows(tell("leases", name).out)
            assert (row["POOL"], row["PID"], row["ITEM"]) == ("gpus", str(os.getpid()), repr(gpu))
            assert row["WHERE"].startswith(f"{__file__}:")
        figures = {row["FIGURE"]: row for row in rows(tell("stats", "web").out)}
        assert (figures["leased"]["gpus"], figures["leased"]["web"]) == ("1", "0")
        told = json.loads(tell("stats", "web", "--json").out)
        assert (told["manager"], [*told["pools"]]) == ("web", ["gpus", "web"])
        assert [*told["pools"]["web"]] == [each.name for each in fields(PoolStats)]
        assert told["pools"]["web"] == json.loads(tell("stats", "web/web", "--json").out)["pools"]["web"]
        out = tell("top", "--count", "2", "--interval", "0.01").out
        pools, leases, *_ = out.split("\n\n")
        assert [row["POOL"] for row in rows(pools)] == ["web/gpus", "web/web"]
        assert [(row["POOL"], row["ITEM"]) for row in rows(leases)] == [("web/gpus", repr(gpu))]
        assert out.count("LEASES /S") == 2
        assert "web/gpus" not in tell("top", "web/web").out
    wait_until(lambda: rows(tell("ls").out)[0]["USERS"] == "0")


@pytest.mark.usefixtures("service")
def test_the_callers_of_a_batch(tell: Tell, beside: Beside) -> None:
    options = {"max_size": 1, "max_batch_size": 3, "batch_wait": 60.0}
    with PoolManager.shared("web") as manager, manager.create_pool(list, name="sums", **options) as pool:
        calls = [beside(pool.apply_batch, operator.add, each) for each in range(2)]
        wait_until(lambda: [len(each.callers) for each in pool.leases()] == [2])
        (row,) = rows(tell("leases", "web/sums").out)
        assert (row["PROCESS"], row["CALLERS"]) == ("a batch", f"{os.getpid()}*2")
        assert pool.apply_batch(operator.add, 2) == 2
        assert [each.result(20) for each in calls] == [0, 1]


def test_what_objects_in_processes_hold(place: Path, tell: Tell) -> None:
    with Service(place, setup="apart"), PoolManager.shared("web") as manager:
        with manager.get_pool("web").lease():
            (row,) = rows(tell("leases", "web").out)
            assert re.fullmatch(r"[\d.]+MiB", row["MEMORY"])
            assert re.fullmatch(r"[\d.]+m?s", row["CPU"])
            assert re.fullmatch(r"[\d.]+m?s", row["AGE"])
        (pool,) = rows(tell("top").out.split("\n\n")[0])
        assert pool["MEMORY"] == pool["LARGEST"]
        assert pool["MEMORY"].endswith("MiB")


def test_what_is_changed(service: Service, tell: Tell) -> None:
    with PoolManager.shared("web") as manager:
        pool = manager.get_pool("web")
        for line, bounds in (("web 3", (1, 3)), ("web/web 4 --min 0", (0, 4)), ("web 2 --min 1", (1, 2))):
            assert tell("resize", *line.split()) == (0, "", "")
            assert (pool.stats().min_size, pool.stats().max_size) == bounds
        with pool.lease():
            assert tell("refresh", "web") == (0, "", "")
        wait_until(lambda: pool.stats().retired["refreshed"] >= 1)


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ("", 2, "arguments are required: COMMAND"),
        ("lst", 2, "invalid choice: 'lst'"),
        ("ls web", 2, "unrecognized arguments: web"),
        ("leases", 2, "arguments are required: NAME"),
        ("leases nope", 1, "mppool: no manager 'nope' runs here; those that do: web"),
        ("leases 1", 1, "mppool: no manager '1' runs here; those that do: web"),
        ("stats web/nope", 1, "mppool: the manager 'web' has no pool 'nope'; those that it has: gpus, web"),
        ("top nope", 1, "no manager 'nope' runs here"),
        ("top --interval 0", 2, "'0' is no number of seconds above 0"),
        ("top --count many", 2, "'many' is no whole number from 1"),
        ("refresh web/nope", 1, "has no pool 'nope'"),
        ("resize web", 2, "arguments are required: SIZE"),
        ("resize web 0", 2, "'0' is no whole number from 1"),
        ("resize web/gpus 3", 1, "mppool: max_size=3 is more than the 2 items of each"),
        ("resize web 2 --min 3", 1, "mppool: .*min_size=3"),
        ("stop nope", 1, "no manager 'nope' runs here"),
        ("serve app:setup", 2, "arguments are required: --name"),
        ("serve app --name x", 2, "'app' does not read package.module:setup"),
        ("serve app:setup --name a/b", 2, "the name of a manager is of letters"),
    ],
)
@pytest.mark.usefixtures("service")
def test_what_cannot_be(tell: Tell, line: str, code: int, reason: str) -> None:
    said = tell(*line.split())
    assert said[:2] == (code, "")
    assert re.search(reason, said.err)
    assert code == 2 or said.err.count("\n") == 1


def test_help(tell: Tell) -> None:
    code, out, _ = tell("--help")
    assert code == 0
    assert all(re.search(rf"^    {each} ", out, re.MULTILINE) for each in COMMANDS)
    for each in COMMANDS:
        assert tell(each, "--help").out.startswith(f"usage: mppool {each} ")
    assert tell("--version").out == f"mppool {mppool.__version__}\n"


@pytest.mark.parametrize("arguments", [["ls"], ["top", "--interval", "0.01"], ["--help"]])
@pytest.mark.usefixtures("service")
def test_a_pipe_whose_reader_has_left(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stdout:
        done = subprocess.run([*COMMAND, *arguments], stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is full")
@pytest.mark.usefixtures("service")
def test_a_full_disk() -> None:
    with open("/dev/full", "wb") as stdout:
        done = subprocess.run([*COMMAND, "ls"], stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"mppool: [Errno 28] No space left on device\n")


@pytest.mark.usefixtures("service")
def test_a_pipe_gets_no_colours(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = tell("top").out
    assert "web/web" in out
    assert "\x1b" not in out


# -- which managers there are -----------------------------------------------------------------------------


def test_where_there_is_none(place: Path, tell: Tell) -> None:
    assert tell("ls") == (0, "NAME  PID  PYTHON  MPPOOL  STATE  UPTIME  USERS  POOLS  LOG\n", "")
    assert tell("leases", "web").err == "mppool: no manager 'web' runs here; those that do: none\n"
    assert not place.exists()
    place.mkdir(0o755)
    assert tell("ls").err == (
        f"mppool: '{place}' is open to other users (mode 755), and must be closed to them\n"
    )


@pytest.mark.usefixtures("place")
def test_managers_without_a_name(tell: Tell) -> None:
    with manager_in() as one, manager_in(address=("127.0.0.1", 0), restart=True) as other:
        for manager in (one, other):
            manager.create_pool(int, name="numbers", max_size=1)
            manager.create_pool(str, name="texts", max_size=1)
        names = {home_of(each).name: process_of(each) for each in (one, other)}
        told = {row["NAME"]: row for row in rows(tell("ls").out)}
        assert {name: row["PID"] for name, row in told.items()} == {
            name: str(process.pid) for name, process in names.items()
        }
        assert {(row["USERS"], row["POOLS"], row["LOG"]) for row in told.values()} == {
            ("-", "numbers 0/1, texts 0/1", "-")
        }
        for name, process in names.items():
            assert tell("resize", name, "2").err == (
                f"mppool: say which pool of {name!r}: {name}/numbers, {name}/texts\n"
            )
            assert tell("resize", f"{name}/texts", "2") == (0, "", "")
            assert tell("stop", name) == (0, "", "")
            assert not lives(process)
        assert rows(tell("ls").out) == []


def be_an_early_draft() -> None:
    del REQUESTS["about"]


@pytest.mark.usefixtures("place")
def test_a_manager_of_a_state_between_two_versions(tell: Tell) -> None:
    manager = PoolManager(ctx=FORK)
    manager.start(be_an_early_draft)
    with manager:
        code, out, err = tell("ls")
        assert (code, rows(out)[0]["STATE"]) == (0, "unreachable")
        assert "fails: KeyError: 'about'" in err


def test_a_manager_of_another_version_and_what_a_killed_one_left(place: Path, tell: Tell) -> None:
    older = [
        *(sys.executable, "-c"),
        "import sys, mppool._version; mppool._version.__version__ = '0.1.9'; " + PROGRAM,
    ]
    with Service(place, "older", command=older) as service:
        code, out, err = tell("ls")
        (row,) = rows(out)
        assert (code, row["NAME"], row["MPPOOL"], row["STATE"]) == (0, "older", "0.1.9", "other version")
        assert "is of mppool 0.1.9, and this process has mppool" in err
        assert tell("stop", "older") == (1, "", err)
        service.process.kill()
        service.process.wait()
        left = place / "shared-older"
        assert tell("ls").err == (
            f"mppool: skipped '{left}': its manager was killed; the next one to start removes it\n"
        )


@pytest.mark.bounds(shell=0.5)
def test_a_manager_that_stands_still(place: Path, tell: Tell) -> None:
    with Service(place) as service, stopped(psutil.Process(service.process.pid)):
        (row,) = rows(tell("ls").out)
        assert (row["NAME"], row["PID"], row["STATE"]) == ("web", str(service.process.pid), "no answer")
        reason = "mppool: the manager 'web' gives no answer within 0.5 s\n"
        for each in ("leases", "stats", "stop", "refresh"):
            assert tell(each, "web") == (1, "", reason)
        assert "web: no answer" in tell("top").out


def test_to_look_keeps_no_manager_from_its_end(place: Path, tell: Tell) -> None:
    with PoolManager.shared("short", linger=0.1):
        (row,) = rows(tell("ls").out)
        assert (row["USERS"], row["LOG"]) == ("1", str(place / "shared-short" / "log"))
    wait_until(lambda: rows(tell("ls").out) == [] and not any(place.iterdir()))


# -- top ------------------------------------------------------------------------------------------------


class Terminal:
    """A shell in a terminal of its own runs a command, and tells how the terminal is before and after."""

    def __init__(self, *command: str) -> None:
        # The shell outlives a Ctrl-C.
        line = 'trap : INT; stty cols 120 rows 30; stty -g; "$@"; echo "code $?"; stty -g'
        self._pid, self._descriptor = pty.fork()
        if not self._pid:
            os.execve("/bin/sh", ["sh", "-c", line, "sh", *command], {**os.environ, "TERM": "xterm"})
        self.text = ""

    def has_ended(self) -> bool:
        """Read what was printed. Whether all was."""
        try:
            while self._descriptor in select.select([self._descriptor], [], [], 0)[0]:
                read = os.read(self._descriptor, 10000)
                if not read:
                    return True
                self.text += read.decode()
        except OSError:  # what Linux says at the end
            return True
        return False

    def type(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def __enter__(self) -> Terminal:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)  # which ends what runs there
        os.waitpid(self._pid, 0)


@pytest.mark.parametrize(
    ("key", "has_rich"),
    [pytest.param(b"q", True, id="q, with rich"), pytest.param(b"\x03", False, id="Ctrl-C, without rich")],
)
@pytest.mark.usefixtures("service")
def test_in_a_terminal(key: bytes, has_rich: bool) -> None:
    program = PROGRAM if has_rich else f"import sys; sys.modules['rich'] = None; {PROGRAM}"
    with Terminal(sys.executable, "-c", program, "top", "--interval", "0.1") as terminal:
        wait_until(lambda: not terminal.has_ended() and terminal.text.count("web/web") > 2, timeout=30)
        terminal.type(key)
        wait_until(terminal.has_ended, timeout=30)
    before, shown, after = re.split(r"\x1b\[\?1049[hl]", terminal.text)
    assert after.strip().splitlines() == ["code 0", before.strip()]
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"
    assert ("\x1b[1m" in shown) == has_rich


# -- serve ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ends(service: Service) -> Iterator[None]:
    """Once all is ready the block ends it."""
    with PoolManager.shared("web") as manager:
        manager.get_pool("web").wait(timeout=30)
    yield
    assert service.process.communicate(timeout=30) == ("closed\n", "")
    assert service.process.returncode == 0
    assert [service.told.recv(100) for _ in range(2)] == [b"READY=1", b"STOPPING=1"]


def test_sigterm_ends_it(place: Path) -> None:
    with Service(place) as service, ends(service):
        of_the_same_pipeline = subprocess.Popen(
            ["sleep", "1000"],
            preexec_fn=lambda: os.setpgid(0, service.process.pid),  # noqa: PLW1509  # as above
        )
        service.process.terminate()
    assert not any(place.iterdir())
    with of_the_same_pipeline:
        assert of_the_same_pipeline.poll() is None
        of_the_same_pipeline.kill()


def test_ctrl_c_ends_it_and_is_for_all_of_its_group(place: Path) -> None:
    with Service(place, setup="apart") as service, ends(service):
        os.killpg(service.process.pid, signal.SIGINT)
    assert not any(place.iterdir())


def test_to_stop_it_ends_it(place: Path, tell: Tell) -> None:
    with Service(place) as service, ends(service):
        assert tell("stop", "web") == (0, "", "")
        assert service.process.poll() == 0
    assert not any(place.iterdir())


def test_the_end_of_the_terminal_while_it_is_set_up(place: Path) -> None:
    with Service(place, setup="hang") as service:
        assert service.ready == "begun\n"
        service.process.send_signal(signal.SIGHUP)
        out, err = service.process.communicate(timeout=30)
        assert (service.process.returncode, err) == (0, "")
        assert out in ("", "closed\n")
        assert service.told.recv(100) == b"STOPPING=1"
    assert [*place.iterdir()] == []


@pytest.mark.parametrize("setup", ["beside", "from_an_object"])
def test_what_belongs_to_it_starts_no_other_in_its_place(setup: str, place: Path) -> None:
    with Service(place, setup=setup) as service:
        assert service.ready == "begun\n"
        service.process.terminate()
        out, err = service.process.communicate(timeout=30)
        assert (service.process.returncode, err) == (0, "")
    assert re.search("^no manager 'web' can be started: this process belongs to ", out, re.MULTILINE)
    assert [*place.iterdir()] == []


FINDER = """
import mppool
from app import Thing, close

class Mine:
    def name(self):
        return type(self).__name__

if __name__ == "__main__":
    manager = mppool.PoolManager.shared("web")
    with mppool.shared_pool("web", Thing, close=close).lease() as thing:
        print(thing.pid())
    with manager.create_pool(Mine, name="mine", exist_ok=True, isolation="process").lease() as mine:
        print(mine.name())
    manager.get_pool("mine").close()
"""


def test_other_programs_find_it(service: Service, tmp_path: Path, run_python: RunPython) -> None:
    (tmp_path / "finder.py").write_text(FINDER)
    assert run_python("finder.py").stdout == f"{service.process.pid}\nMine\n"


def serve(run_python: RunPython, setup: str, name: str) -> str:
    return str(run_python("-m", "mppool", "serve", setup, "--name", name, status=1).stderr)


@pytest.mark.usefixtures("service")
def test_a_name_is_served_once(run_python: RunPython) -> None:
    reason = "mppool: a manager {0!r} runs already; to end it: mppool stop {0}\n"
    assert serve(run_python, "app:setup", "web") == reason.format("web")
    with PoolManager.shared("taken", linger=0):
        assert serve(run_python, "app:setup", "taken") == reason.format("taken")


@pytest.mark.parametrize(
    ("setup", "reason", "printed"),
    [
        ("no.such:setup", "ModuleNotFoundError: No module named 'no'", ""),
        ("app:number", "TypeError: 'int' object is not callable", ""),
        ("app:fail", rf"ZeroDivisionError: division by zero \(.*/app.py:{line_of('1 / 0')}\)", "closed\n"),
        ("app:leave", rf"SystemExit: 3 \(.*/app.py:{line_of('raise SystemExit(3)')}\)", ""),
    ],
)
def test_a_setup_that_fails(
    place: Path, run_python: RunPython, setup: str, reason: str, printed: str
) -> None:
    done = run_python("-m", "mppool", "serve", setup, "--name", "web", status=1)
    assert re.fullmatch(f"mppool: {setup} failed: {reason}\n", done.stderr)
    assert done.stdout == printed
    assert not any(place.iterdir())


# -- texts ------------------------------------------------------------------------------------------------


def test_durations() -> None:
    seconds = (0.0, 0.0025, 0.25, 4.2, 200, 5 * 3600 + 60, 51 * 3600)
    assert [*map(duration, seconds)] == ["0.0ms", "2.5ms", "250ms", "4.2s", "3m20s", "5h01m", "2d03h"]


def test_sizes() -> None:
    counts = (0, 1023, 1024, 2560, 250 << 20, (1 << 30) - 1, 25 << 29, 3 << 40)
    told = ["0B", "1023B", "1.0KiB", "2.5KiB", "250MiB", "1024MiB", "12.5GiB", "3.0TiB"]
    assert [*map(size, counts)] == told


def test_a_table_does_nothing_to_a_terminal() -> None:
    assert table(("A", ">B"), [("x\ny", 1), ("\x1b[31m", None)]).splitlines() == [
        "A         B",
        r"x\ny      1",
        r"\x1b[31m  -",
    ]
    assert cell("ä") == "ä"


def test_figures_of_any_form() -> None:
    class Histogram(NamedTuple):
        bounds: tuple[float, ...]
        counts: tuple[int, ...]

    @dataclass
    class Stats:
        name: str
        retired: dict[str, int]
        wait: Histogram

    told = plain(Stats("web", {"idle": 3}, Histogram((0.5, inf), (1, 2))))
    assert told == {"name": "web", "retired": {"idle": 3}, "wait": {"bounds": [0.5, None], "counts": [1, 2]}}
    assert dict(figures(told)) == {
        "name": "web",
        "retired.idle": "3",
        "wait.bounds": "0.5 -",
        "wait.counts": "1 2",
    }
