"""A conftest.py for `pytest --numprocesses 4`: the workers of a run share two models."""

from collections.abc import Iterator

import pytest
from model import Model

from mppool import ObjectPool, shared_pool


@pytest.fixture(scope="session")
def models(testrun_uid: str) -> ObjectPool[Model]:
    return shared_pool(f"models-{testrun_uid[:8]}", Model, max_size=2, close=Model.close)


@pytest.fixture
def model(models: ObjectPool[Model]) -> Iterator[Model]:
    with models.lease() as model:
        yield model
