"""What to paste into a container's definition so that it sees the views: binds of them over its own files."""

import os
import re
from pathlib import PurePosixPath
from typing import Callable, NamedTuple

from lxcfs_py.config import Config
from lxcfs_py.errors import LxcfsError
from lxcfs_py.files import FILES
from lxcfs_py.runtimes import seccomp_profile

_Bind = tuple[str, str]  # source on the host, target in the container


AFTER_DAEMON = "[Unit]\nAfter=lxcfs-py.service\n\n"
"""In a unit that systemd may start at boot: before the daemon, there are no files yet.

It does not want the daemon too: one that was stopped is not started by it.
"""

_NSPAWN_AFTER_DAEMON = (
    "# A container that starts at boot has to wait for the files: systemctl edit systemd-nspawn@.service, with\n"
    "#   [Unit]\n#   After=lxcfs-py.service\n"
)


class HostPath(NamedTuple):
    """A file or directory of the mount as a volume of a Kubernetes pod."""

    name: str
    source: str  # on the host
    target: str  # in the container
    type: str  # what has to be at the source before the pod starts: "File" or "Directory"


class MountsError(LxcfsError):
    """A snippet that cannot be written; its text is one sentence."""


def snippet(runtime: str, config: Config, syscalls: bool = False, shorter: str = "", elsewhere: bool = False) -> str:
    """Flags or a piece of configuration for a runtime of RUNTIMES, with every file that is enabled and that it lets in.

    Flags are one line for the shell to split: `docker run $(lxcfs-py mounts docker) IMAGE`. `shorter` stands in the
    place of the mounts where it is given. With `syscalls`, also with the seccomp profile that hands system calls to the
    daemon. Files that this machine's kernel does not have are left out, unless it is for one `elsewhere`.
    MountsError for an unknown runtime, and for a mountpoint that would need quoting, as no shell splits quoted text, or
    that has no profile.
    """
    if runtime not in RUNTIMES:
        raise MountsError(f'unknown runtime "{runtime}"; allowed: {", ".join(RUNTIMES)}')
    misfit = re.search(r"[^\w/.@+=-]", config.mountpoint)
    if misfit:
        raise MountsError(
            f'mounts cannot be written for the mountpoint "{config.mountpoint}", as it has "{misfit[0]}" in it; '
            "allowed: letters, digits and /._-@+="
        )
    text = shorter or RUNTIMES[runtime](_binds_for(runtime, config, elsewhere))
    return text[:-1] + _profile(runtime, config) if syscalls else text


def _profile(runtime: str, config: Config) -> str:
    if runtime != "lxc" and config.mountpoint != Config().mountpoint:
        raise MountsError(
            f"{seccomp_profile.INSTALLED} is for a daemon at {Config().mountpoint}: lxcfs-py seccomp makes one for the "
            f"one at {config.mountpoint}"
        )
    return PROFILES[runtime].format(
        docker=seccomp_profile.INSTALLED,
        oci=seccomp_profile.INSTALLED_AS_OCI,
        lxc=seccomp_profile.INSTALLED_FOR_LXC,
        socket=seccomp_profile.lxc_socket_of(config.mountpoint),
    )


def _binds_for(runtime: str, config: Config, elsewhere: bool) -> list[_Bind]:
    # The nodes of a cluster may have other kernels than this machine.
    elsewhere = elsewhere or runtime == "kubernetes"
    return [bind for bind in binds_of(config) if elsewhere or is_here(bind[1][1:])]


def left_out(runtime: str, config: Config, elsewhere: bool = False) -> str:
    """Return which files a runtime's containers go without since runc refuses them, "" where they lack none.

    Of a pod that is the webhook's matter, and NRI's.
    """
    return _left_out(_binds_for(runtime, config, elsewhere)) if runtime in _BY_RUNC else ""


def binds_of(config: Config) -> list[_Bind]:
    """Return a bind for every file that is enabled."""
    return [(str(PurePosixPath(config.mountpoint, name)), f"/{name}") for name in config.files.enabled]


def is_here(name: str) -> bool:
    """Tell whether this machine has a file of its own to mount over: a runtime can make none in /proc or /sys."""
    return os.path.exists(f"/{name}")


def _is_directory(target: str) -> bool:
    return FILES[target[1:]].is_directory


def runc_takes(target: str) -> bool:
    """Tell whether runc binds over a file of the container's; crun binds over all, but engines may run either."""
    return FILES[target[1:]].runc_mounts


def _left_out(binds: list[_Bind]) -> str:
    refused = " ".join(target for _, target in binds if not runc_takes(target))
    return f"left out, since runc refuses to mount over it: {refused}" if refused else ""


