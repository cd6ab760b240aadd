"""The daemon's figures in Prometheus's terms."""

from __future__ import annotations

import platform
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, TypeVar
from weakref import WeakKeyDictionary

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from lxcfs_py import __version__, files
from lxcfs_py.attach.running import cgroup
from lxcfs_py.container import visible_cpus
from lxcfs_py.daemon import policies
from lxcfs_py.runtimes.names import Names
from lxcfs_py.views import meminfo

if TYPE_CHECKING:
    from lxcfs_py.container.containers import Container
    from lxcfs_py.daemon.filesystem import Filesystem
    from lxcfs_py.daemon.status import Status
    from lxcfs_py.engine.waiting import Share

_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0)
"""Of seconds. What an alert takes for slow is one of them: a quantile is guessed between two."""

_MAX_CONTAINERS = 500
"""With metrics.containers, those with figures of their own: more would take the scrape too long."""

_Each = TypeVar("_Each")

_NAMED_SECONDS = 60.0
"""For how long it is known which container is which: it may be renamed."""

_MAX_SHARES = 20
"""Of how many it is told what they had of the server while many waited: of those who had the most."""


class Latency:
    """How long texts take to render, by file. It stands before the filesystem only where metrics are wanted."""

    def __init__(self, render: Callable[[int, str], bytes]) -> None:
        self._render = render
        self.counts: dict[str, list[int]] = {}
        self.sums: Counter[str] = Counter()

    def __call__(self, caller: int, path: str) -> bytes:
        """Render a file's text for a caller."""
        started = time.perf_counter()
        try:
            return self._render(caller, path)
        finally:
            self._count(_file(path[1:]), time.perf_counter() - started)

    def _count(self, name: str, seconds: float) -> None:
        counts = self.counts.get(name)
        if counts is None:
            counts = self.counts.setdefault(name, [0] * (len(_BUCKETS) + 1))
        counts[bisect_left(_BUCKETS, seconds)] += 1
        self.sums[name] += seconds  # type: ignore[assignment] # a Counter of seconds


def _file(path: str) -> str:
    """Return the name that a path is of: sys/devices/system/cpu for what is below it."""
    if path in files.FILES:
        return path
    return next((name for name in files.DIRECTORIES if path.startswith(f"{name}/")), "other")


class _Named(NamedTuple):
    """Whose cgroup it is."""

    labels: tuple[str, str]
    """Engine and name."""

    around: int
    """In how many containers it is. A container can call cgroups of its own as those of others are called; but these
    are in it, while the others are not."""

    until: float


