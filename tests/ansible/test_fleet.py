"""A fleet that is not there: the playbooks as they are, on hosts for which a connection plugin answers."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.ansible.connection.simulated import FRESH

pytestmark = pytest.mark.timeout(2 * 3600)

HERE = Path(__file__).parent
COLLECTION = HERE.parent.parent / "ansible"
BIN = Path(sys.executable).parent
HOSTS = int(os.environ.get("LXCFS_PY_FLEET", "30"))  # each takes a second of a CPU
FORKS = int(os.environ.get("LXCFS_PY_FORKS", "10"))
OLD, NEW = "0.1.0", "0.2.0"
FIRST, TENTH = 1, HOSTS // 10


class Command(NamedTuple):
    began: float
    ended: float
    host: str


class Fleet:
    """Hosts in a directory, and the collection."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names = [f"node{number:04}" for number in range(HOSTS)]
        self.batches = self.names[:FIRST], self.names[FIRST : FIRST + TENTH], self.names[FIRST + TENTH :]
        (directory / "hosts").mkdir()
        for number, name in enumerate(self.names):
            self.change(name, version=OLD, containers=[str(number + 1000)], runs=True)
        variables = {
            "ansible_connection": "simulated",
            "ansible_become": False,
            "ansible_python_interpreter": "/usr/bin/python3",
            "lxcfs_py_source": "file",
            "lxcfs_py_package_file": str(directory / f"lxcfs-py_{NEW}_all.deb"),
        }
        (directory / f"lxcfs-py_{NEW}_all.deb").write_text("a package")
        group = {"hosts": {name: {} for name in self.names}, "vars": variables}
        (directory / "inventory.json").write_text(json.dumps({"lxcfs_py": group}))
        self.environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(directory / "collections"),
            "ANSIBLE_CONNECTION_PLUGINS": str(HERE / "connection"),
            "ANSIBLE_HOME": str(directory / "home"),
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "True",
            "LC_ALL": "C.UTF-8",
            "LXCFS_PY_SIMULATED": str(directory / "hosts"),
            "PWD": str(directory),
        }
        self.run("ansible-galaxy", "collection", "install", "-p", "collections", str(COLLECTION))

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / program), *arguments]
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * 3600,
        )

    def play(self, playbook: str, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        (self.directory / "hosts/log").unlink(missing_ok=True)
        began, before = time.monotonic(), os.times()
        extra = json.dumps(variables)
        command = ["ansible-playbook", "-i", "inventory.json", f"--forks={FORKS}", f"lxcfs_py.fleet.{playbook}"]
        done = self.run(*command, "-e", extra, *options)
        after = os.times()
        busy = after.children_user + after.children_system - before.children_user - before.children_system
        seconds, load = time.monotonic() - began, os.getloadavg()[1]
        print(
            done.stdout[-3000:],
            f"{playbook}: {seconds:.1f} s, CPU {busy:.1f} s, load {load:.0f}, {FORKS} forks",
            sep="\n",
        )
        return done

    def commands(self) -> list[Command]:
        """What the hosts were asked, as it ended."""
        lines = (line.split() for line in (self.directory / "hosts/log").read_text().splitlines())
        return [Command(float(began), float(ended), host) for began, ended, host in lines]

    def change(self, name: str, **what: Any) -> None:
        file = self.directory / f"hosts/{name}.json"
        before = json.loads(file.read_text()) if file.exists() else FRESH
        file.write_text(json.dumps({**before, **what}))

    def versions(self, names: Sequence[str] = ()) -> Counter[str]:
        files = (self.directory / f"hosts/{name}.json" for name in names or self.names)
        return Counter(json.loads(file.read_text())["version"] for file in files)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("fleet"))


def test_the_first_host_that_fails_is_rolled_back_and_no_batch_comes_after_its_own(fleet: Fleet) -> None:
    first, second, third = fleet.batches
    fleet.change(second[0], breaks_with=NEW)
    done = fleet.play("rollout")
    assert done.returncode == 2
    assert f"{second[0]}: Verify what the sandbox and the containers read: A sandbox of 64 MiB should" in done.stdout
    assert f"The host was rolled back to {OLD}." in done.stdout
    assert fleet.versions(second[:1]) == {OLD: 1}
    assert fleet.versions([*first, *second[1:]]) == {NEW: TENTH}
    assert fleet.versions(third) == {OLD: len(third)}
    assert {command.host for command in fleet.commands()} == {*first, *second}


