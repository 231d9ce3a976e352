"""The options of a pool: defaults, and what is refused with which words."""

from __future__ import annotations

import ast
import inspect
import os
import pickle
import pydoc
import re
from dataclasses import FrozenInstanceError, fields
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mppool.options
from mppool._validation import USE_DEFAULT, resolve, seconds
from mppool.options import PoolOptions

NUMBERS = ["min_size", "max_size", "max_waiting", "max_uses", "max_memory", "max_memory_hard"]
TIMES = ["timeout", "max_idle", "max_lifetime", "max_hold", "warn_hold", "call_timeout", "build_timeout"]
POSITIVE_TIMES = ["max_lifetime", "max_hold", "warn_hold", "call_timeout", "build_timeout"]


def test_defaults() -> None:
    options = PoolOptions()
    assert {each.name: getattr(options, each.name) for each in fields(options)} == {
        "min_size": 0,
        "max_size": os.cpu_count(),
        "timeout": 30.0,
        "max_waiting": None,
        "max_batch_size": 32,
        "batch_wait": 0.002,
        "max_idle": 600.0,
        "max_lifetime": None,
        "max_uses": None,
        "check": None,
        "reset": None,
        "close": None,
        "on_reclaim": "close",
        "max_hold": None,
        "warn_hold": None,
        "order": "lifo",
        "expose": None,
        "keep": (),
        "isolation": "none",
        "call_timeout": None,
        "build_timeout": 300.0,
        "max_memory": None,
        "max_memory_hard": None,
    }


def test_where_the_number_of_cpus_is_unknown_one_object_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert PoolOptions().max_size == 1


WHOLE = "must be a whole number( or None)?"
TIME = "must be a number of seconds or None"
HOOK = "must be callable with the object, or None"


@pytest.mark.parametrize(
    ("names", "said", "values"),
    [
        (NUMBERS, WHOLE, ["1", 1.0, True, [], Decimal(1), object()]),
        (["min_size", "max_size"], "must be a whole number", [None]),
        (["max_batch_size"], "must be a whole number", [None, "1", 1.0, True]),
        (["batch_wait"], "must be a number of seconds", [None, "1", True, 1j]),
        (TIMES, TIME, ["1", True, [], Decimal(1), 1j]),
        (["check", "reset", "close"], HOOK, [1, "close", (), False]),
    ],
)
def test_a_value_of_another_type_is_a_type_error_that_names_it(
    names: list[str], said: str, values: list[object]
) -> None:
    for name, value in product(names, values):
        with pytest.raises(TypeError, match=f"^{name} {said}: {re.escape(repr(value))}$"):
            PoolOptions(**{name: value})


@pytest.mark.parametrize(
    ("names", "said", "values"),
    [
        (["min_size", "max_waiting"], "at least 0", [-1]),
        (["max_size", "max_uses", "max_memory", "max_memory_hard", "max_batch_size"], "at least 1", [0, -4]),
        (["batch_wait"], "0 or more seconds", [-1, -0.001, float("-inf"), float("nan")]),
        (TIMES, ".*more.* seconds", [-1, -0.001, float("-inf"), float("nan")]),
        (POSITIVE_TIMES, "more than 0 seconds", [0]),
    ],
)
def test_a_value_out_of_range_is_a_value_error_that_names_it(
    names: list[str], said: str, values: list[float]
) -> None:
    for name, value in product(names, values):
        with pytest.raises(ValueError, match=f"^{name} must be {said}: {value}$"):
            PoolOptions(**{name: value})


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (["max_waiting", "max_uses", "max_memory", "max_memory_hard", *TIMES], [None]),
        (["timeout", "max_idle", "batch_wait"], [0]),
        ([*TIMES, "batch_wait"], [1, 0.5, float("inf")]),
    ],
)
def test_none_switches_off_and_times_may_be_whole_broken_and_endless(names: Any, values: Any) -> None:
    for name, value in product(names, values):
        assert getattr(PoolOptions(**{name: value}), name) == value


def test_the_bounds_must_agree() -> None:
    with pytest.raises(ValueError, match="min_size=3 is more than max_size=2"):
        PoolOptions(min_size=3, max_size=2)
    assert PoolOptions(min_size=2, max_size=2).min_size == 2
    with pytest.raises(ValueError, match="max_memory=3 is more than max_memory_hard=2"):
        PoolOptions(max_memory=3, max_memory_hard=2, isolation="process")
    assert PoolOptions(max_memory=2, max_memory_hard=2, isolation="process").bounds_memory


@pytest.mark.parametrize("name", ["max_memory", "max_memory_hard"])
@pytest.mark.parametrize("isolation", ["none", "thread"])
def test_memory_is_bounded_in_a_process_of_its_own_only(name: str, isolation: Any) -> None:
    with pytest.raises(ValueError, match=f"need isolation='process', not '{isolation}': .* cannot be told"):
        PoolOptions(**{name: 2**30, "isolation": isolation})


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("on_reclaim", ("close", "reset")),
        ("order", ("lifo", "fifo")),
        ("isolation", ("none", "thread", "process")),
    ],
)
def test_a_choice_names_what_there_is(name: str, allowed: tuple[str, ...]) -> None:
    for value in allowed:
        assert getattr(PoolOptions(**{name: value}), name) == value
    for other in ("other", None, 1, allowed, [], {}):
        with pytest.raises(ValueError, match=f"^{name} must be one of {str(allowed)[1:-1]}: "):
            PoolOptions(**{name: other})


@pytest.mark.parametrize("value", [["get", "post"], ("get", "post"), {"get", "post"}])
def test_names_may_come_in_any_collection(value: Any) -> None:
    options = PoolOptions(expose=value)
    assert options.expose is not None
    assert set(options.expose) == {"get", "post"}


