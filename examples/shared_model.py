"""One large model shared by many worker processes, against a copy of it in each of them.

Prints what both ways cost: memory, measured by psutil over the whole process tree while every worker is
alive and has used the model, and the time that one prediction takes.

    python examples/shared_model.py [--megabytes 200] [--workers 8]
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.synchronize
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import NamedTuple

import psutil

from mppool import ObjectPool, PoolManager

try:
    import numpy as np
except ImportError:
    sys.exit("this example needs NumPy: pip install 'mppool[examples]'")

FEATURES = 1024
PREDICTIONS = 5  # by each worker
PATIENCE = 300  # seconds that a worker waits for the others, and for the model
BARE_PROCESS = 64 * 2**20  # bytes that a process takes with Python and NumPy alone


class Model:
    """The expensive object: a table of weights, one row for each class that it can tell apart."""

    def __init__(self, size: int) -> None:
        rows = max(1, size // (4 * FEATURES))  # a float32 has 4 bytes
        self.weights = np.random.default_rng(seed=1).standard_normal((rows, FEATURES), dtype=np.float32)

    def predict(self, features: np.ndarray) -> int:
        """Return the class that fits best."""
        return int(np.argmax(self.weights @ features))


# --- in a worker ----------------------------------------------------------------------------------

everyone: multiprocessing.synchronize.Barrier  # all workers, so that each takes exactly one task
own_model: Model


def start(barrier: multiprocessing.synchronize.Barrier, own_size: int | None) -> None:
    """Take what must be there before the first task: the barrier, and a model if it is to be a copy."""
    global everyone, own_model
    everyone = barrier
    if own_size is not None:
        own_model = Model(own_size)


def predict_all(predict: Callable[[np.ndarray], int]) -> tuple[list[int], list[float]]:
    """Return the classes predicted and the seconds it took, when all workers have done so."""
    classes, seconds = [], []
    try:
        for seed in range(PREDICTIONS):
            features = np.random.default_rng(seed).standard_normal(FEATURES, dtype=np.float32)
            started = time.perf_counter()
            classes.append(predict(features))
            seconds.append(time.perf_counter() - started)
    except BaseException:
        everyone.abort()  # the others need not wait for this one
        raise
    everyone.wait(PATIENCE)
    return classes, seconds


def use_shared(pool: ObjectPool[Model]) -> tuple[list[int], list[float]]:
    # The features go to the model, and the class comes back; the model stays where it is.
    return predict_all(lambda features: pool.apply(Model.predict, features, timeout=PATIENCE))


def use_own() -> tuple[list[int], list[float]]:
    return predict_all(own_model.predict)


# --- in the parent --------------------------------------------------------------------------------


class Result(NamedTuple):
    """What one way of doing it came to."""

    classes: set[tuple[int, ...]]  # one element if all workers agree
    seconds: float  # the median of all predictions
    memory: int  # bytes


def measure(task: Callable[[], tuple[list[int], list[float]]], workers: int, own_size: int | None) -> Result:
    """Run the task once in each of so many fresh processes, and measure while all of them live."""
    spawn = multiprocessing.get_context("spawn")  # inherits nothing: what a worker has is its own
    initargs = (spawn.Barrier(workers), own_size)
    with ProcessPoolExecutor(workers, spawn, start, initargs) as executor:
        futures = [executor.submit(task) for _ in range(workers)]
        answers = [future.result() for future in as_completed(futures)]
        memory = memory_of_tree()
    return Result(
        classes={tuple(classes) for classes, _ in answers},
        seconds=statistics.median(each for _, seconds in answers for each in seconds),
        memory=memory,
    )


def memory_of_tree() -> int:
    """Bytes taken by this process and all that descend from it; a page that several share counts once.

    Where the system does not tell (PSS: Linux only), pages that are shared do not count at all (USS).
    """
    this = psutil.Process()
    infos = [process.memory_full_info() for process in (this, *this.children(recursive=True))]
    return sum(getattr(info, "pss", info.uss) for info in infos)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=200, help="size of the model (default: 200)")
    parser.add_argument("--workers", type=int, default=8, help="number of worker processes (default: 8)")
    options = parser.parse_args()
    if options.megabytes < 1 or options.workers < 1:
        parser.error("--megabytes and --workers must be 1 or more")
    size, workers = options.megabytes * 2**20, options.workers

    needed, available = workers * (size + BARE_PROCESS), psutil.virtual_memory().available
    if needed > available:
        parser.error(
            f"{workers} workers with a model of {options.megabytes} MB each need about "
            f"{needed / 2**20:,.0f} MB of memory, and {available / 2**20:,.0f} MB are free: "
            "choose a smaller --megabytes or fewer --workers"
        )

    with PoolManager() as manager:
        pool = manager.create_pool(partial(Model, size), max_size=1)
        shared = measure(partial(use_shared, pool), workers, own_size=None)
    copied = measure(use_own, workers, own_size=size)
    if shared.classes != copied.classes or len(shared.classes) != 1:
        sys.exit(f"the models disagree: {shared.classes} and {copied.classes}")

    print(f"{workers} workers, a model of {options.megabytes} MB, {PREDICTIONS} predictions by each worker\n")
    print(f"{'':24}{'memory':>12}{'one prediction':>18}")
    for name, result in (("one shared model", shared), ("a copy in each worker", copied)):
        print(f"{name:24}{result.memory / 2**20:9,.0f} MB{result.seconds * 1000:15.1f} ms")
    print(f"\nAll workers agree. Sharing took {shared.memory / copied.memory:.0%} of the memory.")


if __name__ == "__main__":
    main()
