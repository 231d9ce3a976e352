"""What operators see: the figures of pools, as Prometheus and OpenTelemetry get them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from actors import FORK, Tool, Worker, acquire, child_process, echo, manager_in, process_of, stopped
from helpers import Beside, RunPython, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mppool import (
    FactoryError,
    Histogram,
    ObjectPool,
    PoolManager,
    PoolStats,
    PoolTimeout,
    TooManyWaiting,
    shared_pool,
)
from mppool._buckets import BUCKETS
from mppool._pool_info import PoolInfo


class Broken(Exception):
    pass


def break_down() -> None:
    raise Broken


def kill(manager: PoolManager) -> None:
    process = process_of(manager)
    process.kill()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


# -- figures ------------------------------------------------------------------------------------------


def test_figures_tell_of_deaths_timeouts_refusals_and_failures(
    manager: PoolManager, worker: Worker, beside: Beside
) -> None:
    pool = manager.create_pool(Tool, max_size=1, max_waiting=1)
    worker.do(acquire, pool)
    worker.do(echo, 1)  # else its death gives back what it held as it was
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    waiter = beside(pool.acquire)
    wait_until(lambda: pool.stats().waiting)
    with pytest.raises(TooManyWaiting):
        pool.acquire(timeout=1)
    worker.kill()
    pool.release(waiter.result())
    stats = wait_until(lambda: None if pool.stats().leased else pool.stats())
    assert (stats.acquired, stats.reclaimed, stats.timeouts, stats.rejected) == (2, 1, 1, 1)
    assert (stats.wait.count, stats.hold.count, stats.build.count) == (2, 2, stats.built)
    assert stats.wait_longest > 0
    assert stats.hold.sum == stats.hold_seconds >= stats.hold_longest > 0
    assert stats.build.sum == stats.build_seconds >= stats.build_longest > 0

    broken = manager.create_pool(break_down, max_size=1)
    with pytest.raises(FactoryError):
        broken.acquire()
    stats = broken.stats()
    assert (stats.failed_builds, stats.built, stats.build) == (1, 0, Histogram())
    assert (stats.acquired, stats.wait) == (0, Histogram())


# -- Prometheus ---------------------------------------------------------------------------------------

LABELS = ("pool", "reason", "le", "object")

Samples = dict[tuple[str, ...], float]
"""What was scraped: by the name and the values of these labels."""


class Prometheus:
    """A registry with one collector, and what is scraped from it."""

    def __init__(self, *sources: Any) -> None:
        from prometheus_client import CollectorRegistry, parser
        from prometheus_client.openmetrics import parser as openmetrics

        from mppool.prometheus import PoolCollector

        self._parsers = parser, openmetrics
        self.registry = CollectorRegistry(auto_describe=True)
        self.registry.register(PoolCollector(*sources))

    def text(self) -> str:
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()

    def openmetrics(self) -> Samples:
        from prometheus_client.openmetrics.exposition import generate_latest

        return self._parse(generate_latest(self.registry).decode(), openmetrics=True)

    def scrape(self) -> Samples:
        return self._parse(self.text())

    def _parse(self, text: str, openmetrics: bool = False) -> Samples:
        found: Samples = {}
        for family in self._parsers[openmetrics].text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, *(sample.labels[each] for each in LABELS if each in sample.labels)
                assert key not in found
                found[key] = sample.value
        return found


@pytest.fixture
def prometheus() -> type[Prometheus]:
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
    return Prometheus


def test_prometheus_gets_every_figure_by_its_name(prometheus: type[Prometheus], manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, name="db", min_size=1, max_size=3)
    pool.wait()
    with pool.lease():
        pass
    pool.release(pool.acquire(), discard=True)
    wait_until(lambda: pool.stats().size == pool.stats().idle == 1)
    stats = pool.stats()
    told: Samples = {("mppool_up",): 1, ("mppool_retired_total", "db", "discarded"): 1}
    for name in "min_size max_size size idle leased building waiting".split():
        told[f"mppool_{name}", "db"] = getattr(stats, name)
    counts = "acquired built reused timeouts rejected exhausted reclaimed failed_builds late_releases"
    for name in counts.split():
        told[f"mppool_{name}_total", "db"] = getattr(stats, name)
    for name in ("wait", "hold", "build"):
        histogram = getattr(stats, name)
        for number, bound in enumerate([*map(str, histogram.bounds), "+Inf"], start=1):
            told[f"mppool_{name}_seconds_bucket", "db", bound] = sum(histogram.counts[:number])
        told[f"mppool_{name}_seconds_count", "db"] = histogram.count
        told[f"mppool_{name}_seconds_sum", "db"] = histogram.sum
    watching = prometheus(manager)
    assert watching.scrape() == watching.openmetrics() == told


def test_prometheus_gets_what_each_object_holds(prometheus: type[Prometheus], manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, name="db", isolation="process", min_size=2, max_size=2)
    pool.wait()
    found, objects = prometheus(manager).scrape(), pool.objects()
    for number in ("0", "1"):
        assert found["mppool_object_memory_bytes", "db", number] > 2**20
        assert found["mppool_object_cpu_seconds_total", "db", number] >= 0
    ages = [found["mppool_object_age_seconds", "db", str(each.number)] for each in objects]
    assert all(0 < age < each.age for age, each in zip(ages, objects, strict=True))


def test_promtool_finds_nothing_wrong(prometheus: type[Prometheus], manager: PoolManager) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (package prometheus)")
    pools = [manager.create_pool(Tool, name=name, max_size=1) for name in ("one", 'another "pool"\n')]
    pools.append(manager.create_pool(Tool, isolation="process", max_size=1))
    for pool in pools:
        pool.release(pool.acquire(), discard=True)
    text = prometheus(manager, *pools).text()  # each is told once
    command = ["promtool", "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.bounds(figures=1.0)
def test_a_manager_that_is_gone_spoils_no_scrape(prometheus: type[Prometheus]) -> None:
    up, nothing = {("mppool_up",): 1.0}, {("mppool_up",): 0.0}
    not_started = PoolManager()
    watching = prometheus(not_started)
    assert watching.scrape() == nothing
    with manager_in() as manager:
        pool = manager.create_pool(Tool, max_size=1)
        watching, one = prometheus(manager), prometheus(pool)
        with stopped(process_of(manager)):
            assert watching.scrape() == one.scrape() == nothing
        wait_until(lambda: watching.scrape() == one.scrape() != nothing)
        pool.close()
        wait_until(lambda: watching.scrape() == one.scrape() == up)
    assert watching.scrape() == one.scrape() == nothing
    with manager_in() as manager:
        watching, one = prometheus(manager), prometheus(manager.create_pool(Tool, max_size=1))
        kill(manager)
        assert watching.scrape() == one.scrape() == nothing
        prometheus(manager)  # it is registered without being asked


def test_of_a_pool_only_that_one_is_told(prometheus: type[Prometheus], manager: PoolManager) -> None:
    one, _ = (manager.create_pool(Tool, name=name, max_size=1) for name in ("one", "two"))
    assert ("mppool_size", "two") in prometheus(manager).scrape()
    assert ("mppool_size", "two") not in prometheus(one).scrape()


def test_the_label_of_a_manager_is_its_name_or_address(
    prometheus: type[Prometheus], manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        manager_in(address=("127.0.0.1", 0), authkey=b"k" * 16) as on_tcp,
        tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as place,  # a socket has a short path
    ):
        monkeypatch.setenv("MPPOOL_RUNTIME_DIR", f"{place}/p")
        shared = PoolManager.shared("for-operators", linger=0)
        pools = [
            manager.create_pool(Tool, name="db", max_size=1),
            on_tcp.create_pool(Tool, name="db", max_size=1),
            shared_pool("for-operators", dict, linger=0),
        ]
        text = prometheus(manager, on_tcp, shared).text()
        names = [manager.address, f"127.0.0.1:{on_tcp.address[1]}", "for-operators"]
        for name, pool in zip(names, pools, strict=True):
            assert f'mppool_up{{manager="{name}"}} 1.0' in text
            assert f'mppool_size{{manager="{name}",pool="{pool.name}"}} 0.0' in text
        watching = prometheus(pools[2])
        shared.shutdown()
        wait_until(lambda: watching.scrape() == {("mppool_up",): 0.0}, message="none is started for that")


def scrape_often(pipe: Any, pool: ObjectPool[Any]) -> None:
    """In another process: what its own exporter tells, each time in a thread, and what stays open."""
    from prometheus_client import start_http_server

    port = start_http_server(0, "127.0.0.1", Prometheus(pool).registry)[0].server_port
    before = psutil.Process().num_fds()
    for _ in range(4):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            pipe.send(response.read().decode())
    pipe.send(
        wait_until(lambda: psutil.Process().num_fds() <= before + 1)
    )  # what tells the manager of its end


def test_any_process_can_be_scraped_each_time_in_a_thread(
    prometheus: type[Prometheus], manager: PoolManager
) -> None:
    pool = manager.create_pool(Tool, name="db", max_size=1)
    with child_process(scrape_often, pool, context=FORK) as (_, pipe), pool.lease():
        assert all("mppool_leased{" in (text := pipe.recv()) and 'pool="db"} 1.0' in text for _ in range(4))
        assert pipe.recv(), "connections of threads that have ended are closed"


def test_a_registry_takes_one_collector_for_all(prometheus: type[Prometheus], manager: PoolManager) -> None:
    from mppool.prometheus import PoolCollector

    watching = prometheus(manager)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        watching.registry.register(PoolCollector(manager))


@pytest.mark.parametrize("sources", [(), ("db",)])
def test_only_pools_and_managers_are_collected(prometheus: type[Prometheus], sources: Any) -> None:
    with pytest.raises(TypeError, match="PoolManager or an ObjectPool"):
        prometheus(*sources)


# -- OpenTelemetry ------------------------------------------------------------------------------------

CONVENTIONS = {
    "count": ("{connection}", "level"),
    "idle.max": ("{connection}", "level"),
    "idle.min": ("{connection}", "level"),
    "max": ("{connection}", "level"),
    "pending_requests": ("{request}", "level"),
    "timeouts": ("{timeout}", "counter"),
    "create_time": ("s", "histogram"),
    "wait_time": ("s", "histogram"),
    "use_time": ("s", "histogram"),
}
"""Of each metric its unit and the kind of its instrument."""


class OpenTelemetry:
    """A provider with one reader, and what that collects."""

    def __init__(self) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        from mppool.opentelemetry import instrument

        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self._instrument = instrument

    def instrument(self, source: Any) -> Callable[[], None]:
        return self._instrument(source, self._provider)

    def collect(self) -> dict[str, Any]:
        """The metrics by the ends of their names."""
        data = self._reader.get_metrics_data()
        scopes = [scope for each in (data.resource_metrics if data else ()) for scope in each.scope_metrics]
        metrics = [metric for scope in scopes for metric in scope.metrics]
        assert all(metric.name.startswith(("db.client.connection.", "mppool.object.")) for metric in metrics)
        return {metric.name.removeprefix("db.client.connection."): metric for metric in metrics}

    def points(self) -> dict[tuple[str, ...], Any]:
        """The data points, by the ends of their metrics' names and the values of their attributes."""
        return {
            (name, *point.attributes.values()): point
            for name, metric in self.collect().items()
            for point in metric.data.data_points
        }

    def levels(self) -> dict[tuple[str, ...], float]:
        """The values of those that are not histograms."""
        return {key: point.value for key, point in self.points().items() if hasattr(point, "value")}


