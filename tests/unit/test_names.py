"""What containers are called, by recorded files of their engines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lxcfs_py.attach.running import Process
from lxcfs_py.runtimes import names
from lxcfs_py.runtimes.names import Identity, Names, NamesError

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
BUNDLES = "run/containerd/io.containerd.runtime.v2.task"

POD = {"io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-name": "cart-0"}
CRI_O = {"io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.name": "cart-0"}


def write(root: Path, path: str, value: Any) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value))


def identity(root: Path, cgroup: str) -> Identity:
    found = Names(str(root)).of(cgroup)
    assert found
    return found


@pytest.mark.parametrize(
    "cgroup",
    [f"/docker/{ID}", f"/mine/{ID}", f"/system.slice/docker-{ID}.scope", f"/mine.slice/docker-{ID}.scope"],
)
def test_a_docker_container_is_called_as_docker_calls_it(tmp_path: Path, cgroup: str) -> None:
    labels = {"Name": "/web", "Config": {"Labels": {names.KEY: "None, "}, "Image": "nginx:1"}}
    write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", labels)
    found = identity(tmp_path, cgroup)
    assert (found.engine, found.id, found.name, found.image) == ("docker", ID, "web", "nginx:1")
    assert "opts out" in found.opt_out()


@pytest.mark.parametrize("nowhere", ["/a\0b", "/\ud800", "/" + "a" * 5000, "/" + "a/" * 3000, "", 7])
def test_a_directory_that_there_cannot_be_costs_no_more_than_the_name(tmp_path: Path, nowhere: Any) -> None:
    write(tmp_path, "etc/docker/daemon.json", {"data-root": nowhere})
    write(tmp_path, "etc/containers/storage.conf", f"[storage]\ngraphroot = {json.dumps(nowhere)}\n")
    assert identity(tmp_path, f"/docker/{ID}").name == ID[:12]
    assert identity(tmp_path, f"/machine.slice/libpod-{ID}.scope").name == ID[:12]


@pytest.mark.parametrize("directory", ["var/lib/docker/100000.100000", "srv/docker"])
def test_docker_may_keep_its_containers_elsewhere(tmp_path: Path, directory: str) -> None:
    if directory == "srv/docker":
        write(tmp_path, "etc/docker/daemon.json", {"data-root": "/srv/docker"})
    write(tmp_path, f"{directory}/containers/{ID}/config.v2.json", {"Name": "/web"})
    assert identity(tmp_path, f"/docker/{ID}").name == "web"


@pytest.mark.parametrize(
    ("words", "uid", "is_found"),
    [
        (["dockerd", "--data-root=/srv/docker"], 0, True),
        (["/usr/bin/dockerd", "-H", "fd://", "--data-root", "/srv/docker"], 0, True),
        (["dockerd", "-g", "/srv/docker"], 0, True),
        (["dockerd", "-g/srv/docker", "-H", "fd://"], 0, True),
        (["dockerd", "-g=/srv/docker"], 0, True),
        (["dockerd", "-Dg", "/srv/docker"], 0, True),
        (["dockerd", "-H", "fd://", "-Dg/srv/docker"], 0, True),
        (["dockerd", "--config-file=/srv/daemon.json"], 0, True),
        (["dockerd"], 0, False),
        (["sh", "-c", "dockerd --data-root=/srv/docker"], 0, False),
        (["dockerd", "--data-root=/srv/docker"], 1000, False),
        (["dockerd", "--data-root=/srv/docker", "in a container"], 0, False),
        (["dockerd", "--data-root=/srv/docker", "in a mount namespace"], 0, False),
    ],
)
def test_a_docker_that_was_told_on_its_command_line_where_to_keep_them_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], uid: int, is_found: bool
) -> None:
    for pid in ("1", "self", "7"):
        (tmp_path / "proc" / pid / "ns").mkdir(parents=True)
        (tmp_path / "proc" / pid / "ns/pid").symlink_to("pid:[1]" if words[-1] != "in a container" else f"pid:[{pid}]")
        of_it = words[-1] == "in a mount namespace" and pid == "7"
        (tmp_path / "proc" / pid / "ns/mnt").symlink_to("mnt:[7]" if of_it else "mnt:[1]")
    write(tmp_path, "proc/7/comm", f"{os.path.basename(words[0])}\n")
    write(tmp_path, "proc/7/cmdline", "\0".join([*words, ""]))
    write(tmp_path, "srv/daemon.json", {"data-root": "/srv/docker"})
    write(tmp_path, f"srv/docker/containers/{ID}/config.v2.json", {"Name": "/web"})
    stat = Path.stat
    owned = os.stat_result((0o40555, 0, 0, 0, uid, uid, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda path, **how: owned if path.name == "7" else stat(path, **how))
    assert (identity(tmp_path, f"/docker/{ID}").name == "web") == is_found


def test_of_an_engines_file_no_more_is_read_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_MAX_BYTES", 30)
    for name, found in (("a" * 10, "a" * 10), ("a" * 30, ID[:12])):
        write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": f"/{name}"})
        assert identity(tmp_path, f"/docker/{ID}").name == found


def test_no_process_is_asked_for_its_arguments_but_the_hosts_dockerd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in its memory, for which the server would wait if the process waits for the server. Found by a soak."""
    for pid, name in (("1", "systemd"), ("7", "dockerd"), ("8", "python3")):
        (tmp_path / "proc" / pid / "ns").mkdir(parents=True)
        (tmp_path / "proc" / pid / "ns/pid").symlink_to(f"pid:[{pid}]")
        write(tmp_path, f"proc/{pid}/comm", f"{name}\n")
        write(tmp_path, f"proc/{pid}/cmdline", "dockerd\0")
    read, asked = names._bytes, []
    monkeypatch.setattr(names, "_bytes", lambda path: asked.append(path.name) or read(path))
    assert identity(tmp_path, f"/docker/{ID}").name == ID[:12]
    assert "comm" in asked
    assert "cmdline" not in asked


