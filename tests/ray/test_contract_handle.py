"""The tests of test_handle.py that hold wherever objects live, on a Ray cluster."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from ray_backend import BACKENDS
from test_handle import *
from test_handle import Lend, lent_by


@pytest.fixture(params=[pytest.param("ray", marks=pytest.mark.everywhere)])
def lend(shared_manager: Any) -> Iterator[Lend]:
    """Build an object on a node, and give a handle to the test."""
    with ExitStack() as stack:
        yield partial(lent_by, shared_manager, stack)