class Collector:
    """Asks for the figures when somebody reads them."""

    def __init__(self, status: Status, filesystem: Filesystem) -> None:
        """Time what the filesystem renders from now on."""
        self._status = status
        self._filesystem = filesystem
        self._latency = Latency(filesystem.render)
        filesystem.render = self._latency  # type: ignore[method-assign]
        self._identities: WeakKeyDictionary[Container, _Named] = WeakKeyDictionary()
        self._names: dict[str, _Named] = {}  # by the path of a cgroup
        self._files = Names()

    def collect(self) -> Iterator[Any]:
        """Yield all of them. The engines' files are read once for it."""
        self._files = Names()
        self._names = {path: named for path, named in self._names.items() if _still(named)}
        yield from self._daemon()
        yield from self._reads()
        yield from self._waits()
        yield from self._attachments()
        yield from self._containers()
        yield from _process()

    def _daemon(self) -> Iterator[Any]:
        told = self._status.describe()
        build = {"version": __version__, "engine": told["engine"], "python": platform.python_version()}
        info = GaugeMetricFamily("lxcfs_build_info", "What runs here; always 1.", labels=[*build, "keeper"])
        info.add_metric([*build.values(), told["keeper"]], 1)
        yield info
        yield _gauge("lxcfs_start_time_seconds", "Since when it serves, in seconds since 1970.", told["since"])
        yield _gauge("lxcfs_mounted", "1 where its filesystem is mounted.", told["mounted"])
        again = told["mounted_again"]["count"]
        yield CounterMetricFamily("lxcfs_mounted_again", "How often it was mounted again, as it was taken away.", again)
        yield _gauge("lxcfs_degraded", "How many things are not as they should be.", len(told["degraded"]))
        configuration = told["configuration"]
        yield _gauge("lxcfs_reload_success", "0 where the last reload was refused.", not configuration["reload_errors"])
        yield _gauge(
            "lxcfs_reload_time_seconds", "When it was reloaded last, 0 for never.", configuration["reloaded"] or 0
        )
        differs = bool(configuration["differences"] or configuration["errors"])
        yield _gauge("lxcfs_configuration_differs", "1 where the file says otherwise than what is served.", differs)

    def _reads(self) -> Iterator[Any]:
        filesystem = self._filesystem
        reads = CounterMetricFamily("lxcfs_reads", "Texts rendered, by file.", labels=["file"])
        for name, count in sorted(filesystem.reads.items()):
            reads.add_metric([name], count)
        yield reads
        latency = HistogramMetricFamily("lxcfs_render_seconds", "How long a text took to render.", labels=["file"])
        for name, counts in sorted(self._latency.counts.items()):
            latency.add_metric([name], _cumulated(counts), self._latency.sums[name])
        yield latency
        failures = CounterMetricFamily(
            "lxcfs_failures",
            "Reads answered with the host's text, because the container's could not be computed.",
            labels=["file", "reason"],
        )
        for (name, reason), count in sorted(filesystem.failures.items()):
            failures.add_metric([name, reason], count)
        yield failures
        unplaced = self._status.containers.unplaced
        yield CounterMetricFamily(
            "lxcfs_unplaced_reads", "Reads by processes whose container could not be found.", unplaced
        )

    def _waits(self) -> Iterator[Any]:
        crowd = self._status.crowd()
        yield _gauge("lxcfs_waiting_requests", "Requests that wait for their turn, where many do.", crowd.waiting)
        together = crowd.together
        yield CounterMetricFamily("lxcfs_queue_requests", "Requests served while many waited.", together.requests)
        yield CounterMetricFamily("lxcfs_queue_wait_seconds", "For which these waited.", together.waited)
        yield from self._shares(crowd.shares)

    def _shares(self, shares: Mapping[str, Share]) -> Iterator[Any]:
        """Yield what the busiest had. Containers may have many cgroups."""
        busiest = sorted(shares, key=lambda whose: shares[whose].seconds, reverse=True)[:_MAX_SHARES]
        families = _families(_SHARES)
        for labels, group in _by_labels((self._named(whose), whose) for whose in busiest):
            for family, had in zip(families.values(), zip(*(shares[whose] for whose in group))):
                family.add_metric(labels, sum(had))
        yield from families.values()

    def _attachments(self) -> Iterator[Any]:
        family = CounterMetricFamily(
            "lxcfs_attachments",
            "Containers to which files were to be attached as they started, by what came of it.",
            labels=["by", "result"],
        )
        for labels, count in self._status.attachments.items():
            family.add_metric(labels, count)
        yield family

    def _containers(self) -> Iterator[Any]:
        known = self._status.containers.all()
        identities = [(self._identity(each), each) for each in known]
        engines = Counter(identity.labels[0] for identity, _ in identities)
        family = GaugeMetricFamily("lxcfs_containers", "Containers known by now, by engine.", labels=["engine"])
        for engine, count in sorted(engines.items()):
            family.add_metric([engine], count)
        yield family
        if self._filesystem.config.metrics.containers:
            yield from self._figures(identities[:_MAX_CONTAINERS])

    def _identity(self, container: Container) -> _Named:
        """Return whose it is; what is known is not looked up again for a minute."""
        identity = _still(self._identities.get(container))
        if identity is None:
            try:
                identity = self._named(cgroup(container.init))
            except OSError:  # it has just ended
                return _Named(("none", ""), 0, 0)
            self._identities[container] = identity
        return identity

    def _named(self, path: str) -> _Named:
        """Return whose a cgroup is, in which there may be many. Names may hold bytes that are no UTF-8."""
        named = _still(self._names.get(path))
        if named is None:
            around = list(self._files.around(path))
            engine, name = (around[0].engine, around[0].name) if around else ("none", path)
            labels = (engine, name.encode(errors="backslashreplace").decode())
            named = self._names[path] = _Named(labels, len(around), time.monotonic() + _NAMED_SECONDS)
        return named

    def _figures(self, known: Iterable[tuple[_Named, Container]]) -> Iterator[Any]:
        """Yield what containers see. Of several with one name, such as one in another, it is what the oldest sees."""
        families = _families(_FIGURES)
        for labels, group in _by_labels(known):
            if not labels[1]:  # it has just ended
                continue
            families["lxcfs_container_reads_total"].add_metric(labels, sum(each.reads for each in group))
            for name, value in self._seen_by(min(group, key=lambda each: each.start)):
                families[name].add_metric(labels, value)
        yield from families.values()

    def _seen_by(self, container: Container) -> Iterator[tuple[str, float]]:
        """Yield what a container sees, as far as it can be read by now."""
        host = self._filesystem.host
        config = policies.applied(container, self._filesystem.config)
        try:
            visible = visible_cpus.visible(container.cgroup, host, config.cpu)
            yield "lxcfs_container_cpus", visible.quota or len(visible.cpus)
            cpu_time = container.cgroup.cpu_time
            if cpu_time:
                yield "lxcfs_container_cpu_seconds_total", sum(cpu_time.usage()) / 1e9
            memory = container.cgroup.memory
            if memory:
                amounts = meminfo.figures(container.cgroup, memory, host, config)
                yield "lxcfs_container_memory_bytes", amounts["MemTotal"]
                yield "lxcfs_container_memory_available_bytes", amounts["MemAvailable"]
            yield "lxcfs_container_load1", container.load.read(container.states)[0]
        except (OSError, ValueError, ArithmeticError):  # its cgroup is gone
            return


