"""/etc/lxcfs.toml: TOML -> frozen dataclasses whose attributes mirror the file's keys.

The dataclasses are the one table of keys. A new key is one line there: its name, its type with the rule that a value
has to keep, and its default. Reading, the errors and dump() follow. (And one in etc/lxcfs.toml, for the operator.)
"""

import codecs
import difflib
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Callable, Union, get_type_hints

from lxcfs_py import toml_text
from lxcfs_py.errors import LxcfsError
from lxcfs_py.files import NAMES
from lxcfs_py.linux import address, mountpoint, regular_file
from lxcfs_py.printable import printable
from lxcfs_py.toml_text import MAX_PARTS, quoted

try:
    if sys.version_info >= (3, 11):
        import tomllib  # novermin
    else:
        import tomli as tomllib
except ImportError:  # a daemon whose mount is in use serves nevertheless
    tomllib = None  # type: ignore[assignment]


def parsed_toml(text: bytes) -> dict[str, Any]:
    """Return another program's configuration, {} where it cannot be read."""
    try:
        return tomllib.loads(text.decode()) if tomllib else {}
    except ValueError:
        return {}


class ConfigError(LxcfsError):
    """A configuration that cannot be used; `errors` has all that is wrong with it, one sentence each."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))

    def told_by(self, program: str) -> str:
        """Return the errors, each of which begins with its file and line."""
        return "\n".join(map(printable, self.errors))


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + "".join(f"\n  {_toml(item)}," for item in value) + "\n]" if value else "[]"
    return repr(value)


def _found(value: Any) -> str:
    """A value as an error shows it: short, whatever a file may hold."""
    if isinstance(value, str):
        return quoted(value if len(value) <= 80 else value[:80] + "...")
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >> 64:
        return "a number of more than 64 bits"
    return _toml(value) if isinstance(value, (bool, int, float)) else f"a date or time, {value}"


# What is wrong with a value, each a sentence's end that follows the key's name; nothing when the value is allowed.
Rule = Callable[[Any], Iterable[str]]


def _rule(allowed: str, accepts: Callable[[Any], bool]) -> Rule:
    return lambda value: [] if accepts(value) else [f"is {_found(value)}; allowed: {allowed}"]


def _one_of(*words: str) -> Rule:
    return _rule(", ".join(map(quoted, words)), words.__contains__)


def _number(types: tuple[type, ...], allowed: str, low: int, high: int) -> Rule:
    # By type(), as bool is an int to isinstance().
    return _rule(f"{allowed} from {low} to {high}", lambda value: type(value) in types and low <= value <= high)


_seconds = partial(_number, (int, float), "seconds")
_whole = partial(_number, (int,), "a whole number")
_switch = _rule("true, false", lambda value: isinstance(value, bool))


_MOUNTPOINT = (
    f"an absolute path other than / that is not in {', '.join(mountpoint.MACHINES_OWN)}, "
    f"of up to {mountpoint.PATH_MAX} bytes, {mountpoint.NAME_MAX} for each name"
)


def _is_mountpoint(value: Any) -> bool:
    if not isinstance(value, str) or not value.isprintable() or not value.startswith("/"):
        return False
    try:
        mountpoint.resolve(value)
    except mountpoint.MountError:  # it is / itself or within what is the machine's, by whatever way
        return False
    return True


def _is_listen(value: Any) -> bool:
    if value == "":
        return True
    try:
        return isinstance(value, str) and address.parse(value)[0] is not None
    except ValueError:
        return False


def _are_files(value: Any) -> Iterator[str]:
    if not isinstance(value, (list, tuple)):
        yield f"is {_found(value)}; allowed: a list of {', '.join(map(quoted, NAMES))}"
        return
    for position, name in enumerate(value):
        if name not in NAMES:
            yield f"has {_found(name)}; {_instead(name, NAMES, 'allowed')}"
        elif name in value[:position]:
            yield f"has {_found(name)} twice; allowed: each file once"


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 256 and value.isprintable() and value.strip() != ""


def _are_cgroups(value: Any) -> Iterator[str]:
    allowed = f'a list of up to {_MAX_PATTERNS} patterns of cgroup paths such as "/docker/*"'
    if not isinstance(value, (list, tuple)):
        yield f"is {_found(value)}; allowed: {allowed}"
        return
    if len(value) > _MAX_PATTERNS:
        yield f"has {len(value)} patterns; allowed: {allowed}"
    for pattern in value:
        if not (isinstance(pattern, str) and _CGROUP_PATTERN.fullmatch(pattern) and pattern.isprintable()):
            yield (
                f"has {_found(pattern)}; allowed: a cgroup's path, up to {_MAX_LEVELS} names with a / before each, "
                "where * stands for any part of a name, ? for a character, [0-9a-f] for one of these"
            )


_OPTIONS = '"" or SELinux\'s context=, fscontext=, defcontext=, rootcontext='


def _are_options(value: Any) -> bool:
    """Tell whether these are mount options that say what SELinux's label is: a label with a comma is in quotes."""
    label = r"(?:[\w.:-]+|\"[\w.:,-]+\")"
    option = rf"(?:fs|def|root)?context={label}"
    return isinstance(value, str) and re.fullmatch(rf"(?:{option}(?:,{option})*)?", value) is not None


