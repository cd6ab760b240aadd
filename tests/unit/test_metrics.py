"""The server of the metrics, with clients that connect and say nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lxcfs_py.config import Config
from lxcfs_py.daemon import exposition, metrics
from lxcfs_py.engine.waiting import Crowd, Share
from lxcfs_py.runtimes.names import Identity

MONITORING = Path(__file__).parent.parent.parent / "packaging/monitoring"


class Told:
    """A daemon's status, with nothing behind it."""

    def __init__(self):
        self.containers = SimpleNamespace(unplaced=0, all=list)
        self.wrong = ""
        self.attachments = {("auto", "attached"): 4, ("auto", "refused"): 1, ("nri", "given"): 0}
        self.shares = {f"/docker/{digit * 64}": Share(10, 1.0 + int(digit, 16), 2.0) for digit in "123456789abc"}

    def trouble(self):
        return self.wrong

    def crowd(self):
        return Crowd(7, Share(500, 20.0, 60.0), self.shares)

    def describe(self):
        configuration = {"reload_errors": [], "reloaded": None, "differences": ["cpu.mode"], "errors": []}
        told = {"engine": "kernel", "keeper": "systemd", "since": 5, "mounted": True, "degraded": []}
        return {**told, "mounted_again": {"count": 2, "last": 9.0}, "configuration": configuration}


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def filesystem():
    return SimpleNamespace(
        reads=Counter({"proc/uptime": 3}),
        failures=Counter({("proc/stat", "ValueError"): 2}),
        render=lambda caller, path: b"text",
        config=Config(),
    )


