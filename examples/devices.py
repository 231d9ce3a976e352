"""Four devices and twelve joblib workers, of which some are killed: each job is done, and none of them twice.

    python examples/devices.py [--workers 12] [--kill 3]

A device is what one process at a time can use: a GPU, a port, a licence, a test account. The pool lends
their numbers, one holder each, and takes back what a worker held that was killed. Here each device is a file
that its user locks: it would show at once if two processes ever held it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mppool import ObjectPool, PoolManager

try:
    from joblib import Parallel, delayed
except ModuleNotFoundError:
    sys.exit("devices.py: error: joblib is not installed: pip install 'mppool[examples]'")

DEVICES = 4
JOBS = 240
SECONDS = 0.02  # that a job takes


def work(pool: ObjectPool[int], directory: Path, job: int) -> None:
    """Do a job, unless it is done, and write down who did it with which device. Runs in a worker."""
    with (directory / f"job-{job}").open("a+") as record:
        fcntl.flock(record, fcntl.LOCK_EX)  # a worker that is being killed may still be at it
        if record.tell():
            return
        with pool.lease(timeout=60) as device, (directory / f"device-{device}").open("a") as user:
            fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError if another process has it
            time.sleep(SECONDS)
            record.write(f"job {job}: device {device}, process {os.getpid()}\n")


def kill_holders(pool: ObjectPool[int], times: int, killed: set[int], over: threading.Event) -> None:
    """`kill -9` for workers that have a device just then. Runs in a thread of the main process."""
    while len(killed) < times and not over.wait(10 * SECONDS):
        for holder in [each.pid for each in pool.leases() if each.pid not in killed][:1]:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(holder, signal.SIGKILL)
                killed.add(holder)


def records(directory: Path) -> list[str]:
    """A line for each time that a job was done."""
    return [line for path in directory.glob("job-*") for line in path.read_text().splitlines()]


def main() -> None:
    """Have all jobs done, whatever happens to the workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=12, help="workers at once (default: 12)")
    parser.add_argument("--kill", type=int, default=3, help="workers to be killed (default: 3)")
    arguments = parser.parse_args()
    killed: set[int] = set()
    over = threading.Event()
    with PoolManager() as manager, tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        pool = manager.create_pool(each=range(DEVICES))
        killer = threading.Thread(target=kill_holders, args=(pool, arguments.kill, killed, over))
        killer.start()
        rounds = 0
        while left := JOBS - len(records(directory)):
            rounds += 1
            print(f"round {rounds}: {left} jobs are left")
            with contextlib.suppress(BrokenProcessPool):  # joblib gives up all jobs when a worker is killed
                Parallel(n_jobs=arguments.workers)(delayed(work)(pool, directory, job) for job in range(JOBS))
        over.set()
        killer.join()
        done = records(directory)
        workers = {line.rpartition(" ")[2] for line in done}
        print(f"{len(done)} records of {len(set(done))} jobs, done by {len(workers)} workers")
        print(f"{len(killed)} workers were killed with a device; {DEVICES} devices, none held by two")


if __name__ == "__main__":
    main()