_ABOVE = "above the first table"
"""Where keys stand that are in no table."""

_MAX_BYTES = 1 << 17
_MAX_FAULTS = 20  # that are told at once
_MAX_PATTERNS = 64
_MAX_LEVELS = 16
_CGROUP_PATTERN = re.compile(rf"(?:/[^/]{{1,255}}){{1,{_MAX_LEVELS}}}")


# Where container engines make the cgroups of their containers, with the cgroupfs driver and with systemd's. An id is
# hexadecimal, which leaves out libpod-conmon-ID and crio-conmon-ID.
_CGROUPS = (
    "/docker/*",
    "/system.slice/docker-*.scope",
    "/default/*",
    "/system.slice/nerdctl-*.scope",
    "/kubepods/pod*/*",
    "/kubepods/*/pod*/*",
    "/kubepods.slice/kubepods-pod*.slice/*.scope",
    "/kubepods.slice/kubepods-*.slice/kubepods-*-pod*.slice/*.scope",
    "/system.slice/crio-[0-9a-f][0-9a-f]*.scope",
    "/machine.slice/libpod-[0-9a-f][0-9a-f]*.scope",
    "/machine.slice/machine-libpod_pod_*.slice/libpod-[0-9a-f][0-9a-f]*.scope",
    "/system.slice/*.service/libpod-payload-*",
    "/libpod_parent/libpod-[0-9a-f][0-9a-f]*",
    "/libpod_parent/*/libpod-[0-9a-f][0-9a-f]*",
    "/lxc.payload.*",
    "/lxc/*",
    "/machine.slice/systemd-nspawn@*.service",
    "/machine.slice/machine-*.scope",
)


@dataclass(frozen=True)
class Files:
    enabled: Annotated[tuple[str, ...], _are_files] = NAMES


@dataclass(frozen=True)
class Cpu:
    mode: Annotated[str, _one_of("quota", "cpuset", "requests")] = "quota"
    shares_per_cpu: Annotated[int, _whole(2, 262144)] = 1024
    weights: Annotated[str, _one_of("linear", "quadratic")] = "linear"


@dataclass(frozen=True)
class Memory:
    swap: Annotated[bool, _switch] = True
    high: Annotated[bool, _switch] = False


@dataclass(frozen=True)
class Loadavg:
    enabled: Annotated[bool, _switch] = True
    interval: Annotated[float, _seconds(1, 60)] = 5


@dataclass(frozen=True)
class Uptime:
    source: Annotated[str, _one_of("container", "host")] = "container"


@dataclass(frozen=True)
class Attach:
    auto: Annotated[bool, _switch] = False
    cgroups: Annotated[tuple[str, ...], _are_cgroups] = _CGROUPS


