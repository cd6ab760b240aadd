"""The scripts of the Debian package: what they leave, what is not theirs, and that another root is another machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Optional

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "packaging/deb"

UNIT = "usr/lib/systemd/system/lxcfs-py.service"
LINKS = "etc/systemd/system"
STATES = "var/lib/systemd/deb-systemd-helper-enabled"

# What debhelper adds to postinst.
ENABLE = """
if deb-systemd-helper --quiet was-enabled lxcfs-py.service; then
    deb-systemd-helper enable lxcfs-py.service
else
    deb-systemd-helper update-state lxcfs-py.service
fi
"""

# Other processes' mounts and sockets are not seen.
ALONE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")

# The directories of the machine are made up.
MADE_UP = """
mount -t tmpfs none /var/lib
mount -t tmpfs none /run
mkdir -p /run/etc && mount --bind /run/etc /etc/cdi 2>/dev/null || true
mkdir -p /var/lib/lxcfs /run/lxcfs-py
"""

# A mount whose server never answers: a script sees of it what it sees of the C program's.
MOUNTED = """
import ctypes, os
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
assert ctypes.CDLL(None).mount(b"lxcfs", b"/var/lib/lxcfs", b"fuse.lxcfs", 0, options) == 0
os.set_inheritable(fuse, True)
os.execvp("sh", ["sh", *os.environ["THEN"].split()])
"""


class Machine:
    """Another root, and programs that say that they were called."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.log = directory / "log"
        self.bin = directory / "bin"
        self.database = directory / "dpkg"
        self.bin.mkdir()
        (self.database / "info").mkdir(parents=True)
        (self.database / "status").touch()
        self.log.touch()
        for name in ("lxcfs-py", "umount", "systemctl"):
            self.stub(name, "exit 1")

    def stub(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.log}\n{script}\n')
        path.chmod(0o755)

    def own(self, package: str, *paths: str) -> None:
        """A package that has these."""
        with (self.database / "status").open("a") as file:
            file.write(
                f"Package: {package}\nStatus: install ok installed\nMaintainer: nobody\nArchitecture: all\n"
                "Version: 1\nDescription: none\n\n"
            )
        (self.database / "info" / f"{package}.list").write_text("".join(f"{path}\n" for path in paths))

    def environment(self, root: Optional[Path]) -> dict[str, str]:
        """What dpkg says to its scripts."""
        said = {"DPKG_ADMINDIR": str(self.database), "DPKG_MAINTSCRIPT_PACKAGE": "lxcfs-py"}
        if root:
            said["DPKG_ROOT"] = str(root)
        return {"PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin", **said}

    def inside(self, script: str, *arguments: str) -> str:
        """A script of the package in the other root."""
        command = ["sh", str(SCRIPTS / f"lxcfs-py.{script}"), *arguments]
        return subprocess.check_output(command, env=self.environment(self.root), text=True, timeout=60)

    def enable(self) -> None:
        (self.root / UNIT).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "packaging/systemd/lxcfs-py.service", self.root / UNIT)
        subprocess.run(["sh", "-ec", ENABLE], env=self.environment(self.root), check=True, timeout=60)

    def here(self, before: str, script: str, *arguments: str, mounted: bool = False, after: str = "") -> str:
        """A script of the package on a machine whose directories are made up."""
        path = str(SCRIPTS / f"lxcfs-py.{script}")
        run = f"{shutil.which('python3')} -c '{MOUNTED}'" if mounted else f"sh {path} {' '.join(arguments)}"
        command = [*ALONE, "sh", "-ec", "\n".join((MADE_UP, before, run, after))]
        environment = {**self.environment(None), "THEN": " ".join((path, *arguments))}
        return subprocess.check_output(command, env=environment, text=True, timeout=60)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def links(machine: Machine) -> set[str]:
    return {str(path.relative_to(machine.root / LINKS)) for path in (machine.root / LINKS).rglob("*.service")}


BOTH = {"lxcfs.service", "multi-user.target.wants/lxcfs-py.service"}


