"""The errors: what they are, that they travel, and what they are called."""

from __future__ import annotations

import pickle
import traceback

import pytest

import mppool
from mppool import errors

POOL_ERRORS = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.PoolError)
]
ALL_ERRORS = [*POOL_ERRORS, errors.RemoteTraceback]


@pytest.mark.parametrize("kind", POOL_ERRORS)
def test_each_is_a_pool_error(kind: type[BaseException]) -> None:
    assert issubclass(kind, mppool.PoolError)


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (mppool.PoolTimeout, TimeoutError),
        (mppool.LeaseLost, mppool.LeaseError),
        (mppool.ManagerLost, ConnectionError),
    ],
)
def test_some_are_also_what_the_language_calls_it(
    kind: type[BaseException], also: type[BaseException]
) -> None:
    assert issubclass(kind, also)


@pytest.mark.parametrize("kind", [mppool.TooManyWaiting, mppool.PoolClosed, mppool.FactoryError])
def test_the_others_are_nothing_else(kind: type[BaseException]) -> None:
    assert kind.__mro__[1:] == (mppool.PoolError, Exception, BaseException, object)


def test_a_lost_lease_is_told_from_misuse() -> None:
    assert not issubclass(mppool.LeaseError, mppool.LeaseLost)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_each_pickles_and_comes_back_the_same(kind: type[BaseException], protocol: int) -> None:
    error = kind("pool 'db': 3 held, 2 waiting")
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is kind
    assert copy.args == error.args
    assert str(copy) == str(error)
    again = pickle.loads(pickle.dumps(copy, protocol))
    assert (type(again), again.args) == (kind, error.args)


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_each_keeps_what_was_noted_on_it(kind: type[BaseException]) -> None:
    error = kind("text")
    error.pid = 17  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(error)).pid == 17


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_each_has_one_public_name(kind: type[BaseException]) -> None:
    assert kind.__module__ == "mppool"
    assert kind.__qualname__ in mppool.__all__
    assert getattr(mppool, kind.__qualname__) is kind
    assert b"mppool.errors" not in pickle.dumps(kind("text"))


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_a_log_shows_the_public_name(kind: type[BaseException]) -> None:
    assert traceback.format_exception_only(kind, kind("text"))[0].startswith(f"mppool.{kind.__name__}: ")


def test_a_timeout_has_no_error_number() -> None:
    error = mppool.PoolTimeout("pool 'db': no object came free")
    assert str(error) == "pool 'db': no object came free"
    assert error.errno is None


def test_a_remote_traceback_shows_its_text_on_lines_of_its_own() -> None:
    error = mppool.RemoteTraceback("Traceback ...\nValueError: 1")
    assert str(error) == "\nTraceback ...\nValueError: 1"
    assert error.text == "Traceback ...\nValueError: 1"
