"""The rpm and the repositories: what is in them, and a machine where dnf installs, upgrades and removes the package.

The machine is a Debian, with dnf. What a RHEL or a Fedora has of its own is declared by a stub package. The tests with
the machine are the package's life in order, each goes on where the one before has left it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py import __version__
from tests.vm.machine import Machine

ROOT = Path(__file__).parent.parent.parent
MODULES = "/usr/share/lxcfs-py"
COMMANDS = {
    "apt-ftparchive": "apt-utils",
    "createrepo_c": "createrepo-c",
    "dpkg-buildpackage": "dpkg-dev",
    "git": "git",
    "gpg": "gpg",
    "pybuild": "dh-python",
    "rpmbuild": "rpm",
    "rpmlint": "rpmlint",
}

SUITE = "bookworm"
PACKAGES = ("dnf", "libfuse2", "python3-psutil", "rpm")

STUBS = """
Name: host-distribution
Version: 1
Release: 1
Summary: What the distribution has
License: MIT
BuildArch: noarch
Provides: python3 = 3.11
Provides: /usr/bin/python3
Provides: /bin/sh
Provides: python3-psutil
Provides: systemd
%description
It is there already.
%files
/usr/lib/systemd/system-preset/90-host.preset

%package -n lxcfs
Summary: The C program
Version: 6.0.4
%description -n lxcfs
The name is all that matters here.
%files -n lxcfs
/usr/bin/lxcfs
/usr/lib/systemd/system/lxcfs.service

