import re
import shlex

import pytest

from lxcfs_py.config import Config, Files
from lxcfs_py.files import FILES, NAMES
from lxcfs_py.runtimes import bind_snippets
from lxcfs_py.runtimes.bind_snippets import RUNTIMES, MountsError, snippet
from tests.conftest import ROOT

THREE = Config(
    mountpoint="/run/views/", files=Files(enabled=("proc/meminfo", "proc/pressure/cpu", "sys/devices/system/cpu"))
)
# Below /proc, runc mounts over these alone (libcontainer, checkProcMount).
RUNC = ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo")
REFUSED = {name for name in NAMES if name.startswith("proc/") and name[5:] not in RUNC}


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """A machine whose kernel has all files but those that a test puts into the set."""
    absent = set()
    monkeypatch.setattr(bind_snippets.os.path, "exists", lambda path: path[1:] not in absent)
    return absent


@pytest.mark.parametrize("runtime", ["docker", "podman", "nerdctl"])
def test_dockers_command_line_and_its_likes_get_flags_on_one_line(runtime):
    assert snippet(runtime, THREE) == (
        "-v /run/views/proc/meminfo:/proc/meminfo:rw -v /run/views/sys/devices/system/cpu:/sys/devices/system/cpu:rw\n"
    )


def test_the_shell_splits_the_flags_into_a_v_and_a_bind_for_each_file():
    words = shlex.split(snippet("docker", Config()))
    assert words[::2] == ["-v"] * (len(words) // 2)
    assert {word.split(":")[1] for word in words[1::2]} == {f"/{name}" for name in NAMES if name not in REFUSED}


def test_ctr_gets_flags_on_one_line():
    assert snippet("ctr", THREE) == (
        "--mount type=bind,src=/run/views/proc/meminfo,dst=/proc/meminfo,options=bind:rw "
        "--mount type=bind,src=/run/views/sys/devices/system/cpu,dst=/sys/devices/system/cpu,options=bind:rw\n"
    )


def test_a_quadlet_gets_a_line_for_each_volume():
    assert snippet("quadlet", THREE) == (
        "# left out, since runc refuses to mount over it: /proc/pressure/cpu\n"
        "[Unit]\n"
        "After=lxcfs-py.service\n"
        "\n"
        "[Container]\n"
        "Volume=/run/views/proc/meminfo:/proc/meminfo:rw\n"
        "Volume=/run/views/sys/devices/system/cpu:/sys/devices/system/cpu:rw\n"
    )


def test_nspawn_gets_a_settings_file_of_read_only_binds():
    assert snippet("nspawn", THREE) == (
        "# A container that starts at boot has to wait for the files: systemctl edit systemd-nspawn@.service, with\n"
        "#   [Unit]\n"
        "#   After=lxcfs-py.service\n"
        "[Files]\n"
        "BindReadOnly=/run/views/proc\n"
        "BindReadOnly=/run/views/sys\n"
        "BindReadOnly=/run/views/proc/meminfo:/proc/meminfo\n"
        "BindReadOnly=/run/views/proc/pressure/cpu:/proc/pressure/cpu\n"
        "BindReadOnly=/run/views/sys/devices/system/cpu:/sys/devices/system/cpu\n"
    )


def test_compose_gets_a_list_of_volumes():
    assert snippet("compose", THREE) == (
        "# left out, since runc refuses to mount over it: /proc/pressure/cpu\n"
        "volumes:\n"
        '  - "/run/views/proc/meminfo:/proc/meminfo:rw"\n'
        '  - "/run/views/sys/devices/system/cpu:/sys/devices/system/cpu:rw"\n'
    )


def test_kubernetes_gets_the_containers_mounts_and_the_pods_volumes():
    assert snippet("kubernetes", THREE) == (
        "# left out, since runc refuses to mount over it: /proc/pressure/cpu\n"
        "# In each container:\n"
        "volumeMounts:\n"
        "  - name: lxcfs-proc-meminfo\n"
        "    mountPath: /proc/meminfo\n"
        "    readOnly: true\n"
        "    mountPropagation: HostToContainer\n"
        "  - name: lxcfs-sys-devices-system-cpu\n"
        "    mountPath: /sys/devices/system/cpu\n"
        "    readOnly: true\n"
        "    mountPropagation: HostToContainer\n"
        "# In the pod's spec:\n"
        "volumes:\n"
        "  - name: lxcfs-proc-meminfo\n"
        "    hostPath:\n"
        "      path: /run/views/proc/meminfo\n"
        "      type: File\n"
        "  - name: lxcfs-sys-devices-system-cpu\n"
        "    hostPath:\n"
        "      path: /run/views/sys/devices/system/cpu\n"
        "      type: Directory\n"
    )


def test_kubernetes_volumes_have_names_that_it_accepts():
    names = re.findall(r"name: (.*)", snippet("kubernetes", Config()))
    assert names
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)