@pytest.fixture
def telemetry() -> OpenTelemetry:
    pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")
    return OpenTelemetry()


def kind_of(data: Any) -> str:
    if not hasattr(data, "is_monotonic"):
        return "histogram"
    return "counter" if data.is_monotonic else "level"


def test_the_nine_metrics_are_those_of_the_conventions(
    telemetry: OpenTelemetry, manager: PoolManager
) -> None:
    telemetry.instrument(manager)
    pool = manager.create_pool(Tool, name="db", min_size=1, max_size=3)
    pool.wait()
    with pool.lease():
        pass
    with pool.lease(), pool.lease():
        metrics = telemetry.collect()
    assert {name: (each.unit, kind_of(each.data)) for name, each in metrics.items()} == CONVENTIONS
    assert all(each.description for each in metrics.values())
    attributes = {
        name: {tuple(point.attributes.items()) for point in each.data.data_points}
        for name, each in metrics.items()
    }
    pool_name, state = ("db.client.connection.pool.name", "db"), "db.client.connection.state"
    assert attributes.pop("count") == {(pool_name, (state, "idle")), (pool_name, (state, "used"))}
    assert all(each == {(pool_name,)} for each in attributes.values())


def test_levels_tell_how_things_stand_and_counts_what_happened_since(
    telemetry: OpenTelemetry, manager: PoolManager, beside: Beside
) -> None:
    pool = manager.create_pool(Tool, name="db", min_size=0, max_size=2)
    first = pool.acquire()
    second = pool.acquire()
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    telemetry.instrument(pool)
    assert telemetry.levels()["timeouts", "db"] == 0  # that was before
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    waiter = beside(pool.acquire)
    wait_until(lambda: pool.stats().waiting)
    assert telemetry.levels() == {
        ("count", "db", "idle"): 0,
        ("count", "db", "used"): 2,
        ("idle.max", "db"): 2,
        ("idle.min", "db"): 0,
        ("max", "db"): 2,
        ("pending_requests", "db"): 1,
        ("timeouts", "db"): 1,
    }
    for handle in (first, second):
        pool.release(handle)
    pool.release(waiter.result())
    wait_until(lambda: pool.stats().idle == 2)
    points = telemetry.points()
    assert points["count", "db", "idle"].value == 2
    assert (points["wait_time", "db"].count, points["use_time", "db"].count) == (1, 3)
    assert ("create_time", "db") not in points  # both were built before


