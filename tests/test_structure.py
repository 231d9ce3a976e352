"""Who may import whom, and what is used of the standard library that it does not publish."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import multiprocessing
import re
import sys
import threading
from collections.abc import Iterator
from graphlib import TopologicalSorter
from multiprocessing import managers, popen_fork, process, util
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, RunPython

import mppool
from mppool._server.server import PoolServer
from mppool.manager import PoolManager

# The rooms of the package, and from which other rooms each may import. All may import `errors`, `options`,
# `stats` and what lies beside these; nothing imports the manager but the package itself and what it does not
# load.
ROOMS = {
    "_system": set(),
    "_wire": {"_system"},
    "_remote": {"_wire"},
    "_pool": {"_system"},
    "_process": {"_pool", "_remote", "_wire", "_system"},
    "_client": {"_remote", "_wire", "_system"},
    "_server": {"_pool", "_process", "_remote", "_wire", "_system"},
    "_shell": {"_client", "_server", "_wire", "_system"},
    "_ray": {"_client", "_server", "_process", "_remote", "_wire", "_system"},
    "__main__": {"_shell"},
}
SHARED = {"_buckets", "_pool_info", "_validation", "_version", "errors", "options", "stats"}

# What a program imports that wants it, each named for the library that it needs; `ray` asks its by `_ray`.
EXTRAS = {
    "opentelemetry": {"opentelemetry"},
    "prometheus": {"prometheus_client"},
    "ray": {"typing_extensions"},  # by type checkers only
}

# What a pool, which lends to holders it knows nothing of, has no use for.
OF_PROCESSES = {"multiprocessing", "selectors", "signal", "socket", "subprocess"}

# What is reached beyond that which `multiprocessing.managers` publishes. `test_..._is_as_expected` at the
# end of this file fail when a Python version changes it.
UNPUBLISHED = {
    "manager": {"Server", "State"},
    "_server.server": {"Server", "listener_client"},
}

Import = tuple[str, str]
"""A module and a name in it, which is empty where the module itself is imported."""


def read_imports(path: Path) -> set[Import]:
    """Everything that a module imports, wherever in it, by absolute names."""
    package = ("mppool", *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join(filter(None, [*above, node.module]))
            found |= {(module, alias.name) for alias in node.names}
    return found


PACKAGE = ROOT / "mppool"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): read_imports(path)
    for path in PACKAGE.rglob("*.py")
}


def own(module: str) -> set[str]:
    """The modules of mppool that a module imports."""
    dotted = {name for imports in MODULES[module] for name in (imports[0], ".".join(imports))}
    ours = {name.removeprefix("mppool.") for name in dotted if name.startswith("mppool.")}
    return ours & MODULES.keys()


def foreign(module: str) -> set[str]:
    """The packages that a module imports."""
    return {package.partition(".")[0] for package, _ in MODULES[module]} - {"mppool"}


def room_of(module: str) -> str:
    """The room a module lies in, or its own name for one that lies in none."""
    return module.partition(".")[0]


def test_every_room_has_its_rule() -> None:
    assert {room_of(module) for module in MODULES} == {*ROOMS, *SHARED, *EXTRAS, "__init__", "manager"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_rule_says(room: str) -> None:
    imported = {room_of(each) for module in MODULES if room_of(module) == room for each in own(module)}
    assert imported <= {room, *ROOMS[room], *SHARED}


def test_what_all_may_import_imports_no_room() -> None:
    assert all(own(module) <= SHARED for module in SHARED)


def test_no_module_imports_itself_in_the_end() -> None:
    TopologicalSorter({module: own(module) for module in MODULES}).prepare()


def test_what_is_used_beyond_the_standard_library_is_used_in_one_place() -> None:
    needed = {module: foreign(module) - sys.stdlib_module_names for module in MODULES}
    assert {module: names for module, names in needed.items() if names} == {
        "_system.processes": {"psutil"},
        "_system.usage": {"psutil"},
        "_remote.arguments": {"cloudpickle"},  # where it is installed, and pickle has refused
        "options": {"typing_extensions"},  # by type checkers only
        "manager": {"typing_extensions"},  # likewise
        "_ray.cluster": {"ray"},
        "_shell.top": {"rich"},  # where it is installed
        **EXTRAS,
    }


def test_nothing_imports_what_only_some_programs_want() -> None:
    assert not any(own(module) & EXTRAS.keys() for module in MODULES)


def test_a_pool_knows_of_no_other_process() -> None:
    assert not any(foreign(module) & OF_PROCESSES for module in MODULES if room_of(module) == "_pool")


def test_a_worker_process_loads_no_psutil(run_python: RunPython) -> None:
    code = "import sys, mppool._client.pool; print(*[name for name in sys.modules if 'psutil' in name])"
    assert run_python("-c", code).stdout == "\n"


def test_what_is_reached_beyond_the_published_names_is_known() -> None:
    used = {
        module: {name for package, name in imports if package == managers.__name__} - {*managers.__all__}
        for module, imports in MODULES.items()
    }
    assert {module: names for module, names in used.items() if names} == UNPUBLISHED


@pytest.mark.parametrize(
    ("text", "place"),
    [("register_at_fork", "_system.fork"), ('"MPPOOL_PORTABLE"', "_system.__init__"), ("win32", "__init__")],
)
def test_what_stands_in_one_place_only(text: str, place: str) -> None:
    paths = {module: PACKAGE / (module.replace(".", "/") + ".py") for module in MODULES}
    assert [module for module, path in paths.items() if text in path.read_text()] == [place]


def test_public_names_are_sorted_and_there() -> None:
    assert mppool.__all__ == sorted(mppool.__all__)
    assert all(hasattr(mppool, name) for name in mppool.__all__)


def test_dir_shows_the_manager_before_it_is_loaded(run_python: RunPython) -> None:
    code = "import sys, mppool; print({*mppool.__all__} <= {*dir(mppool)}, 'mppool.manager' in sys.modules)"
    assert run_python("-c", code).stdout == "True False\n"


def test_the_manager_is_looked_up_once() -> None:
    assert vars(mppool)["PoolManager"] is PoolManager


def test_public_classes_are_called_by_their_public_names() -> None:
    public = [getattr(mppool, name) for name in mppool.__all__]
    assert {each.__module__ for each in public if isinstance(each, type)} == {"mppool"}


def test_the_metadata_has_the_version_of_the_code() -> None:
    assert importlib.metadata.version("mppool") == mppool.__version__


# -- the tests ----------------------------------------------------------------------------------------

MAX_PRIVATE = 20
"""Lines of the tests that reach an attribute which its class keeps for itself. It may only shrink."""

MAX_ELSEWHERE = 0
"""Lines that name a module of a room which their test module is not about. Likewise."""

TESTS = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "tests").glob("*.py")}

# The rooms that a test module is about, whose modules it may name; this one is about all of them.
ABOUT = {
    "far": {"_process", "_server", "_system", "_wire"},
    "standins": {"_pool", "_system"},
    "test_async_handle": {"_remote"},
    "test_aio": {"_client"},
    "test_build_timeout": {"_process", "_server"},
    "test_delegation": {"_client", "_server", "_system", "_wire"},
    "test_delegated_storms": {"_client", "_wire"},
    "test_entry": {"_pool", "_system"},
    "test_fork": {"_system"},
    "test_far": {"_process", "_system", "_wire"},
    "test_full": {"_pool", "_server"},
    "test_handle": {"_remote", "_wire"},
    "test_hangs": {"_client", "_pool", "_server"},
    "test_interrupts": {"_client"},
    "test_launcher": {"_process"},
    "test_large_data": {"_wire"},
    "test_memory": {"_pool", "_server", "_system"},
    "test_peers": {"_wire", "_system"},
    "test_place": {"_wire", "_system"},
    "test_pool": {"_pool", "_system"},
    "test_pool_model": {"_pool", "_system"},
    "test_process": {"_process"},
    "test_restart": {"_server"},
    "test_shared": {"_system"},
    "test_shell": {"_server", "_shell"},
    "test_structure": {*ROOMS},
    "test_threads": {"_pool"},
    "test_watchdog": {"_server", "_system"},
    "wire": {"_remote", "_wire"},
}


def dotted_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names with dots in them: imported, reached as an attribute, or in a string; with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            yield node.lineno, node.value


def reaches_private(node: ast.AST) -> bool:
    """Whether a name that its owner keeps for itself is reached, or set, from elsewhere."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        "attr"
    ):  # getattr, setattr, monkeypatch's
        names = [each.value for each in node.args if isinstance(each, ast.Constant)]
        return any(re.match(r"([\w.]+\.)?_[a-z]", str(name)) for name in names)
    if not isinstance(node, ast.Attribute) or not re.match("_[^_]", node.attr):
        return False
    owner = ast.unparse(node.value)
    return (owner, node.attr) != ("os", "_exit") and owner not in {"self", "cls", "super()", "mppool"}


