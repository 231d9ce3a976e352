"""A PostgreSQL of the tests' own, in a directory that is gone at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import wait_until


def find_programs() -> Path | None:
    """Where the server's programs are: those on the PATH, or Debian's newest, which are not."""
    on_path = shutil.which("initdb")
    of_debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4])
    )
    found = [*of_debian, *([Path(on_path)] if on_path else [])]
    return found[-1].resolve().parent if found else None


def another_user() -> dict[str, Any]:
    """For root, as whom PostgreSQL refuses to run: how `subprocess` takes another user."""
    if os.geteuid():
        return {}
    names = {each.pw_name for each in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def private_cluster(programs: Path) -> Iterator[str]:
    """A server with an empty database, on a Unix socket alone: what to connect with."""
    user = another_user()
    with tempfile.TemporaryDirectory(prefix="postgres-", dir="/tmp") as home:
        if user:
            os.chown(home, user["user"], user["group"])
        options: dict[str, Any] = {"cwd": home, "stdin": subprocess.DEVNULL, **user}
        initdb = [programs / "initdb", *"-D data -A trust -U postgres -E UTF8 --no-locale --no-sync".split()]
        subprocess.run(initdb, check=True, capture_output=True, **options)
        settings = [f"unix_socket_directories={home}", "listen_addresses=", "fsync=off", "lc_messages=C"]
        serve = [programs / "postgres", "-D", "data", *(word for each in settings for word in ("-c", each))]
        with Path(home, "log").open("w") as log:
            server = subprocess.Popen(serve, stdout=log, stderr=log, **options)
            try:
                conninfo = f"host={home} user=postgres dbname=postgres"
                is_ready = [programs / "pg_isready", "--quiet", "--dbname", conninfo]
                wait_until(lambda: not subprocess.run(is_ready, check=False).returncode, timeout=30)
                yield conninfo
            finally:
                server.send_signal(signal.SIGINT)  # ends its sessions, too
                server.wait(30)
