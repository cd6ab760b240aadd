"""What a container is called, from the name of its cgroup and its engine's files: no socket, no engine is asked.

Known are Docker, Podman, containerd (Kubernetes, nerdctl, ctr), CRI-O, LXC with Incus, and systemd-nspawn. The files
are root's own, below /run, /var/lib and /etc; those of a user's own engines are left alone, and such a container is
called by its id. Nothing is taken from within a container.
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, TypeVar

from lxcfs_py.attach.running import Process, cgroup
from lxcfs_py.cgroup.layout import parse_paths
from lxcfs_py.config import parsed_toml
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import roots

KEY = "lxcfs.py/views"
"""The label, annotation or environment variable by which a container opts in ("all") or out ("none")."""

_VARIABLES = (KEY, "LXCFS_PY_VIEWS")
"""By which a container opts out in its environment. Kubernetes before 1.32 has none with a slash in their names."""

CPU_MODE = "lxcfs.py/cpu-mode"
"""The label or annotation by which a container has a cpu.mode of its own."""

_MAX_BYTES = 1 << 24
_SHOWN_DIGITS = 12  # of an id, as the engines show it
_LOOK_SECONDS = 5.0  # for which it is known which dockerd run
_LEAST_DIGITS = 4  # of an id, to be asked for by

# Of a path no more is looked up: a container may nest cgroups as deep as it likes, and call them as containers are.
_MAX_LEVELS = 32
_MAX_IDS = 8

_ID = "[0-9a-f]{64}"
_SCOPE = re.compile(rf"(docker|libpod|cri-containerd|nerdctl|crio)-({_ID})(?:\.scope)?")
_ENGINES = {
    "docker": "docker",
    "libpod": "podman",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
}
_LXC = re.compile(r"lxc\.payload\.(.+)")
_NSPAWN = re.compile(r"(?:systemd-nspawn@(.+)\.service|machine-(.+)\.scope)")
# Where the engines keep their containers that are called in the cgroup's path as they are called by the operator.
_CONTAINERS = {
    "lxc": (
        "var/lib/lxc",
        "var/lib/incus/containers",
        "var/lib/lxd/containers",
        "var/snap/lxd/common/lxd/containers",
    ),
    "systemd-nspawn": ("var/lib/machines",),
}
_DATA_ROOTS = ("/var/lib/docker", "/var/snap/docker/common/var-lib-docker")
_STORAGE = {"runroot": "/run/containers/storage", "graphroot": "/var/lib/containers/storage"}
# containerd's own, those of k3s and RKE2, of k0s, and of MicroK8s.
_CONTAINERDS = ("run/containerd", "run/k3s/containerd", "run/k0s/containerd", "var/snap/microk8s/common/run/containerd")
_BUNDLES = tuple(f"{state}/io.containerd.runtime.v2.task" for state in _CONTAINERDS)  # /NAMESPACE/ID

# Who is what in a pod, as containerd and CRI-O annotate the OCI configuration.
_NAMESPACE = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")
_POD = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
_CONTAINER = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_IMAGE = ("io.kubernetes.cri.image-name", "nerdctl/image-ref")
_TYPE = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")


_Found = tuple[str, dict[str, str], str]
"""A name, labels and annotations, an image."""


class NamesError(LxcfsError):
    """Why a name leads to no container: one sentence for the operator."""


class Identity(NamedTuple):
    """Which container it is."""

    engine: str
    """docker, podman, containerd, cri-o, lxc or systemd-nspawn."""

    id: str
    name: str
    """As the operator calls it, "namespace/pod/container" in Kubernetes; the start of the id where no file tells."""

    annotations: Mapping[str, str] = {}
    """Its labels and annotations, as far as the engine's files have them."""

    image: str = ""
    """The name of its image as it was asked for, "" where the engine's files do not have it."""

    def answers_to(self, wanted: str) -> bool:
        """Tell whether somebody who says `wanted` means it: its name, a part of it in Kubernetes, its id's start."""
        engine, _, rest = wanted.partition(":")
        if rest and engine == self.engine:
            return self.answers_to(rest)
        by_id = len(wanted) >= _LEAST_DIGITS and self.id.startswith(wanted)
        return by_id or f"/{self.name}/".endswith(f"/{wanted}/") or f"{self.name}/".startswith(f"{wanted}/")

    def opt_out(self) -> str:
        """Return why it is to be left alone unless somebody names it, "" if it is not."""
        if is_opt_out(self.annotations.get(KEY, "")):
            return f'it opts out by its label or annotation {KEY} = "none"'
        is_infra = self.engine == "podman" and re.fullmatch("[0-9a-f]{12}-infra", self.name)
        if is_infra or _first(self.annotations, _TYPE) == "sandbox":
            return "it is a pod's pause container"
        return ""