def test_tests_reach_into_few_objects() -> None:
    lines = {
        (module, getattr(node, "lineno", 0))
        for module, tree in TESTS.items()
        for node in ast.walk(tree)
        if module != "test_structure" and reaches_private(node)
    }
    assert len(lines) <= MAX_PRIVATE, sorted(lines)


def test_a_room_is_named_by_the_tests_that_are_about_it() -> None:
    lines = {
        (module, line)
        for module, tree in TESTS.items()
        for line, name in dotted_names(tree)
        if name.startswith("mppool._") and name.split(".")[1] in ROOMS.keys() - ABOUT.get(module, set())
    }
    assert len(lines) <= MAX_ELSEWHERE, sorted(lines)


def test_no_test_module_imports_another() -> None:
    imported = {
        name
        for tree in TESTS.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for _, name in dotted_names(node)
    }
    assert not {name.partition(".")[0] for name in imported if name.startswith("test_")} & {*TESTS}


# -- the standard library -----------------------------------------------------------------------------


class FakeListener:
    """Stands in `listener_client` for a listener."""

    def __init__(self, address: Any = None, backlog: int = 1) -> None:
        self.address = address or "somewhere"


class FakeConnection:
    """Stands in `listener_client` for a client; answers every request."""

    sent: tuple[Any, ...]

    def __init__(self, address: Any, *, authkey: bytes) -> None:
        self.called_with = (address, authkey)

    def send(self, message: tuple[Any, ...]) -> None:
        self.sent = message

    def recv(self) -> tuple[str, Any]:
        return "#RETURN", self.sent

    def close(self) -> None:
        pass