def test_podman_may_keep_its_containers_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "etc/containers/storage.conf", '[storage]\ngraphroot = "/srv/podman"\n')
    write(tmp_path, "srv/podman/overlay-containers/containers.json", [{"id": ID, "names": ["web"]}])
    assert identity(tmp_path, f"/machine.slice/libpod-{ID}.scope").name == "web"


@pytest.mark.parametrize("cgroup", [f"/machine.slice/libpod-{ID}.scope/container", f"/libpod_parent/libpod-{ID}"])
@pytest.mark.parametrize("file", ["containers.json", "volatile-containers.json"])
def test_a_podman_container_is_called_as_podman_calls_it(tmp_path: Path, cgroup: str, file: str) -> None:
    storage = "var/lib/containers/storage/overlay-containers"
    write(tmp_path, f"{storage}/{file}", [{"id": OTHER, "names": ["db"]}, {"id": ID, "names": ["web", "alias"]}])
    write(tmp_path, f"{storage}/{ID}/userdata/config.json", {"annotations": {names.KEY: "none"}})
    found = identity(tmp_path, cgroup)
    assert (found.engine, found.name) == ("podman", "web")
    assert "opts out" in found.opt_out()


@pytest.mark.parametrize(
    "cgroup",
    [f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", f"/kubepods/besteffort/pod1-2/{ID}"],
)
@pytest.mark.parametrize(
    "state", ["run/containerd", "run/k3s/containerd", "run/k0s/containerd", "var/snap/microk8s/common/run/containerd"]
)
def test_a_container_of_containerd_in_kubernetes_is_called_by_its_pod(tmp_path: Path, cgroup: str, state: str) -> None:
    annotations = {**POD, "io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.container-type": "container"}
    bundles = f"{state}/io.containerd.runtime.v2.task"
    write(tmp_path, f"{bundles}/k8s.io/{ID}/config.json", {"annotations": annotations})
    found = identity(tmp_path, cgroup)
    assert (found.engine, found.name, found.opt_out()) == ("containerd", "shop/cart-0/app", "")


def test_the_container_that_holds_a_pod_of_podmans_together_is_left_alone(tmp_path: Path) -> None:
    storage = tmp_path / "var/lib/containers/storage/overlay-containers"
    storage.mkdir(parents=True)
    names = {ID: "5f0c5ff8a1d4-infra", OTHER: "cart"}
    (storage / "containers.json").write_text(json.dumps([{"id": id, "names": [names[id]]} for id in names]))
    found = {
        id: Names(str(tmp_path)).of(f"/machine.slice/machine-libpod_pod_5f.slice/libpod-{id}.scope") for id in names
    }
    assert {identity.name: bool(identity.opt_out()) for identity in found.values() if identity} == {
        "5f0c5ff8a1d4-infra": True,
        "cart": False,
    }


def test_a_pods_pause_container_is_left_alone(tmp_path: Path) -> None:
    annotations = {**POD, "io.kubernetes.cri.container-type": "sandbox"}
    write(tmp_path, f"{BUNDLES}/k8s.io/{ID}/config.json", {"annotations": annotations})
    found = identity(tmp_path, f"/kubepods/pod1/{ID}")
    assert (found.name, found.opt_out()) == ("shop/cart-0", "it is a pod's pause container")


def test_a_container_of_cri_o_is_called_by_its_pod_which_may_opt_out(tmp_path: Path) -> None:
    annotations = {
        **CRI_O,
        "io.kubernetes.container.name": "app",
        "io.kubernetes.cri-o.Annotations": json.dumps({names.KEY: "none"}),
    }
    config = {"annotations": annotations}
    write(tmp_path, f"run/containers/storage/overlay-containers/{ID}/userdata/config.json", config)
    found = identity(tmp_path, f"/kubepods.slice/crio-{ID}.scope")
    assert (found.engine, found.name) == ("cri-o", "shop/cart-0/app")
    assert "opts out" in found.opt_out()


def test_a_container_of_nerdctl_has_the_name_that_nerdctl_gave_it(tmp_path: Path) -> None:
    write(tmp_path, f"{BUNDLES}/default/{ID}/config.json", {})
    write(tmp_path, "var/lib/nerdctl/1935db59/names/default/web", ID)
    for cgroup in (f"/system.slice/nerdctl-{ID}.scope", f"/default/{ID}"):
        assert identity(tmp_path, cgroup).name == "web"


def test_a_container_of_ctr_is_called_by_its_id(tmp_path: Path) -> None:
    write(tmp_path, f"{BUNDLES}/default/web/config.json", {})
    assert identity(tmp_path, "/default/web") == Identity("containerd", "web", "web")
    assert Names(str(tmp_path)).of("/default/other") is None


@pytest.mark.parametrize(
    ("cgroup", "engine", "name"),
    [
        ("/lxc.payload.web", "lxc", "web"),
        ("/lxc.payload.web/system.slice/ssh.service", "lxc", "web"),
        ("/lxc.payload/web", "lxc", "web"),
        ("/lxc/web", "lxc", "web"),
        ("/machine.slice/systemd-nspawn@web.service/payload", "systemd-nspawn", "web"),
        (r"/machine.slice/machine-web\x2d1.scope/payload", "systemd-nspawn", "web-1"),
        (f"/lxc.payload.web/docker/{ID}", "docker", ID[:12]),
    ],
)
def test_some_names_stand_in_the_cgroups_path(tmp_path: Path, cgroup: str, engine: str, name: str) -> None:
    found = identity(tmp_path, cgroup)
    assert (found.engine, found.name) == (engine, name)


@pytest.mark.parametrize(
    "cgroup", ["/", "", "/system.slice/docker.service", "/system.slice", f"/libpod-conmon-{ID}.scope", f"/other/{ID}"]
)
def test_what_is_no_container_has_no_name(tmp_path: Path, cgroup: str) -> None:
    assert Names(str(tmp_path)).of(cgroup) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100000, '{"Name": 1, "Config": []}'])
