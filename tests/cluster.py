"""A PostgreSQL cluster of the tests' own, in a directory that is gone at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
    with tempfile.TemporaryDirectory(
        prefix="postgres-", dir="/tmp"
    ) as home:  # a short path that all may enter
        if user:
            os.chown(home, user["user"], user["group"])

        def run(program: str, words: str) -> None:
            command, streams = [programs / program, *words.split()], {"stdin": subprocess.DEVNULL}
            subprocess.run(command, check=True, cwd=home, stdout=subprocess.DEVNULL, **streams, **user)

        run("initdb", "-D data -A trust -U postgres -E UTF8 --no-locale --no-sync")
        with Path(home, "data", "postgresql.conf").open("a") as settings:
            settings.write(f"unix_socket_directories = '{home}'\nlisten_addresses = ''\nfsync = off\n")
        run("pg_ctl", "start -D data -l log --wait --silent")
        try:
            yield f"host={home} user=postgres dbname=postgres"
        finally:
            run("pg_ctl", "stop -D data -m fast --wait --silent")  # ends its sessions, too
