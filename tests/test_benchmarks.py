"""The benchmark runs, and writes what it promises. How fast anything is, no test says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import find_programs
from helpers import ROOT, RunPython

ROUND_TRIP = {"mppool by the round trip"}
WHO = {"mppool", "stock", "limit"}


@pytest.fixture
def run_benchmark(run_python: RunPython, tmp_path: Path) -> Any:
    def run(*args: str, timeout: float = 50) -> tuple[str, dict[str, Any]]:
        file = tmp_path / "figures.json"
        command = ("-m", "tests.benchmarks", "--quick", "--no-peers", "--json", file)
        done = run_python(*command, *args, cwd=ROOT, timeout=timeout)
        assert done.stderr == ""
        return done.stdout, json.loads(file.read_text())

    return run


def test_the_benchmark_prints_a_table_and_writes_it_as_json(run_benchmark: Any) -> None:
    printed, written = run_benchmark("--only", "call-2", "start-manager", "name")

    call, start, *by_name = written["rows"]
    assert (call["name"], call["unit"]) == ("call-2", "rate")
    assert set(call["medians"]) == WHO
    assert all(len(samples) == 3 and min(samples) > 0 for samples in call["samples"].values())
    assert set(call["ratios"]) == {"stock/mppool", "mppool/limit"}
    assert (start["name"], set(start["medians"])) == ("start-manager", {"mppool", "stock"})

    verdicts = {figure["row"]: figure["verdict"] for figure in written["figures"]}
    assert verdicts["start a manager"] in ("reached", "not reached")
    assert verdicts["1000 objects"] == "not measured"
    assert [each["name"] for each in by_name] == ["name-start", "name-join"]
    assert all(verdicts[each["title"]] != "not measured" for each in by_name)
    assert len(written["machine"]["load_average"]) == 3

    lines = printed.splitlines()
    assert any(line.startswith("load average: ") for line in lines)
    assert any(line.startswith(call["title"]) and "/s" in line for line in lines)
    assert any(line.startswith("start a manager") and "not slower than stock" in line for line in lines)


def test_rows_of_an_event_loop(run_benchmark: Any) -> None:
    pytest.importorskip("numpy", exc_type=ImportError)
    printed, written = run_benchmark("--only", "aio")
    rows = {row["name"]: row["medians"] for row in written["rows"]}
    assert rows["aio-call"].keys() == {"mppool", "mppool in threads"}
    assert rows["aio-crowd-timeouts"] == {"mppool": 0}
    assert rows["aio-crowd-threads"]["mppool"] <= 10
    assert rows["aio-crowd-connections"]["mppool"] <= 12
    assert rows["aio-stall-array-longest"].keys() == {"mppool", "limit"} == rows["aio-way-reader"].keys()
    assert ("aio-call-uvloop" in rows) != ("uvloop" in written["missing"])
    assert "plain call, awaited" in printed


def test_rows_of_what_lies_parked(run_benchmark: Any) -> None:
    printed, written = run_benchmark("--only", "parked")
    rows = {row["name"]: row["medians"] for row in written["rows"]}
    assert rows["parked-cycle"].keys() == {"mppool", *ROUND_TRIP, "mppool, a plain call", "stock"}
    assert rows["parked-clients"].keys() == rows["parked-aio"].keys() == {"mppool", *ROUND_TRIP}
    if sys.platform == "linux":
        assert rows["parked-idle-client"] == rows["parked-idle-manager"] == {"mppool": 1}
        assert rows["parked-idle-wakes"].keys() == {"mppool", "mppool with nothing parked"}
    assert "at least 2.2 x as many as by the round trip" in printed


@pytest.mark.skipif(not find_programs(), reason="no PostgreSQL server is installed")
def test_rows_of_a_database(run_benchmark: Any) -> None:
    pytest.importorskip("psycopg", reason="the extra `real` is not installed", exc_type=ImportError)
    printed, written = run_benchmark("--only", "database")
    assert [row["name"] for row in written["rows"]] == ["database-select", "database-rows", "database-apply"]
    assert all(row["ratios"].keys() == {"mppool/limit"} for row in written["rows"])
    assert (written["missing"], "PostgreSQL: select 1" in printed) == ({}, True)


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_rows_of_a_cluster(run_benchmark: Any) -> None:
    for library in "ray.cluster_utils", "numpy":
        pytest.importorskip(library, reason="the extra `ray` or NumPy is not installed", exc_type=ImportError)
    printed, written = run_benchmark("--only", "ray", timeout=170)
    *beside, kill = written["rows"]
    assert [row["name"] for row in beside] == [
        f"ray-{each}" for each in ("call", "cycle", "argument", "result", "crowd")
    ]
    assert all({"mppool", "Ray"} < row["medians"].keys() for row in beside)
    assert all("Ray/mppool beside Ray" in row["ratios"] for row in beside)
    assert (kill["name"], len(kill["samples"]["mppool"])) == ("ray-kill", 3)
    assert "Ray cluster: plain call" in printed


def test_rows_of_what_is_missing_are_a_line_that_says_so(run_python: RunPython) -> None:
    arguments = ["benchmarks", "--quick", "--no-peers", "--json", "/dev/null", "--only", "database"]
    hide = f"import runpy, sys; sys.modules['psycopg'] = None; sys.argv = {arguments}"
    done = run_python("-c", f"{hide}; runpy.run_module('tests.benchmarks', run_name='__main__')", cwd=ROOT)
    assert "psycopg: cannot be imported: pip install 'psycopg[binary]'" in done.stdout.splitlines()


def test_a_row_that_does_not_exist_is_an_error_that_names_those_that_do(run_python: RunPython) -> None:
    done = run_python("-m", "tests.benchmarks", "--only", "no-such-row", cwd=ROOT, status=2)
    assert "no-such-row" in done.stderr
    assert "array-result-64MiB" in done.stderr
