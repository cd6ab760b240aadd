"""The shortest way to give a container the files, by the engine's version."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lxcfs_py import cli
from lxcfs_py.attach import nri
from lxcfs_py.config import Config
from lxcfs_py.files import FILES
from lxcfs_py.runtimes import bind_snippets, cdi, shortest

ROOT = Path(__file__).parents[2]
DEVICE = "--device lxcfs.py/views=all\n"


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(cdi, "PATH", str(tmp_path / "cdi.json"))
    monkeypatch.setattr(nri, "SOCKET", str(tmp_path / "nri.sock"))


def install(directory: Path, program: str, says: str) -> None:
    (directory / "bin" / program).write_text(f"#!/bin/sh\necho '{says}'\n")
    (directory / "bin" / program).chmod(0o755)


@pytest.mark.parametrize(
    ("runtime", "version", "shorter"),
    [
        ("docker", "20.10.24+dfsg1", False),
        ("docker", "28.2.2", False),
        ("docker", "28.3.0", True),
        ("docker", "29.1", True),
        ("podman", "4.0.3", False),
        ("podman", "v5.4.2", True),
        ("nerdctl", "2.0.5", False),
        ("nerdctl", "2.1.0", True),
        ("ctr", "1.7.24", False),
        ("ctr", "2.1.9", True),
        ("compose", "2.26.1", False),
        ("compose", "2.33.1", True),
        ("quadlet", "4.4", True),
        ("kubernetes", "1.7.24", False),
        ("kubernetes", "2.1.9", True),
        ("kubernetes", "1.30.2", True),
        ("kubernetes", "1.29.9", False),
        ("lxc", "6.0", False),
        ("nspawn", "257", False),
        ("systemd", "257", False),
    ],
)
def test_a_version_that_knows_a_shorter_way_is_told_it(
    runtime: str, version: str, shorter: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["mounts", runtime, "--for-version", version, "--config", "/dev/null"]) == 0
    said = capsys.readouterr()
    assert (said.out != bind_snippets.snippet(runtime, Config(), elsewhere=True)) == shorter
    assert ("on that machine, once: " in said.err) == shorter
    if shorter:
        assert said.out == shortest.SHORTER[runtime].text


@pytest.mark.parametrize(
    ("program", "says", "runtime"),
    [
        ("docker", "28.5.2", "docker"),
        ("podman", "podman version 5.4.2", "podman"),
        ("podman", "podman version 5.4.2", "quadlet"),
        ("ctr", "ctr github.com/containerd/containerd/v2 2.1.9+unknown", "ctr"),
        ("nerdctl", "nerdctl version 2.1.3", "nerdctl"),
        ("docker", "2.40.0", "compose"),
    ],
)
def test_the_engine_here_gets_the_device_once_the_specification_is_there_and_fits(
    program: str, says: str, runtime: str, tmp_path: Path
) -> None:
    install(tmp_path, program, says)
    config = Config()
    assert shortest.shortest(runtime, config, None) is None, "lxcfs-py cdi was not run"
    Path(cdi.PATH).write_text(json.dumps(cdi.specification(config)))
    assert shortest.shortest(runtime, config, None) == shortest.SHORTER[runtime]
    assert shortest.shortest(runtime, Config(mountpoint="/srv/views"), None) is None, "it is for another mountpoint"


@pytest.mark.parametrize("runtime", ["docker", "compose"])
def test_a_docker_in_which_devices_are_switched_off_gets_mounts_whatever_its_version(
    runtime: str, tmp_path: Path
) -> None:
    Path(cdi.PATH).write_text(json.dumps(cdi.specification(Config())))
    (tmp_path / "bin/docker").write_text('#!/bin/sh\ntest "$1" = info || echo 28.5.2\n')
    (tmp_path / "bin/docker").chmod(0o755)
    assert shortest.shortest(runtime, Config(), None) is None


@pytest.mark.parametrize("says", ["podman version 4.0.9", "", "no version at all"])
def test_an_older_engine_and_one_that_does_not_say_get_mounts(says: str, tmp_path: Path) -> None:
    Path(cdi.PATH).write_text(json.dumps(cdi.specification(Config())))
    install(tmp_path, "podman", says)
    assert shortest.shortest("podman", Config(), None) is None
    assert shortest.shortest("docker", Config(), None) is None, "there is none"


def test_a_node_with_nri_has_nothing_in_its_pods(tmp_path: Path) -> None:
    install(tmp_path, "containerd", "containerd github.com/containerd/containerd/v2 2.1.9+unknown")
    assert shortest.shortest("kubernetes", Config(), None) is None
    Path(nri.SOCKET).touch()
    assert shortest.shortest("kubernetes", Config(), None) == shortest.SHORTER["kubernetes"]


def test_system_calls_go_with_the_shorter_way_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mounts", "docker", "--for-version", "28.5", "--syscalls", "--config", "/dev/null"]) == 0
    assert capsys.readouterr().out.startswith(f"{DEVICE.strip()} --security-opt seccomp=")


@pytest.mark.parametrize("runtime", ["docker", "lxc"])
def test_what_this_machines_kernel_lacks_is_left_out_for_this_machine_alone(
    runtime: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bind_snippets, "is_here", lambda name: name != "proc/swaps")
    for options, there in (([], False), (["--for-version", "20.10"], True)):
        assert cli.main(["mounts", runtime, *options, "--config", "/dev/null"]) == 0
        said = capsys.readouterr().out
        assert ("proc/swaps" in said, "proc/meminfo" in said) == (there, True)


@pytest.mark.parametrize("runtime", bind_snippets.RUNTIMES)
@pytest.mark.parametrize("version", ["20.10", "99"])
def test_it_is_said_once_which_files_runc_does_not_let_in(
    runtime: str, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["mounts", runtime, "--for-version", version, "--config", "/dev/null"]) == 0
    said = capsys.readouterr()
    takes_all = runtime in ("lxc", "nspawn", "systemd", "kubernetes")  # these by NRI, in both versions
    refused = " ".join(f"/{name}" for name, file in FILES.items() if not file.runc_mounts)
    note = f"left out, since runc refuses to mount over it: {refused}\n"
    assert (said.out + said.err).count(note) == (0 if takes_all else 1)
    assert runtime not in ("docker", "podman", "nerdctl", "ctr") or f"lxcfs-py: {note}" in said.err


@pytest.mark.parametrize("runtime", ["docker", "lxc", "systemd"])
@pytest.mark.parametrize("version", ["banana", "28,5", "28.", "", "28.5 or so"])
def test_what_is_no_version_is_refused(runtime: str, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["mounts", runtime, "--for-version", version, "--config", "/dev/null"])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert f'"{version}" is no version; allowed: numbers with dots between them, such as 28.5\n' in said.err


@pytest.mark.parametrize("version", ["28", "28.5", "v28.5.2", "28.5.2~ds1-1", "1:28.5.2+dfsg1-1+b2", "28.5.0-rc.1"])
def test_versions_are_read_as_projects_and_distributions_write_them(version: str) -> None:
    assert bool(shortest.shortest("docker", Config(), version)) == (version != "28")


def test_the_document_has_the_versions() -> None:
    table = (ROOT / "docs/runtimes.md").read_text().partition("## ")[0]
    for runtime, shorter in shortest.SHORTER.items():
        numbers = {f"{shorter.since[0]}.{shorter.since[1]}", f"{shorter.since[0]}"}
        assert any(re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]\d)", table) for number in numbers), runtime


@pytest.mark.parametrize(
    ("runtime", "version", "refused"),
    [
        ("docker", "20.10.24", True),
        ("docker", "23.0", False),
        ("docker", "28.5.1", False),
        ("podman", "3.0", False),
        ("lxc", None, False),
    ],
)
def test_docker_before_23_refuses_the_profile_and_that_is_said(runtime, version, refused):
    if not refused:
        shortest.check_listener(runtime, version)
        return
    with pytest.raises(shortest.VersionError, match=r"Docker 20\.10 refuses the profile .* since 23 take it"):
        shortest.check_listener(runtime, version)


@pytest.mark.parametrize("said", ["20.10.24", ""])
def test_of_the_docker_here_its_own_version_counts(monkeypatch, said):
    monkeypatch.setattr(shortest, "_said", lambda command: said)
    if said:
        for runtime in ("docker", "compose"):
            with pytest.raises(shortest.VersionError, match=r"Docker 20\.10 refuses"):
                shortest.check_listener(runtime, None)
    else:
        shortest.check_listener("docker", None)


def test_podman_by_the_name_of_docker_is_not_taken_for_an_old_docker(tmp_path: Path) -> None:
    install(tmp_path, "docker", "podman version 5.4.2")
    for runtime in ("docker", "compose"):
        shortest.check_listener(runtime, None)


def test_the_docker_here_says_nothing_of_another_machine(tmp_path: Path) -> None:
    install(tmp_path, "docker", "20.10.24")
    shortest.check_listener("compose", "2.35")
    with pytest.raises(shortest.VersionError):
        shortest.check_listener("compose", None)