def _still(known: Optional[_Named]) -> Optional[_Named]:
    """Return what is known of a container or a cgroup, None where that is to be looked up anew."""
    return known if known and time.monotonic() < known.until else None


def _by_labels(whose: Iterable[tuple[_Named, _Each]]) -> Iterator[tuple[tuple[str, str], list[_Each]]]:
    """Yield all labels, each once, with those who are called so: of these, those that are in the fewest containers."""
    groups: dict[tuple[str, str], list[tuple[_Named, _Each]]] = {}
    for named, each in whose:
        groups.setdefault(named.labels, []).append((named, each))
    for labels, group in groups.items():
        fewest = min(named.around for named, _ in group)
        yield labels, [each for named, each in group if named.around == fewest]


_SHARES = {  # in the order of Share
    "lxcfs_container_queue_requests_total": "Requests of a container that were served while many waited.",
    "lxcfs_container_queue_seconds_total": "For which these were served.",
    "lxcfs_container_queue_wait_seconds_total": "For which these waited, all together.",
}

_FIGURES = {
    "lxcfs_container_reads_total": "Files that it has read since the daemon knows it.",
    "lxcfs_container_cpus": "CPUs' worth of time that it may use.",
    "lxcfs_container_cpu_seconds_total": "CPU time that it has used.",
    "lxcfs_container_memory_bytes": "MemTotal as it sees it.",
    "lxcfs_container_memory_available_bytes": "MemAvailable as it sees it.",
    "lxcfs_container_load1": "Its load average over a minute.",
}


def _families(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return a family of a container's figures for each name."""
    kinds = {True: CounterMetricFamily, False: GaugeMetricFamily}
    return {name: kinds[name.endswith("_total")](name, text, labels=["engine", "name"]) for name, text in texts.items()}


def _gauge(name: str, text: str, value: float) -> Any:
    return GaugeMetricFamily(name, text, value=float(value))


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    buckets, total = [], 0
    for bound, count in zip((*map(str, _BUCKETS), "+Inf"), list(counts)):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def _process() -> Iterator[Any]:
    """Yield what every program's process has, under the names of Prometheus's own libraries."""
    process = psutil.Process()
    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
        yield CounterMetricFamily("process_cpu_seconds", "CPU time used.", times.user + times.system)
        yield _gauge("process_resident_memory_bytes", "Memory in use.", memory.rss)
        yield _gauge("process_start_time_seconds", "When it was started, since 1970.", process.create_time())
        yield _gauge("process_open_fds", "Open descriptors.", process.num_fds())
        yield _gauge("process_threads", "Threads.", process.num_threads())
