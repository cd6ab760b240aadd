"""What can be said of the Ansible collection without a host: that it is in order, and that it says what it takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
import yaml

from lxcfs_py import config

ROOT = Path(__file__).parent.parent.parent
COLLECTION = ROOT / "ansible"
ROLE = COLLECTION / "roles/lxcfs_py"
BIN = Path(sys.executable).parent

# Of ansible-test's sanity tests, those that have something to say of a collection without modules, and need no network.
PLAYBOOKS_VARIABLE = re.compile(r"\b(?<!__)lxcfs_py_\w+")
SET_BY_PLAYBOOKS = {"lxcfs_py_failure", "lxcfs_py_outcome", "lxcfs_py_rows", "lxcfs_py_table"}
SANITY = ("ansible-doc", "compile", "ignores", "line-endings", "no-illegal-filenames", "no-smart-quotes", "symlinks")


def load(path: Path):
    return yaml.safe_load(path.read_text())


@pytest.fixture
def run(tmp_path):
    """run(command, ...) runs one of Ansible's commands in a copy of the collection: they leave files where they run."""
    copy = shutil.copytree(COLLECTION, tmp_path / "ansible_collections/lxcfs_py/fleet")
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(tmp_path),
        "HOME": str(tmp_path / "home"),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
    return lambda *command: subprocess.run(
        command, cwd=copy, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def test_ansible_lint_is_content_with_the_production_profile(run):
    linted = run("ansible-lint", "--nocolor")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "Profile 'production' was required, and it passed" in linted.stderr


def test_yamllint_is_content(run):
    linted = run("yamllint", "--strict", ".")
    assert linted.returncode == 0, linted.stdout


def test_ansible_test_finds_it_sane(run):
    tests = [word for name in SANITY for word in ("--test", name)]
    found = run("ansible-test", "sanity", "--color", "no", *tests)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("playbook", ["rollout", "report", "remove"])
def test_a_playbook_is_found_by_its_full_name_and_can_be_read(run, playbook):
    checked = run("ansible-playbook", "-i", "inventory/example.yml", "--syntax-check", f"lxcfs_py.fleet.{playbook}")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_variable_is_specified_with_the_default_that_it_has():
    entries = load(ROLE / "meta/argument_specs.yml")["argument_specs"]
    options = entries["main"]["options"]
    defaults = {name: option["default"] for name, option in options.items() if "default" in option}
    assert defaults == load(ROLE / "defaults/main.yml")
    assert set(options) - set(defaults) == {"lxcfs_py_serial"}
    assert all(option["description"] for entry in entries.values() for option in entry["options"].values())
    used = {
        name for file in COLLECTION.glob("playbooks/*.yml") for name in PLAYBOOKS_VARIABLE.findall(file.read_text())
    }
    assert used <= {name for entry in entries.values() for name in entry["options"]} | SET_BY_PLAYBOOKS


def test_the_batches_are_those_that_the_documentation_says():
    tasks = load(ROLE / "tasks/preflight.yml")
    (batches,) = (task["vars"]["lxcfs_py_serial"] for task in tasks if "lxcfs_py_serial" in task.get("vars", {}))
    default = json.dumps(batches).replace('"', "'")
    described = load(ROLE / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]["lxcfs_py_serial"]
    assert default in described["description"][0]
    for playbook in ("rollout", "remove"):
        assert f"lxcfs_py_serial | default({default})" in (COLLECTION / f"playbooks/{playbook}.yml").read_text()


def test_every_variable_has_the_prefix_of_the_role():
    names = [*load(ROLE / "defaults/main.yml"), *load(ROLE / "vars/main.yml")]
    for tasks in (ROLE / "tasks").iterdir():
        names += re.findall(r"^ *register: (\w+)$", tasks.read_text(), re.MULTILINE)
    assert [name for name in names if not re.match("(__)?lxcfs_py_", name)] == []


def test_the_documentation_can_be_read_with_ansible_doc(run):
    shown = run("ansible-doc", "-t", "role", "--json", "lxcfs_py.fleet.lxcfs_py")
    assert shown.returncode == 0, shown.stderr
    entries = json.loads(shown.stdout)["lxcfs_py.fleet.lxcfs_py"]["entry_points"]
    assert set(entries["main"]["options"]) == {*load(ROLE / "defaults/main.yml"), "lxcfs_py_serial"}
    assert set(entries["report"]["options"]) == {"lxcfs_py_report_directory"}


def test_nothing_but_builtin_modules_is_used():
    for file in [*ROLE.glob("*/*.yml"), *COLLECTION.glob("playbooks/*.yml")]:
        named = re.findall(r"^ *(?:- )?((?:\w+\.){2}\w+):", file.read_text(), re.MULTILINE)
        assert [name for name in named if not name.startswith("ansible.builtin.")] == [], file


def template(run, mapping, directory):
    """Write the configuration that a mapping names; how that went, and where it is."""
    written = directory / "lxcfs.toml"
    arguments = f"src={ROLE / 'templates/lxcfs.toml.j2'} dest={written}"
    variables = json.dumps({"lxcfs_py_config": mapping, "ansible_python_interpreter": sys.executable})
    made = run("ansible", "localhost", "-c", "local", "-m", "template", "-a", arguments, "-e", variables)
    return made, written


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"mountpoint": "/run/a b", "files": {"enabled": ["proc/meminfo"]}, "loadavg": {"interval": 2.5}},
        {"metrics": {"listen": "[::1]:9756"}, "memory": {"swap": False}, "fuse": {"threads": 4, "engine": "kernel"}},
        {"mountpoint": '/run/"quoted" \\ é 😀'},
    ],
)
def test_a_mapping_becomes_the_configuration_that_it_names(run, mapping, tmp_path):
    made, written = template(run, mapping, tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    read = config.load(written)
    for key, value in mapping.items():
        if isinstance(value, dict):
            for inner, expected in value.items():
                found = getattr(getattr(read, key), inner)
                assert (list(found) if isinstance(found, tuple) else found) == expected
        else:
            assert getattr(read, key) == value


POLICY = {"label": "tier=batch", "cpu.mode": "cpuset", "memory": {"swap": False}}


def test_a_list_of_mappings_becomes_policies(run, tmp_path):
    policies = [POLICY, {"cgroup": "/docker/*", "files.enabled": ["proc/meminfo"]}]
    made, written = template(run, {"memory": {"high": True}, "policy": policies, "mountpoint": "/run/x"}, tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    first, second = tomli.loads(written.read_text())["policy"]
    assert first == {"label": "tier=batch", "cpu": {"mode": "cpuset"}, "memory": {"swap": False}}
    assert second == {"cgroup": "/docker/*", "files": {"enabled": ["proc/meminfo"]}}
    read = config.load(written)
    assert (len(read.policy), read.mountpoint, read.memory.high) == (2, "/run/x", True)


MOUNTED = """
import ctypes, os
for place in (b"/var/lib/lxcfs", b"/proc/fs"):
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    assert ctypes.CDLL(None).mount(b"lxcfs", place, b"fuse.lxcfs", 0, options) == 0
    os.set_inheritable(fuse, True)
os.execvp("sh", ["sh", "{script}", "/nothing", "/nothing"])
"""


def test_the_c_program_is_found_with_who_has_its_files(tmp_path):
    (tmp_path / "dpkg-query").write_text(
        "#!/bin/sh\nfor name; do :; done\n[ $name = lxcfs-py ] || echo installed 5.0.3\n"
    )
    (tmp_path / "dpkg-query").chmod(0o755)
    for name in ("sh", "sed", "grep", "tail", "stat", "date", "readlink", "dirname", "basename"):
        (tmp_path / name).symlink_to(shutil.which(name))
    script = MOUNTED.replace("{script}", str(ROLE / "files/look.sh"))
    places = 'mount -t tmpfs none /var/lib && mkdir /var/lib/lxcfs && PATH=$0 exec "$@"'
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", places]
    command = [*alone, str(tmp_path), sys.executable, "-c", script]
    looked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = looked.stdout.splitlines()
    assert found[1] == "lxcfs 5.0.3", looked.stderr
    assert [line for line in found if line.startswith(("lxcfs r", "uses"))] == ["lxcfs running", "uses 1"]


def test_the_c_program_is_found_where_a_link_leads_to_its_mount(tmp_path):
    script = MOUNTED.replace("{script}", str(ROLE / "files/look.sh")).replace("/var/lib/lxcfs", "/var/lib/views")
    places = 'mount -t tmpfs none /var/lib && mkdir /var/lib/views && ln -s views /var/lib/lxcfs && exec "$@"'
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", places, "sh"]
    looked = subprocess.run([*alone, sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "lxcfs running" in looked.stdout.splitlines(), looked.stderr


STATES = "installed half-configured half-installed unpacked triggers-pending config-files not-installed"


@pytest.mark.parametrize("state", STATES.split())
def test_a_package_that_is_half_there_is_there(tmp_path, state):
    for name, line in {"dpkg-query": f"echo '{state} 0.2.0'", "systemctl": "echo inactive; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["sh", str(ROLE / "files/look.sh"), "/nothing", "/nothing"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.splitlines()
    is_there = state not in ("config-files", "not-installed")
    assert ("installed 0.2.0" in found, "lxcfs 0.2.0" in found) == (is_there, is_there)
    assert found.count("half") == (is_there and state != "installed")
    assert ("stopped" in found, "disabled" in found) == (True, True)


def test_a_host_whose_mount_has_no_connection_to_be_seen_is_looked_at_to_the_end(tmp_path):
    for name, line in {"sed": "echo 4294967295", "lxcfs-py": "echo $1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    command = ["sh", str(ROLE / "files/look.sh"), str(tmp_path / "lxcfs.toml"), str(tmp_path / "drop-in")]
    path = f"{tmp_path}:{os.environ['PATH']}"
    looked = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, timeout=60)
    assert looked.stdout.endswith("users\n"), looked.stderr
    assert "mounted" not in looked.stdout


def test_where_the_new_configuration_puts_the_mount_is_said_as_the_host_has_it(tmp_path):
    (tmp_path / "lxcfs-py").write_text(f'#!/bin/sh\n[ "$1" != check ] || exec {sys.executable} -m lxcfs_py "$@"\n')
    (tmp_path / "lxcfs-py").chmod(0o755)
    (tmp_path / "link").symlink_to("/run")
    command = ["sh", str(ROLE / "files/look.sh"), "/nothing", "/nothing", f'mountpoint = "{tmp_path}//link/views/"']
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    looked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert 'wanted mountpoint = "/run/views"' in looked.stdout.splitlines(), looked.stderr