@dataclass(frozen=True)
class Nri:
    enabled: Annotated[str, _one_of("auto", "never")] = "auto"
    default: Annotated[str, _one_of("all", "opt-in")] = "all"


@dataclass(frozen=True)
class Kubernetes:
    syscalls: Annotated[str, _one_of("none", "pods")] = "none"


@dataclass(frozen=True)
class Fuse:
    engine: Annotated[str, _one_of("auto", "kernel", "fusepy")] = "auto"
    threads: Annotated[int, _whole(1, 32)] = 4
    options: Annotated[str, _rule(_OPTIONS, _are_options)] = ""


@dataclass(frozen=True)
class Log:
    level: Annotated[str, _one_of("debug", "info", "warning", "error")] = "info"


@dataclass(frozen=True)
class Metrics:
    listen: Annotated[str, _rule(f'"" (off), {address.ALLOWED}', _is_listen)] = ""
    containers: Annotated[bool, _switch] = False


_CONDITIONS: dict[str, Rule] = {
    "cgroup": lambda value: _are_cgroups([value]),
    "image": _rule("an image's name, where * stands for any part of it", _is_line),
    "label": _rule(
        "a label's KEY or KEY=VALUE, where * stands for any part of the value",
        lambda value: _is_line(value) and _is_line(value.partition("=")[0]),
    ),
}
_BY_POLICY = (
    *("files.enabled", "cpu.mode", "cpu.shares_per_cpu", "cpu.weights", "memory.swap", "memory.high"),
    *("loadavg.enabled", "uptime.source"),
)


@dataclass(frozen=True)
class Policy:
    """What those containers have otherwise that meet all of the conditions given."""

    cgroup: str = ""
    image: str = ""
    label: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    """Dotted keys of the configuration, and what they are for these containers."""

    def conditions(self) -> list[tuple[str, str]]:
        """Those given, by their keys."""
        return [(name, getattr(self, name)) for name in _CONDITIONS if getattr(self, name)]


def _are_policies(value: Any) -> Iterator[str]:
    are_tables = isinstance(value, list) and all(isinstance(each, dict) for each in value)
    if not are_tables or len(value) > _MAX_PATTERNS:
        found = f"{len(value)} tables" if are_tables else _found(value)
        yield f"is {found}; allowed: up to {_MAX_PATTERNS} tables, [[policy]]"


@dataclass(frozen=True)
class Config:
    """The daemon's configuration; attributes are etc/lxcfs.toml's keys, which says what each does."""

    mountpoint: Annotated[str, _rule(_MOUNTPOINT, _is_mountpoint)] = "/var/lib/lxcfs"
    files: Files = Files()
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    loadavg: Loadavg = Loadavg()
    uptime: Uptime = Uptime()
    attach: Attach = Attach()
    nri: Nri = Nri()
    kubernetes: Kubernetes = Kubernetes()
    fuse: Fuse = Fuse()
    log: Log = Log()
    metrics: Metrics = Metrics()
    policy: Annotated[tuple[Policy, ...], _are_policies] = ()

    def with_settings(self, settings: Iterable[tuple[str, Any]]) -> "Config":
        """The same with other values of some keys, by their dotted names."""
        config = self
        for key, value in settings:
            table, _, name = key.partition(".")
            config = replace(config, **{table: replace(getattr(config, table), **{name: value}) if name else value})
        return config


def _hints(table: type) -> dict[str, Any]:
    """Key -> Annotated[type, rule] of a table's dataclass, or a dataclass for a table within it."""
    return get_type_hints(table, include_extras=True)


def _keys(table: type, prefix: str = "") -> Iterator[str]:
    for key, hint in _hints(table).items():
        if isinstance(hint, type):
            yield from _keys(hint, f"{prefix}{key}.")
        else:
            yield prefix + key


KEYS = tuple(_keys(Config))
"""Every key by its dotted name: "mountpoint", "files.enabled", ..."""


def load(path: Union[str, Path]) -> Config:
    """The configuration in the file at path. ConfigError when it cannot be read or used."""
    try:
        if _is_null(path):
            return Config()
        with open(path, "rb", opener=regular_file.opener) as file:
            return read(file, str(path))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None