def test_of_each_object_it_is_told_what_it_holds(telemetry: OpenTelemetry, manager: PoolManager) -> None:
    telemetry.instrument(manager)
    pool = manager.create_pool(Tool, name="db", isolation="process", min_size=2, max_size=2)
    pool.wait()
    found = telemetry.levels()
    for number in (0, 1):
        assert found["mppool.object.memory", "db", number] > 2**20
        assert found["mppool.object.cpu_time", "db", number] >= 0
        assert found["mppool.object.age", "db", number] >= 0


def test_histograms_are_the_managers(telemetry: OpenTelemetry, manager: PoolManager, worker: Worker) -> None:
    telemetry.instrument(manager)
    pool = manager.create_pool(Tool, name="db", max_size=1)
    for seconds in (0.0, 0.002, 0.03, 0.0):
        pool.apply(Tool.nap, seconds)
        telemetry.collect()
    worker.do(acquire, pool)
    worker.kill()  # what it held is a lease that has ended, too
    stats = wait_until(lambda: pool.stats() if pool.stats().hold.count == 5 else None)
    points = telemetry.points()
    for name, histogram in ("create_time", stats.build), ("wait_time", stats.wait), ("use_time", stats.hold):
        point = points[name, "db"]
        assert tuple(point.explicit_bounds) == BUCKETS
        assert tuple(point.bucket_counts) == histogram.counts
        assert point.sum == pytest.approx(histogram.sum, abs=1e-9)