@pytest.mark.parametrize("has_systemctl", [False, True])
def test_the_alias_goes_with_the_package_and_comes_again_with_it(machine, has_systemctl):
    machine.enable()
    assert links(machine) == BOTH
    (machine.root / UNIT).unlink()
    machine.inside("postrm", "remove")
    assert links(machine) == BOTH - {"lxcfs.service"}, "the C program's unit has that name"
    if has_systemctl:
        (machine.root / "usr/bin").mkdir()
        (machine.root / "usr/bin/systemctl").write_text("")
        (machine.root / "usr/bin/systemctl").chmod(0o755)
    machine.enable()
    assert links(machine) == BOTH
    assert (machine.root / STATES / "lxcfs.service").exists()


def test_who_has_disabled_the_service_finds_it_disabled_again(machine):
    machine.enable()
    for name in BOTH:
        (machine.root / LINKS / name).unlink()
    machine.inside("postrm", "remove")
    machine.enable()
    assert links(machine) == set()


def test_the_alias_of_somebody_else_stays(machine):
    machine.enable()
    alias = machine.root / LINKS / "lxcfs.service"
    alias.unlink()
    alias.symlink_to("/dev/null")
    machine.inside("postrm", "remove")
    assert os.readlink(alias) == "/dev/null"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("postinst", ["configure", ""]), ("prerm", ["remove"]), ("postrm", ["remove"]), ("postrm", ["purge"])],
)
def test_in_another_root_the_machine_is_not_touched(machine, script, arguments):
    machine.inside(script, *arguments)
    assert machine.log.read_text() == ""


OPERATORS = "[Service]\nExecStart=/bin/true\n"


def test_an_lxcfs_service_of_the_operators_own_stays_and_the_service_starts_at_boot_all_the_same(machine):
    alias = machine.root / LINKS / "lxcfs.service"
    alias.parent.mkdir(parents=True)
    alias.write_text(OPERATORS)
    assert "/etc/systemd/system/lxcfs.service stays" in machine.inside("postinst", "configure", "")
    machine.enable()
    assert links(machine) == BOTH
    assert alias.read_text() == OPERATORS
    assert machine.inside("postinst", "configure", "0.1.0") == ""


def test_in_another_root_a_purge_deletes_what_is_there(machine):
    (machine.root / "etc/cdi").mkdir(parents=True)
    (machine.root / "etc/cdi/lxcfs-py.json").touch()
    (machine.root / "var/lib/lxcfs/proc/meminfo").mkdir(parents=True)
    machine.inside("postrm", "purge")
    assert not (machine.root / "etc/cdi/lxcfs-py.json").exists()
    assert not (machine.root / "var/lib/lxcfs").exists()


@pytest.mark.parametrize("owners", [["lxcfs-py"], ["lxcfs"], ["lxcfs", "lxcfs-py"]])
def test_a_purge_leaves_the_directory_of_another_package(machine, owners):
    for owner in owners:
        machine.own(owner, "/.", "/var", "/var/lib", "/var/lib/lxcfs")
    (machine.root / "var/lib/lxcfs").mkdir(parents=True)
    machine.inside("postrm", "purge")
    assert (machine.root / "var/lib/lxcfs").exists() == ("lxcfs" in owners)


def test_a_purge_leaves_what_is_mounted(machine):
    mounts = machine.here("", "postrm", "purge", mounted=True, after="cat /proc/self/mounts")
    assert " /var/lib/lxcfs fuse.lxcfs " in mounts


# The directory is elsewhere, so that the kernel lists another path.
ELSEWHERE = "mkdir /var/lib/elsewhere && rmdir /var/lib/lxcfs && ln -s {target} /var/lib/lxcfs && mkdir {directory}"


@pytest.mark.parametrize("target", ["/var/lib/elsewhere/views", "elsewhere/views/"])
def test_what_a_link_leads_to_is_neither_asked_nor_taken_by_a_purge(machine, target):
    before = ELSEWHERE.format(target=target, directory="/var/lib/elsewhere/views")
    left = "cat /proc/self/mounts; readlink /var/lib/lxcfs"
    said = machine.here(before, "postrm", "purge", mounted=True, after=left)
    assert " /var/lib/elsewhere/views fuse.lxcfs " in said
    assert said.endswith(f"\n{target}\n")