def test_a_file_in_the_middle_of_being_written_costs_no_more_than_the_name(tmp_path: Path, text: str) -> None:
    write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", text)
    assert identity(tmp_path, f"/docker/{ID}").id == ID


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("app", 3),
        ("cart-0/app", 3),
        ("shop/cart-0/app", 3),
        ("web", 1),
        ("docker:web", 1),
        ("lxc:web-2", 2),
        (ID[:4], 1),
        (ID, 1),
    ],
)
def test_a_container_is_found_by_its_name_or_the_start_of_its_id(
    monkeypatch: pytest.MonkeyPatch, wanted: str, found: int
) -> None:
    assert find(monkeypatch, wanted) == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("we", 'no container that runs is called "we"'),
        ("podman:web", "no container"),
        (ID[:3], "no container"),
        ("shop", r"containerd:shop/cart-0/app \(3\), containerd:shop/cart-1/db \(4\); say more"),
    ],
)
def test_a_name_of_none_or_of_several_is_an_error_that_lists_them(
    monkeypatch: pytest.MonkeyPatch, wanted: str, message: str
) -> None:
    with pytest.raises(NamesError, match=message):
        find(monkeypatch, wanted)


def find(monkeypatch: pytest.MonkeyPatch, wanted: str) -> int:
    known = {
        "1": Identity("docker", ID, "web"),
        "2": Identity("lxc", "web-2", "web-2"),
        "3": Identity("containerd", OTHER, "shop/cart-0/app"),
        "4": Identity("containerd", "9" * 64, "shop/cart-1/db"),
    }
    monkeypatch.setattr(names, "cgroup", str)
    monkeypatch.setattr(Names, "around", lambda self, path: iter([known[path]] if path in known else []))
    return names.find(wanted, [container(pid) for pid in (1, 2, 3, 4, 5)])