def test_a_version_that_takes_a_host_off_the_network_stops_the_rollout_and_a_host_that_was_off_it_does_not(
    fleet: Fleet,
) -> None:
    first, second, third = fleet.batches
    for name in second:
        fleet.change(name, version=OLD, breaks_with="")
    fleet.change(second[0], is_reachable=False)
    fleet.change(second[1], lost_with=NEW)
    done = fleet.play("rollout")
    assert f"{second[1]} cannot be reached any more, since what was changed there. No other" in done.stdout
    assert fleet.versions(third) == {OLD: len(third)}
    assert not {command.host for command in fleet.commands()} & set(third)
    fleet.change(second[1], lost_with="never")
    some = ",".join((*first, *second, third[0]))
    assert fleet.play("rollout", "--limit", some, lxcfs_py_serial=[len(first), len(second), 1]).returncode == 4
    assert fleet.versions([second[1], *third]) == {NEW: 2, OLD: len(third) - 1}
    fleet.change(second[0], is_reachable=True)


def test_a_rollout_goes_in_batches_with_no_more_hosts_at_once_than_forks(fleet: Fleet) -> None:
    fleet.change(fleet.batches[1][0], breaks_with="")
    done = fleet.play("rollout")
    assert done.returncode == 0
    assert fleet.versions() == {NEW: HOSTS}
    assert re.search(rf"^{fleet.names[0]} .* changed=0 ", done.stdout, re.MULTILINE), "it was brought there before"
    commands = fleet.commands()
    for before, after in zip(fleet.batches, fleet.batches[1:]):
        last = max(each.ended for each in commands if each.host in before)
        assert last <= min(each.began for each in commands if each.host in after)
    moments = sorted([(each.began, 1) for each in commands] + [(each.ended, -1) for each in commands])
    assert 2 <= max(itertools.accumulate(step for _, step in moments)) <= FORKS


def test_the_report_has_a_row_for_each_host_and_says_which_could_not_be_reached(fleet: Fleet) -> None:
    unreachable, older = fleet.names[1], fleet.names[2]
    fleet.change(unreachable, is_reachable=False)
    fleet.change(older, version=OLD)
    done = fleet.play("report")
    assert done.returncode == 4
    rows = {row["host"]: row for row in json.loads((fleet.directory / "lxcfs-py-report/report.json").read_text())}
    assert list(rows) == fleet.names
    assert rows.pop(unreachable) == {"host": unreachable, "error": "unreachable"}
    assert rows.pop(older)["drift"] == ["version"]
    assert {(row["version"], row["containers_served"], *row["drift"]) for row in rows.values()} == {(NEW, 1)}


@pytest.fixture
def host(fleet: Fleet) -> str:
    """One that has the old version."""
    normal = {"reload_fails": False, "lacks_lists": False, "c_program": "", "c_users": []}
    normal.update(has_library=False, is_debian_14=False, stops=0)
    normal.update(package="installed", runs=True, is_disabled=False, apt_fails=False, others=[])
    fleet.change(fleet.names[0], version=OLD, config="", files={}, breaks_with="", **normal)
    return fleet.names[0]


def state(fleet: Fleet, host: str) -> tuple[str, bool]:
    """Its version, and whether it has a configuration."""
    found = json.loads((fleet.directory / f"hosts/{host}.json").read_text())
    return found["version"], bool(found["config"])


@pytest.mark.parametrize(
    ("tag", "comes"),
    [("install", (NEW, False)), ("configure", (OLD, True)), ("verify", (OLD, False))],
)
def test_a_stage_can_be_had_by_its_tag(fleet: Fleet, host: str, tag: str, comes: tuple[str, bool]) -> None:
    done = fleet.play("rollout", "--limit", host, "--tags", f"lxcfs_py_{tag}")
    assert (done.returncode, state(fleet, host)) == (0, comes)
    assert ("Verify what the sandbox" in done.stdout) == (tag == "verify")


