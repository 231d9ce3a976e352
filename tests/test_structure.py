"""Who may import whom, and what is used of the standard library that it does not publish."""

from __future__ import annotations

import ast
import inspect
import sys
from graphlib import TopologicalSorter
from multiprocessing import managers, util
from typing import Any

import pytest
from helpers import ROOT

import mppool
from mppool.manager import PoolManager
from mppool.server import PoolServer

# In the order of reading from the ground up: each module, and the modules of mppool that it imports.
IMPORTS = {
    "errors": "",
    "options": "",
    "owner": "",
    "stats": "",
    "crew": "",
    "shape": "",
    "home": "",
    "memory": "",
    "place": "owner",
    "slot": "errors owner place",
    "waiter": "errors owner slot",
    "hooks": "crew options place slot",
    "pool": "crew errors hooks options owner place slot stats waiter",
    "watchdog": "owner",
    "calls": "errors shape",
    "failure": "errors",
    "wire": "errors memory",
    "door": "home wire",
    "keeper": "door owner wire",
    "reply": "calls failure wire",
    "ending": "",
    "baton": "",
    "resident": "baton calls door ending errors failure home owner place reply shape wire",
    "session": "calls errors failure owner pool reply resident shape slot waiter wire",
    "process": "baton door failure home owner place pool resident wire",
    "desk": "calls crew errors failure home options owner place pool process reply session slot waiter "
    "watchdog wire",
    "server": "door ending home owner pool process session wire",
    "handle": "calls errors shape",
    "channel": "errors failure home memory shape wire",
    "client": "calls channel errors handle options stats wire",
    "manager": "channel client desk door errors home keeper options server wire",
    "__init__": "client errors manager stats",
}

# What is needed in a worker process, where nothing of the others is.
WORKER_SIDE = {
    "client",
    "channel",
    "failure",
    "handle",
    "home",
    "memory",
    "calls",
    "shape",
    "wire",
    "options",
    "stats",
    "errors",
}

# What the pool itself, which is for the threads of one process, has no use for.
OF_PROCESSES = {"multiprocessing", "psutil", "selectors", "signal", "socket", "subprocess"}

# What is reached beyond that which `multiprocessing.managers` publishes. `test_..._is_as_expected` at the
# end of this file fail when a Python version changes it.
UNPUBLISHED = {
    "manager": {"State", "listener_client"},
    "server": {"Server"},
}

Import = tuple[str, str]
"""A module and a name in it, which is empty where the module itself is imported."""


def read_imports(module: str) -> set[Import]:
    """Everything that a module imports, wherever in it; its own package is called ``mppool``."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "mppool" / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(filter(None, ["mppool" if node.level else "", node.module]))
            found |= {(package, alias.name) for alias in node.names}
    return found


FOUND = {path.stem: read_imports(path.stem) for path in (ROOT / "mppool").glob("*.py")}


def own(module: str) -> set[str]:
    """The modules of mppool that a module imports."""
    imports = FOUND[module]
    of_modules = {package.partition(".")[2] for package, _ in imports if package.startswith("mppool.")}
    return of_modules | {name for package, name in imports if package == "mppool"}


def foreign(module: str) -> set[str]:
    """The packages that a module imports."""
    return {package.partition(".")[0] for package, _ in FOUND[module]} - {"mppool"}


def reached(module: str) -> set[str]:
    """All modules of mppool that are imported with a module, directly or not."""
    direct = own(module)
    return direct.union(*map(reached, direct))


def test_every_module_has_its_line() -> None:
    assert set(IMPORTS) == set(FOUND)


@pytest.mark.parametrize("module", FOUND)
def test_a_module_imports_what_its_line_says(module: str) -> None:
    assert sorted(own(module)) == sorted(IMPORTS[module].split())


def test_no_module_imports_itself_in_the_end() -> None:
    TopologicalSorter({module: own(module) for module in FOUND}).prepare()


def test_psutil_is_used_by_one_module_and_nothing_else_is_needed() -> None:
    needed = {module: foreign(module) - sys.stdlib_module_names for module in FOUND}
    assert {module: names for module, names in needed.items() if names} == {
        "owner": {"psutil"},
        "options": {"typing_extensions"},  # by type checkers only
        "manager": {"typing_extensions"},  # likewise
    }


def test_a_pool_knows_of_no_other_process() -> None:
    parts = {"pool", *reached("pool")} - {"owner"}
    assert not any(foreign(module) & OF_PROCESSES for module in parts)


def test_the_worker_side_stands_by_itself() -> None:
    assert {"client", *reached("client")} == WORKER_SIDE


def test_what_is_reached_beyond_the_published_names_is_known() -> None:
    used = {
        module: {name for package, name in imports if package == managers.__name__} - {*managers.__all__}
        for module, imports in FOUND.items()
    }
    assert {module: names for module, names in used.items() if names} == UNPUBLISHED


def test_public_names_are_sorted_and_there() -> None:
    assert mppool.__all__ == sorted(mppool.__all__)
    assert all(hasattr(mppool, name) for name in mppool.__all__)


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
    for name in ("__init__", "serve_forever", "accepter", "handle_request", "shutdown"):
        assert parameters(getattr(PoolServer, name)) == parameters(getattr(managers.Server, name)), name


def test_manager_is_as_expected(serializer: str) -> None:
    assert managers.BaseManager._Server is managers.Server
    assert managers.BaseManager._registry == {}
    manager = managers.BaseManager("address", b"key", serializer)
    assert (manager._address, manager._authkey, manager._serializer) == ("address", b"key", serializer)
    state = managers.State
    assert len({state.INITIAL, state.STARTED, state.SHUTDOWN}) == 3
    assert manager._state.value == state.INITIAL
    manager.connect()
    assert manager._state.value == state.STARTED
    for name in ("start", "get_server"):
        assert parameters(getattr(PoolManager, name)) == parameters(getattr(managers.BaseManager, name)), name


def test_dispatch_is_as_expected() -> None:
    connection = FakeConnection("address", authkey=b"key")
    request = (None, "method", ("argument",), {})
    assert managers.dispatch(connection, *request[:3]) == request


def test_finalizers_are_as_expected() -> None:
    assert parameters(util.Finalize) == ["obj", "callback", "args", "kwargs", "exitpriority"]
    with PoolManager() as manager:
        assert isinstance(manager.shutdown, util.Finalize)
        assert manager._state.value == managers.State.STARTED
    assert manager._state.value == managers.State.SHUTDOWN


def test_proxies_in_the_manager_find_their_server() -> None:
    assert "_manager_server" in managers.RebuildProxy.__code__.co_consts