def _is_null(path: Union[str, Path]) -> bool:
    """Tell whether it is /dev/null, which stands for an empty file."""
    status = os.stat(path)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def read(file: BinaryIO, name: str) -> Config:
    """The configuration in a file that is called name. ConfigError with all that is wrong in it, OSError."""
    source = file.read(_MAX_BYTES + 1)
    if len(source) > _MAX_BYTES:
        raise ConfigError([f"{name}: has more than {_MAX_BYTES >> 10} KiB; allowed: up to that"])
    return parse(source, name)


def parse(source: bytes, name: str) -> Config:
    """The configuration in source, the bytes of a file called name. ConfigError with all that is wrong in it."""
    if source.startswith(codecs.BOM_UTF8):
        raise ConfigError([f"{name}:1: begins with a byte order mark; allowed: UTF-8 without one"])
    if tomllib is None:
        raise ConfigError([f"{name}: reading it takes the Python package tomli, which is missing"])
    try:
        text = source.decode()
        long = toml_text.line_of_a_long_key(text)
        if long:
            raise ConfigError([f"{name}:{long}: has a key of more than {MAX_PARTS} parts; allowed: up to that"])
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{name}:{line}: byte 0x{source[error.start]:02x} is not UTF-8; allowed: UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([toml_text.fault(name, text, str(error), _may_be)]) from None
    except (RecursionError, ValueError):  # ValueError is int()'s, at thousands of digits
        raise ConfigError([f"{name}: cannot be read as TOML: nested too deeply, or a number too long"]) from None
    faults: list[tuple[str, str]] = []
    config: Config = _build(Config, document, "", faults)
    if faults:
        lines = toml_text.lines(text)
        placed = [(toml_text.line(key, lines), sentence) for key, sentence in faults[:_MAX_FAULTS]]
        placed.sort(key=lambda fault: fault[0])
        errors = [f"{name}:{line}: {sentence}" if line else f"{name}: {sentence}" for line, sentence in placed]
        if len(faults) > _MAX_FAULTS:
            errors.append(f"{name}: has more errors than these {_MAX_FAULTS}")
        raise ConfigError(errors)
    return config


def _may_be(key: str, value: str) -> bool:
    """Tell whether a key, as a statement has it, may have a value, as TOML has it."""
    within = re.sub(r"^policy\[\d+\]\.", "", key)
    if within not in (KEYS if within == key else (*_CONDITIONS, *_BY_POLICY)):
        return False
    rule = (_CONDITIONS.get(within) if within != key else None) or _rule_of(within)
    try:
        return not any(rule(tomllib.loads(f"value = {value}")["value"]))
    except (RecursionError, ValueError):
        return False


def _build(table: type, values: dict[str, Any], prefix: str, faults: list[tuple[str, str]]) -> Any:
    """The dataclass `table` with the values that its keys allow; faults gets (dotted key, sentence) for the others."""
    hints = _hints(table)
    kept: dict[str, Any] = {}
    for name, value in values.items():
        key, hint = prefix + name, hints.get(name)
        if hint is None:
            # [memroy] with swap = false below it: "memroy.swap" says more than "memroy", and finds "memory.swap".
            for unknown, _ in _flat(name, value):
                _add(faults, prefix + unknown, _unknown(prefix + unknown, "." in name, KEYS, above=unknown))
        elif not isinstance(hint, type):
            wrong = _add(faults, key, (f"{key} {sentence}" for sentence in hint.__metadata__[0](value)))
            if not wrong and key == "policy":
                kept[name] = tuple(_build_policy(each, number, faults) for number, each in enumerate(value))
            elif not wrong:
                kept[name] = tuple(value) if isinstance(value, list) else value
        elif isinstance(value, dict):
            kept[name] = _build(hint, value, f"{key}.", faults)
        else:
            _add(faults, key, [f"{key} is {_found(value)}; allowed: a table, [{key}]"])
    return table(**kept)