def test_what_fails_with_tags_is_rolled_back_too(fleet: Fleet, host: str) -> None:
    fleet.change(host, breaks_with=NEW)
    done = fleet.play("rollout", "--limit", host, "--tags", "lxcfs_py_install,lxcfs_py_verify")
    assert (done.returncode, state(fleet, host)) == (2, (OLD, False))
    assert f"The host was rolled back to {OLD}." in done.stdout


def test_removal_has_a_tag_too(fleet: Fleet, host: str) -> None:
    fleet.change(host, containers=[])
    assert fleet.play("remove", "--limit", host, "--tags", "lxcfs_py_remove").returncode == 0
    assert state(fleet, host) == ("", False)


def test_a_reload_that_fails_is_rolled_back_with_the_configuration(fleet: Fleet, host: str) -> None:
    fleet.change(host, reload_fails=True)
    done = fleet.play("rollout", "--limit", host, "--tags", "lxcfs_py_configure")
    assert (done.returncode, state(fleet, host)) == (2, (OLD, False))
    assert f"The host was rolled back to {OLD}." in done.stdout


def test_a_host_that_never_had_lists_of_packages_gets_them(fleet: Fleet, host: str) -> None:
    fleet.change(host, lacks_lists=True)
    done = fleet.play("rollout", "--limit", host, "--tags", "lxcfs_py_install")
    assert (done.returncode, state(fleet, host)) == (0, (NEW, False))


@pytest.mark.parametrize("lacks_lists", [False, True])
def test_the_library_of_the_engine_fusepy_is_there_before_the_service_is_stopped(
    fleet: Fleet, host: str, lacks_lists: bool
) -> None:
    fleet.change(host, version=NEW, containers=[], runs=True, lacks_lists=lacks_lists)
    done = fleet.play("rollout", "--limit", host, lxcfs_py_config={"fuse": {"engine": "fusepy"}})
    assert done.returncode == 0
    assert json.loads((fleet.directory / f"hosts/{host}.json").read_text())["fusepy_came_while_it_ran"] is True


def test_where_the_library_of_the_engine_fusepy_is_there_apt_is_not_asked(fleet: Fleet, host: str) -> None:
    fleet.change(host, version=NEW, containers=[], runs=True, is_debian_14=True, has_library=True)
    done = fleet.play("rollout", "--limit", host, lxcfs_py_config={"fuse": {"engine": "fusepy"}})
    assert (done.returncode, "Bring apt's lists up to date" in done.stdout) == (0, False)
    assert json.loads((fleet.directory / f"hosts/{host}.json").read_text())["stops"] == 1


def test_without_the_library_of_the_engine_fusepy_the_service_is_not_stopped(fleet: Fleet, host: str) -> None:
    fleet.change(host, version=NEW, containers=[], runs=True, is_debian_14=True)
    done = fleet.play("rollout", "--limit", host, lxcfs_py_config={"fuse": {"engine": "fusepy"}})
    assert (done.returncode, state(fleet, host)[0]) == (2, NEW)
    assert "library that is missing (ModuleNotFoundError: No module named 'mfusepy')" in " ".join(done.stdout.split())
    assert json.loads((fleet.directory / f"hosts/{host}.json").read_text())["stops"] == 0