def container(pid: int, depth: int = 1) -> Process:
    return Process(pid, 1, pids=pid, mounts=pid, depth=depth, is_init=True)


def test_a_name_is_that_of_the_container_that_is_in_the_fewest_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container calls the cgroups in it as others are called, and has pid namespaces in its own cgroup."""
    paths = {1: "/lxc.payload.attacker/lxc.payload.victim", 2: "/lxc.payload.victim", 3: "/lxc.payload.attacker"}
    paths = {**paths, 4: "/lxc.payload.attacker"}
    monkeypatch.setattr(names, "cgroup", paths.__getitem__)
    running = [container(1), container(2), container(3), container(4, depth=2)]
    assert names.find("victim", running) == 2
    assert names.find("attacker", running) == 3


def test_a_name_that_one_in_a_container_has_exactly_is_no_nearer_than_the_beginning_of_anothers_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = {1: "/lxc.payload.attacker/lxc.payload.3f2a", 2: f"/docker/{'3f2a' * 16}"}
    monkeypatch.setattr(names, "cgroup", paths.__getitem__)
    assert names.find("3f2a", [container(1), container(2)]) == 2


@pytest.mark.parametrize("around", [f"docker-{OTHER}.scope", "lxc.payload.attacker", f"docker/{OTHER}/system.slice"])
def test_what_an_engine_of_the_machine_has_by_an_id_is_in_no_container(tmp_path: Path, around: str) -> None:
    write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "/victim", "Config": {"Image": "bank"}})
    write(tmp_path, "var/lib/lxc/victim/config", "")
    made_up = (f"docker-{ID}.scope", f"docker/{ID}", f"crio-{ID}.scope", "lxc.payload.victim", "lxc/victim")
    for inner in made_up:
        found = list(Names(str(tmp_path)).around(f"/{around}/{inner}"))
        assert [each.name for each in found] == [OTHER[:12] if OTHER in around else "attacker"], inner


@pytest.mark.parametrize(
    ("inner", "name"),
    [(f"docker/{ID}", ID[:12]), ("lxc.payload.inner", "inner"), (f"kubelet/pod1/{ID}", ID[:12])],
)
def test_a_container_of_an_engine_in_a_container_is_called_as_its_cgroup_says(
    tmp_path: Path, inner: str, name: str
) -> None:
    found = [each.name for each in Names(str(tmp_path)).around(f"/docker/{OTHER}/{inner}")]
    assert found == [name, OTHER[:12]]


def test_where_the_machine_is_itself_a_container_its_engines_know_those_in_it(tmp_path: Path) -> None:
    write(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", {"Name": "/web"})
    path = f"/docker/{OTHER}/docker/{ID}"
    assert identity(tmp_path, path).id == OTHER
    write(tmp_path, "proc/1/cgroup", f"4:memory:/docker/{OTHER}/init\n")
    assert identity(tmp_path, path).name == "web"


def test_what_is_read_once_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, f"{BUNDLES}/k8s.io/{ID}/config.json", {"annotations": POD})
    write(tmp_path, "run/containers/storage/overlay-containers/x", "")
    read: list[Path] = []
    look = names._bytes
    monkeypatch.setattr(names, "_bytes", lambda file: read.append(file) or look(file))
    known = Names(str(tmp_path))
    for number in range(3):
        for around in (f"cri-containerd-{ID}.scope", f"docker/{OTHER}", f"docker/{OTHER}/crio-{'a' * 64}"):
            assert known.of(f"/{around}/{number}")
    assert len(read) == len(set(read)) > 3


def test_however_deep_a_container_nests_cgroups_few_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = Names._of_component, []
    monkeypatch.setattr(Names, "_of_component", lambda *asked: looks.append(asked) or look(*asked))
    inner = [f"crio-{number:064x}.scope" for number in range(40)]
    found = list(Names(str(tmp_path)).around(f"/docker/{ID}/{'/'.join(inner)}"))
    assert [each.id for each in found] == [*(f"{number:064x}" for number in reversed(range(7))), ID]
    looks.clear()
    assert [each.id for each in Names(str(tmp_path)).around(f"/docker/{ID}{'/a' * 900}")] == [ID]
    assert len(looks) == 32
