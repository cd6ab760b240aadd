"""What tests share: sandboxes, a running daemon, and the rule for what a machine lacks."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from hypothesis import HealthCheck, settings

from lxcfs_py.linux import aside, syscalls
from lxcfs_py.runtimes.sandbox import Sandbox

ROOT = Path(__file__).parent.parent
ENGINES = ("fusepy", "kernel")
ID_WIDTH = 40
START = 20.0  # seconds for a daemon to answer, on a slow and busy machine
STOP = 30.0


# How long one example takes says how busy the machine is, not whether the code is right.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_configure() -> None:
    """Let SIGTERM end the tests as ctrl-C does: what they started is stopped.

    And let both be as they are on a terminal, for what tests start: a script's `make test &` has them ignore SIGINT.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give those that share Docker's engine, a machine or this machine's mounts one worker: with `--dist loadgroup`.

    A small container that is made of namespaces has the mounts of all daemons that run beside it, unless each worker
    has namespaces of its own (tests/apart).
    """
    by_file = ("fuse", "vm") if "LXCFS_PY_APART" in os.environ else ("vm",)
    for item in items:
        room = item.path.parent.name
        if room in ("docker", "fuse", "hostile", "programs", "vm") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem if room in by_file else room))


def pytest_make_parametrize_id(val: object) -> Optional[str]:
    """Name a parameter by the beginning of a long text, where pytest would take all of it."""
    return f"{val[:ID_WIDTH]!r}..." if isinstance(val, (str, bytes)) and len(val) > ID_WIDTH else None


@pytest.fixture(scope="session")
def require() -> Callable[[object, str], None]:
    """require(condition, what): on CI a machine that lacks something fails the test, elsewhere it skips it."""

    def check(condition: object, what: str) -> None:
        if not condition:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"this test needs {what}")

    return check


@pytest.fixture(autouse=True)
def ended_aside() -> Iterator[None]:
    """What a test has started within this process, to look at cgroups for it, looks for no other test."""
    yield
    if aside._helpers is not None:
        ended, aside._helpers = aside._helpers, None
        ended._parent.close()
        for helper in (*ended._idle, *(each for silence in ended._silent.values() for each in silence.helpers)):
            helper.close()
        os.waitpid(ended._pid, 0)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started says and does nothing about coverage."""
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def sandbox(require: Callable[[object, str], None]) -> Iterator[Callable[..., Sandbox]]:
    """A function that takes Sandbox's arguments and returns one that runs till the test is over."""
    require(os.geteuid() == 0, "root")
    with contextlib.ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(Sandbox(**arguments))


class Daemon:
    """A server in a process of its own, that has mounted and answers."""

    def __init__(self, command: list[str], mountpoint: Path, log: Path) -> None:
        self.command = command
        self.mountpoint = mountpoint
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            self._wait_till_it_answers()
        except BaseException:
            self.process.kill()
            self.process.wait(STOP)
            unmount_below(mountpoint)
            raise

    @property
    def config(self) -> Path:
        """The file that the command names."""
        return Path(self.command[self.command.index("--config") + 1])

    def _wait_till_it_answers(self) -> None:
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}: {self.log.read_text()}")
            if str(self.mountpoint) in mountpoints():
                # Another process asks, because who asks a server that does not answer waits for ever.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    if not subprocess.run(["ls", self.mountpoint / "proc"], capture_output=True, timeout=5).returncode:
                        return
            time.sleep(0.02)
        raise AssertionError(f"the daemon does not answer at {self.mountpoint}: {self.log.read_text()}")

    def stop(self) -> int:
        """End it as systemd does and return its exit code; afterwards there is no mount."""
        try:
            self.process.send_signal(signal.SIGTERM)
            return self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP)
            raise AssertionError(f"the daemon did not stop within {STOP} s: {self.log.read_text()}") from None
        finally:
            unmount_below(self.mountpoint)


@pytest.fixture
def start_daemon(require: Callable[[object, str], None]) -> Iterator[Callable[..., Daemon]]:
    """start_daemon(engine="kernel", config="") returns a Daemon that is stopped when the test is over.

    `config` is TOML; what it has to say about [fuse] beside the engine goes into `fuse`. With `keep`, it has a keeper.
    """
    with _daemons(require) as start:
        yield start


@pytest.fixture(scope="session")
def start_shared_daemon(require: Callable[[object, str], None]) -> Iterator[Callable[..., Daemon]]:
    """The same, for a Daemon of many tests, that is stopped when all are over."""
    with _daemons(require) as start:
        yield start


@contextlib.contextmanager
def _daemons(require: Callable[[object, str], None]) -> Iterator[Callable[..., Daemon]]:
    require(os.geteuid() == 0, "root")
    require(Path("/dev/fuse").exists(), "/dev/fuse")
    with contextlib.ExitStack() as stack:

        def start(engine: str = "kernel", config: str = "", fuse: str = "", keep: bool = False) -> Daemon:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lxcfs-py-test-")))
            mountpoint = directory / "mount"
            mountpoint.mkdir()
            file = directory / "lxcfs.toml"
            file.write_text(f'{config}\n[fuse]\nengine = "{engine}"\n{fuse}\n')
            command = [sys.executable, "-m", "lxcfs_py", "run", "--config", str(file), str(mountpoint)]
            command += ["--keep"] if keep else []
            daemon = Daemon(command, mountpoint, directory / "log")
            stack.callback(_stop_if_running, daemon)
            return daemon

        yield start


@pytest.fixture(scope="session", params=ENGINES)
def daemon(request: Any, start_shared_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon with the default configuration; a test that takes it runs once with each engine."""
    return start_shared_daemon(request.param)


def _stop_if_running(daemon: Daemon) -> None:
    if daemon.process.poll() is None:
        daemon.stop()
    else:
        unmount_below(daemon.mountpoint)


def own_parents(path: Path) -> Iterator[Path]:
    """Yield the directories that pytest made above one of its own, which only root may enter."""
    return itertools.takewhile(lambda parent: parent != Path(tempfile.gettempdir()), path.parents)


def mountpoints() -> list[str]:
    """Where something is mounted, in the order it was mounted, from /proc/self/mountinfo."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def unmount_below(directory: Path) -> None:
    """Detach what is mounted at a directory or below it, whether or not its server answers."""
    for mountpoint in reversed(mountpoints()):
        if f"{mountpoint}/".startswith(f"{directory}/"):
            syscalls.umount(mountpoint, syscalls.MNT_DETACH)