def test_lxc_gets_entries_with_targets_below_its_root():
    assert snippet("lxc", THREE) == (
        "# Not needed where common.conf of LXC is included: the package has a hook there.\n"
        "lxc.mount.entry = /run/views/proc/meminfo proc/meminfo none bind,optional,create=file 0 0\n"
        "lxc.mount.entry = /run/views/proc/pressure/cpu proc/pressure/cpu none bind,optional,create=file 0 0\n"
        "lxc.mount.entry = /run/views/sys/devices/system/cpu sys/devices/system/cpu none bind,optional,create=dir 0 0\n"
    )


def test_systemd_gets_a_drop_in_of_read_only_binds():
    assert snippet("systemd", THREE) == (
        "[Unit]\n"
        "After=lxcfs-py.service\n"
        "\n"
        "[Service]\n"
        "BindReadOnlyPaths=-/run/views/proc/meminfo:/proc/meminfo\n"
        "BindReadOnlyPaths=-/run/views/proc/pressure/cpu:/proc/pressure/cpu\n"
        "BindReadOnlyPaths=-/run/views/sys/devices/system/cpu:/sys/devices/system/cpu\n"
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_enabled_file_is_bound_except_those_that_runc_refuses_or_the_kernel_lacks(runtime, kernel):
    kernel |= {"proc/slabinfo", "sys/devices/system/memory"}
    text = snippet(runtime, Config())
    bound = {name for name in NAMES if f"/var/lib/lxcfs/{name}" in text}
    here = set(NAMES) - kernel
    if runtime == "kubernetes":  # whose nodes may have other kernels
        here = {name for name in NAMES if FILES[name].everywhere}
    assert bound == (here if runtime in ("lxc", "nspawn", "systemd") else here - REFUSED)


@pytest.mark.parametrize("runtime", ["compose", "quadlet", "kubernetes"])
def test_nothing_is_said_of_pressure_where_it_is_not_enabled(runtime):
    assert "pressure" not in snippet(runtime, Config(files=Files(enabled=("proc/stat",))))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("letter", [" ", ":", ",", "*", '"', "$", "%", "\\", "#"])
def test_a_mountpoint_that_would_need_quoting_is_refused(runtime, letter):
    with pytest.raises(MountsError) as caught:
        snippet(runtime, Config(mountpoint=f"/srv/my{letter}lxcfs"))
    assert str(caught.value) == (
        f'mounts cannot be written for the mountpoint "/srv/my{letter}lxcfs", as it has "{letter}" in it; '
        "allowed: letters, digits and /._-@+="
    )


def test_an_unknown_runtime_is_refused_with_the_known_ones():
    with pytest.raises(MountsError) as caught:
        snippet("rkt", Config())
    assert str(caught.value) == f'unknown runtime "rkt"; allowed: {", ".join(RUNTIMES)}'


PROFILE = "/usr/share/lxcfs-py/seccomp.json"


@pytest.mark.parametrize(
    ("runtime", "behind"),
    [
        *((runtime, f" --security-opt seccomp={PROFILE}\n") for runtime in ("docker", "podman")),
        ("nerdctl", " --security-opt seccomp=/usr/share/lxcfs-py/seccomp-oci.json\n"),
        ("ctr", " --seccomp --seccomp-profile /usr/share/lxcfs-py/seccomp-oci.json\n"),
        ("quadlet", f"\nSeccompProfile={PROFILE}\n"),
        ("compose", f'\nsecurity_opt:\n  - "seccomp={PROFILE}"\n'),
        (
            "lxc",
            "\nlxc.seccomp.profile = /usr/share/lxcfs-py/lxc.seccomp\n"
            "lxc.seccomp.notify.proxy = unix:/run/lxcfs-py/seccomp-lxc.sock\n",
        ),
    ],
)
def test_with_system_calls_the_profile_stands_behind_the_rest(runtime, behind):
    plain = snippet(runtime, Config())
    assert snippet(runtime, Config(), syscalls=True) == plain[:-1] + behind


@pytest.mark.parametrize(
    ("runtime", "config", "error"),
    [
        ("docker", Config(mountpoint="/views"), "lxcfs-py seccomp makes one for the one at /views"),
    ],
)
def test_where_there_is_no_profile_it_is_said(runtime, config, error):
    with pytest.raises(MountsError, match=error):
        snippet(runtime, config, syscalls=True)


@pytest.mark.parametrize("document", ["runtimes.md", "kubernetes.md"])
def test_what_the_documents_say_that_runc_does_not_let_in_it_does_not(document):
    text = (ROOT / "docs" / document).read_text()
    refused = {re.sub(r"^proc/pressure/.*", "proc/pressure", name) for name in REFUSED}
    (told,) = {
        frozenset(re.findall(r"`/(proc/[a-z]+)(?:/\*)?`", sentence))
        for sentence in re.findall(r"`/proc/partitions`[^;:.]*`/proc/vmstat`", text)
    }
    assert told <= refused