def _comment(binds: list[_Bind]) -> str:
    note = _left_out(binds)
    return f"# {note}\n" if note else ""


def _flags(binds: list[_Bind]) -> str:
    return " ".join(f"-v {source}:{target}:rw" for source, target in binds if runc_takes(target)) + "\n"


def _ctr(binds: list[_Bind]) -> str:
    mounts = (f"type=bind,src={source},dst={target},options=bind:rw" for source, target in binds if runc_takes(target))
    return " ".join(f"--mount {mount}" for mount in mounts) + "\n"


def _quadlet(binds: list[_Bind]) -> str:
    lines = (f"Volume={source}:{target}:rw\n" for source, target in binds if runc_takes(target))
    return _comment(binds) + AFTER_DAEMON + "[Container]\n" + "".join(lines)


def _compose(binds: list[_Bind]) -> str:
    lines = (f'  - "{source}:{target}:rw"\n' for source, target in binds if runc_takes(target))
    return _comment(binds) + "volumes:\n" + "".join(lines)


def kubernetes_volumes(binds: list[_Bind]) -> list[HostPath]:
    """Return the volumes of a pod whose containers mount all of the binds that runc lets in, on any node."""
    # A name there is a DNS label: "proc/cpuinfo" becomes "lxcfs-proc-cpuinfo".
    return [
        HostPath(f"lxcfs{target.replace('/', '-')}", source, target, "Directory" if _is_directory(target) else "File")
        for source, target in binds
        if runc_takes(target) and FILES[target[1:]].everywhere
    ]


def _kubernetes(binds: list[_Bind]) -> str:
    taken = kubernetes_volumes(binds)
    # HostToContainer: what the host mounts over a view later is seen in the container too.
    mounts = (
        f"  - name: {volume.name}\n    mountPath: {volume.target}\n    readOnly: true\n"
        "    mountPropagation: HostToContainer\n"
        for volume in taken
    )
    volumes = (
        f"  - name: {volume.name}\n    hostPath:\n      path: {volume.source}\n      type: {volume.type}\n"
        for volume in taken
    )
    return (
        _comment(binds)
        + "# In each container:\nvolumeMounts:\n"
        + "".join(mounts)
        + "# In the pod's spec:\nvolumes:\n"
        + "".join(volumes)
    )


def _lxc(binds: list[_Bind]) -> str:
    # A target without a leading slash is below the container's root.
    return "# Not needed where common.conf of LXC is included: the package has a hook there.\n" + "".join(
        f"lxc.mount.entry = {source} {target[1:]} none "
        f"bind,optional,create={'dir' if _is_directory(target) else 'file'} 0 0\n"
        for source, target in binds
    )


def _systemd(binds: list[_Bind]) -> str:
    # With the "-", a service starts on the machine's own files when the views are not there.
    lines = (f"BindReadOnlyPaths=-{source}:{target}\n" for source, target in binds)
    return AFTER_DAEMON + "[Service]\n" + "".join(lines)


def _nspawn(binds: list[_Bind]) -> str:
    # nspawn looks in the container's tree for what it binds below /proc and /sys: there it has to be, at the same path.
    trees = dict.fromkeys(source[: -len(target)] + target[: target.index("/", 1)] for source, target in binds)
    lines = [f"BindReadOnly={tree}\n" for tree in trees]
    lines += [f"BindReadOnly={source}:{target}\n" for source, target in binds]
    return _NSPAWN_AFTER_DAEMON + "[Files]\n" + "".join(lines)


RUNTIMES: dict[str, Callable[[list[_Bind]], str]] = {
    "docker": _flags,
    "podman": _flags,
    "nerdctl": _flags,
    "ctr": _ctr,
    "compose": _compose,
    "quadlet": _quadlet,
    "kubernetes": _kubernetes,
    "lxc": _lxc,
    "nspawn": _nspawn,
    "systemd": _systemd,
}

_BY_RUNC = ("docker", "podman", "nerdctl", "ctr", "compose", "quadlet")
"""Those that may run containers by runc, kubernetes apart."""

PROFILES = {
    **dict.fromkeys(("docker", "podman"), " --security-opt seccomp={docker}\n"),
    "nerdctl": " --security-opt seccomp={oci}\n",
    "ctr": " --seccomp --seccomp-profile {oci}\n",
    "compose": '\nsecurity_opt:\n  - "seccomp={docker}"\n',
    "quadlet": "\nSeccompProfile={docker}\n",
    "lxc": "\nlxc.seccomp.profile = {lxc}\nlxc.seccomp.notify.proxy = unix:{socket}\n",
}
"""How those that take a seccomp profile have it, behind the rest."""
