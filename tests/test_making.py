"""How pools are made, found again, waited for and ended."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
from actors import Gate, Tool, Worker, all_idle
from helpers import Beside, wait_until

from mppool import ObjectPool, PoolClosed, PoolManager, PoolOptions, PoolTimeout

# -- found again --------------------------------------------------------------------------------------


def make(*parts: Any, **more: Any) -> tuple[Any, ...]:
    return (*parts, more)


def is_fine(_: object) -> bool:
    return True


RECIPES: list[tuple[Any, dict[str, Any]]] = [
    (Tool, {"max_size": 3, "check": is_fine}),
    ("actors:Tool", {"keep": ["actors:Tool"], "isolation": "process"}),
    (partial(make, 1, partial(make, 2, b=3), a=[4]), {"close": partial(is_fine), "expose": ["x", "y"]}),
]


@pytest.mark.parametrize(("factory", "options"), RECIPES)
def test_a_pool_that_exists_is_found(manager: PoolManager, factory: Any, options: dict[str, Any]) -> None:
    pool = manager.create_pool(factory, name="one", exist_ok=True, **options)
    pool.resize(max_size=1)
    for given in (options, {}):  # what is left out matches any
        assert manager.create_pool(factory, name="one", exist_ok=True, **given) == pool
    assert pool.stats().max_size == 1, "that is no part of how it was made"


@pytest.mark.parametrize(
    ("factory", "options", "said"),
    [
        (list, {}, r"its factory is .*partial\(.*make.* not <class 'list'>"),
        (partial(make, 1, partial(make, 2, b=4), a=[4]), {}, "its factory is"),
        (partial(make, 1, partial(make, 2, b=3)), {}, "its factory is"),
        (RECIPES[2][0], {"close": is_fine}, "its close is"),
        (RECIPES[2][0], {"max_size": 999}, "its max_size is .*, not 999"),
        (RECIPES[2][0], {"expose": "xy"}, "expose must be"),
        (RECIPES[2][0], {"expose": {"x"}}, "its expose is"),
        (RECIPES[2][0], {"expose": None}, "its expose is .*, not None"),
    ],
)
def test_a_pool_that_was_made_otherwise_is_refused(
    manager: PoolManager, factory: Any, options: dict[str, Any], said: str
) -> None:
    made, with_options = RECIPES[2]
    pool = manager.create_pool(made, name="one", **with_options)
    with pytest.raises((ValueError, TypeError), match=said):
        manager.create_pool(factory, name="one", exist_ok=True, **options)
    assert manager.create_pool(made, name="one", exist_ok=True, expose={"y", "x"}) == pool


def test_all_names_are_not_the_names_that_all_is_made_of(manager: PoolManager) -> None:
    manager.create_pool(Tool, name="one", expose="all")
    with pytest.raises(ValueError, match=r"its expose is 'all', not \['a', 'l'\]"):
        manager.create_pool(Tool, name="one", exist_ok=True, expose=["a", "l"])


def test_the_first_comer_makes_the_pool(manager: PoolManager) -> None:
    start, pools = threading.Barrier(8), []

    def come() -> None:
        start.wait(20)
        pools.append(manager.create_pool(Tool, name="one", exist_ok=True))

    threads = [threading.Thread(target=come) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert pools == [manager.get_pool("one")] * 8


def test_a_pool_that_may_exist_has_a_name(manager: PoolManager) -> None:
    with pytest.raises(ValueError, match="exist_ok=True: a pool without a name"):
        manager.create_pool(Tool, exist_ok=True)
    with pytest.raises(TypeError, match="exist_ok must be True or False: 1"):
        manager.create_pool(Tool, name="one", exist_ok=1)  # type: ignore[call-overload]


def test_all_pools_by_name(manager: PoolManager) -> None:
    assert manager.pools() == {}
    pools = {name: manager.create_pool(Tool, name=name) for name in ("b", "a")}
    assert manager.pools() == pools
    pools["b"].close()
    assert list(manager.pools()) == ["a"]


# -- how it was made ----------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_a_pool_tells_its_options(manager: PoolManager, worker: Worker) -> None:
    pool = manager.create_pool(Tool, max_size=3, close=is_fine, expose=["echo"], max_idle=None)
    pool.resize(max_size=2)
    for told in (pool.options, worker.do(options_of, pool)):
        assert isinstance(told, PoolOptions)
        assert (told.max_size, told.close, told.expose, told.max_idle) == (3, is_fine, ["echo"], None)
        assert told.timeout == PoolOptions().timeout
    assert (pool.stats().min_size, pool.stats().max_size) == (0, 2)


def options_of(_: object, pool: ObjectPool[Any]) -> PoolOptions:
    return pool.options


# -- until enough objects are there -------------------------------------------------------------------


def make_at_gate() -> Tool:
    Tool().wait_at_gate()
    return Tool()


def fail() -> None:
    raise OSError("no such host")


def test_waiting_until_objects_are_there(gate: Gate, manager: PoolManager, beside: Beside) -> None:
    pool = manager.create_pool(make_at_gate, min_size=2, max_size=3)
    with pytest.raises(PoolTimeout, match="0 of min_size=2 objects are there after 0 s"):
        pool.wait(timeout=0)
    waiting = beside(pool.wait, timeout=None)
    gate.wait_for_somebody()
    assert not waiting.done()
    gate.open()
    assert waiting.result(20) is None
    with pool.lease():
        pool.wait(timeout=0)  # lent ones are there, too


def test_what_was_waited_for_in_vain(manager: PoolManager) -> None:
    pool = manager.create_pool(fail, min_size=1, max_size=1)
    with pytest.raises(PoolTimeout, match=r"0 of min_size=1 .*the last build failed: OSError: no such host"):
        pool.wait(timeout=0.5)


def test_waiting_ends_with_the_pool_and_with_the_bound(manager: PoolManager, beside: Beside) -> None:
    for end, error in ((ObjectPool.close, PoolClosed), (partial(ObjectPool.resize, min_size=0), None)):
        pool = manager.create_pool(fail, min_size=1, max_size=1)
        waiting = beside(pool.wait, timeout=None)
        wait_until(lambda pool=pool: pool.stats().failed_builds)
        end(pool)
        assert type(waiting.exception(20)) is (error or type(None))


def test_one_that_waited_and_was_killed_is_forgotten(
    gate: Gate, manager: PoolManager, worker: Worker
) -> None:
    pool = manager.create_pool(make_at_gate, min_size=1, max_size=1)
    worker.begin(wait_for_ever, pool)
    gate.wait_for_somebody()
    worker.kill()
    gate.open()
    pool.wait()
    assert all_idle(pool, 1)


def wait_for_ever(_: object, pool: ObjectPool[Any]) -> None:
    pool.wait(None)


# -- the end ------------------------------------------------------------------------------------------


def test_a_pool_is_closed_with_its_block(manager: PoolManager) -> None:
    with manager.create_pool(Tool) as pool, pool.lease() as tool:
        assert tool.echo(1) == 1
    with pytest.raises(PoolClosed):
        pool.acquire()
    with pool:
        pass  # once more


def test_the_error_of_the_block_passes() -> None:
    def fail_after_the_end() -> None:
        with PoolManager() as manager, manager.create_pool(Tool):
            manager.shutdown()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_the_end()


@pytest.mark.everywhere
def test_an_object_is_closed_with_a_block_that_fails(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1)
    for kept, error in ((True, None), (True, None), (False, ZeroDivisionError), (False, SystemExit)):
        before = pool.stats().built
        try:
            with pool.lease(discard_on_error=error is not None) as tool:
                tool.echo(1)
                if error is not None:
                    raise error
        except (ZeroDivisionError, SystemExit):
            pass
        pool.apply(bool)
        assert pool.stats().built == max(before, 1) + (not kept)
    assert pool.stats().retired == {"discarded": 2}
    with pytest.raises(ZeroDivisionError), pool.lease():
        raise ZeroDivisionError
    assert pool.stats().retired == {"discarded": 2}, "not asked for"


def test_a_block_that_fails_after_it_gave_back(manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, max_size=1)

    def give_back_and_fail() -> None:
        with pool.lease(discard_on_error=True) as tool:
            pool.release(tool)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_back_and_fail()
    assert pool.stats().retired == {}
