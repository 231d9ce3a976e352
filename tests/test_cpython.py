"""CPython's own tests of lists and mappings, on handles of pooled ones."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import stress_seconds

from mppool import ObjectPool, PoolManager

WHERE = "this interpreter comes without CPython's own tests"
list_tests = pytest.importorskip("test.list_tests", reason=WHERE)
mapping_tests = pytest.importorskip("test.mapping_tests", reason=WHERE)

POOLS: dict[type, ObjectPool[Any]] = {}
HELD: list[tuple[type, Any]] = []


@pytest.fixture(scope="module", autouse=True)
def _pools(shared_manager: PoolManager) -> None:
    """In the manager's process, where the objects of several leases can meet; as many as a test wants."""
    for kind in (list, dict):
        POOLS[kind] = shared_manager.create_pool(kind, max_size=50_000)


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    while HELD:
        kind, handle = HELD.pop()
        POOLS[kind].release(handle, discard=True)


def lend(value: Any) -> Any:
    """A handle of a pooled list or dict that is filled with this."""
    handle = POOLS[type(value)].acquire()
    HELD.append((type(value), handle))
    getattr(handle, "extend" if isinstance(value, list) else "update")(value)
    return handle


class PooledList:
    """What the tests take for the type that is tested."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return lend(list(*args, **kwargs))


class PooledDict:
    """The same for mappings."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return lend(dict(*args, **kwargs))

    @classmethod
    def fromkeys(cls, *args: Any) -> Any:
        return lend(dict.fromkeys(*args))


CANNOT = {
    "test_free_after_iterating": "wants a `__del__` of a subclass to run, and here is no class",
    "test_fromkeys": "a generator does not pickle; wants subclasses, too",
    "test_init": "`__init__` is the handle's own",
    "test_pickle": "a handle belongs to the process that acquired it",
    "test_remove": "each time an element comes it is a new copy",
    "test_setdefault": "changes a list that came as a copy",
    "test_sort": "what functools.cmp_to_key makes does not pickle",
}
"""Tests that cannot hold, and why."""


def marked(case: Any) -> Any:
    """A test case with marks, which those of CPython do not get."""

    def mark(name: str, mark: pytest.MarkDecorator) -> None:
        test = getattr(case, name)

        @functools.wraps(test)
        def run(self: Any) -> None:
            test(self)

        setattr(case, name, mark(run))

    for name in CANNOT.keys() & dir(case):
        mark(name, pytest.mark.xfail(reason=CANNOT[name], strict=True))
    reason = "takes a lease for each of 10 000 levels, from 3.14 on 100 000: only where stress tests are long"
    short = stress_seconds() < 40 or sys.version_info >= (3, 14)
    mark("test_repr_deep", pytest.mark.skipif(sys.version_info >= (3, 12) and short, reason=reason))
    return case


@marked
class TestLists(list_tests.CommonTest):  # type: ignore[misc]
    type2test = PooledList


@marked
class TestDicts(mapping_tests.TestHashMappingProtocol):  # type: ignore[misc]
    type2test = PooledDict

    def __reduce__(self) -> Any:  # arguments that a test makes refer to it
        return type(self), (self._testMethodName,)


def test_at_least_56_of_66_hold() -> None:
    tests = [name for case in (TestLists, TestDicts) for name in dir(case) if name.startswith("test_")]
    assert len(tests) >= 66
    assert len([name for name in tests if name not in CANNOT]) >= 56
