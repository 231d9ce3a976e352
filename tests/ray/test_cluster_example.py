"""The example, run as its reader runs it."""

from __future__ import annotations

import re

import psutil
import pytest
from helpers import ROOT, RunPython, wait_until

EXAMPLE = ROOT / "examples" / "cluster.py"
MARK = "MPPOOL_TEST_EXAMPLE"


def marked(mark: str) -> list[psutil.Process]:
    """The processes whose program was started with this in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue  # it has just ended
    return found


def test_a_node_is_killed_and_all_work_is_done(
    run_python: RunPython, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv(MARK, mark := f"{request.node.name} {psutil.Process().pid}")
    done = run_python(EXAMPLE, "--tasks", "60", timeout=150)
    (killed,) = re.findall(
        r"^node (\w{8}) is killed, \d+ of 60 tasks are not done$", done.stdout, re.MULTILINE
    )
    assert re.search(
        r"^all 60 tasks are done, [\d.]+ s: 600 of 600 examples are right$", done.stdout, re.MULTILINE
    )
    (built,) = re.findall(r"^(\d+) models built", done.stdout, re.MULTILINE)
    assert int(built) > 3, "the one that was lost has a successor"

    table = done.stdout[done.stdout.index("\nnode ") :]
    rows = re.findall(r"^(\w{8}) +(\d+) +(\d+)(?:  (.*))?$", table, re.MULTILINE)
    notes = {node: note for node, _, _, note in rows}
    assert len(notes) == 3
    assert notes[killed] == "killed"
    assert all(int(models) and int(holders) for node, models, holders, _ in rows if node == killed)
    assert [*notes.values()].count("this program, and the pool") == 1
    wait_until(lambda: not marked(mark), message="none of its processes is left")


def test_it_needs_something_to_do(run_python: RunPython) -> None:
    done = run_python(EXAMPLE, "--tasks", "0", status=2)
    assert "must be 1 or more" in done.stderr
