"""Virtual machines with Debian, systemd and a kernel of their own, for what can't be tried on the machine at hand.

    with Machine("bookworm", packages=("python3-fusepy",), cpus=2, memory=1024) as machine:
        machine.put("lxcfs-py.deb", "/root/lxcfs-py.deb")
        machine.run("dpkg -i /root/lxcfs-py.deb")
        machine.reboot()

Needs root (for mmdebstrap to keep the owners of files) and the commands that `missing()` looks for; no KVM. Building an
image takes a minute or two. It is kept in vm/ of the directory of tests/cached.py under a hash of what it is
made from; a machine writes to a copy-on-write overlay, which ends with it. Booting takes about half a minute.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests import cached

MIRROR = "http://deb.debian.org/debian"  # where apt on this machine has no Debian mirror configured
BASE_PACKAGES = (
    "dbus",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "mount",
    "openssh-server",
    "procps",
    "python3",
    "systemd",
    "systemd-sysv",
    "udev",
)
DISK = "8G"  # sparse
BUILD_WITHIN = 1800  # seconds
BOOT_WITHIN = 600  # seconds, with 2 CPUs; emulated CPUs come up one by one, so more of them get longer
BOOT_WITHIN_PER_CPU = 10

# Nothing here waits for the network or has one, and no timer should start work in the middle of a test.
UNWANTED = (
    "systemd-networkd-wait-online.service",
    "systemd-firstboot.service",
    "serial-getty@ttyS0.service",
    "lxc-net.service",
    "e2scrub_reap.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
)
MACHINE_ID = f"{1:032x}\n"  # with one it is no first boot, at which newer systemds ask questions on the console
# What an emulated CPU is spared: defences against its neighbours, a log of all that is done, a slow console, and a
# systemd that waits for the console to say what kind of terminal it is.
KERNEL_ARGS = ("mitigations=off", "audit=0", "quiet", "TERM=dumb")

FILES = {
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n",
    "etc/fstab": "/dev/vda / ext4 errors=remount-ro 0 1\n",
    "etc/systemd/network/80-qemu.network": "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n",
    # Key exchange is what takes time on an emulated CPU, a lookup of the client's name only waits for a timeout.
    "etc/ssh/sshd_config.d/tests.conf": "UseDNS no\nPermitRootLogin prohibit-password\n",
}


class MachineError(Exception):
    """A machine could not be built, booted or spoken to, or a command failed in it."""


@dataclass(frozen=True)
class Image:
    """What a machine boots from; all of it in one directory of the cache."""

    disk: Path  # raw ext4
    kernel: Path
    initrd: Path
    key: Path  # private, for root's ssh


def missing() -> list[str]:
    """What this machine lacks to build and boot virtual machines, as a reader can act on it."""
    commands = {
        "mmdebstrap": "mmdebstrap",
        "mke2fs": "e2fsprogs",
        "qemu-system-x86_64": "qemu-system-x86",
        "qemu-img": "qemu-utils",
        "ssh": "openssh-client",
        "setpriv": "util-linux",
    }
    lacks = [f"{command} (package {package})" for command, package in commands.items() if not shutil.which(command)]
    return lacks + (["root"] if os.geteuid() else [])


# Building.


def image(suite: str, packages: Sequence[str] = (), downloads: Sequence[str] = ()) -> Image:
    """The image of that Debian suite with the base packages and these, from the cache or built now.

    `downloads` are not installed: apt finds them, and what they depend on, in the machine without a network.
    """
    wanted = sorted({*BASE_PACKAGES, *packages})
    inputs: dict[str, object] = {"suite": suite, "packages": wanted, "mirror": mirror(), "disk": DISK, "files": FILES}
    inputs |= {"unwanted": UNWANTED, "machine-id": MACHINE_ID}
    inputs |= {"downloads": sorted(downloads)} if downloads else {}
    name = f"{suite}-{hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]}"
    cache = cached.directory() / "vm"
    cache.mkdir(exist_ok=True)
    directory = cache / name
    with locked(cache / f"{name}.lock"):
        if not directory.exists():
            with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as building:
                build(suite, wanted, sorted(downloads), Path(building))
                (Path(building) / "image").rename(directory)
    return image_in(directory)


def image_in(directory: Path) -> Image:
    return Image(directory / "disk.img", directory / "vmlinuz", directory / "initrd.img", directory / "key")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two test runs want the same image at once: one builds it, the other waits."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(suite: str, packages: Sequence[str], downloads: Sequence[str], building: Path) -> None:
    root = building / "root"
    # A mirror may be a snapshot, and testing's lists are said to be valid for a week.
    options = [f"--aptopt={line}" for line in (*apt_options(), 'Acquire::Check-Valid-Until "false"')]
    if downloads:
        download = f"apt-get --quiet --yes --download-only install {' '.join(downloads)}"
        options += ["--skip=cleanup/apt", f'--customize-hook=chroot "$1" {download}']
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", *options]
    command_output([*command, suite, str(root), mirror()], timeout=BUILD_WITHIN)
    made = image_in(building / "image")
    made.disk.parent.mkdir()
    command_output(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", str(made.key)])
    configure(root, made.key.with_suffix(".pub").read_text())
    for boot_file in (made.kernel, made.initrd):
        shutil.copy(next((root / "boot").glob(f"{boot_file.name}-*")), boot_file)
    command_output(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(made.disk), DISK], timeout=BUILD_WITHIN)


def configure(root: Path, public_key: str) -> None:
    files = {**FILES, "root/.ssh/authorized_keys": public_key, "etc/machine-id": MACHINE_ID}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if name.startswith("root/") else 0o755)
        path.write_text(content)
    command_output(["chroot", str(root), "systemctl", "enable", "systemd-networkd.service", "ssh.service"])
    command_output(["chroot", str(root), "systemctl", "mask", *UNWANTED])
    # To load the profiles of programs that are not there takes an emulated CPU longer than all else at boot.
    for profile in (root / "etc/apparmor.d").glob("*"):
        if profile.is_file() and "lxc" not in profile.name:
            profile.unlink()


def mirror() -> str:
    """The mirror from which this machine itself gets Debian."""
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    uris = command_output(targets).split() if shutil.which("apt-get") else []
    return next((uri for uri in uris if uri.rstrip("/").endswith("/debian")), MIRROR)


def apt_options() -> list[str]:
    """Of this machine's apt configuration, what decides how a mirror is reached and whether its dates are believed."""
    if not shutil.which("apt-config"):
        return []
    lines = command_output(["apt-config", "dump", "Acquire"]).splitlines()
    return [line for line in lines if re.match(r"Acquire::(https?::|Check-)", line)]


