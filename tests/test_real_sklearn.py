"""Pipelines of scikit-learn in a pool."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from mppool import ObjectPool, PoolManager

pytestmark = [
    pytest.mark.everywhere,
    pytest.mark.skipif(not importlib.util.find_spec("sklearn"), reason="the extra `real` is not installed"),
]


@pytest.fixture(scope="module")
def sklearn() -> Any:
    """Imported where it is used, for it takes more than a second; before a manager is forked."""
    import sklearn.linear_model
    import sklearn.pipeline
    import sklearn.preprocessing

    return sklearn


POINTS = np.arange(40.0).reshape(20, 2) ** 1.5
VALUES = POINTS @ [2.0, -1.0] + 3.0


def make_pipeline() -> Any:
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LinearRegression())


def fit(pipeline: Any) -> None:
    pipeline.fit(POINTS, VALUES)


@pytest.fixture
def pool(sklearn: Any, manager: PoolManager) -> ObjectPool[Any]:
    return manager.create_pool(make_pipeline, max_size=1)


@pytest.fixture
def keeping(sklearn: Any, manager: PoolManager) -> ObjectPool[Any]:
    """A pool whose steps stay with their pipeline."""
    return manager.create_pool(make_pipeline, max_size=1, keep=["sklearn.base:BaseEstimator"])


def test_it_learns_and_predicts(pool: ObjectPool[Any], sklearn: Any) -> None:
    with pool.lease() as pipeline:
        with pytest.raises(sklearn.exceptions.NotFittedError, match="not fitted"):
            pipeline.predict(POINTS)
        assert pipeline.fit(POINTS, VALUES) is pipeline
        assert np.allclose(pipeline.predict(POINTS), VALUES)
        assert (pipeline.score(POINTS, VALUES), pipeline.n_features_in_, len(pipeline)) == (1.0, 2, 2)
        with pytest.raises(ValueError, match="3 features, but StandardScaler is expecting 2"):
            pipeline.predict(np.zeros((1, 3)))
    assert np.allclose(pool.apply(sklearn.pipeline.Pipeline.predict, POINTS[:3]), VALUES[:3])
    with pytest.raises(TypeError, match="stays with the object"):
        pool.apply(sklearn.pipeline.Pipeline.fit, POINTS, VALUES)


def test_steps_are_copies(pool: ObjectPool[Any], sklearn: Any) -> None:
    with pool.lease() as pipeline:
        step = pipeline[0]
        assert type(step) is type(pipeline.steps[0][1]) is sklearn.preprocessing.StandardScaler
        step.set_params(with_mean=False)
        assert pipeline.get_params()["standardscaler__with_mean"] is True
        assert pipeline.set_params(standardscaler__with_mean=False) is pipeline
        assert pipeline.get_params()["standardscaler__with_mean"] is False


def test_steps_that_are_kept_stay(keeping: ObjectPool[Any], sklearn: Any) -> None:
    keeping.apply(fit)
    with keeping.lease() as pipeline:
        scaler, regression = pipeline[0], pipeline[-1]
        assert [name for name, _ in pipeline.steps] == ["standardscaler", "linearregression"]
        assert [step for _, step in pipeline.steps] == [scaler, regression]
        assert pipeline.named_steps["standardscaler"] is scaler
        assert isinstance(scaler, sklearn.base.BaseEstimator)
        assert np.allclose(scaler.mean_, POINTS.mean(axis=0))
        assert scaler.set_params(with_mean=False) is scaler
        assert pipeline.get_params()["standardscaler__with_mean"] is False
        regression.intercept_ = 0.0
        regression.coef_ = np.zeros(2)
        assert not pipeline.predict(POINTS).any()
        assert regression.fit(scaler.fit_transform(POINTS), VALUES) is regression
        assert np.allclose(pipeline.predict(POINTS), VALUES)


def make_regression() -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression()


def test_a_handle_is_a_step_of_a_pipeline(sklearn: Any, manager: PoolManager) -> None:
    pool = manager.create_pool(make_regression, max_size=1, expose="all")
    with pool.lease() as regression:
        pipeline = sklearn.pipeline.make_pipeline(sklearn.preprocessing.StandardScaler(), regression)
        assert np.allclose(pipeline.fit(POINTS, VALUES).predict(POINTS), VALUES)
        assert pipeline.score(POINTS, VALUES) == 1.0
        assert (list(pipeline.named_steps), pipeline[-1] is regression) == (
            ["standardscaler", "linearregression"],
            True,
        )
        assert np.allclose(regression.intercept_, VALUES.mean())
        assert "StandardScaler" in repr(pipeline)
    assert pool.apply(is_fitted)


def is_fitted(regression: Any) -> bool:
    return hasattr(regression, "coef_")
