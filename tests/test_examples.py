"""The small examples, run as a reader runs them."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, RunPython, wait_until


def number(pattern: str, text: str) -> float:
    """The one number that the pattern finds."""
    found = re.findall(pattern, text)
    assert len(found) == 1, f"{pattern!r} in\n{text}"
    return float(found[0].replace(",", ""))


def test_executor(run_python: RunPython) -> None:
    done = run_python(ROOT / "examples" / "executor.py")
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
    assert done.stderr == ""
    shared = number(r"one shared model +([\d,]+) MB", done.stdout)
    copied = number(r"a copy in each worker +([\d,]+) MB", done.stdout)
    assert shared > megabytes
    assert copied > megabytes * workers
    # All but one copy is saved; the pool's manager, one process more, must not eat that up.
    assert copied - shared > megabytes * (workers - 1) * 0.6
    assert "All workers agree" in done.stdout


needs_gunicorn = pytest.mark.skipif(not importlib.util.find_spec("gunicorn"), reason="no gunicorn installed")


@needs_gunicorn
def test_model_server_takes_less_memory_than_copies(run_python: RunPython) -> None:
    megabytes, workers = 64, 4
    sizes = ["--megabytes", str(megabytes), "--workers", str(workers), "--requests", "8"]
    done = run_python(ROOT / "examples" / "model_server.py", *sizes)
    assert done.stderr == ""
    shared = number(r"one model for all +([\d,]+) MB", done.stdout)
    copied = number(r"a model in each worker +([\d,]+) MB", done.stdout)
    assert copied - shared > megabytes * (workers - 1) * 0.6
    assert shared > megabytes
    assert "All answers agree" in done.stdout
    assert number(r"leaks was replaced (\d+) times", done.stdout) >= 1
    assert number(r"up to (\d+) were answered at once", done.stdout) >= 2, (
        "those that waited for its successor"
    )


@pytest.mark.parametrize("example", ["shared_model", pytest.param("model_server", marks=needs_gunicorn)])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--megabytes", "100000000"], "MB are free"),
        (["--workers", "0"], "must be 1 or more"),
        (["--megabytes", "much"], "invalid int value"),
    ],
)
def test_an_example_refuses(run_python: RunPython, example: str, arguments: list[str], said: str) -> None:
    done = run_python(ROOT / "examples" / f"{example}.py", *arguments, status=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("example", "library"),
    [
        ("shared_model.py", "numpy"),
        ("model_server.py", "gunicorn"),
        ("screenshots.py", "selenium"),
        ("postgres.py", "psycopg"),
        ("devices.py", "joblib"),
        ("cluster.py", "ray"),
    ],
)
def test_without_its_library_it_names_the_extra(run_python: RunPython, example: str, library: str) -> None:
    script = ROOT / "examples" / example
    done = run_python(
        "-c",
        f"import runpy, sys; sys.modules[{library!r}] = None; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')",
        status=1,
    )
    assert "pip install 'mppool[examples" in done.stderr
    assert "Traceback" not in done.stderr


def test_sqlite_pool(run_python: RunPython) -> None:
    done = run_python(ROOT / "examples" / "sqlite_pool.py")
    assert done.stderr == ""
    assert "readers saw [1000] in all accounts" in done.stdout
    assert number(r"(\d+) transfers", done.stdout) == 200
    assert 1 <= number(r"(\d+) connections", done.stdout) <= 4
    assert number(r"lent (\d+) times", done.stdout) == 401


def test_postgres(run_python: RunPython, postgres: str) -> None:
    psycopg = pytest.importorskip("psycopg", reason="no psycopg, or no libpq", exc_type=ImportError)
    done = run_python(ROOT / "examples" / "postgres.py", "--dsn", postgres, "--transfers", "10")
    assert "640 transfers by 64 workers over 4 connections" in done.stdout
    assert number(r"(\d+) workers killed", done.stdout) == 8
    reclaimed = int(number(r"(\d+) connections taken back", done.stdout))
    assert reclaimed <= 8
    assert done.stderr.count("took back lease") == len(done.stderr.splitlines()) == reclaimed
    assert "100,000 in all accounts, as before" in done.stdout
    with psycopg.connect(postgres) as connection:
        left = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'mppool_example'").fetchall()
        assert left == []


def test_postgres_without_a_server(run_python: RunPython, tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="no psycopg, or no libpq", exc_type=ImportError)
    script = ROOT / "examples" / "postgres.py"
    done = run_python(script, "--dsn", f"host={tmp_path}", status=1)
    assert done.stderr.startswith("postgres.py: error: ")
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not importlib.util.find_spec("joblib"), reason="no joblib installed")
def test_devices(run_python: RunPython) -> None:
    done = run_python(ROOT / "examples" / "devices.py", "--workers", "3", "--kill", "1")
    assert number(r"^(\d+) records of 240 jobs", done.stdout.splitlines()[-2]) == 240
    assert number(r"(\d+) workers were killed with a device", done.stdout) == 1
    assert "took back lease" in done.stderr
    assert "Error" not in done.stderr


needs_selenium = pytest.mark.skipif(not importlib.util.find_spec("selenium"), reason="no Selenium installed")
needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("google-chrome")) or not shutil.which("chromedriver"),
    reason="no Chromium with chromedriver on PATH",
)


def live_below(directory: Path) -> list[str]:
    """The processes whose temporary files are to lie in this directory."""
    names = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # a zombie, for instance
            if process.environ().get("TMPDIR", "").startswith(str(directory)):
                names.append(process.name())
    return names


@needs_selenium
@needs_browser
def test_screenshots(run_python: RunPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A directory of the test's own would have too long a path for Chromium.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setenv("HOME", name)
        done = run_python(ROOT / "examples" / "screenshots.py", "--output", "new/shots")
        wait_until(lambda: not live_below(directory))
        assert list(directory.iterdir()) == []
    assert done.stderr == ""
    assert number(r"(\d+) screenshots of 800x600, no two alike", done.stdout) == 24
    assert 1 <= number(r"by (\d+) workers", done.stdout) <= 4
    assert re.search(r"browser \d+ was killed", done.stdout)
    assert 2 <= number(r"(\d+) browsers built", done.stdout) <= 3
    assert number(r"(\d+) lost", done.stdout) == 1
    pictures = {file.read_bytes() for file in (tmp_path / "new" / "shots").glob("*.png")}
    assert len(pictures) == 24


@needs_selenium
def test_screenshots_without_a_browser(
    run_python: RunPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run_python(ROOT / "examples" / "screenshots.py", "--output", "shots")
    assert done.stderr == ""
    assert done.stdout.startswith("skipped: there is no Chromium and no chromedriver on PATH")
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "shots").exists()


@needs_selenium
def test_screenshots_refuses_an_output_that_is_a_file(
    run_python: RunPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("chromium", "chromedriver"):  # found, but never started
        (tmp_path / program).touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run_python(ROOT / "examples" / "screenshots.py", "--output", "chromium", status=2)
    assert "--output chromium: File exists" in done.stderr
    assert "Traceback" not in done.stderr