@pytest.fixture
def serializer(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(managers.listener_client, "fake", (FakeListener, FakeConnection))
    return "fake"


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_server_is_as_expected(serializer: str) -> None:
    server = managers.Server({}, "address", b"key", serializer)
    assert isinstance(server.listener, FakeListener)
    assert (server.address, server.registry, server.authkey) == ("address", {}, b"key")
    assert set(server.public) >= {"accept_connection", "create", "decref", "dummy", "incref", "shutdown"}
    for name in ("serve_forever", "accepter", "handle_request", "shutdown"):
        assert parameters(getattr(PoolServer, name)) == parameters(getattr(managers.Server, name)), name


def test_manager_is_as_expected(serializer: str) -> None:
    assert managers.BaseManager._registry == {}
    manager = managers.BaseManager("address", b"key", serializer)
    assert (manager._address, manager._authkey, manager._serializer) == ("address", b"key", serializer)
    state = managers.State
    assert len({state.INITIAL, state.STARTED, state.SHUTDOWN}) == 3
    assert manager._state.value == state.INITIAL
    manager.connect()
    assert manager._state.value == state.STARTED
    assert managers.BaseProxy._address_to_local == {}
    for name in ("start", "get_server", "join"):
        assert parameters(getattr(PoolManager, name)) == parameters(getattr(managers.BaseManager, name)), name


def test_dispatch_is_as_expected() -> None:
    connection = FakeConnection("address", authkey=b"key")
    request = (None, "method", ("argument",), {})
    assert managers.dispatch(connection, *request[:3]) == request


def test_finalizers_are_as_expected() -> None:
    assert parameters(util.Finalize) == ["obj", "callback", "args", "kwargs", "exitpriority"]
    with PoolManager() as manager:
        assert isinstance(manager._end, util.Finalize)
        assert manager._state.value == managers.State.STARTED
    assert manager._state.value == managers.State.SHUTDOWN


def test_proxies_in_the_manager_find_their_server() -> None:
    assert "_manager_server" in managers.RebuildProxy.__code__.co_consts


def test_what_multiprocessing_does_at_a_fork_is_as_expected() -> None:
    """A step that is new there may have to be taken by the launcher, too."""
    assert set(popen_fork.Popen._launch.__code__.co_names) <= {
        *("os", "pipe", "fork", "pid", "close", "_exit", "_bootstrap"),
        *("util", "Finalize", "close_fds", "finalizer", "sentinel"),
        *("atexit", "_clear", "register", "_exit_function", "_run_exitfuncs"),  # we end by `os._exit`
        *("resource_tracker", "_fork_intent", "preserve_fd"),
    }
    assert list(inspect.signature(process.BaseProcess._bootstrap).parameters) == ["self", "parent_sentinel"]


def test_the_list_of_children_is_as_expected() -> None:
    child = multiprocessing.Process(target=int)
    child.start()
    assert child in process._children  # type: ignore[attr-defined]
    child.join()


def test_the_locks_of_imports_are_as_expected() -> None:
    locks: dict[str, Any] = importlib._bootstrap._module_locks  # type: ignore[attr-defined]
    with importlib._bootstrap._ModuleLockManager("of.this.test"):  # type: ignore[attr-defined]
        lock = locks["of.this.test"]()
        assert (lock.name, lock.owner) == ("of.this.test", threading.get_ident())