class Told:
    """Stands in for a manager: tells of one pool what the test says."""

    address = "told"
    _channel = None

    def __init__(self) -> None:
        self.stats = PoolStats(name="db")

    def _reach(self) -> Any:
        return self

    def request(self, request: tuple[Any, ...], _: float) -> Any:
        info = PoolInfo(
            "", 1, "db", None, records_caller=False, call_timeout=None, isolation="", lends_values=False
        )
        return None, [(tuple(info), None)] if request == ("pools",) else self.stats


def histogram_of(seconds: list[float]) -> Histogram:
    bounds = [*BUCKETS, float("inf")]
    lowest = [0.0, *BUCKETS]
    counts = [
        sum((low < each or low == 0.0 == each) and each <= high for each in seconds)
        for low, high in zip(lowest, bounds, strict=True)
    ]
    return Histogram(tuple(counts), sum(seconds))


DURATIONS = st.lists(st.sampled_from([0.0, *BUCKETS]) | st.floats(0, 1000), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=DURATIONS, rounds=st.lists(DURATIONS, max_size=3))
def test_whatever_lasted_how_long_buckets_and_sum_are_true(
    telemetry: OpenTelemetry, before: list[float], rounds: list[list[float]]
) -> None:
    telemetry, told, seconds = OpenTelemetry(), Told(), before

    def tell() -> None:
        told.stats = PoolStats(name="db", wait=histogram_of(seconds), wait_longest=max(seconds, default=0))

    tell()
    telemetry.instrument(told)
    for more in rounds:
        seconds = seconds + more
        tell()
        telemetry.collect()
    new, point = seconds[len(before) :], telemetry.points().get(("wait_time", "db"))
    if point is None:
        assert not new
    else:
        assert tuple(point.bucket_counts) == histogram_of(new).counts
        assert point.sum == pytest.approx(sum(new), rel=1e-6, abs=1e-6)


