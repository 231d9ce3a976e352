"""mypy sees what `typecheck.py` says it sees."""

from __future__ import annotations

import importlib.util

import pytest
from helpers import ROOT, RunPython


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_callers_are_promised_the_types_that_they_get(run_python: RunPython) -> None:
    run_python("-m", "mypy", "--strict", ROOT / "tests" / "typecheck.py", cwd=ROOT)
