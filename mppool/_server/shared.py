"""The process of a manager with a name: started by the first that comes, it serves all that come later."""

from __future__ import annotations

import contextlib
from multiprocessing import current_process, get_start_method
from typing import NoReturn

from mppool._process.info import ManagerInfo
from mppool._system.detached import begin_detached
from mppool._system.runtime_dir import HeldDir
from mppool._wire.handshake import Key
from mppool._wire.listener import Endpoint

from .server import PoolServer, prepare_process


def main() -> NoReturn:
    """The main function of the process. It is the only one that holds the directory, and a lock on it."""
    ready, descriptor, path, linger = begin_detached()
    prepare_process()
    current_process().name = "PoolManager"
    directory = HeldDir.inherited(path, descriptor)
    info = ManagerInfo(
        address=directory.socket,
        runtime_dir=path,
        key=Key(directory.key()),
        start_method=get_start_method(),
        watch_interval=1.0,
        linger=linger,
        log=directory.log,
    )
    server = PoolServer({}, info, Endpoint(info.address, directory))
    with contextlib.suppress(BrokenPipeError), ready:
        ready.write(b"!")  # if the process that waits for this was killed, the next one finds the manager
    server.serve_forever()