@pytest.mark.bounds(figures=1.0)
def test_a_manager_that_stands_still_tells_nothing_and_then_goes_on(
    telemetry: OpenTelemetry, manager: PoolManager
) -> None:
    telemetry.instrument(manager)
    pool = manager.create_pool(Tool, name="db", max_size=1)
    pool.apply(Tool.pid)
    wait_until(lambda: ("count", "db", "idle") in telemetry.points())
    with stopped(process_of(manager)):
        assert ("count", "db", "idle") not in telemetry.points()
    pool.apply(Tool.pid)
    wait_until(lambda: ("count", "db", "idle") in telemetry.points())
    assert telemetry.points()["wait_time", "db"].count == 2


@pytest.mark.manager(restart=True)
def test_a_successor_is_counted_from_nothing(telemetry: OpenTelemetry, manager: PoolManager) -> None:
    pool = manager.create_pool(Tool, name="db", max_size=1)
    telemetry.instrument(manager)
    for _ in range(3):
        pool.apply(Tool.pid)
    assert telemetry.points()["wait_time", "db"].count == 3
    kill(manager)
    pool.apply(Tool.pid)
    assert telemetry.points()["wait_time", "db"].count == 4


def test_a_manager_that_is_gone_breaks_no_collection(
    telemetry: OpenTelemetry, manager: PoolManager, caplog: pytest.LogCaptureFixture
) -> None:
    with manager_in() as other:
        other.create_pool(Tool, name="other", max_size=1)
        telemetry.instrument(other)
    manager.create_pool(Tool, name="db", max_size=1)
    telemetry.instrument(manager)
    assert {key[1] for key in telemetry.levels()} == {"db"}
    assert not caplog.records


def test_what_is_undone_tells_nothing_more_and_can_be_done_again(
    telemetry: OpenTelemetry, manager: PoolManager
) -> None:
    one, two = (manager.create_pool(Tool, name=name, max_size=1) for name in ("one", "two"))
    undo = telemetry.instrument(one)
    telemetry.instrument(two)
    assert {key[1] for key in telemetry.levels()} == {"one", "two"}
    undo()
    undo()
    one.apply(Tool.pid)
    points = telemetry.points()
    assert ("max", "two") in points
    assert ("max", "one") not in points
    assert ("wait_time", "one") not in points
    telemetry.instrument(one)
    one.apply(Tool.pid)
    assert telemetry.points()["wait_time", "one"].count == 1


def tell_levels(pipe: Any, telemetry: OpenTelemetry) -> None:
    pipe.send(telemetry.levels())


def test_a_forked_child_tells_nothing_once_more(telemetry: OpenTelemetry, manager: PoolManager) -> None:
    manager.create_pool(Tool, name="db", max_size=1)
    telemetry.instrument(manager)
    with child_process(tell_levels, telemetry, context=FORK) as (_, pipe):
        assert pipe.recv() == {}
    assert telemetry.levels()


def test_only_pools_and_managers_are_instrumented(telemetry: OpenTelemetry) -> None:
    with pytest.raises(TypeError, match="PoolManager or an ObjectPool"):
        telemetry.instrument("db")


# -- what is not installed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "package"), [("prometheus", "prometheus_client"), ("opentelemetry", "opentelemetry")]
)
def test_an_extra_that_is_not_installed_is_named(run_python: RunPython, extra: str, package: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
try:
    import mppool.{extra}
except ImportError as error:
    print(error)
"""
    assert f'pip install "mppool[{extra}]"' in run_python("-c", code).stdout


def test_the_core_loads_neither(run_python: RunPython) -> None:
    code = "import sys, mppool.manager; print({'prometheus_client', 'opentelemetry'} & {*sys.modules})"
    assert run_python("-c", code).stdout == "set()\n"