@pytest.fixture
def served(told, filesystem):
    """The port of a server, and what stops it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port, metrics.listen(f"127.0.0.1:{port}", told, filesystem)


def test_no_name_server_is_asked(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("it would wait for one that does not answer"))
    metrics._HttpServer(("127.0.0.1", 0), metrics._QuietHandler).server_close()


def fetched(port, path="/metrics", host="127.0.0.1"):
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=3) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("has_ipv6", [True, False])
def test_all_addresses_are_those_that_the_kernel_has(has_ipv6, told, filesystem, monkeypatch, require):
    if has_ipv6:
        inet6 = Path("/proc/net/if_inet6")
        require(inet6.exists() and inet6.read_text() != "", "IPv6")
    else:
        create = socket.socket.__init__

        def without_ipv6(self, family=-1, *arguments, **named):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            create(self, family, *arguments, **named)

        monkeypatch.setattr(socket.socket, "__init__", without_ipv6)
    with socket.socket() as probe:
        probe.bind(("", 0))  # at no address of this machine may somebody have it
        port = probe.getsockname()[1]
    stop = metrics.listen(f"[::]:{port}", told, filesystem)
    try:
        texts = [fetched(port, "/healthz", host) for host in ["127.0.0.1", *(["[::1]"] if has_ipv6 else [])]]
    finally:
        stop()
    assert set(texts) == {"ok\n"}


def test_what_the_daemon_did_and_how_it_is_can_be_fetched(served, filesystem):
    port, stop = served
    filesystem.render(1, "/proc/meminfo")
    filesystem.render(1, "/sys/devices/system/cpu/cpu0/online")
    text = fetched(port)
    stop()
    for line in (
        f'lxcfs_build_info{{engine="kernel",keeper="systemd",python="{platform.python_version()}",version="',
        "lxcfs_mounted 1.0",
        "lxcfs_mounted_again_total 2.0",
        "lxcfs_degraded 0.0",
        "lxcfs_reload_success 1.0",
        "lxcfs_configuration_differs 1.0",
        'lxcfs_failures_total{file="proc/stat",reason="ValueError"} 2.0',
        'lxcfs_render_seconds_count{file="proc/meminfo"} 1.0',
        'lxcfs_render_seconds_bucket{file="sys/devices/system/cpu",le="+Inf"} 1.0',
        "process_resident_memory_bytes ",
        "lxcfs_waiting_requests 7.0",
        "lxcfs_queue_requests_total 500.0",
        "lxcfs_queue_wait_seconds_total 60.0",
        'lxcfs_container_queue_seconds_total{engine="docker",name="333333333333"} 4.0',
        'lxcfs_attachments_total{by="auto",result="refused"} 1.0',
        'lxcfs_attachments_total{by="nri",result="given"} 0.0',
    ):
        assert f"\n{line}" in text


def test_however_many_ask_the_text_is_made_once_a_second(served, told, monkeypatch):
    asked, describe = [], told.describe
    monkeypatch.setattr(told, "describe", lambda: asked.append(time.sleep(0.05)) or describe())
    port, stop = served
    with ThreadPoolExecutor(8) as clients:
        texts = set(clients.map(fetched, [port] * 8))
    assert (len(asked), len(texts)) == (1, 1)
    now = time.monotonic()
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now + metrics._KEPT_SECONDS)
    fetched(port)
    stop()
    assert len(asked) == 2


def test_shares_are_told_of_the_busiest_containers_each_with_all_its_cgroups(served, told, monkeypatch):
    monkeypatch.setattr(exposition, "_MAX_SHARES", 2)
    init = f"/docker/{'d' * 64}"
    told.shares.update({init: Share(1, 20.0, 3.0), f"{init}/app": Share(2, 30.0, 4.0)})
    port, stop = served
    text = fetched(port)
    stop()
    pattern = r'^lxcfs_container_queue_(\w+)_total{engine="docker",name="(\w+)"} (.+)$'
    assert set(re.findall(pattern, text, re.MULTILINE)) == {
        ("requests", "d" * 12, "3.0"),
        ("seconds", "d" * 12, "50.0"),
        ("wait_seconds", "d" * 12, "7.0"),
        ("requests", "c" * 12, "10.0"),
        ("seconds", "c" * 12, "13.0"),
        ("wait_seconds", "c" * 12, "2.0"),
    }


class Inner:
    """A container by now, as far as metrics ask."""

    def __init__(self, init, start, cpus):
        self.init, self.start, self.reads, self.configured, self.paths = init, start, 10, None, {}
        self.where = "/"
        self.cgroup = SimpleNamespace(cpuset=SimpleNamespace(cpus=lambda: cpus), cpu=None, cpu_time=None, memory=None)
        self.load = SimpleNamespace(read=lambda _states: (0.5, 0.0, 0.0))
        self.states = None

    def place(self):
        return self.where


@pytest.fixture
def contained(told, filesystem):
    """contained({cgroup: [containers]}) lets them be those that are known, with figures of their own."""

    def contain(cgroups):
        for path, group in cgroups.items():
            for each in group:
                each.where = path
        told.containers.all = lambda: [each for group in cgroups.values() for each in group]

    filesystem.config = Config().with_settings([("metrics.containers", True)])
    filesystem.host = SimpleNamespace(online=lambda: (0,))
    return contain


def figures(text, name):
    return re.findall(rf"^lxcfs_container_{name}{{(.+)}} (.+)$", text, re.MULTILINE)


def test_of_containers_of_one_name_there_is_one_sample_of_the_outermost(served, contained):
    own, other = f"/system.slice/docker-{'a' * 64}.scope", f"/pods.slice/two/docker-{'b' * 64}.scope"
    forged = f"{own}/docker-{'b' * 64}.scope"
    contained(
        {
            forged: [Inner(5, 1, b"0-3")],  # of a cgroup that a container has called so
            f"{own}/below": [Inner(2, 20, b"0")],
            own: [Inner(1, 10, b"0-1"), Inner(3, 30, b"0")],  # the container, and what it has unshared
            other: [Inner(4, 40, b"0-7")],
        }
    )
    port, stop = served
    text = fetched(port)
    stop()
    one, two = (f'engine="docker",name="{digit * 12}"' for digit in "ab")
    assert sorted(figures(text, "cpus")) == [(one, "2.0"), (two, "8.0")]
    assert sorted(figures(text, "reads_total")) == [(one, "30.0"), (two, "10.0")]


def test_the_engines_files_are_read_once_for_all_containers_and_for_each_cgroup(served, contained, monkeypatch):
    looks, around = [], exposition.Names.around
    monkeypatch.setattr(exposition.Names, "around", lambda *asked: looks.append(asked) or around(*asked))
    one, two = (f"/docker/{digit * 64}" for digit in "de")
    contained({one: [Inner(number, number, b"0") for number in range(1, 101)], two: [Inner(101, 0, b"0")]})
    port, stop = served
    text = fetched(port)
    stop()
    assert 'lxcfs_containers{engine="docker"} 101.0' in text
    (names, first), (same, second) = (look for look in looks if look[1] in (one, two))  # policies look for themselves
    assert (first, second) == (one, two)
    assert names is same


def test_cgroups_that_a_container_has_called_as_anothers_cost_that_one_nothing(served, told):
    told.shares = {f"/docker/{'a' * 64}/docker-{'b' * 64}.scope": Share(900, 50.0, 1.0)}
    told.shares[f"/docker/{'b' * 64}"] = Share(1, 2.0, 3.0)
    port, stop = served
    text = fetched(port)
    stop()
    assert figures(text, "queue_seconds_total") == [(f'engine="docker",name="{"b" * 12}"', "2.0")]


def test_a_cgroup_whose_name_is_no_utf_8_is_told_of(served, told, contained):
    path = os.fsdecode(b"/machine.slice/\xff")
    contained({path: [Inner(1, 0, b"0")]})
    told.shares = {path: Share(1, 2.0, 3.0)}
    port, stop = served
    text = fetched(port)
    stop()
    assert [number for _, number in figures(text, "cpus") + figures(text, "queue_seconds_total")] == ["1.0", "2.0"]


def test_another_container_with_the_same_pid_and_one_that_is_renamed_have_their_names(served, contained, monkeypatch):
    monkeypatch.setattr(metrics, "_KEPT_SECONDS", 0)
    now = time.monotonic()
    monkeypatch.setattr(exposition.time, "monotonic", lambda: now)
    port, stop = served
    first = Inner(1, 0, b"0")
    for who, where in ((first, "/one"), (Inner(1, 5, b"0"), "/two")):
        contained({where: [who]})
        assert [labels for labels, _ in figures(fetched(port), "cpus")] == [f'engine="none",name="{where}"']
    contained({"/three": [first]})
    now += exposition._NAMED_SECONDS
    assert [labels for labels, _ in figures(fetched(port), "cpus")] == ['engine="none",name="/three"']
    stop()


@pytest.fixture
def watched(contained, served, monkeypatch):
    """A function that fetches the figures of containers anew. Which live is said by `contained`."""
    monkeypatch.setattr(metrics, "_KEPT_SECONDS", 0)
    port, stop = served
    yield lambda: fetched(port)
    stop()


DOCKER = [f"/docker/{digit * 64}" for digit in "abcdef"]
LABELS = [f'engine="docker",name="{digit * 12}"' for digit in "abcdef"]


def test_reads_of_containers_that_have_ended_stay_in_the_sum_of_their_name(told, contained, watched):
    outer, inner, other = Inner(1, 0, b"0"), Inner(2, 10, b"0"), Inner(3, 20, b"0")
    contained({DOCKER[0]: [outer, inner], DOCKER[1]: [other]})
    assert figures(watched(), "reads_total") == [(LABELS[0], "20.0"), (LABELS[1], "10.0")]
    inner.reads, outer.reads = 15, 11
    contained({DOCKER[0]: [outer], DOCKER[1]: [other]})
    told.containers.forgotten(inner)
    unseen = Inner(4, 30, b"0")  # one that came and went between two looks, in a cgroup of its own
    unseen.where = f"{DOCKER[0]}/below"
    told.containers.forgotten(unseen)
    for _ in range(2):
        assert figures(watched(), "reads_total") == [(LABELS[0], "36.0"), (LABELS[1], "10.0")]
    told.containers.forgotten(outer)
    contained({DOCKER[0]: [Inner(1, 0, b"0")], DOCKER[1]: [other]})  # known again, after it was forgotten
    assert figures(watched(), "reads_total") == [(LABELS[0], "46.0"), (LABELS[1], "10.0")]
    contained({DOCKER[1]: [other]})
    assert figures(watched(), "reads_total") == [(LABELS[1], "10.0")]
    contained({DOCKER[0]: [Inner(5, 40, b"0")]})
    assert figures(watched(), "reads_total") == [(LABELS[0], "10.0")], "nothing is kept of a name that was gone"


def test_reads_of_containers_that_have_ended_are_kept_of_so_many_cgroups_only(told, contained, watched, monkeypatch):
    monkeypatch.setattr(exposition, "_MAX_CONTAINERS", 2)
    ended = [Inner(number, 0, b"0") for number in range(6)]
    for each, where in zip(ended, (DOCKER[0], f"{DOCKER[0]}/1", f"{DOCKER[0]}/2", f"{DOCKER[0]}/1")):
        each.where = where
        told.containers.forgotten(each)
    contained({DOCKER[0]: [Inner(9, 0, b"0")]})
    assert figures(watched(), "reads_total") == [(LABELS[0], "40.0")]


def test_of_too_many_containers_it_is_said_how_many_have_no_figures(contained, watched, monkeypatch):
    monkeypatch.setattr(exposition, "_MAX_CONTAINERS", 2)
    contained({path: [Inner(1, 0, b"0"), Inner(2, 0, b"0")] for path in DOCKER[:2]})
    text = watched()
    assert "\nlxcfs_containers_left_out 0.0\n" in text
    contained({path: [Inner(1, 0, b"0")] for path in DOCKER[:5]})
    text = watched()
    assert "\nlxcfs_containers_left_out 3.0\n" in text
    assert [labels for labels, _ in figures(text, "cpus")] == LABELS[:2]


def using(container, seconds):
    container.cgroup.cpu_time = SimpleNamespace(usage=lambda: (int(seconds * 1e9), 0, 0))
    return container


def test_cpu_time_does_not_step_back_where_another_cgroup_stands_for_a_name(contained, watched):
    outer, below = using(Inner(1, 0, b"0"), 100), using(Inner(2, 10, b"0"), 40)
    contained({DOCKER[0]: [outer], f"{DOCKER[0]}/below": [below]})
    assert figures(watched(), "cpu_seconds_total") == [(LABELS[0], "100.0")]
    contained({f"{DOCKER[0]}/below": [below]})
    assert figures(watched(), "cpu_seconds_total") == [(LABELS[0], "100.0")]
    using(below, 43)
    assert figures(watched(), "cpu_seconds_total") == [(LABELS[0], "103.0")]
    contained({DOCKER[1]: [outer]})
    watched()
    contained({DOCKER[0]: [below]})
    assert figures(watched(), "cpu_seconds_total") == [(LABELS[0], "43.0")], "that name was gone"


def test_cpu_time_goes_on_where_a_container_is_started_again(contained, watched, monkeypatch):
    now = 1000
    monkeypatch.setattr(exposition.Host, "now", lambda: now)
    monkeypatch.setattr(exposition.Names, "around", lambda *_: iter([Identity("containerd", "id", "shop/cart-0/web")]))
    lives = [using(Inner(1, 0, b"0"), 100), using(Inner(2, 1500, b"0"), 30), using(Inner(3, 2500, b"0"), 40)]
    for life, total in zip(lives, ("100.0", "130.0", "170.0")):  # in Kubernetes, each has an id of its own
        contained({f"/kubepods/pod1/{life.init}": [life]})
        assert figures(watched(), "cpu_seconds_total") == [('engine="containerd",name="shop/cart-0/web"', total)]
        now += 1000
    contained({"/kubepods/pod1/3": [using(Inner(4, now - 500, b"0"), 5)]})  # in Docker, all have one
    assert [total for _, total in figures(watched(), "cpu_seconds_total")] == ["175.0"]
    now += 1000
    contained({"/elsewhere": [using(Inner(4, now - 1500, b"0"), 60)]})
    assert [total for _, total in figures(watched(), "cpu_seconds_total")] == ["175.0"], "it was moved"


def test_shares_do_not_go_down_where_others_get_busy_or_the_engine_forgets_some(told, watched, monkeypatch):
    monkeypatch.setattr(exposition, "_MAX_SHARES", 2)
    small, others = f"{DOCKER[0]}/small", DOCKER[1:3]
    told.shares = {DOCKER[0]: Share(4, 9.0, 1.0), small: Share(2, 2.0, 1.0), others[0]: Share(1, 8.0, 1.0)}
    told.shares[others[1]] = Share(1, 10.0, 1.0)
    assert figures(watched(), "queue_seconds_total") == [(LABELS[0], "11.0"), (LABELS[2], "10.0")]
    told.shares = {**told.shares, others[0]: Share(9, 9.5, 1.0)}  # more than either cgroup of the first one has
    assert figures(watched(), "queue_seconds_total") == [(LABELS[0], "11.0"), (LABELS[2], "10.0")]
    told.shares = {whose: share for whose, share in told.shares.items() if whose != small}
    assert figures(watched(), "queue_seconds_total") == [(LABELS[0], "11.0"), (LABELS[2], "10.0")]
    told.shares = {**told.shares, small: Share(1, 0.5, 1.0)}
    assert figures(watched(), "queue_seconds_total") == [(LABELS[0], "11.5"), (LABELS[2], "10.0")]
    told.shares = {**told.shares, small: Share(3, 0.25, 0.0)}  # forgotten, and back with more requests in less time
    text = watched()
    assert figures(text, "queue_seconds_total") == [(LABELS[0], "11.75"), (LABELS[2], "10.0")]
    assert figures(text, "queue_requests_total")[0] == (LABELS[0], "10.0")


def test_shares_of_a_container_that_runs_on_are_kept_where_the_engine_forgets_all_of_them(told, contained, watched):
    contained({DOCKER[0]: [Inner(1, 0, b"0")], DOCKER[1]: [Inner(2, 0, b"0")]})  # the second never had a share
    told.shares = {DOCKER[0]: Share(100, 9.0, 1.0), DOCKER[2]: Share(1, 8.0, 1.0)}
    assert figures(watched(), "queue_requests_total") == [(LABELS[0], "100.0"), (LABELS[2], "1.0")]
    told.shares = {}
    assert figures(watched(), "queue_requests_total") == [(LABELS[0], "100.0")]
    told.shares = {DOCKER[0]: Share(1, 0.5, 1.0)}
    assert figures(watched(), "queue_requests_total") == [(LABELS[0], "101.0")]
    contained({})
    told.shares = {}
    assert figures(watched(), "queue_requests_total") == []


def test_healthz_says_whether_the_daemon_serves_and_nothing_else(served, told):
    port, stop = served
    assert fetched(port, "/healthz") == "ok\n"
    told.wrong = "nothing is mounted at /x any more"
    with pytest.raises(urllib.error.HTTPError) as error:
        fetched(port, "/healthz")
    assert (error.value.code, error.value.read()) == (503, b"nothing is mounted at /x any more\n")
    stop()


def names_asked_for(text):
    return set(re.findall(r"\b(?:lxcfs|process)_[a-z0-9_]+", text)) - {"lxcfs_py"}


def names_there_are(filesystem):
    """Every metric, those of containers too, under the names that Prometheus stores."""
    text = Path(exposition.__file__).read_text()
    kinds = {"CounterMetricFamily": ["_total"], "HistogramMetricFamily": ["_bucket", "_sum", "_count"]}
    for kind, name in re.findall(r'(\w+MetricFamily|_gauge)\(\s*"(\w+)"', text):
        yield from (name + ending for ending in kinds.get(kind, [""]))
    yield from (*exposition._FIGURES, *exposition._SHARES)


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are(filesystem):
    known = set(names_there_are(filesystem))
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    asked |= {rule["expr"] for rule in alerts}
    assert len(asked) > 10
    for expression in asked:
        assert names_asked_for(expression) <= known, expression
    for rule in alerts:
        assert {"summary", "description"} <= set(rule["annotations"])


def test_the_manual_names_every_metric_and_no_other(filesystem):
    page = (Path(__file__).parents[2] / "docs/man/lxcfs.toml.5").read_text()
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in names_there_are(filesystem)}
    assert names_asked_for(page) == families


def test_promtool_takes_the_alerts_and_they_fire_as_their_tests_say(require):
    require(shutil.which("promtool"), "promtool, of Debian's prometheus")
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]):
        subprocess.run(["promtool", *command], check=True, cwd=MONITORING, timeout=60)


def test_what_an_alert_takes_for_slow_is_a_bucket_and_its_test_has_the_daemons(filesystem):
    buckets = {str(bound) for bound in exposition._BUCKETS}
    slow = re.findall(r"histogram_quantile\(.*> (.+)$", (MONITORING / "alerts.yaml").read_text(), re.MULTILINE)
    tested = re.findall('le="([0-9.]+)"', (MONITORING / "alerts.test.yaml").read_text())
    assert len(slow) == 1
    assert {*slow, *tested} <= buckets


def test_few_texts_of_11_ms_are_not_taken_for_such_of_more_than_50(filesystem):
    latency = exposition.Latency(filesystem.render)
    for seconds in [0.0003] * 97 + [0.011] * 3:
        latency._count("proc/stat", seconds)
    cumulated = dict(exposition._cumulated(latency.counts["proc/stat"]))
    assert (cumulated["0.01"], cumulated["0.025"], cumulated["0.05"]) == (97, 100, 100)


def test_a_client_that_says_nothing_keeps_nobody_from_the_metrics_and_the_server_not_from_its_end(served):
    port, stop = served
    with socket.create_connection(("127.0.0.1", port)):
        assert 'lxcfs_reads_total{file="proc/uptime"} 3.0' in fetched(port)
        stopping = threading.Thread(target=stop, daemon=True)
        stopping.start()
        stopping.join(3)
        assert not stopping.is_alive()


def test_clients_that_say_nothing_or_little_keep_nobody_from_the_metrics(served):
    port, stop = served
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=3))
            for _ in range(metrics._MAX_CONNECTIONS + 2)
        ]
        for connection in slow[2:]:
            connection.sendall(b"G")
        assert 'lxcfs_reads_total{file="proc/uptime"} 3.0' in fetched(port)
        assert [connection.recv(1) for connection in slow[:3]] == [b""] * 3, "the oldest gave way"
        slow[-1].settimeout(0.1)
        with pytest.raises(socket.timeout):
            slow[-1].recv(1)
    stop()


def test_an_answer_that_is_being_made_is_not_taken_away_by_connections_that_say_nothing(served, told, monkeypatch):
    making, describe = threading.Event(), told.describe
    flooded = threading.Event()
    monkeypatch.setattr(told, "describe", lambda: making.set() or (flooded.wait(3) and describe()))
    port, stop = served
    with ThreadPoolExecutor(1) as scraper, contextlib.ExitStack() as stack:
        text = scraper.submit(fetched, port)
        making.wait(3)
        for _ in range(2 * metrics._MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        last = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        last.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert last.recv(100), "all before it were accepted"
        flooded.set()
        assert "lxcfs_mounted 1.0" in text.result()
    stop()


def test_of_the_client_with_the_most_connections_one_gives_way(served):
    """Of others even those that have sent nothing yet stay, whatever that one has sent."""
    port, stop = served
    with contextlib.ExitStack() as stack:

        def connected(address):
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), 3, source_address=(address, 0)))

        other = connected("127.0.0.2")
        flood = [connected("127.0.0.1") for _ in range(2 * metrics._MAX_CONNECTIONS)]
        assert flood[0].recv(1) == b""
        other.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert other.recv(100).startswith(b"HTTP/1.0 200 OK")
    stop()


def test_a_client_that_says_nothing_is_let_go_without_a_word(served, monkeypatch, capfd):
    port, stop = served
    monkeypatch.setattr(metrics._QuietHandler, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        assert connection.recv(1) == b""
    stop()
    assert capfd.readouterr().err == ""
