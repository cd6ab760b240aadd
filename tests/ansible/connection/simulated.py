"""A connection to a host that is not there: it answers what the role's modules would, and keeps what they have changed.

A host is a JSON file in the directory that LXCFS_PY_SIMULATED names. `log` beside them has a line for each command:
when it began, when it ended, and on which host.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure  # type: ignore[import-untyped]
from ansible.plugins.connection import ConnectionBase  # type: ignore[import-untyped]

from lxcfs_py import config
from lxcfs_py.commands.common import resolved

DOCUMENTATION = """
name: simulated
short_description: answer for a host
description: For tests.
author: lxcfs-py
options:
  pipelining:
    description: Always.
    type: bool
    default: true
    vars: [{name: ansible_pipelining}]
"""

ROOT = "/root"
CONFIG = "/etc/lxcfs.toml"
FRESH = {"version": "", "files": {}, "config": "", "containers": [], "breaks_with": "", "is_reachable": True}
# A host may also have: "reload_fails"; "lacks_lists", so that apt finds no dependency; "c_program", the version of its
# package, and "c_users", the containers that have its files; "has_library", of the engine fusepy; "is_debian_14", which
# has no package of that; "stops", how often the service was stopped; "is_disabled", the service at boot; "apt_fails";
# "lost_with", a version with which it cannot be reached; "others", containers with views that are not the package's;
# "package", its state in dpkg's words.


class Connection(ConnectionBase):
    """To one host, for one task."""

    transport = "simulated"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._directory = Path(os.environ["LXCFS_PY_SIMULATED"])
        self._name = self._play_context.remote_addr
        self._uploads: dict[str, bytes] = {}
        self._connected = True
        return self

    def close(self) -> None:
        """End it."""
        self._connected = False

    def put_file(self, in_path: str, out_path: str) -> None:
        """Take a file."""
        self._uploads[out_path] = Path(in_path).read_bytes()

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """There is nothing to fetch."""
        raise AnsibleConnectionFailure(f"{in_path} is not there")

    def exec_command(self, cmd: str, in_data: Any = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a module, which is in `in_data`, or a command of a shell."""
        if not self._connected:
            self._connect()
        began = time.time()
        time.sleep(float(os.environ.get("LXCFS_PY_SIMULATED_SECONDS", "0")))
        file = self._directory / f"{self._name}.json"
        host = {**FRESH, **json.loads(file.read_text())}
        if not host["is_reachable"] or host["version"] == host.get("lost_with", "never"):
            raise AnsibleConnectionFailure("no route to host")
        before = json.dumps(host)
        answer = self._module(bytes(in_data).decode(), host) if in_data else _shell(cmd)
        if json.dumps(host) != before:
            file.write_text(json.dumps(host))
        with (self._directory / "log").open("a") as log:
            log.write(f"{began} {time.time()} {self._name}\n")
        return 0, answer.encode(), b""

    def _module(self, source: str, host: dict[str, Any]) -> str:
        name, parameters = (
            ast.literal_eval(re.search(rf"\b{key}=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")", source)[1])  # type: ignore[index]
            for key in ("ansible_module", "params")
        )
        arguments = json.loads(parameters)["ANSIBLE_MODULE_ARGS"]
        return json.dumps(getattr(self, f"_{name.rpartition('.')[2]}")(arguments, host))

    def _command(self, arguments: dict[str, Any], host: dict[str, Any]) -> dict[str, Any]:
        stdin = arguments.get("stdin") or ""
        if (arguments.get("argv") or [""])[0] == "rmdir":
            path = arguments["argv"][1]
            others = any(name.startswith(f"{path}/") for name in host["files"])
            return {"rc": int(others or not host["files"].pop(path, "")), "stdout": "", "stderr": "", "changed": True}
        if (arguments.get("argv") or [""])[0] == "dpkg-query":
            said = f"{host.get('package', 'installed')} {host['version']}" if host["version"] else ""
            return {"rc": int(not said), "stdout": said, "stderr": "", "changed": True}
        if (arguments.get("argv") or [""])[0] in ("dpkg", "apt-get"):
            return _repaired(arguments["argv"], host)
        if (arguments.get("argv") or [""])[0] == "/usr/bin/python3":
            said = "" if host.get("has_library") else "Traceback\nModuleNotFoundError: No module named 'mfusepy'"
            return {"rc": int(bool(said)), "stdout": "", "stderr": said, "changed": True}
        if arguments.get("cmd"):  # lxcfs-py check
            said = 'cpu.mode is "quotas"' if "quotas" in stdin else ""
            return {"rc": int(bool(said)), "stdout": "", "stderr": said, "changed": True, "failed": bool(said)}
        words = arguments["argv"][2:]
        lines = _looked(host, *words[2:]) if "packages apt" in stdin else _verified(host, words)
        return {"rc": 0, "stdout": "\n".join(lines), "stderr": "", "changed": True}

    def _apt(self, arguments: dict[str, Any], host: dict[str, Any]) -> dict[str, Any]:
        before = host["version"]
        names = arguments.get("name") or []
        if arguments.get("update_cache") and not names:
            host.pop("lacks_lists", None)
            return {"changed": True}
        if host.get("apt_fails"):
            return {"failed": True, "msg": "Failed to lock apt for exclusive operation"}
        if host.get("lacks_lists"):
            return {"failed": True, "msg": "Dependency is not satisfiable: python3-psutil"}
        if names in ("python3-fusepy", ["python3-fusepy"]):
            if host.get("is_debian_14"):
                return {"failed": True, "msg": "No package matching 'python3-fusepy' is available"}
            host["fusepy_came_while_it_ran"] = host.get("runs", False)
            host["has_library"] = True
            return {"changed": True}
        if arguments.get("state") == "absent":
            host.update(version="", config="")
        else:
            deb = arguments.get("deb")
            if names in ("lxcfs", ["lxcfs"]):
                host["c_program"] = "5.0.3"
                return {"changed": True}
            host["c_program"] = ""
            comes = Path(deb).name.split("_")[1] if deb else str(arguments["name"]).partition("=")[2]
            if comes != before:
                host.update(version=comes, package="installed")
        return {"changed": before != host["version"]}

    def _stat(self, arguments: dict[str, Any], host: dict[str, Any]) -> dict[str, Any]:
        path = arguments["path"]
        checksum = host["files"].get(path)
        there = {"isdir": False, "islnk": False, "checksum": checksum, "mode": "0644", "uid": 0, "gid": 0}
        return {"changed": False, "stat": {"exists": bool(checksum), "path": path, **(there if checksum else {})}}

    def _copy(self, arguments: dict[str, Any], host: dict[str, Any]) -> dict[str, Any]:
        content = self._uploads[arguments["src"]]
        host["files"][arguments["dest"]] = hashlib.sha1(content).hexdigest()
        if arguments["dest"] == CONFIG:
            host["config"] = base64.b64encode(content).decode()
        return {"changed": True, "dest": arguments["dest"]}

    def _file(self, arguments: dict[str, Any], host: dict[str, Any]) -> dict[str, Any]:
        path = arguments.get("path") or arguments["dest"]
        is_there = arguments["state"] != "absent"
        changed = is_there != (path in host["files"]) and arguments["state"] != "file"
        if is_there:
            host["files"].setdefault(path, "directory")
        else:
            host["files"].pop(path, None)
            host["config"] = "" if path == CONFIG else host["config"]
        return {"changed": changed, "path": path}

    def _systemd_service(self, arguments: dict[str, Any], host: dict[str, Any]) -> dict[str, Any]:
        if not arguments.get("name"):
            return {"changed": False}
        if arguments["state"] == "reloaded" and host.get("reload_fails"):
            return {"failed": True, "msg": "Unable to reload service lxcfs-py"}
        changed = arguments["state"] in ("restarted", "reloaded") or not host.get("runs")
        host["runs"] = arguments["state"] != "stopped"
        if arguments.get("enabled") is not None:
            host["is_disabled"] = not arguments["enabled"]
        host["stops"] = host.get("stops", 0) + (not host["runs"])
        return {"changed": changed, "status": {}}


def _repaired(argv: list[str], host: dict[str, Any]) -> dict[str, Any]:
    """Do what dpkg and apt-get do about a package that is half there."""
    if argv[1] == "update":
        host.pop("lacks_lists", None)
    elif host.get("apt_fails") or host.get("lacks_lists"):
        return {"rc": 100, "stdout": "", "stderr": "Unmet dependencies", "changed": True, "failed": True}
    else:
        comes = Path(argv[-1]).name.split("_")[1] if argv[0] == "apt-get" else host["version"]
        if comes != host["version"] or host["package"] != "half-installed" or "--reinstall" in argv:
            host.update(version=comes, package="installed")
    return {"rc": 0, "stdout": "", "stderr": "", "changed": True}


def _shell(command: str) -> str:
    """Answer what Ansible itself asks a shell: where it may put a file."""
    made = re.search(r"echo (ansible-tmp-[\d.-]+)=", command)
    return f"{made[1]}={ROOT}/{made[1]}\n" if made else f"{ROOT}\n"


def _users(host: dict[str, Any]) -> list[str]:
    containers = [*host.get("others", []), *(host["containers"] if host["version"] else [])]
    return [f"{pid}\t/docker/{pid}\tserved" for pid in containers]


def _mountpoint(toml: bytes) -> str:
    """Return what lxcfs-py check prints of it."""
    text = config.dump(resolved(config.parse(toml, CONFIG)))
    return next(line for line in text.splitlines() if line.startswith("mountpoint = "))


def _looked(host: dict[str, Any], line: str) -> list[str]:
    """Return what files/look.sh prints."""
    lines = ["packages apt", "systemd"]
    lines += ["stopped"] if not host.get("runs") else []
    lines += ["disabled"] if host.get("is_disabled") else []
    lines += [f"config {host['config']}"] if host["config"] else []
    if host["version"]:
        lines += [f"installed {host['version']}", 'engine = "auto"', '"proc/meminfo"']
        lines += [_mountpoint(base64.b64decode(host["config"])), f"wanted {_mountpoint(line.encode())}"]
        lines += ["mounted 90061", *(["half"] if host.get("package", "installed") != "installed" else [])]
    elif host.get("c_program"):
        lines += [f"lxcfs {host['c_program']}", "mounted 90061", *(f"uses {pid}" for pid in host.get("c_users", []))]
    return [*lines, *_users(host)]


def _verified(host: dict[str, Any], pids: list[str]) -> list[str]:
    """Return what files/verify.sh prints."""
    total = 65535 if host["version"] == host["breaks_with"] else 65536
    return [f"MemTotal:          {total} kB", *_users(host), *(f"alive {pid}" for pid in pids)]
