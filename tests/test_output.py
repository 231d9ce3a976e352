"""What objects print and log, where `sys.stdout` of the creating program is none that a child can use."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from actors import START_METHODS, Tool, manager_in, pool_of
from helpers import ROOT, RunPython

from mppool import ObjectPool

log = logging.getLogger("test_output")


class Talker(Tool):
    def say(self, text: str) -> None:
        print(text)
        print(text, "louder", file=sys.stderr)
        log.warning("%s to the log", text)


class OfTheProgram:
    """Stands for a notebook's `sys.stdout`: keeps what it gets in its process."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def replace_streams(monkeypatch: pytest.MonkeyPatch) -> tuple[OfTheProgram, OfTheProgram]:
    """Take the place of `sys.stdout` and `sys.stderr`, where the log goes, too.

    For a test itself: behind its fixtures pytest sets both anew.
    """
    out, err = OfTheProgram(), OfTheProgram()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    handler: Any = logging.StreamHandler(err)  # type: ignore[type-var]
    monkeypatch.setattr(log, "handlers", [handler])
    return out, err


def say(pool: ObjectPool[Any]) -> None:
    with pool.lease() as talker:
        talker.say("I speak")


@pytest.mark.everywhere
def test_what_is_printed_past_a_stream_of_the_programs_comes_out(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = replace_streams(monkeypatch)
    with pool_of(Talker, max_size=1) as pool:
        say(pool)
        print("here")
    out, err = capfd.readouterr()
    assert out == "I speak\n"
    assert err == "I speak louder\nI speak to the log\n"
    assert [each.text for each in streams] == ["here\n", ""], "the program keeps its own"


@pytest.mark.everywhere
@pytest.mark.parametrize("start_method", ["fork", "spawn"])  # a forkserver may be of another test's capture
def test_what_is_printed_is_there_at_once(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with manager_in(start_method) as manager:
        say(manager.create_pool(Talker, max_size=1))
        assert capfd.readouterr().out == "I speak\n"


@pytest.mark.everywhere
def test_a_file_in_the_place_of_stdout_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pool_of(Talker, max_size=1) as pool:
            say(pool)
            assert (tmp_path / "out").read_text() == "I speak\n"


# -- a real notebook --------------------------------------------------------------------------------------

NOTEBOOK = """
import os, subprocess, sys
from jupyter_client import KernelManager

environment = {**os.environ, "PYTHONPATH": sys.argv[2]}
for name in ("PYTEST_CURRENT_TEST", "PYTHONUNBUFFERED"):
    environment.pop(name, None)  # within pytest, a kernel lets its descriptors be
kernels = KernelManager(kernel_name="python3")
kernels.start_kernel(env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
client = kernels.client()
client.start_channels()
# One request at a time: ipykernel 7.0 to 7.3 may overlook one that comes while it replies to another.
while not client.iopub_channel.msg_ready():
    client.kernel_info(reply=True, timeout=30)

def run(cell, awaited):
    reply = client.execute(cell, reply=True, timeout=40)  # longer than an acquire waits
    assert reply["content"]["status"] == "ok", reply["content"]
    shown, me = "", reply["parent_header"]["msg_id"]
    while not all(text in shown for text in awaited):
        message = client.get_iopub_msg(timeout=30)
        mine = message["parent_header"].get("msg_id") == me
        print(message["msg_type"], mine, message["content"])
        if message["msg_type"] == "stream" and mine:
            shown += message["content"]["text"]

try:
    run(f'''
import logging, multiprocessing
from mppool import PoolManager
from test_output import Talker, say
logging.basicConfig(format="%(message)s")
manager = PoolManager(ctx=multiprocessing.get_context({sys.argv[1]!r}))
manager.start()
print("started")''', ["started"])
    for isolation in ("none", "process"):
        run(f"say(manager.create_pool(Talker, isolation={isolation!r}))",
            ["I speak\\n", "I speak louder\\n", "I speak to the log\\n"])
    run("manager.shutdown(); print('over')", ["over"])
finally:
    client.stop_channels()
    kernels.shutdown_kernel(now=True)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("ipykernel") is None, reason="no ipykernel (pip install ipykernel)"
)
@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_notebook_shows_it_under_the_cell_that_runs(
    run_python: RunPython, tmp_path: Path, start_method: str
) -> None:
    program = tmp_path / "notebook.py"
    program.write_text(NOTEBOOK)
    run_python(program, start_method, f"{ROOT}:{ROOT / 'tests'}")