def words(wish: str) -> list[str]:
    """Return what a label, annotation or variable says: words with commas between them, in small letters."""
    return [word for part in wish.split(",") if (word := part.strip().lower())]


def is_opt_out(wish: str) -> bool:
    """Tell whether that, in a label, annotation or variable, means that there are to be no files."""
    return "none" in words(wish)


def cpu_mode(annotations: Mapping[str, Any]) -> Optional[str]:
    """Return the cpu.mode that labels or annotations ask for, whatever it is, None where they ask for none."""
    return str(annotations[CPU_MODE]).strip().lower() if CPU_MODE in annotations else None


def opt_out_in(environment: Iterable[str]) -> str:
    """Return what opts a container out in its environment, "" if nothing does."""
    for variable in environment:
        name, _, wish = variable.partition("=")
        if name in _VARIABLES and is_opt_out(wish):
            return f"{name}=none"
    return ""


class _Answer(NamedTuple):
    """A container that answers to a name, and how deep it is in others, which choose what is called how in them."""

    depth: tuple[int, int]
    """In how many containers its cgroup is, and its init in how many pid namespaces."""

    pid: int
    identity: Identity


def find(wanted: str, containers: Iterable[Process]) -> int:
    """Return the init of the only container that is called so, of those that are in the fewest others. NamesError."""
    names = Names()
    found: list[_Answer] = []
    for container in containers:
        try:
            around = list(names.around(cgroup(container.pid)))
        except OSError:  # it has ended
            continue
        if around and around[0].answers_to(wanted):
            found.append(_Answer((len(around), container.depth), container.pid, around[0]))
    if not found:
        raise NamesError(f'no container that runs is called "{wanted}": lxcfs-py status lists those there are')
    found = [answer for answer in found if answer.depth == min(found).depth]
    found = [answer for answer in found if wanted in (answer.identity.name, answer.identity.id)] or found
    if len(found) == 1:
        return found[0].pid
    several = ", ".join(f"{identity.engine}:{identity.name} ({pid})" for _, pid, identity in found)
    raise NamesError(f'"{wanted}" is more than one container: {several}; say more of its name, or its --pid')


_Looked = TypeVar("_Looked")


def _once(look: Callable[[Names, str], _Looked]) -> Callable[[Names, str], _Looked]:
    """Let one of Names keep what it has looked up by an id."""

    @functools.wraps(look)
    def kept(names: Names, identity: str) -> _Looked:
        key = look.__name__, identity
        if key not in names.looked_up:
            names.looked_up[key] = look(names, identity)
        return names.looked_up[key]  # type: ignore[no-any-return]

    return kept


