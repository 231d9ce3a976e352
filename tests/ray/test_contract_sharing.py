"""The tests of test_sharing.py that hold wherever objects live, on a Ray cluster."""

from collections.abc import Iterator
from typing import Any

import pytest
from backends import Backend
from ray_backend import BACKENDS
from test_sharing import *


@pytest.fixture
def pools(backend: Backend) -> Iterator[Any]:
    with backend.manager() as manager:
        yield manager
