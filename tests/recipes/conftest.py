"""A recipe in a directory of its own, and what becomes of the models that it shares."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, wait_until
from servers import Models, Server

# In the place of the model that the recipes come with. It notes what becomes of it, and answers with the
# session it lives in, which is its manager's.
MODEL = """
import os, time

def note(what):
    with open("diary", "a") as diary:
        diary.write(f"{what} {os.getpid()}\\n")

class Model:
    def __init__(self):
        note("made")

    def predict(self, text):
        if text == "wait":
            note("begun")
            while not os.path.exists("go"):
                time.sleep(0.01)
        return str(os.getsid(0))

    def close(self):
        note("closed")
"""


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the managers of the test have their directories. In the end none is left there."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as directory:
        monkeypatch.setenv("MPPOOL_RUNTIME_DIR", f"{directory}/p")
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)  # where gunicorn has a socket
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        yield Path(directory, "p")


@pytest.fixture
def models(place: Path, tmp_path: Path) -> Iterator[Models]:
    """The pool of a recipe in the directory of the test. After the last user nothing is left of it."""
    shutil.copytree(ROOT / "examples" / "recipes", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "diary").touch()
    models = Models(tmp_path, place)
    yield models
    wait_until(lambda: not any(place.iterdir()), timeout=30, message="the last one is out")
    wait_until(lambda: not any(map(psutil.pid_exists, models.noted("made"))))


@pytest.fixture
def serve(models: Models, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Run a web server in the directory of the recipe."""
    servers: list[Server] = []

    def start(*command: str) -> Server:
        servers.append(Server(tmp_path, *command))
        return servers[-1]

    try:
        yield start
    finally:
        for each in servers:
            each.kill()
