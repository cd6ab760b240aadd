"""The daemon's figures in Prometheus's terms."""

from __future__ import annotations

import platform
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, TypeVar
from weakref import WeakKeyDictionary

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from lxcfs_py import __version__, files
from lxcfs_py.container import visible_cpus
from lxcfs_py.daemon import policies
from lxcfs_py.linux.host import Host
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
"""With metrics.containers, the names with figures of their own: more would take the scrape too long."""

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


_Labels = tuple[str, str]
"""Engine and name."""


class _Named(NamedTuple):
    """Whose cgroup it is."""

    labels: _Labels

    around: int
    """In how many containers it is. A container can call cgroups of its own as those of others are called; but these
    are in it, while the others are not."""

    until: float


_Known = Sequence[tuple[_Named, "Container"]]
"""The containers that are known by now, and whose their cgroups are."""


class _Reads:
    """What containers have read, by their cgroups: each read is told once, those of containers that have ended too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: WeakKeyDictionary[Container, int] = WeakKeyDictionary()
        self._untold: Counter[str] = Counter()

    def take(self, known: Iterable[Container]) -> Counter[str]:
        """Return what there is since this was called last, 0 for those of `known` who have read nothing since."""
        with self._lock:
            for container in known:
                self._count(container)
            untold, self._untold = self._untold, Counter()
            return untold

    def end(self, container: Container) -> None:
        """Keep what a container has read that is known no longer, of as many cgroups as there may be figures of."""
        with self._lock:
            if len(self._untold) < _MAX_CONTAINERS or container.place() in self._untold:
                self._count(container)

    def _count(self, container: Container) -> None:
        reads = container.reads
        self._untold[container.place()] += reads - self._told.get(container, 0)
        self._told[container] = reads


class _Totals:
    """What all of one name have had in all. It never goes down as long as one is called so, whichever of them ends."""

    def __init__(self) -> None:
        self._totals: dict[_Labels, tuple[float, ...]] = {}

    def add(self, more: Iterable[tuple[_Named, tuple[float, ...]]]) -> dict[_Labels, tuple[float, ...]]:
        """Add what each has had since, and return the sums; forget the names that are not there."""
        self._totals = {
            labels: tuple(map(sum, zip_longest(*had, self._totals.get(labels, ()), fillvalue=0)))
            for labels, had in _by_labels(more)
        }
        return self._totals


class _CpuTime(NamedTuple):
    """CPU time that was told of a name, in seconds."""

    place: str
    used: float
    """What the cgroup at that place had used by then."""

    looked: int
    """When that was, by Host.now."""

    total: float


class Collector:
    """Asks for the figures when somebody reads them."""

    def __init__(self, status: Status, filesystem: Filesystem) -> None:
        """Time what the filesystem renders from now on, and hear of containers that end if each is to be told of."""
        self._status = status
        self._filesystem = filesystem
        self._latency = Latency(filesystem.render)
        filesystem.render = self._latency  # type: ignore[method-assign]
        self._reads = _Reads()
        if filesystem.config.metrics.containers:
            status.containers.forgotten = self._reads.end
        self._read = _Totals()
        self._queued = _Totals()
        self._shares_before: Mapping[str, Share] = {}
        self._cpu_times: dict[_Labels, _CpuTime] = {}
        self._names: dict[str, _Named] = {}  # by the path of a cgroup
        self._files = Names()

    def collect(self) -> Iterator[Any]:
        """Yield all of them. The engines' files are read once for it."""
        self._files = Names()
        self._names = {path: named for path, named in self._names.items() if _still(named)}
        yield from self._daemon()
        yield from self._texts()
        known = [(self._named(each.place()), each) for each in self._status.containers.all()]
        yield from self._waits(known)
        yield from self._attachments()
        yield from self._containers(known)
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

    def _texts(self) -> Iterator[Any]:
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

    def _waits(self, known: _Known) -> Iterator[Any]:
        crowd = self._status.crowd()
        yield _gauge("lxcfs_waiting_requests", "Requests that wait for their turn, where many do.", crowd.waiting)
        together = crowd.together
        yield CounterMetricFamily("lxcfs_queue_requests", "Requests served while many waited.", together.requests)
        yield CounterMetricFamily("lxcfs_queue_wait_seconds", "For which these waited.", together.waited)
        yield from self._shares(crowd.shares, known)

    def _shares(self, shares: Mapping[str, Share], known: _Known) -> Iterator[Any]:
        """Yield what the busiest had. Containers may have many cgroups, of which the engine forgets some, or all."""
        before, self._shares_before = self._shares_before, shares
        more = [(self._named(whose), _since(before.get(whose), had)) for whose, had in shares.items()]
        totals = self._queued.add([*more, *((named, ()) for named, _ in known)])
        told = [(labels, total) for labels, total in totals.items() if total]
        busiest = sorted(told, key=lambda item: item[1][1], reverse=True)  # by the seconds of a Share
        families = _families(_SHARES)
        for labels, share in busiest[:_MAX_SHARES]:
            for family, had in zip(families.values(), share):
                family.add_metric(labels, had)
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

    def _containers(self, known: _Known) -> Iterator[Any]:
        engines = Counter(named.labels[0] for named, _ in known)
        family = GaugeMetricFamily("lxcfs_containers", "Containers known by now, by engine.", labels=["engine"])
        for engine, count in sorted(engines.items()):
            family.add_metric([engine], count)
        yield family
        if self._filesystem.config.metrics.containers:
            yield from self._figures(known)

    def _named(self, path: str) -> _Named:
        """Return whose a cgroup is, in which there may be many. Names may hold bytes that are no UTF-8."""
        named = _still(self._names.get(path))
        if named is None:
            around = list(self._files.around(path))
            engine, name = (around[0].engine, around[0].name) if around else ("none", path)
            labels = (engine, name.encode(errors="backslashreplace").decode())
            named = self._names[path] = _Named(labels, len(around), time.monotonic() + _NAMED_SECONDS)
        return named

    def _figures(self, known: _Known) -> Iterator[Any]:
        """Yield what containers see. Of several with one name, such as one in another, it is what the oldest sees."""
        reads = self._reads.take(each for _, each in known)
        totals = self._read.add((self._named(place), (count,)) for place, count in reads.items())
        groups = dict(_by_labels(known))
        self._cpu_times = {labels: time for labels, time in self._cpu_times.items() if labels in groups}
        left_out = max(len(groups) - _MAX_CONTAINERS, 0)
        yield _gauge("lxcfs_containers_left_out", "Containers without figures of their own: too many.", left_out)
        families = _families(_FIGURES)
        for labels, group in islice(groups.items(), _MAX_CONTAINERS):
            for total in totals.get(labels, ()):
                families["lxcfs_container_reads_total"].add_metric(labels, total)
            oldest = min(group, key=lambda each: each.start)
            for name, value in self._seen_by(oldest, labels):
                families[name].add_metric(labels, value)
        yield from families.values()

    def _cpu_time(self, labels: _Labels, container: Container, used: float) -> float:
        """Return the CPU time of all that had these labels, of which a container has used so much in its cgroup by now.

        One that was started since the last look counts whole. One that was there, as it was moved or another one has
        ended, counts from now on.
        """
        place, now = container.place(), Host.now()
        before = self._cpu_times.get(labels, _CpuTime(place, 0.0, now, 0.0))
        if place == before.place:
            more = used - before.used if used >= before.used else used  # less: it was started again
        else:
            more = used if container.start > before.looked else 0.0
        self._cpu_times[labels] = _CpuTime(place, used, now, before.total + more)
        return before.total + more

    def _seen_by(self, container: Container, labels: _Labels) -> Iterator[tuple[str, float]]:
        """Yield what a container sees that has these labels, as far as it can be read by now."""
        host = self._filesystem.host
        config = policies.applied(container, self._filesystem.config)
        try:
            visible = visible_cpus.visible(container.cgroup, host, config.cpu)
            yield "lxcfs_container_cpus", visible.worth()
            cpu_time = container.cgroup.cpu_time
            if cpu_time:
                used = sum(cpu_time.usage()) / 1e9
                yield "lxcfs_container_cpu_seconds_total", self._cpu_time(labels, container, used)
            memory = container.cgroup.memory
            if memory:
                amounts = meminfo.figures(container.cgroup, memory, host, config)
                yield "lxcfs_container_memory_bytes", amounts["MemTotal"]
                yield "lxcfs_container_memory_available_bytes", amounts["MemAvailable"]
            yield "lxcfs_container_load1", container.load.read(container.states)[0]
        except (OSError, ValueError, ArithmeticError):  # its cgroup is gone
            return


def _since(before: Optional[Share], now: Share) -> tuple[float, ...]:
    """Return what a cgroup has had since: all that there is where the engine has forgotten it in between."""
    grown = tuple(after - then for after, then in zip(now, before or ()))
    return grown if grown and min(grown) >= 0 else now


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
    "lxcfs_container_reads_total": "Files that all of this name have read, those that have ended too.",
    "lxcfs_container_cpus": "CPUs' worth of time that it may use.",
    "lxcfs_container_cpu_seconds_total": "CPU time that it has used, before it was started again too.",
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
