"""Four web workers answer with one model between them, against a model in each of them.

Serves both ways in turn with gunicorn, asks a number of questions, eight at a time, and prints what the
memory of all processes is, measured by psutil when each worker has answered, and how long an answer takes.
What the workers ask the one model at the same time is put together, and it answers that at once.
Then it serves a model that leaks, which the pool replaces when it holds too much, and goes on asking until it
has done so: no question is lost.

    python examples/model_server.py [--megabytes 200] [--workers 4] [--requests 100]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from mppool import shared_pool

try:
    import gunicorn  # noqa: F401  # it runs as a program of its own
    import numpy as np
except ImportError:
    sys.exit("this example needs gunicorn and NumPy: pip install 'mppool[examples]'")

FEATURES = 1024
CLIENTS = 8
PATIENCE = 300  # seconds that a client waits for an answer, and a worker for the model
BARE_PROCESS = 64 * 2**20  # bytes that a process takes with Python and NumPy alone
LEAK = 4 * 2**20  # bytes that a model keeps of each answer, where it leaks
ROOM = 16 * LEAK  # bytes by which a model may grow before it is replaced


class Prediction(NamedTuple):
    """What a model says."""

    label: int
    model: int  # the process that it lives in
    together: int  # with how many examples at once, this one included


class Model:
    """The expensive object: a table of weights, one row for each class that it can tell apart.

    With `leak` it keeps so many bytes of each answer.
    """

    def __init__(self, size: int, leak: int = 0) -> None:
        self._leak = leak
        self._leaked: list[bytes] = []
        rows = max(1, size // (4 * FEATURES))  # a float32 has 4 bytes
        self.weights = np.random.default_rng(seed=1).standard_normal((rows, FEATURES), dtype=np.float32)

    def predict(self, examples: list[np.ndarray]) -> list[Prediction]:
        """Tell of each example which class fits best. Many take little longer than one."""
        self._leaked += [b"?" * self._leak for _ in examples]
        labels = np.argmax(self.weights @ np.stack(examples, axis=1), axis=0)
        return [Prediction(int(label), os.getpid(), len(examples)) for label in labels]


# --- in a web worker ------------------------------------------------------------------------------

Application = Callable[[dict[str, Any], Callable[..., object]], list[bytes]]


def share(name: str, size: int, leak: int = 0, **options: Any) -> Application:
    """The application with one model for all workers. Each of them calls this."""
    make = partial(Model, size, leak)
    pool = shared_pool(name, make, max_size=1, timeout=PATIENCE, linger=1.0, **options)
    return application(partial(pool.apply_batch, Model.predict))


def share_leaking(name: str, size: int) -> Application:
    """The same with a model that leaks: in a process of its own, it is replaced when it holds too much."""
    return share(name, size, LEAK, isolation="process", max_memory=size + BARE_PROCESS + ROOM)


def copy(size: int) -> Application:
    """The application with a model in each worker."""
    model = Model(size)
    return application(lambda example: model.predict([example])[0])


def application(predict: Callable[[np.ndarray], Prediction]) -> Application:
    """Answers what class the example with the number in the path is of, and by which processes."""

    def answer(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        example = np.random.default_rng(int(environ["PATH_INFO"][1:]))
        prediction = predict(example.standard_normal(FEATURES, dtype=np.float32))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [" ".join(map(str, (*prediction, os.getpid()))).encode()]

    return answer


# --- in the main process --------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a client got."""

    label: int
    model: int
    together: int
    worker: int
    seconds: float


class Result(NamedTuple):
    """What one way of doing it came to."""

    labels: list[int]
    seconds: float  # the median of all answers
    processes: int
    memory: int  # bytes


