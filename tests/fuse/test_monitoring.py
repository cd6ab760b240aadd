"""A real Prometheus that fetches the metrics of a real daemon: with the alerts, and with the dashboard's questions."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon

MONITORING = ROOT / "packaging/monitoring"
PATIENCE = 60.0
REFUSED = "LxcfsReloadRefused"
FLOOD = """
import threading
def read():
    while True:
        open("/proc/meminfo").read()
for _ in range(60):
    threading.Thread(target=read).start()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def watched(start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]) -> tuple[Daemon, int, str]:
    """A daemon that attaches, with one container that was attached to and one that floods it; the flood's cgroup."""
    port, engine = free_port(), sandbox()
    patterns = json.dumps([f"/{engine.cgroup('memory').name}/*"])
    config = f'[metrics]\nlisten = "127.0.0.1:{port}"\ncontainers = true\n[attach]\nauto = true\ncgroups = {patterns}\n'
    daemon = start_daemon("kernel", config)
    sandbox(parent=engine)
    flood = sandbox(memory=64 << 20, views=daemon.mountpoint)
    flood.popen([sys.executable, "-c", FLOOD])
    return daemon, port, flood.cgroup("memory").name


def lxcfs_py(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lxcfs_py", *arguments, "--config", str(daemon.config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


class Prometheus:
    """One that fetches each second."""

    def __init__(self, directory: Path, target: int) -> None:
        self._port = free_port()
        scrape = {"job_name": "lxcfs-py", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(MONITORING / "alerts.yaml")],
            "scrape_configs": [scrape],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{self._port}"],
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=(directory / "log").open("wb"),
        )

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        return list(self.get("query", query=expression)["result"])


@pytest.fixture
def prometheus(
    watched: tuple[Daemon, int, str], tmp_path: Path, require: Callable[[object, str], None]
) -> Iterator[Prometheus]:
    require(shutil.which("prometheus"), "Debian's prometheus")
    started = Prometheus(tmp_path, watched[1])
    try:
        within(lambda: started.query("lxcfs_mounted"))
        yield started
    finally:
        started.process.terminate()
        started.process.wait(30)


def within(look: Callable[[], Any]) -> Any:
    """What `look` returns once that is true."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            found = look()
            if found:
                return found
        time.sleep(0.2)
    raise AssertionError(f"not within {PATIENCE} s")


def test_what_a_container_has_read_stays_told_where_one_within_it_ends(
    start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]
) -> None:
    port = free_port()
    daemon = start_daemon("kernel", f'[metrics]\nlisten = "127.0.0.1:{port}"\ncontainers = true\n')
    box = sandbox(views=daemon.mountpoint)
    name = box.cgroup("memory").name

    def reads() -> list[float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return [float(line.split()[-1]) for line in lines if "container_reads_total{" in line and name in line]

    read = "for n in 1 2 3 4 5 6 7 8 9 10; do cat /proc/meminfo; done >/dev/null"
    box.run(["sh", "-c", "cat /proc/uptime"], check=True, stdout=subprocess.DEVNULL)
    box.run(["unshare", "-pf", "sh", "-c", read], check=True)  # it ends before anybody asks
    assert within(lambda: [count for count in reads() if count >= 10])
    inner = box.popen(["unshare", "-pf", "sh", "-c", f"{read}; echo; read line"], stdin=-1, stdout=-1)
    assert inner.stdout
    assert inner.stdin
    inner.stdout.readline()
    (before,) = within(lambda: [count for count in reads() if count >= 20])
    inner.stdin.close()
    inner.wait(30)
    time.sleep(1.1)  # for so long a text of metrics serves
    (after,) = reads()
    assert 21 <= before <= after


def expressions() -> list[str]:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return [target["expr"].replace("$instance", ".*") for panel in panels for target in panel["targets"]]


@pytest.mark.slow
def test_each_question_of_the_dashboard_has_an_answer_and_a_rule_is_evaluated(
    prometheus: Prometheus, watched: tuple[Daemon, int, str]
) -> None:
    daemon, _, flood = watched
    failures = [text for text in expressions() if "lxcfs_failures" in text]  # there are none
    for expression in set(expressions()) - set(failures):
        assert within(partial(prometheus.query, expression)), expression
    (attached,) = prometheus.query('lxcfs_attachments_total{by="auto",result="attached"}')
    assert attached["value"][1] == "1"
    busiest = within(partial(prometheus.query, "topk(1, rate(lxcfs_container_queue_seconds_total[1m]))"))
    assert busiest[0]["metric"]["name"].endswith(flood)
    told = json.loads(lxcfs_py(daemon, "status", "--json", "--mountpoint", str(daemon.mountpoint)).stdout)
    assert told["noisiest"][0]["name"].endswith(flood)
    assert told["noisiest"][0]["share"] > 0.1
    assert told["daemon"]["attachments"] == {"auto": {"attached": 1}}

    groups = prometheus.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert len(rules) == 11
    daemon.config.write_text(daemon.config.read_text() + "\n[cpu]\nmode = 1\n")
    assert lxcfs_py(daemon, "reload").returncode == 1
    within(lambda: [each for each in prometheus.get("alerts")["alerts"] if each["labels"]["alertname"] == REFUSED])
    health = {rule["name"]: rule["health"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]}
    assert health == dict.fromkeys(rules, "ok")