@pytest.mark.parametrize("spelled", ["//run/views/.", "{link}/views", '/run/"a" \\ é'])
def test_a_mountpoint_that_is_written_otherwise_than_the_host_has_it_is_where_it_was(
    fleet: Fleet, host: str, spelled: str, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("/run")
    config = {"mountpoint": spelled.format(link=tmp_path / "link")}
    fleet.change(host, version=NEW, containers=[], runs=True)
    for stops in (1, 1):
        done = fleet.play("rollout", "--limit", host, lxcfs_py_config=config)
        assert done.returncode == 0
        assert json.loads((fleet.directory / f"hosts/{host}.json").read_text())["stops"] == stops
    assert " changed=0 " in done.stdout


def test_dotted_keys_which_the_role_would_not_go_by_are_refused(fleet: Fleet, host: str) -> None:
    dotted = {"fuse.engine": "fusepy", "metrics.listen": "[::1]:9756"}
    done = fleet.play("rollout", "--limit", host, lxcfs_py_config={**dotted, "policy": [{"cpu.mode": "cpuset"}]})
    assert (done.returncode, state(fleet, host)) == (2, (OLD, False))
    assert "lxcfs_py_config has fuse.engine, metrics.listen: only keys of policies" in " ".join(done.stdout.split())


@pytest.mark.parametrize("config", [{"unknown": None}, {"cpu": {"mode": None}}, {"policy": [{"memory.swap": None}]}])
def test_a_key_without_a_value_is_refused_wherever_it_is(fleet: Fleet, host: str, config: dict[str, Any]) -> None:
    done = fleet.play("rollout", "--limit", host, lxcfs_py_config=config)
    assert (done.returncode, state(fleet, host)) == (2, (OLD, False))
    assert "or a key without a value" in " ".join(done.stdout.split())


@pytest.mark.parametrize("word", ["true", "false", "no"])
def test_switches_may_be_words_as_the_command_line_has_them(fleet: Fleet, host: str, word: str) -> None:
    fleet.change(host, containers=["71"])
    words = ("-e", f"lxcfs_py_break_containers={word} lxcfs_py_replace_lxcfs={word}")
    done = fleet.play("remove", "--limit", host, *words)
    assert (done.returncode, state(fleet, host)[0]) == ((0, "") if word == "true" else (2, OLD))
    assert ("They are those of the processes 71," in " ".join(done.stdout.split())) == (word != "true")
    fleet.change(host, version="", c_program="5.0.3", c_users=["72"])
    done = fleet.play("rollout", "--limit", host, *words)
    assert (done.returncode, state(fleet, host)[0]) == ((0, NEW) if word == "true" else (2, ""))
    assert ("has the C program lxcfs (5.0.3)" in done.stdout) == (word != "true")


@pytest.mark.parametrize(("batches", "code"), [([1, "10%", "100%"], 0), (["100%"], 2)])
def test_batches_in_the_inventory_are_refused_where_the_play_has_others(
    fleet: Fleet, host: str, batches: list[Any], code: int
) -> None:
    variables = fleet.directory / f"host_vars/{host}.json"
    variables.parent.mkdir(exist_ok=True)
    variables.write_text(json.dumps({"lxcfs_py_serial": batches}))
    try:
        refused = fleet.play("rollout", "--limit", host, "--check")
        taken = [
            fleet.play("rollout", "--limit", host, "--check", lxcfs_py_serial=serial).returncode for serial in ([2], 5)
        ]
    finally:
        variables.unlink()
    assert (refused.returncode, taken) == (code, [0, 0])
    assert ("give it as an extra variable (-e)" in " ".join(refused.stdout.split())) == bool(code)


def package(fleet: Fleet, host: str) -> tuple[str, str]:
    """Its state, and its version."""
    found = json.loads((fleet.directory / f"hosts/{host}.json").read_text())
    return found["package"], found["version"]


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize(("half", "lacks_lists"), [("half-installed", False), ("unpacked", True)])
def test_a_package_that_is_half_there_is_repaired(
    fleet: Fleet, host: str, half: str, lacks_lists: bool, version: str
) -> None:
    fleet.change(host, version=version, package=half, lacks_lists=lacks_lists)
    done = fleet.play("rollout", "--limit", host, "--tags", "lxcfs_py_install")
    assert (done.returncode, package(fleet, host)) == (0, ("installed", NEW))


def test_a_package_that_was_half_there_and_cannot_be_repaired_is_left_by_the_rollback(fleet: Fleet, host: str) -> None:
    fleet.change(host, package="unpacked", apt_fails=True)
    done = fleet.play("rollout", "--limit", host, "--tags", "lxcfs_py_install")
    assert (done.returncode, package(fleet, host)) == (2, ("unpacked", OLD))
    assert f"The host was rolled back to {OLD}." in done.stdout


def test_where_apt_fails_and_nothing_has_changed_the_rollback_does_not_need_it(fleet: Fleet, host: str) -> None:
    fleet.change(host, apt_fails=True)
    done = fleet.play("rollout", "--limit", host, "--tags", "lxcfs_py_install")
    assert (done.returncode, state(fleet, host)) == (2, (OLD, False))
    assert "Failed to lock apt" in done.stdout
    assert f"The host was rolled back to {OLD}." in done.stdout


@pytest.mark.parametrize(("runs", "is_disabled"), [(False, True), (False, False), (True, True)])
def test_a_rollback_leaves_the_service_as_it_was(fleet: Fleet, host: str, runs: bool, is_disabled: bool) -> None:
    fleet.change(host, breaks_with=NEW, runs=runs, is_disabled=is_disabled)
    done = fleet.play("rollout", "--limit", host)
    assert (done.returncode, state(fleet, host)) == (2, (OLD, False))
    assert f"The host was rolled back to {OLD}." in done.stdout
    found = json.loads((fleet.directory / f"hosts/{host}.json").read_text())
    assert (found["runs"], found["is_disabled"]) == (runs, is_disabled)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_rollback_takes_no_views_that_were_there_without_the_package(fleet: Fleet, host: str, breaks: bool) -> None:
    fleet.change(host, version="", containers=[], others=["71"], breaks_with=NEW)
    done = fleet.play("rollout", "--limit", host, lxcfs_py_break_containers=breaks)
    assert (done.returncode, state(fleet, host)[0]) == (2, "" if breaks else NEW)
    assert ("had the views all the same: those of the processes 71." in " ".join(done.stdout.split())) != breaks


DROP_INS = "/etc/systemd/system/lxcfs-py.service.d"


@pytest.mark.parametrize("other", [False, True])
def test_removal_takes_the_directory_of_drop_ins_where_it_is_empty(fleet: Fleet, host: str, other: bool) -> None:
    own = {DROP_INS: "directory", f"{DROP_INS}/metrics.conf": "0"}
    fleet.change(host, containers=[], files={**own, f"{DROP_INS}/ours.conf": "0"} if other else own)
    assert fleet.play("remove", "--limit", host).returncode == 0
    left = {DROP_INS, f"{DROP_INS}/ours.conf"} if other else set()
    assert set(json.loads((fleet.directory / f"hosts/{host}.json").read_text())["files"]) == left


def c_program(fleet: Fleet, host: str) -> tuple[str, str]:
    """The versions of both."""
    found = json.loads((fleet.directory / f"hosts/{host}.json").read_text())
    return found["version"], found["c_program"]


@pytest.mark.parametrize(
    ("users", "variables", "comes"),
    [
        ([], {}, ("", "5.0.3")),
        ([], {"lxcfs_py_replace_lxcfs": True}, (NEW, "")),
        (["71", "72"], {"lxcfs_py_replace_lxcfs": True}, ("", "5.0.3")),
        (["71", "72"], {"lxcfs_py_replace_lxcfs": True, "lxcfs_py_break_containers": True}, (NEW, "")),
    ],
)
def test_the_c_program_makes_way_only_where_the_inventory_says_so(
    fleet: Fleet, host: str, users: list[str], variables: dict[str, bool], comes: tuple[str, str]
) -> None:
    fleet.change(host, version="", containers=[], c_program="5.0.3", c_users=users)
    done = fleet.play("rollout", "--limit", host, **variables)
    assert c_program(fleet, host) == comes
    if not comes[0]:
        assert "has the C program lxcfs (5.0.3)" in done.stdout
        assert "Set lxcfs_py_replace_lxcfs to let it." in done.stdout
        assert ("processes 71, 72 have its files" in done.stdout) == bool(users)
        assert "Nothing was changed." in done.stdout


def test_a_rollback_brings_the_c_program_back(fleet: Fleet, host: str) -> None:
    fleet.change(host, version="", containers=[], c_program="5.0.3", breaks_with=NEW)
    done = fleet.play("rollout", "--limit", host, lxcfs_py_replace_lxcfs=True)
    assert (done.returncode, c_program(fleet, host)) == (2, ("", "5.0.3"))
    assert "The host was rolled back to the C program lxcfs." in done.stdout