@contextlib.contextmanager
def serve(made: str, workers: int) -> Iterator[tuple[int, str]]:
    """Run gunicorn with the application that an expression makes. Returns its process and its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        command = [sys.executable, "-m", "gunicorn", f"model_server:{made}", f"--workers={workers}"]
        command += [f"--bind=fd://{listener.fileno()}", f"--timeout={PATIENCE}"]
        command += ["--log-level=warning", "--no-control-socket"]
        here = Path(__file__).parent
        server = subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=here)  # noqa: S603  # gunicorn
        host, port = listener.getsockname()
    try:
        yield server.pid, f"http://{host}:{port}"
    finally:
        server.terminate()
        server.wait()


def ask(url: str, number: int) -> Answer:
    started = time.perf_counter()
    with urllib.request.urlopen(f"{url}/{number}", timeout=PATIENCE) as response:  # noqa: S310  # our own
        label, model, together, worker = map(int, response.read().split())
    return Answer(label, model, together, worker, time.perf_counter() - started)


def measure(made: str, workers: int, requests: int) -> Result:
    """Ask so many questions and more, until each worker has answered, and measure while all of them live."""
    with serve(made, workers) as (server, url), ThreadPoolExecutor(CLIENTS) as clients:
        answers: list[Answer] = []
        while len({each.worker for each in answers}) < workers:
            answers += clients.map(partial(ask, url), range(requests))
        processes = families({server, *(each.model for each in answers)})
        return Result(
            labels=[each.label for each in answers[:requests]],
            seconds=statistics.median(each.seconds for each in answers),
            processes=len(processes),
            memory=sum(map(memory_of, processes)),
        )


def soak(made: str, workers: int, requests: int) -> list[Answer]:
    """Ask so many questions and more, until another model answers than the first one did."""
    with serve(made, workers) as (_, url), ThreadPoolExecutor(CLIENTS) as clients:
        answers: list[Answer] = []
        while len({each.model for each in answers}) < 2:
            answers += clients.map(partial(ask, url), range(requests))
    return answers


def families(pids: set[int]) -> set[psutil.Process]:
    """These processes and all that descend from them."""
    ancestors = {psutil.Process(pid) for pid in pids}
    return ancestors.union(*(each.children(recursive=True) for each in ancestors))


def memory_of(process: psutil.Process) -> int:
    """Bytes that it takes; of a page that several share its part.

    Where the system does not tell (PSS: Linux only), pages that are shared do not count at all (USS).
    """
    info = process.memory_full_info()
    return int(getattr(info, "pss", info.uss))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=200, help="size of the model (default: 200)")
    parser.add_argument("--workers", type=int, default=4, help="number of web workers (default: 4)")
    parser.add_argument("--requests", type=int, default=100, help="questions to be asked (default: 100)")
    options = parser.parse_args()
    if min(options.megabytes, options.workers, options.requests) < 1:
        parser.error("--megabytes, --workers and --requests must be 1 or more")
    size, workers = options.megabytes * 2**20, options.workers

    needed, available = workers * (size + BARE_PROCESS), psutil.virtual_memory().available
    if needed > available:
        parser.error(
            f"{workers} workers with a model of {options.megabytes} MB each need about "
            f"{needed / 2**20:,.0f} MB of memory, and {available / 2**20:,.0f} MB are free: "
            "choose a smaller --megabytes or fewer --workers"
        )

    name = f"model-server-{os.getpid()}"  # for this run; a service would say "models"
    shared = measure(f"share({name!r}, {size})", workers, options.requests)
    copied = measure(f"copy({size})", workers, options.requests)
    if shared.labels != copied.labels:
        sys.exit(f"the models disagree: {shared.labels} and {copied.labels}")

    answers = soak(f"share_leaking({name + '-leaking'!r}, {size})", workers, options.requests)
    if [each.label for each in answers] != shared.labels * (len(answers) // options.requests):
        sys.exit("a model that leaks answers otherwise")

    print(f"{workers} web workers, a model of {options.megabytes} MB, {options.requests} questions\n")
    print(f"{'':24}{'memory':>12}{'processes':>12}{'one answer':>15}")
    for way, result in (("one model for all", shared), ("a model in each worker", copied)):
        memory, milliseconds = result.memory / 2**20, result.seconds * 1000
        print(f"{way:24}{memory:9,.0f} MB{result.processes:12}{milliseconds:12.1f} ms")
    print(f"\nAll answers agree. Sharing took {shared.memory / copied.memory:.0%} of the memory.")
    models = len({each.model for each in answers})
    print(
        f"A model that leaks was replaced {models - 1} times during {len(answers)} questions. None was lost, "
        f"and up to {max(each.together for each in answers)} were answered at once."
    )


if __name__ == "__main__":
    main()