class Names:
    """The names of containers as of now: what is read once is not read again, so that one of these serves one look."""

    def __init__(self, root: str = "") -> None:
        """`root` is put before the paths of the engines' files, for a recorded system."""
        self._root = Path(root or "/")
        self.looked_up: dict[tuple[str, str], Any] = {}
        """What was found, by what was looked for, and the id."""

    def of(self, path: str) -> Optional[Identity]:
        """Return which container has a cgroup or the innermost above it, None for one of no known engine."""
        return next(self.around(path), None)

    def around(self, path: str) -> Iterator[Identity]:
        """Yield which container has a cgroup, and which others are around it, to the outermost.

        A container calls the cgroups in it as it likes: what this machine's engines have by a name is not in another.
        """
        components = path.strip("/").split("/")[:_MAX_LEVELS]
        found: list[Identity] = []
        is_in_another = False
        ids = 0
        for depth, component in enumerate(components):
            ids += bool(re.search(_ID, component))
            if ids > _MAX_IDS:
                break
            identity = self._of_component(components[depth - 1] if depth else "", component)
            if identity and not (is_in_another and self._has(identity)):
                found.append(identity)
                is_in_another = not any(own[: depth + 1] == components[: depth + 1] for own in self._machine)
        return reversed(found)

    @functools.cached_property
    def _machine(self) -> list[list[str]]:
        """Return the cgroups of the first process, which has some above it where this machine is itself a container."""
        paths = parse_paths(_bytes(self._proc / "1/cgroup"))
        return [path.strip("/").split("/") for path in paths.values()]

    @property
    def _proc(self) -> Path:
        return self._root / "proc" if self._root != Path("/") else Path(roots.PROC)

    def _of_component(self, above: str, component: str) -> Optional[Identity]:
        scope = _SCOPE.fullmatch(component)
        if scope:
            return self._of_engine(_ENGINES[scope[1]], scope[2])
        if re.fullmatch(_ID, component):  # without systemd, in whatever parent the operator chose
            for engine in ("docker", "containerd"):
                identity = self._of_engine(engine, component)
                if identity.annotations or not component.startswith(identity.name):  # that engine has files of it
                    return identity
            if above == "docker":
                return self._of_engine("docker", component)
            if above.startswith("pod"):
                return self._of_engine("containerd", component)
        machine = _NSPAWN.fullmatch(component)
        if machine:
            name = _unescape(machine[1] or machine[2])
            return Identity("systemd-nspawn", name, name)
        payload = _LXC.fullmatch(component)
        if payload or above in ("lxc", "lxc.payload"):
            name = payload[1] if payload else component
            return Identity("lxc", name, name)
        if any(each.name == above and (each / component).is_dir() for each in self._namespaces):  # without systemd
            return self._of_engine("containerd", component)
        return None

    def _has(self, identity: Identity) -> bool:
        """Tell whether an engine of this machine has a container of that id, be it one that does not run."""
        if identity.engine in self._engines:
            return any(known(identity.id) for known in self._engines.values())
        return any(os.path.isdir(self._root / place / identity.id) for place in _CONTAINERS[identity.engine])

    @functools.cached_property
    def _namespaces(self) -> list[Path]:
        """Return where containerd keeps its containers that run."""
        return [namespace for bundles in _BUNDLES for namespace in sorted((self._root / bundles).glob("*"))]

    def _of_engine(self, engine: str, identity: str) -> Identity:
        name, annotations, image = self._engines[engine](identity) or ("", {}, "")
        return Identity(engine, identity, name or identity[:_SHOWN_DIGITS], annotations, image)

    @property
    def _engines(self) -> dict[str, Callable[[str], Optional[_Found]]]:
        """Return what says of an id what an engine's files have of it, None where they have none such."""
        return {"docker": self._docker, "podman": self._podman, "containerd": self._containerd, "cri-o": self._cri_o}

    @_once
    def _docker(self, identity: str) -> Optional[_Found]:
        for directory in self._docker_directories_in_turn():
            state = _object(_json(directory / identity / "config.v2.json"))
            if state:
                made_of = _object(state.get("Config"))
                labels = _texts(made_of.get("Labels"))
                name = _kubernetes(labels) or str(state.get("Name", "")).lstrip("/")
                return name, labels, str(made_of.get("Image", ""))
        return None

    def _docker_directories_in_turn(self) -> Iterator[Path]:
        yield from self._docker_directories
        yield from self._directories_of_dockerd  # only now are all processes looked at

    @functools.cached_property
    def _docker_directories(self) -> list[Path]:
        chosen = self._data_root("/etc/docker/daemon.json")
        return self._docker_containers([chosen] if chosen else _DATA_ROOTS)

    @functools.cached_property
    def _directories_of_dockerd(self) -> list[Path]:
        """Return where the engines that run keep their containers, by their own command lines."""
        found = []
        for words in _dockerds(self._proc, int(time.monotonic() / _LOOK_SECONDS)):
            options = _options(words)
            chosen = options.get("--data-root") or options.get("-g")
            chosen = chosen or self._data_root(options.get("--config-file", ""))
            found += [chosen] if chosen else []
        return self._docker_containers(found)

    def _data_root(self, file: str) -> str:
        """Return the directory that a configuration of Docker's names, "" where it names none."""
        chosen = _object(_json(self._root / file.lstrip("/"))).get("data-root") if file else ""
        return chosen if isinstance(chosen, str) else ""

    def _docker_containers(self, data_roots: Iterable[str]) -> list[Path]:
        found = [self._root / data_root.lstrip("/") for data_root in data_roots]
        # With userns-remap, below a directory that is named for the first user and group.
        return [path for each in found for path in (each / "containers", *_matches(each, "*.*/containers"))]

    @_once
    def _podman(self, identity: str) -> Optional[_Found]:
        name, image = self._stored.get(identity, ("", ""))
        annotations = self._stored_annotations(identity)
        return (name, annotations, image) if name or annotations else None

    @_once
    def _cri_o(self, identity: str) -> Optional[_Found]:
        annotations = self._stored_annotations(identity)
        if not annotations:
            return None
        for key in ("io.kubernetes.cri-o.Labels", "io.kubernetes.cri-o.Annotations"):  # the pod's, as JSON
            annotations = {**_texts(_parsed(annotations.get(key, "").encode())), **annotations}
        return _kubernetes(annotations), annotations, annotations.get("io.kubernetes.cri-o.ImageName", "")

    @functools.cached_property
    def _stored(self) -> dict[str, tuple[str, str]]:
        """Names and images by id: what Podman tells the library that keeps its containers' storage."""
        found: dict[str, tuple[str, str]] = {}
        for file in _matches(self._storage("graphroot"), "*-containers/*containers.json"):
            listed = _json(file)
            for each in map(_object, listed if isinstance(listed, list) else []):
                names = each.get("names")
                if isinstance(names, list) and names:
                    told = _object(_parsed(str(each.get("metadata", "")).encode()))
                    found[str(each.get("id"))] = str(names[0]), str(told.get("image-name", ""))
        return found

    def _storage(self, key: str) -> Path:
        """Return a directory of the library that keeps Podman's and CRI-O's containers."""
        return self._root / str(self._storage_configuration.get(key) or _STORAGE[key]).lstrip("/")

    @functools.cached_property
    def _storage_configuration(self) -> dict[str, Any]:
        for file in ("etc/containers/storage.conf", "usr/share/containers/storage.conf"):
            text = _bytes(self._root / file)
            if text:
                return _object(parsed_toml(text).get("storage"))
        return {}

    @_once
    def _stored_annotations(self, identity: str) -> dict[str, str]:
        for directory in self._stores:
            annotations = _annotations(directory / identity / "userdata/config.json")
            if annotations:
                return annotations
        return {}

    @functools.cached_property
    def _stores(self) -> list[Path]:
        return [directory for key in _STORAGE for directory in _matches(self._storage(key), "*-containers")]

    @_once
    def _containerd(self, identity: str) -> Optional[_Found]:
        for namespace in self._namespaces:
            annotations = _annotations(namespace / identity / "config.json")
            if annotations or (namespace / identity).is_dir():
                name = _kubernetes(annotations) or annotations.get("nerdctl/name", "")
                name = name or self._nerdctl.get(identity, "" if re.fullmatch(_ID, identity) else identity)
                return name, annotations, _first(annotations, _IMAGE)
        return None

    @functools.cached_property
    def _nerdctl(self) -> dict[str, str]:
        """Names by id: a file for each name holds the id."""
        files = self._root.glob("var/lib/nerdctl/*/names/*/*")
        return {_bytes(file).decode(errors="replace").strip(): file.name for file in files}


