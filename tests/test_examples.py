"""The two small examples, run as a reader runs them."""

from __future__ import annotations

import re

import pytest
from helpers import ROOT, RunPython


def number(pattern: str, text: str) -> float:
    """The one number that the pattern finds."""
    found = re.findall(pattern, text)
    assert len(found) == 1, f"{pattern!r} in\n{text}"
    return float(found[0].replace(",", ""))


def test_executor(run_python: RunPython) -> None:
    done = run_python(ROOT / "examples" / "executor.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert number(r"open\(\) +is defined in +(\d+) modules", done.stdout) > 5
    assert number(r"^(\d+) questions", done.stdout.splitlines()[-2]) == 200
    assert 1 <= number(r"from (\d+) workers", done.stdout) <= 16
    assert 1 <= number(r"(\d+) databases built", done.stdout) <= 4
    assert number(r"lent (\d+) times", done.stdout) == 200


def test_shared_model_takes_less_memory_than_copies(run_python: RunPython) -> None:
    megabytes, workers = 64, 4
    done = run_python(
        ROOT / "examples" / "shared_model.py", "--megabytes", str(megabytes), "--workers", str(workers)
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shared = number(r"one shared model +([\d,]+) MB", done.stdout)
    copied = number(r"a copy in each worker +([\d,]+) MB", done.stdout)
    assert shared > megabytes
    assert copied > megabytes * workers
    # All but one copy is saved; the pool's manager, one process more, must not eat that up.
    assert copied - shared > megabytes * (workers - 1) * 0.6
    assert "All workers agree" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--megabytes", "100000000"], "MB are free"),
        (["--workers", "0"], "must be 1 or more"),
        (["--megabytes", "much"], "invalid int value"),
    ],
)
def test_shared_model_refuses(run_python: RunPython, arguments: list[str], said: str) -> None:
    done = run_python(ROOT / "examples" / "shared_model.py", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_shared_model_without_numpy_names_the_extra(run_python: RunPython) -> None:
    script = ROOT / "examples" / "shared_model.py"
    done = run_python(
        "-c",
        "import runpy, sys; sys.modules['numpy'] = None; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')",
    )
    assert done.returncode == 1
    assert "mppool[examples]" in done.stderr
    assert "Traceback" not in done.stderr


def test_sqlite_pool(run_python: RunPython) -> None:
    done = run_python(ROOT / "examples" / "sqlite_pool.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "readers saw [1000] in all accounts" in done.stdout
    assert number(r"(\d+) transfers", done.stdout) == 200
    assert 1 <= number(r"(\d+) connections", done.stdout) <= 4
    assert number(r"lent (\d+) times", done.stdout) == 401