# Running.


class Machine:
    """A running virtual machine; use it as a context manager. Memory is in MiB.

    Its sshd, where root has `image.key`, answers at `port` of 127.0.0.1; 10.0.2.2 is 127.0.0.1 to it.
    """

    def __init__(
        self,
        suite: str,
        *,
        packages: Sequence[str] = (),
        downloads: Sequence[str] = (),
        cpus: int = 2,
        memory: int = 1024,
        kernel_args: Sequence[str] = ("psi=1",),
    ) -> None:
        self.image = image(suite, packages, downloads)
        self.cpus = cpus
        self.memory = memory
        self.kernel_args = kernel_args

    def __enter__(self) -> Machine:
        # The path of the ssh control socket must be short, and /tmp, where the overlay would grow, is often in memory.
        self._directory = Path(tempfile.mkdtemp(prefix="lxcfs-py-", dir="/var/tmp"))
        self._console = self._directory / "console.log"
        self.port = free_port()
        try:
            self._qemu = self._start()
            try:
                self._wait_for_boot(not_this="")
            except BaseException:
                self._stop()
                raise
        except BaseException:
            shutil.rmtree(self._directory)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        shutil.rmtree(self._directory)

    def run(self, command: str, *, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root in the machine. MachineError if it fails and `check`, or does not end in time."""
        try:
            # The shell in the machine parses what ssh joins, hence one word.
            ended = subprocess.run(
                [*self._ssh(), f"bash -c {shlex.quote(command)}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise MachineError(f"in the machine, {command!r} did not end within {timeout} s") from None
        if check and ended.returncode:
            raise MachineError(
                f"in the machine, {command!r} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}"
            )
        return ended

    def put(self, source: str | Path, target: str | Path) -> None:
        """Copy a file or directory into the machine; into `target` where that is a directory, as cp -r does."""
        self._copy(str(source), f"root@localhost:{target}")

    def get(self, source: str | Path, target: str | Path) -> None:
        """Copy a file or directory out of the machine."""
        self._copy(f"root@localhost:{source}", str(target))

    def reboot(self) -> None:
        """Restart the machine and wait until it is up again. What was written to its disk is still there."""
        before = self._boot_id()
        self.run("systemctl reboot", check=False)
        self._hang_up()
        self._wait_for_boot(not_this=before)

    def console(self) -> str:
        """What the machine has written to its serial console so far."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def _start(self) -> subprocess.Popen[bytes]:
        overlay = self._directory / "overlay.qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self.image.disk), str(overlay)]
        command_output(create)
        kernel_args = [
            "root=/dev/vda",
            "rw",
            "console=ttyS0",
            "net.ifnames=0",
            "panic=5",
            *KERNEL_ARGS,
            *self.kernel_args,
        ]
        # If this process is killed, so is the machine.
        command = ["setpriv", "--pdeathsig=KILL", "qemu-system-x86_64", "-no-user-config", "-nodefaults"]
        # One thread for all CPUs: emulated side by side, one may run an instruction that another is patching. Kernels
        # have died of that when the first CPU quota was set, for which the scheduler patches itself.
        command += ["-accel", "tcg,thread=single", "-cpu", "max"]
        command += ["-smp", str(self.cpus), "-m", str(self.memory)]
        command += ["-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)]
        command += ["-append", " ".join(kernel_args)]
        command += ["-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe"]
        command += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22"]
        command += ["-device", "virtio-net-pci,netdev=net"]
        command += ["-device", "virtio-rng-pci", "-display", "none", "-serial", f"file:{self._console}"]
        with (self._directory / "qemu.log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _stop(self) -> None:
        self._hang_up()
        self._qemu.kill()
        self._qemu.wait(timeout=60)

    def _wait_for_boot(self, not_this: str) -> None:
        deadline = time.monotonic() + BOOT_WITHIN + BOOT_WITHIN_PER_CPU * self.cpus
        while time.monotonic() < deadline:
            if self._qemu.poll() is not None:
                said = (self._directory / "qemu.log").read_text()
                raise MachineError(f"qemu ended with {self._qemu.returncode}: {said}")
            with contextlib.suppress(MachineError):
                if self._sshd_answers() and self._boot_id() != not_this:
                    # "degraded" is up too; which units failed is for a test to ask.
                    self.run("systemctl is-system-running --wait", check=False, timeout=deadline - time.monotonic())
                    return
            self._hang_up()
            time.sleep(1)
        last_lines = "\n".join(self.console().splitlines()[-30:])
        raise MachineError(f"the machine was not up in time; its console ends with:\n{last_lines}")

    def _sshd_answers(self) -> bool:
        """Ask cheaply: qemu accepts a connection at once, and ssh would wait long for a machine that is not up yet."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
            return probe.recv(4) == b"SSH-"
        return False

    def _boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id", timeout=60).stdout

    def _ssh_options(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "60",
            "ControlMaster": "auto",  # one handshake, which takes seconds on an emulated CPU, for all commands
            "ControlPath": f"{self._directory}/ssh",
            "ControlPersist": "yes",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
        }
        settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["-F", "none", "-i", str(self.image.key), *settings]

    def _ssh(self) -> list[str]:
        return ["ssh", *self._ssh_options(), "-p", str(self.port), "root@localhost"]

    def _copy(self, source: str, target: str) -> None:
        command = ["scp", "-q", "-r", *self._ssh_options(), "-P", str(self.port), source, target]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
        if ended.returncode:
            raise MachineError(f"can't copy {source} to {target}: {ended.stderr.strip()}")

    def _hang_up(self) -> None:
        """End the shared ssh connection; one to a machine that is gone would only time out."""
        if (self._directory / "ssh").exists():
            subprocess.run([*self._ssh(), "-O", "exit"], capture_output=True, timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command_output(command: Sequence[str], timeout: float = 120) -> str:
    try:
        return subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        ).stdout
    except subprocess.CalledProcessError as error:
        raise MachineError(f"{shlex.join(command)} ended with {error.returncode}: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise MachineError(f"{shlex.join(command)} did not end within {timeout} s") from None