@pytest.mark.parametrize("value", ["get", "ALL", b"all", 3, ["get", 3], ["not a name"], [""]])
def test_names_must_be_names_or_all(value: Any) -> None:
    assert PoolOptions(expose="all").exposed == PoolOptions(expose="all").expose == "all"
    assert PoolOptions(expose=["all"]).exposed == {"all"}
    with pytest.raises(TypeError, match=r'^expose must be a collection of attribute names, "all" or None: '):
        PoolOptions(expose=value)


@pytest.mark.parametrize("value", ["io:BytesIO", dict, 3, [3], [None]])
def test_what_is_kept_are_types_or_import_strings(value: Any) -> None:
    assert PoolOptions(keep=[dict, "io:BytesIO"]).keep == [dict, "io:BytesIO"]
    with pytest.raises(TypeError, match=r"^keep must "):
        PoolOptions(keep=value)


def test_a_name_that_is_no_option_is_named() -> None:
    with pytest.raises(TypeError, match="max_sise"):
        PoolOptions(max_sise=3)  # type: ignore[call-arg]


def test_options_are_given_by_name_and_stay_as_they_are() -> None:
    with pytest.raises(TypeError):
        PoolOptions(1, 2)  # type: ignore[call-arg]
    with pytest.raises(FrozenInstanceError):
        PoolOptions().max_size = 3  # type: ignore[misc]


def test_options_pickle() -> None:
    options = PoolOptions(max_size=3, close=print, expose=("get",))
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(
    ("option", "records"), [({}, False), ({"warn_hold": 1}, True), ({"max_hold": 1}, True)]
)
def test_a_pool_that_will_name_a_holder_records_who_acquires(option: dict[str, Any], records: bool) -> None:
    assert PoolOptions(**option).records_caller is records


def test_a_timeout_left_out_is_one_thing_in_every_process() -> None:
    assert pickle.loads(pickle.dumps(USE_DEFAULT)) is USE_DEFAULT
    assert repr(USE_DEFAULT) == "<the pool's timeout>"


@given(st.floats(allow_nan=False, min_value=0, exclude_min=True) | st.integers(1, 10**9) | st.none())
def test_any_positive_number_is_a_time(value: float | None) -> None:
    seconds("wait", value)


def test_an_import_string_is_followed() -> None:
    assert resolve("os.path:join") is os.path.join
    assert resolve("collections:OrderedDict.fromkeys") == __import__("collections").OrderedDict.fromkeys
    assert resolve(print) is print


@pytest.mark.parametrize("text", ["", "os", "os.path", ":join", "os:", ":"])
def test_an_import_string_has_one_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"an import string reads 'package\.module:callable'"):
        resolve(text)


def test_an_import_string_that_leads_nowhere_says_where_it_ends() -> None:
    with pytest.raises(ImportError, match="no_such_module"):
        resolve("no_such_module:x")
    with pytest.raises(AttributeError, match="no_such_name"):
        resolve("os:no_such_name")


def annotations_of(name: str) -> dict[str, str]:
    """What the source of `mppool.options` says of the names in a class, as text."""
    source = ast.parse(Path(mppool.options.__file__).read_text())
    (found,) = (each for each in ast.walk(source) if isinstance(each, ast.ClassDef) and each.name == name)
    lines = [each for each in found.body if isinstance(each, ast.AnnAssign)]
    return {
        each.target.id: ast.unparse(each.annotation) for each in lines if isinstance(each.target, ast.Name)
    }


def test_type_checkers_know_each_option_by_its_type() -> None:
    fields_of_options = annotations_of("PoolOptions").items()
    hook = "Callable[[T], object]"  # to a type checker a hook takes what the factory makes
    assert {**annotations_of("ValueOptions"), **annotations_of("Options")} == {
        name: kind.replace("Hook", hook) for name, kind in fields_of_options
    }


def test_help_lists_each_option_with_type_and_default() -> None:
    options = PoolOptions()
    function = mppool.PoolManager.create_pool
    parameters = inspect.signature(function).parameters
    assert list(parameters) == [
        "self",
        "factory",
        "name",
        "each",
        "exist_ok",
        *(each.name for each in fields(PoolOptions)),
    ]
    for each in fields(PoolOptions):
        assert parameters[each.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[each.name].default == getattr(options, each.name)
        assert parameters[each.name].annotation == each.type
    shown = pydoc.plain(pydoc.render_doc(function))
    assert "max_idle: float | None = 600.0" in shown
    assert "order: Literal['lifo', 'fifo'] = 'lifo'" in shown
    assert next(iter(inspect.signature(mppool.PoolManager().create_pool).parameters)) == "factory"


def test_each_option_is_described_with_its_default() -> None:
    described = (inspect.getdoc(PoolOptions) or "").partition("Raises:")[0]
    entries = dict(re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", described, re.MULTILINE | re.DOTALL))
    options = PoolOptions()
    assert list(entries) == [each.name for each in fields(PoolOptions)]
    for name, text in entries.items():
        default = getattr(options, name)
        words = {"max_size": "default: the number of CPUs"}.get(
            name, f"default {default!r}".replace("'", '"')
        )
        assert words in text, name


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("max_sise", "max_size"),
        ("maxsize", "max_size"),
        ("idle", "max_idle"),
        ("nmae", "name"),
        ("hold_max", "max_hold"),
    ],
)
def test_an_unknown_option_is_named_beside_the_nearest_known_one(wrong: str, right: str) -> None:
    manager = mppool.PoolManager()  # never started: nothing is asked of it
    with pytest.raises(TypeError, match=f"^'{wrong}' is no option of a pool: did you mean '{right}'[?]$"):
        manager.create_pool(list, **{wrong: 3})
