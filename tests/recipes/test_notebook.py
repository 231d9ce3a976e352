"""Kernels of notebooks use one pool."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import PATIENCE, Command, most_at_once
from helpers import wait_until
from servers import Models

pytest.importorskip("nbclient", reason="the extra `real` is not installed")
pytest.importorskip("ipykernel", reason="the extra `real` is not installed")

PROGRAM = r"""
import os, signal
from pathlib import Path
import nbformat.v4
from nbclient import NotebookClient

class Notebook(NotebookClient):
    def __init__(self):
        super().__init__(nbformat.v4.new_notebook(), kernel_name="python3", timeout=40, allow_errors=True)

    def run(self, text):
        self.nb.cells.append(nbformat.v4.new_code_cell(text))
        (output,) = self.execute_cell(self.nb.cells[-1], len(self.nb.cells) - 1).outputs
        return output.get("text", output.get("evalue")).rstrip()

first, second = Notebook(), Notebook()
recipe = Path("anywhere.py").read_text()
take_both = "mine = models.acquire(), models.acquire()\nimport os; print(os.getpid())"
with second.setup_kernel():
    with first.setup_kernel():
        assert first.run(recipe) == second.run(recipe)
        os.kill(int(first.run(take_both)), signal.SIGKILL)
        second.run(take_both)
    print(second.run("def load(): pass\nshared_pool('others', load)"))
    print(second.run("shared_pool('others', lambda: None)"))
"""


def test_notebooks(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with Command(tmp_path, "-c", PROGRAM) as program:
        assert program.process.wait(PATIENCE) == 0, program.log()
        of_notebook, unnamed = program.log().splitlines()[-2:]  # after what the kernels have to say
        assert re.match("factory .* is defined in a notebook .*: put it into a module", of_notebook)
        assert re.match("factory .* does not pickle .*: a function at the top level of a module", unnamed)
        assert len({*models.noted("made")}) == 1
        assert most_at_once(tmp_path / "diary") <= 2
    wait_until(models.all_closed, PATIENCE)
