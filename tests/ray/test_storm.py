"""A hundred kills on a cluster of three nodes."""

from pathlib import Path
from typing import Any

import pytest
from backends import Backend
from ray_backend import BACKENDS  # noqa: F401  # where: `backend` asks the module
from test_storms import storm_among_objects


@pytest.mark.slow
@pytest.mark.everywhere
def test_a_hundred_kills_among_eight_clients_on_three_nodes(
    backend: Backend, manager: Any, tmp_path: Path
) -> None:
    storm_among_objects(backend, manager, tmp_path, workers=8, kills=100)