@pytest.mark.parametrize("is_served", [False, True])
def test_a_purge_leaves_the_sockets_of_a_server_that_runs(machine, is_served):
    listen = """python3 -c 'import socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/lxcfs-py/x.sock")
listener.listen()
print(flush=True)
time.sleep(60)' >/run/started &
pid=$!
until [ -s /run/started ]; do sleep 0.1; done
"""
    ended = "" if is_served else "kill $pid; wait $pid || true\n"
    said = machine.here(listen + ended, "postrm", "purge", after="ls /run/lxcfs-py 2>&1 || true; kill $pid || true")
    assert ("x.sock" in said) == is_served


# What the package asks of lxcfs-py.
ASKED = 'case "$1" in users) {users} ;; status) exit {code} ;; esac'

# A process that is called so.
C_PROGRAM = """
cp "$(readlink -f /bin/sh)" /run/lxcfs
/run/lxcfs -c 'while :; do sleep 1; done' >/dev/null &
until grep -q -x lxcfs /proc/$!/comm; do sleep 0.1; done
"""


@pytest.mark.parametrize("version", ["''", "0.1.0"], ids=["new", "comes back"])
def test_a_c_program_that_nobody_uses_makes_way_however_the_package_comes(machine, version):
    machine.stub("lxcfs-py", ASKED.format(users=":", code=1))
    machine.here(C_PROGRAM, "postinst", "configure", version, mounted=True)
    assert "umount /var/lib/lxcfs\n" in machine.log.read_text()


@pytest.mark.parametrize("target", ["/var/lib/elsewhere/views", "elsewhere/views/"])
def test_a_c_program_is_found_where_a_link_leads_to_its_mount(machine, target):
    machine.stub("lxcfs-py", ASKED.format(users=":", code=1))
    before = ELSEWHERE.format(target=target, directory="/var/lib/elsewhere/views")
    machine.here(before + C_PROGRAM, "postinst", "configure", "''", mounted=True)
    assert "umount /var/lib/elsewhere/views\n" in machine.log.read_text()


def test_what_a_container_calls_its_process_makes_no_line(machine):
    machine.stub("lxcfs-py", ASKED.format(users=r"printf '%s\n' '7 a\tunserved\nb served'", code=1))
    for script, arguments in (("postinst", ["configure", "''"]), ("prerm", ["remove"])):
        said = machine.here(C_PROGRAM, script, *arguments, mounted=True)
        assert r"7 a\tunserved\nb served" in said.splitlines()


def test_a_c_program_that_containers_use_stays_and_they_are_named(machine):
    machine.stub("lxcfs-py", ASKED.format(users="echo 7 sleep served", code=1))
    said = machine.here(C_PROGRAM, "postinst", "configure", "0.1.0", mounted=True)
    assert "the C program lxcfs goes on serving" in said
    assert "7 sleep served" in said
    assert "umount" not in machine.log.read_text()


@pytest.mark.parametrize(
    ("before", "code"), [("", 0), ("", 1), ("", 3), (C_PROGRAM, 0)], ids=["well", "degraded", "silent", "another's"]
)
def test_a_server_of_lxcfs_py_that_is_no_service_is_no_c_program(machine, before, code):
    machine.stub("lxcfs-py", ASKED.format(users=":", code=code))
    assert machine.here(before, "postinst", "configure", "''", mounted=True) == ""
    assert "umount" not in machine.log.read_text()


@pytest.mark.parametrize("state", ["active", "activating"])
def test_the_mount_of_its_own_service_is_no_c_programs(machine, state):
    machine.stub("systemctl", f"echo {state}")
    machine.stub("lxcfs-py", ASKED.format(users=":", code=3))
    assert machine.here(C_PROGRAM, "postinst", "configure", "0.1.0", mounted=True) == ""
    assert "umount" not in machine.log.read_text()


def test_the_package_has_no_directory_where_the_mount_is():
    # dpkg asks for each directory that it unpacks: it fails where the server is dead, and waits where that is silent.
    assert "/var/lib" not in (SCRIPTS / "rules").read_text()