def _kubernetes(annotations: Mapping[str, str]) -> str:
    """Return "namespace/pod/container", "namespace/pod" for a pause container, "" outside of Kubernetes."""
    names = (_first(annotations, keys) for keys in (_NAMESPACE, _POD, _CONTAINER))
    return "/".join(filter(None, names))


def _first(annotations: Mapping[str, str], keys: Iterable[str]) -> str:
    return next((annotations[key] for key in keys if key in annotations), "")


def _annotations(configuration: Path) -> dict[str, str]:
    """Return the annotations of an OCI configuration."""
    return _texts(_object(_json(configuration)).get("annotations"))


def _texts(value: Any) -> dict[str, str]:
    return {key: text for key, text in _object(value).items() if isinstance(text, str)}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(file: Path) -> Any:
    return _parsed(_bytes(file))


def _parsed(text: bytes) -> Any:
    """Return what JSON says, None if it is none: an engine may be in the middle of writing it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _matches(directory: Path, pattern: str) -> list[Path]:
    """Return what matches in a directory, none where there can be no such directory, as engines' files may name it."""
    try:
        return sorted(directory.glob(pattern))
    except (OSError, ValueError):
        return []


def _bytes(file: Path) -> bytes:
    """Return what a file holds, b"" where there is none or can be none."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as opened:
            return opened.read(_MAX_BYTES)
    except (OSError, ValueError):
        return b""


@functools.lru_cache(maxsize=2)
def _dockerds(proc: Path, _moment: int) -> list[list[str]]:
    """Return the options of all dockerd that run on the host: for some seconds, since all processes are looked at.

    A container could call a process so, and see the host's processes.
    """
    found = []
    for process in sorted(proc.glob("[0-9]*")):
        if _bytes(process / "comm") == b"dockerd\n" and roots.is_hosts(process.name, str(proc)):
            words = _bytes(process / "cmdline").decode(errors="surrogateescape").split("\0")
            found.append(words[1:])
    return found


def _options(words: Iterable[str]) -> dict[str, str]:
    """Return the options of a command line that have a value: "--name value", "-n value", "-n=value", "-nvalue"."""
    found: dict[str, str] = {}
    before = ""
    for word in words:
        if not word.startswith("-"):
            found[before] = word
            before = ""
            continue
        if word.startswith("--"):
            name, _, value = word.partition("=")
        else:
            letters = word[1:].lstrip("D")  # which has no value, and may stand before one that has
            name, value = f"-{letters[:1]}", letters[1:]
            value = value[1:] if value.startswith("=") else value
        found[name] = value
        before = "" if value else name
    return found


def _unescape(name: str) -> str:
    """Undo what systemd does to a name in a unit's: "web\\x2d1" is "web-1"."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name)