%install
install -d %{buildroot}/usr/bin %{buildroot}/usr/lib/systemd/system %{buildroot}/usr/lib/systemd/system-preset
printf 'enable lxcfs-py.service\\ndisable *\\n' > %{buildroot}/usr/lib/systemd/system-preset/90-host.preset
printf '#!/bin/sh\\nexec sleep infinity\\n' > %{buildroot}/usr/bin/lxcfs
chmod 755 %{buildroot}/usr/bin/lxcfs
printf '[Service]\\nExecStart=/usr/bin/lxcfs\\n' > %{buildroot}/usr/lib/systemd/system/lxcfs.service
"""

REPO = """[lxcfs-py]
name=lxcfs-py
baseurl=file:///srv/{directory}
gpgcheck=1
repo_gpgcheck=1
gpgkey=file:///srv/{directory}/lxcfs-py.asc
metadata_expire=0
"""


def run(*command: object, **environment: object) -> str:
    ended = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, f"{command} ended with {ended.returncode}:\n{ended.stdout}"
    return ended.stdout


@dataclass(frozen=True)
class Built:
    """Repositories as `make repo` makes them."""

    first: Path
    newer: Path  # with a newer build beside the first
    stubs: Path  # a directory of rpms


@pytest.fixture(scope="module")
def built(require: Callable[[object, str], None]) -> Iterator[Built]:
    for command, package in COMMANDS.items():
        require(shutil.which(command), f"{command} (package {package})")
    # Not pytest's own directory: the path of the key agent's socket must be short.
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-rpm-") as name:
        directory = Path(name)
        dist, stubs, keys = directory / "dist", directory / "stubs", directory / "keys"
        keys.mkdir(mode=0o700)
        try:
            user = "Tests <tests@tests.invalid>"
            generate = ("gpg", "--batch", "--passphrase", "", "--quick-generate-key", user, "rsa3072", "sign", "never")
            run(*generate, GNUPGHOME=keys)
            run(ROOT / "packaging/deb/build", dist)
            for release, repository in ((1, "first"), (2, "newer")):
                run(ROOT / "packaging/rpm/build", dist, PYTHON=sys.executable, RPM_RELEASE=release)
                run(ROOT / "packaging/repo/build", dist, user, GNUPGHOME=keys)
                shutil.copytree(dist / "repo", directory / repository)
        finally:
            run("gpgconf", "--kill", "all", GNUPGHOME=keys)
        (directory / "stubs.spec").write_text(STUBS)
        run("rpmbuild", "-bb", "-D", f"_topdir {directory}", "-D", f"_rpmdir {stubs}", directory / "stubs.spec")
        yield Built(directory / "first", directory / "newer", stubs / "noarch")


@pytest.fixture(scope="module")
def machine(boot: Callable[..., Machine], built: Built) -> Machine:
    machine = boot(SUITE, packages=PACKAGES)
    machine.put(built.first / "rpm", "/srv/first")
    machine.put(built.newer / "rpm", "/srv/newer")
    machine.put(built.stubs, "/srv/stubs")
    machine.put(ROOT / "tests/vm/reader.py", "/root/reader.py")
    configuration = REPO.format(directory="first")
    machine.run(f"mkdir -p /etc/yum.repos.d && echo '{configuration}' > /etc/yum.repos.d/lxcfs-py.repo")
    return machine


def dnf(machine: Machine, command: str, *, check: bool = True) -> str:
    """What dnf says, all of it; of a scriptlet too."""
    return machine.run(f"dnf --assumeyes --releasever=1 {command} 2>&1", check=check, timeout=300).stdout


def show(machine: Machine, unit: str, name: str) -> str:
    return machine.run(f"systemctl show --value --property={name} {unit}").stdout.strip()


def mount(machine: Machine) -> str:
    """Which mount the views are on: another one has another device number."""
    return machine.run("findmnt --noheadings --output MAJ:MIN,FSTYPE --mountpoint /var/lib/lxcfs").stdout


@contextlib.contextmanager
def reading(machine: Machine) -> Iterator[str]:
    """A service of 256 MiB and one CPU reads its files all the while, and says in result.json what it saw; its pid."""
    unit = "MemoryMax=256M\nCPUQuota=100%\nExecStart=python3 /root/reader.py\nStandardOutput=file:/root/result.json"
    machine.run(f"(lxcfs-py mounts systemd && echo -e '{unit}') > /run/systemd/system/reader.service")
    machine.run("systemctl daemon-reload && systemctl start reader")
    try:
        yield show(machine, "reader", "MainPID")
    finally:
        machine.run("systemctl stop reader && rm /run/systemd/system/reader.service")


def only(directory: Path) -> Path:
    (package,) = directory.glob("*.rpm")
    return package


def test_what_is_bundled_is_declared_with_version_and_license(built: Built) -> None:
    pinned = dict(re.findall(r"^(fusepy|sdnotify|tomli)==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    provides = run("rpm", "--query", "--provides", "--package", only(built.first / "rpm"))
    files = run("rpm", "--query", "--list", "--package", only(built.first / "rpm")).splitlines()[1:]
    assert set(pinned) == {"fusepy", "sdnotify", "tomli"}
    for name, version in pinned.items():
        assert f"bundled(python3dist({name})) = {version}\n" in provides
        assert f"/usr/share/licenses/lxcfs-py/LICENSE.{name}" in files


def test_every_command_and_the_unit_and_the_configuration_have_a_manual_page(built: Built) -> None:
    files = run("rpm", "--query", "--list", "--package", only(built.first / "rpm")).splitlines()
    for page in ("man1/lxcfs.1", "man1/lxcfs-py.1", "man5/lxcfs.toml.5", "man8/lxcfs-py.service.8"):
        assert f"/usr/share/man/{page}.gz" in files


def test_another_build_of_the_same_tree_is_the_same_byte_for_byte(built: Built, tmp_path: Path) -> None:
    for output, timezone in ((tmp_path / "one", "UTC"), (tmp_path / "two", "Pacific/Auckland")):
        run(ROOT / "packaging/rpm/build", output, PYTHON=sys.executable, TZ=timezone)
    one, other = (hashlib.sha256(only(tmp_path / name).read_bytes()).hexdigest() for name in ("one", "two"))
    assert one == other


@pytest.fixture
def apt(built: Built, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """apt(command) runs apt-get with nothing but a copy of the repository, tmp_path/deb."""
    repository = shutil.copytree(built.first / "deb", tmp_path / "deb")
    for directory in ("lists/partial", "cache/archives/partial"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "status").touch()
    source = tmp_path / "sources.list"
    source.write_text(f"deb [signed-by={repository}/lxcfs-py.asc] file:{repository} ./\n")
    options = {
        "Dir::Etc::SourceList": source,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": tmp_path / "lists",
        "Dir::State::Status": tmp_path / "status",
        "Dir::Cache": tmp_path / "cache",
        "APT::Sandbox::User": "root",
    }
    settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return lambda *command: subprocess.run(
        ["apt-get", *settings, *command], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )


def test_apt_takes_the_package_from_the_signed_repository(apt: Callable[..., Any], tmp_path: Path) -> None:
    updated = apt("--error-on=any", "update")
    assert updated.returncode == 0, updated.stderr
    taken = apt("download", "lxcfs-py")
    assert taken.returncode == 0, taken.stderr
    assert [file.name for file in tmp_path.glob("*.deb")] == [f"lxcfs-py_{__version__}_all.deb"]


def test_apt_refuses_a_repository_that_somebody_else_has_changed(apt: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("InRelease", "Release"):
        release = tmp_path / "deb" / name
        release.write_text(release.read_text().replace("Label: lxcfs-py", "Label: other"))
    updated = apt("--error-on=any", "update")
    assert updated.returncode != 0
    assert "is not signed" in updated.stderr


def test_dnf_installs_it_in_the_place_of_the_c_program(machine: Machine) -> None:
    dnf(machine, "install /srv/stubs/*.rpm")
    assert "conflicts with lxcfs" in dnf(machine, "install lxcfs-py", check=False)
    dnf(machine, "swap lxcfs lxcfs-py")
    assert machine.run("rpm --query --all '*lxcfs*'").stdout == f"lxcfs-py-{__version__}-1.noarch\n"
    assert machine.run("lxcfs-py --version").stdout == f"lxcfs-py {__version__}\n"


def test_the_service_is_enabled_where_the_distribution_says_so_and_not_started(machine: Machine) -> None:
    assert show(machine, "lxcfs-py", "UnitFileState") == "enabled"
    assert show(machine, "lxcfs-py", "ActiveState") == "inactive"


def test_bytecode_of_all_modules_is_there(machine: Machine) -> None:
    sources = machine.run(f"find {MODULES} -name '*.py' | wc -l").stdout
    assert machine.run(f"find {MODULES} -name '*.pyc' | wc -l").stdout == sources != "0\n"


def test_the_bundled_libraries_are_used(machine: Machine) -> None:
    """The machine has psutil, as Debian's package, and none of the others."""
    program = f"import sys; sys.path[0:1] = ['{MODULES}', '{MODULES}/vendor']; "
    program += "import fuse, sdnotify, tomli; print(fuse.__file__, sdnotify.__file__, tomli.__file__)"
    files = machine.run(f'python3 -Esc "{program}"').stdout.split()
    assert [file.startswith(f"{MODULES}/vendor/") for file in files] == [True, True, True]
    machine.run("printf '[fuse]\\nengine = \"fusepy\"\\n' > /root/fusepy.toml")
    machine.run("systemd-run --unit=fusepy lxcfs-py run --config /root/fusepy.toml /run/views")
    machine.run("timeout 30 sh -c 'until mountpoint --quiet /run/views; do sleep 0.2; done'")
    assert machine.run("head --lines=1 /run/views/proc/meminfo").stdout.startswith("MemTotal:")
    assert "libfuse" in machine.run("cat /proc/$(systemctl show --value --property=MainPID fusepy)/maps").stdout
    machine.run("systemctl stop fusepy")