def _add(faults: list[tuple[str, str]], key: str, sentences: Iterable[str]) -> bool:
    """Add what is wrong with a key, and tell whether anything is; it is not even found out of more than are told."""
    before = len(faults)
    faults.extend((key, sentence) for sentence in islice(sentences, _MAX_FAULTS + 1 - before))
    return len(faults) > before or before > _MAX_FAULTS


def _unknown(key: str, is_quoted: bool, known: tuple[str, ...], within: str = "", above: str = "") -> Iterator[str]:
    """What is wrong with a key that none is; a known one whose dot is in quotes is another key to TOML.

    So is one of no table below a table's name; `above` is the key that it would be above all tables.
    """
    if is_quoted and key in known:
        instead = f"did you mean {key} without quotes?"
    elif above in known and not is_quoted:
        instead = f"did you mean {quoted(above)}, {_ABOVE}?"
    else:
        instead = _instead(key, known, "known")
    yield f"unknown key {_found(within + key)}; {instead}"


def _build_policy(table: dict[str, Any], number: int, faults: list[tuple[str, str]]) -> Policy:
    """The policy that one [[policy]] is, counted from 0."""
    conditions: dict[str, Any] = {}
    settings: list[tuple[str, Any]] = []
    place = f"policy[{number}]"
    known = (*_CONDITIONS, *_BY_POLICY)
    understood = True
    for name, inner in table.items():
        for key, value in _flat(name, inner):
            if key in KEYS and key not in known:
                keys = ", ".join(map(quoted, _BY_POLICY))
                place_of = "" if "." in key else f", {_ABOVE}"
                sentence = f"policy.{key} is the same for all containers{place_of}; allowed in a policy: {keys}"
                _add(faults, f"{place}.{key}", [sentence])
                understood = False
                continue
            if key not in known or "." in name:
                _add(faults, f"{place}.{key}", _unknown(key, "." in name, known, "policy."))
                understood = False
                continue
            rule = _CONDITIONS.get(key) or _rule_of(key)
            _add(faults, f"{place}.{key}", (f"policy.{key} {sentence}" for sentence in rule(value)))
            if key in _CONDITIONS:
                conditions[key] = value
            else:
                settings.append((key, tuple(value) if isinstance(value, list) else value))
    for what, there, allowed in (("condition", conditions, _CONDITIONS), ("setting", settings, _BY_POLICY)):
        if understood and not there:
            _add(faults, place, [f"policy {number + 1} has no {what}; allowed: {', '.join(map(quoted, allowed))}"])
    return Policy(**conditions, settings=tuple(settings))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is at a name: the values of a table, which is as deep as keys are, by their dotted keys; else the value."""
    if isinstance(value, dict) and value:
        yield from ((f"{name}.{key}", each) for key, each in value.items())
    else:
        yield name, value


def _rule_of(key: str) -> Rule:
    hint: Any = Config
    for name in key.split("."):
        hint = _hints(hint)[name]
    rule: Rule = hint.__metadata__[0]
    return rule


def fault(key: str, value: Any) -> str:
    """What is wrong with a value of a key, by its dotted name: 'is "x"; allowed: "a", "b"'. "" if nothing is."""
    return next(iter(_rule_of(key)(value)), "")


def _instead(word: Any, known: tuple[str, ...], title: str) -> str:
    nearest = difflib.get_close_matches(word, known, 1, cutoff=0.5) if isinstance(word, str) else []
    return f"did you mean {quoted(nearest[0])}?" if nearest else f"{title}: {', '.join(map(quoted, known))}"


def dump(config: Config) -> str:
    """The configuration as TOML that parse() reads back to the same; every key is there, set or left at its default."""
    text = ""
    table = ""
    for key in filter("policy".__ne__, KEYS):
        within, _, name = key.rpartition(".")
        if within != table:
            text += f"\n[{within}]\n"
            table = within
        text += f"{name} = {_toml(attrgetter(key)(config))}\n"
    for policy in config.policy:
        text += "\n[[policy]]\n"
        text += "".join(f"{key} = {_toml(value)}\n" for key, value in (*policy.conditions(), *policy.settings))
    return text
