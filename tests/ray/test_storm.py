"""A hundred kills on a cluster of three nodes."""

from pathlib import Path
from typing import Any

import pytest
from backends import Backend
from test_storms import storm_among_objects


@pytest.mark.slow
@pytest.mark.timeout(600)  # a worker, and an object, takes Ray a second or two to start
def test_a_hundred_kills_among_eight_clients_on_three_nodes(
    backend: Backend, manager: Any, tmp_path: Path
) -> None:
    storm_among_objects(backend, manager, tmp_path, workers=8, kills=100)