def test_the_service_serves(machine: Machine) -> None:
    machine.run("systemctl start lxcfs-py")
    total = machine.run("lxcfs-py try --memory 256M -- head --lines=1 /proc/meminfo").stdout
    assert total.split() == ["MemTotal:", "262144", "kB"]


def test_an_upgrade_restarts_the_service_and_no_read_fails(machine: Machine) -> None:
    machine.run("sed -i 's/^swap = .*/swap = false/' /etc/lxcfs.toml")
    machine.run("sed -i s,/srv/first,/srv/newer, /etc/yum.repos.d/lxcfs-py.repo")
    before, process = mount(machine), show(machine, "lxcfs-py", "MainPID")
    with reading(machine):
        dnf(machine, "upgrade lxcfs-py")
    assert machine.run("rpm --query lxcfs-py").stdout == f"lxcfs-py-{__version__}-2.noarch\n"
    assert show(machine, "lxcfs-py", "ActiveState") == "active"
    assert show(machine, "lxcfs-py", "MainPID") != process
    assert mount(machine) == before
    assert "swap = false" in machine.run("lxcfs-py check").stdout

    seen = json.loads(machine.run("cat /root/result.json").stdout)
    print(seen)
    assert seen["failed"] == 0, seen
    assert seen["reads"] > 500, seen


def test_removal_says_who_loses_files_and_leaves_only_the_edited_configuration(machine: Machine) -> None:
    process = show(machine, "lxcfs-py", "MainPID")
    machine.run("lxcfs-py cdi")
    with reading(machine) as reader:
        said = dnf(machine, "remove lxcfs-py")
    assert "Transport endpoint is not connected" in said
    assert f"{reader}\tpython3\t/proc/" in said
    assert show(machine, "lxcfs-py", "LoadState") == "not-found"
    assert machine.run(f"test -e /proc/{process}", check=False).returncode == 1
    assert machine.run("findmnt --types fuse.lxcfs", check=False).stdout == ""
    left = "/etc /usr /run /var/lib -xdev -iname '*lxcfs*' -not -path '/var/lib/dnf/*'"
    assert machine.run(f"find {left}").stdout.split() == ["/etc/yum.repos.d/lxcfs-py.repo", "/etc/lxcfs.toml.rpmsave"]
