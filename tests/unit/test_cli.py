"""The command line: what a user is told, whatever is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys

import pytest

from lxcfs_py import cli
from lxcfs_py.commands import checks, doctor, explain, status
from lxcfs_py.config import ConfigError
from lxcfs_py.errors import LxcfsError, report
from tests import wanted
from tests.conftest import ROOT


def lxcfs_py(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "lxcfs_py", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        **{"stdin": subprocess.DEVNULL, **options},
    )


def test_the_program_alone_lists_its_commands(capsys):
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n    {command} " in listed for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_a_command_says_what_it_does_and_has_an_example_and_fits_a_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    description = text.partition("\n\n")[2].partition("\n\n")[0]
    assert len(description) > 60
    assert not description.startswith("options:")
    assert re.search(rf"^  .*(lxcfs-py {command}\b|podman)", text.partition("examples:")[2], re.MULTILINE)
    assert max(map(len, text.partition("\n\n")[2].splitlines())) <= 80


@pytest.mark.parametrize("columns", ["1", "2", "3", "20"])
def test_help_is_had_in_the_narrowest_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--help"])
        assert ended.value.code == 0
    assert cli.main([]) == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", ""], "an empty path is no mountpoint"),
        (["run", "/"], "/ is the root directory: name a directory other than that"),
        (["run", "/tmp/../"], "/tmp/../ is the root directory"),
        (["run", "/proc"], "/proc is in /proc, where nothing may be covered: name a directory elsewhere"),
        (["try", "--mountpoint", "/run/lxcfs-py", "true"], "/run/lxcfs-py is in /run/lxcfs-py, where nothing may"),
        (["try", "--cpus", "-1", "true"], "'-1' is no number of CPUs: give one from 0.01"),
        (["try", "--cpus", "0.009", "true"], "'0.009' is no number of CPUs: give one from 0.01 to 8192"),
        (["try", "--cpus", "nan", "true"], "'nan' is no number of CPUs"),
        (["try", "--cpus", "1e305", "true"], "'1e305' is no number of CPUs: give one from 0.01 to 8192"),
        (["try", "--memory", "lots", "true"], "'lots' is no size"),
        (["try", "--memory", "9" * 310, "true"], "9' is no size"),
        (["try", "--memory", "9" * 305 + "T", "true"], "9T' is no size"),
        (["try", "--memory", "8388608T", "true"], "'8388608T' is no size"),
        (["try", "--memory", "\u0663M", "true"], "is no size"),
        (["try", "--memory", "1\u212a", "true"], "is no size"),  # the sign for kelvin
        (["try", "--cpus", "\u0663", "true"], "is no number of CPUs"),
        (["try", "--cpuset", "\u0663", "true"], "is no list of CPUs"),
        (["show", "meminfo", "--pid", "\u0663"], "is no process id"),
        (["run", "/" + "a" * 256], "... is no path: allowed are up to 4095 bytes, 255 for each name in it"),
        (["webhook", "--self-signed", ""], "'' is no name of a Service"),
        (["check", ""], "an empty path is no configuration: name a file"),
        (["status", "--config", ""], "an empty path is no configuration"),
        (["reload", "--config", ""], "an empty path is no configuration"),
        (["try", "--cpuset", "", "true"], "'' is no list of CPUs: give one such as 0 or 0-3,8"),
        (["try", "--cpuset", "-1", "true"], "--cpuset: "),
        (["try", "--cpuset", "a-b", "true"], "'a-b' is no list of CPUs"),
        (["try", "--cpus", "1"], "the following arguments are required: COMMAND"),
        (["show", "meminfo", "--pid", "0"], "'0' is no process id"),
        (["attach", "--pid", "-5"], "'-5' is no process id"),
        (["stauts"], "invalid choice: 'stauts'"),
        (["run", "--stay"], "error: --stay requires --keep"),
        (["status", "--here"], "error: --here requires --probe"),
        (
            ["mounts", "systemd", "--syscalls"],
            "systemd does not take the seccomp profile; allowed with --syscalls: docker,",
        ),
        (["mounts", "docker", "--for-version", "x"], '--for-version: "x" is no version; allowed: numbers with dots'),
        (["attach", "--pid", "1", "--file", "memory"], "there is no file 'memory'; there is: proc/cpuinfo, "),
        (["detach", "--pid", "1", "--file", ""], "there is no file ''; there is: proc/cpuinfo, "),
        (["show", "meminfo", "--cgroup", ""], "an empty path is no cgroup: its path is as /proc/PID/cgroup has it"),
        (["seccomp", "--base", ""], "--base: an empty path is no profile: name a file"),
        (["webhook", "--certificate", "", ""], "an empty path is no certificate or key: name a file"),
        (
            ["webhook", "--self-signed", "a", "--listen", "x"],
            "--listen: nothing can listen at 'x'; allowed: :PORT, HOST",
        ),
        (["try", "--memory", "99999999999999999999G", "true"], "such as 256M or 1.5G, below 8388608T"),
        (["try", "--cpuset", "0-999999999999", "true"], "give one such as 0 or 0-3,8, with CPUs up to 65535"),
    ],
    ids=" ".join,
)
def test_a_value_that_means_nothing_is_refused_with_what_is_allowed(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "usage", "said"),
    [
        (["users", "x"], "lxcfs-py users [-h]", "lxcfs-py users: error: unrecognized arguments: x"),
        (["top", "--interval", "0"], "lxcfs-py top [-h]", "lxcfs-py top: error: unrecognized arguments: --interval 0"),
        (["top", "--sort", "x"], "lxcfs-py top [-h]", "lxcfs-py top: error: argument --sort: invalid choice: 'x'"),
        (["--odd", "users"], "lxcfs-py users [-h]", "lxcfs-py users: error: unrecognized arguments: --odd"),
        (["--odd"], "lxcfs-py [-h]", "lxcfs-py: error: unrecognized arguments: --odd"),
    ],
    ids=" ".join,
)
def test_the_command_that_refuses_an_argument_says_how_it_is_called(arguments, usage, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: {usage}")
    assert f"\n{said}" in told


def test_check_takes_its_file_by_the_option_of_the_other_commands_too(tmp_path, capsys):
    file = tmp_path / "lxcfs.toml"
    file.write_text('[cpu]\nmode = "cpuset"\n')
    assert cli.main(["check", "--config", str(file)]) == 0
    by_option = capsys.readouterr().out
    assert 'mode = "cpuset"' in by_option
    assert cli.main(["check", str(file)]) == 0
    assert capsys.readouterr().out == by_option
    with pytest.raises(SystemExit):
        cli.main(["check", str(file), "--config", "/dev/null"])
    assert "not allowed with argument FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "run"),
    [
        (["--cpus", "1", "nproc", "--all"], ["nproc", "--all"]),
        (["--cpus", "1", "--", "nproc", "--all"], ["nproc", "--all"]),
        (["nproc", "--cpus", "1", "-h"], ["nproc", "--cpus", "1", "-h"]),
        (["--", "--odd", "x"], ["--odd", "x"]),
        (["sh", "-c", "exit", "--", "x"], ["sh", "-c", "exit", "--", "x"]),
    ],
    ids=" ".join,
)
def test_what_follows_the_program_of_try_belongs_to_it(given, run, monkeypatch):
    called = []
    monkeypatch.setattr("lxcfs_py.commands.try_command.served_mountpoint", lambda options: "/srv/views")
    monkeypatch.setattr("lxcfs_py.runtimes.foreground.run_command", lambda command, box: called.append(command) or 0)
    assert cli.main(["try", "--config", "/dev/null", *given]) == 0
    assert called == [run]


def test_no_rate_is_negative_where_the_daemon_has_started_anew_between_two_looks(monkeypatch):
    def answer(clock, reads, share):
        served = {"requests": share, "seconds": share / 1000, "waited": share / 100}
        containers = [{"pid": 7, "reads": reads}]
        return {"clock": clock, "containers": containers, "reads": {"meminfo": reads}, "shares": {"/a": served}}

    answers = [answer(1.0, 1000, 500), {**answer(2.0, 3, 2), "degraded": []}]
    monkeypatch.setattr(status.daemon, "ask", lambda place: answers.pop(0))
    monkeypatch.setattr(status, "_BETWEEN_LOOKS", 0)
    found = status.look("/var/lib/lxcfs")
    assert found.rates == {7: 3.0, 0: 3.0}
    assert found.shares == {"/a": (0.002, 0.01)}


def test_check_takes_a_configuration_from_a_pipe_at_its_standard_input_alone(tmp_path, monkeypatch, capsys):
    def check(text):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return cli.main(["check", "/dev/stdin"]), capsys.readouterr()

    code, told = check('[cpu]\nmode = "cpuset"\n')
    assert (code, 'mode = "cpuset"' in told.out) == (0, True)
    code, told = check('[cpu]\nmode = "x"\n')
    assert (code, told.err.startswith('/dev/stdin:2: cpu.mode is "x"')) == (1, True)
    with open("/dev/zero", "rb") as without_end:
        done = lxcfs_py("check", "/dev/stdin", stdin=without_end)
    assert (done.returncode, done.stderr) == (1, "/dev/stdin: has more than 128 KiB; allowed: up to that\n")
    os.mkfifo(tmp_path / "fifo")
    done = lxcfs_py("check", str(tmp_path / "fifo"))
    assert (done.returncode, done.stderr) == (1, f"{tmp_path}/fifo: cannot be read: it is no regular file\n")


@pytest.mark.parametrize(
    "arguments", [["check", "/dev/null"], ["mounts", "systemd"], ["show", "uptime"], ["--help"], []]
)
def test_a_full_disk_is_one_sentence(arguments):
    with open("/dev/full", "w") as full:
        done = lxcfs_py(*arguments, stdout=full)
    said = "lxcfs-py: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_what_the_locale_has_no_letter_for_is_a_question_mark(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("lxcfs_py.commands.check._check", lambda options: print("\N{LOWER ONE EIGHTH BLOCK}|x"))
    for encoding, said in (("latin-1", b"?|x\n"), ("utf-8", "\N{LOWER ONE EIGHTH BLOCK}|x\n".encode())):
        with open(tmp_path / "out", "w", encoding=encoding) as out, monkeypatch.context() as patched:
            patched.setattr("sys.stdout", out)
            with contextlib.suppress(TypeError):  # a code is of int
                cli.main(["check"])
        assert (tmp_path / "out").read_bytes() == said


@pytest.mark.parametrize("arguments", [["check", "/dev/null"], ["show", "uptime"], ["--help"]])
def test_a_reader_that_has_seen_enough_is_told_nothing(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = lxcfs_py(*arguments, stdout=writer)
    os.close(writer)
    assert done.stderr == ""


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_reason_to_fail(closed):
    command = f'exec "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "lxcfs_py", "show", "uptime"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_is_one_sentence_and_a_hint(capsys):
    report(LxcfsError("nothing is mounted at /x", "start the daemon"))
    assert capsys.readouterr().err == "lxcfs-py: nothing is mounted at /x\n  start the daemon\n"
    report(LxcfsError("nothing is mounted", "start it: lxcfs-py run /a\nb"))
    assert capsys.readouterr().err == "lxcfs-py: nothing is mounted\n  start it: lxcfs-py run /a\\nb\n"
    report(ConfigError(["/etc/a\nb.toml: cannot be read", "/etc/a\nb.toml: nor that"]))
    assert capsys.readouterr().err == "/etc/a\\nb.toml: cannot be read\n/etc/a\\nb.toml: nor that\n"
    report(LxcfsError('"web" is more than one container: lxc:\033]0;x\a\nweb'))
    assert capsys.readouterr().err == 'lxcfs-py: "web" is more than one container: lxc:\\x1b]0;x\\x07\\nweb\n'


STRANGE, ESCAPED = "/srv/a\n\033[2Jb", "/srv/a\\n\\x1b[2Jb"


@pytest.mark.parametrize("trouble", ["", f"{STRANGE} is covered"])
def test_the_probe_names_a_mountpoint_on_one_line(trouble, capsys, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(status.daemon, "ask", lambda place: {"trouble": trouble, "pid": 7})
    assert cli.main(["status", "--probe", "--mountpoint", STRANGE]) == (1 if trouble else 0)
    assert capsys.readouterr().out == (f"{ESCAPED} is covered\n" if trouble else f"serving at {ESCAPED}\n")


def test_status_names_a_mountpoint_on_one_line():
    reason = LxcfsError(f"no daemon runs for {STRANGE}", f"start it: lxcfs-py run {STRANGE}")
    told = list(status._lines(status.Daemon("not running", {}, {}, {}, reason), []))
    assert told[:2] == [f"not running: no daemon runs for {ESCAPED}", f"  start it: lxcfs-py run {ESCAPED}"]


def test_doctor_and_explain_have_nothing_for_the_terminal_to_heed():
    shown = doctor._shown(checks.Finding("daemon", checks.PROBLEM, f"none for {STRANGE}", f"run {STRANGE}"))
    assert shown.split("\n") == [f"problem  daemon: none for {ESCAPED}", f"         -> run {ESCAPED}"]
    assert explain._filled(STRANGE) == ESCAPED


def test_what_cannot_be_a_mountpoint_is_refused_on_one_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "/proc/a\nb"])
    assert "/proc/a\\nb is in /proc, " in capsys.readouterr().err


def test_what_a_reload_says_is_a_line_each(capsys, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("lxcfs_py.daemon.control.reload", lambda path: ([], [f"{STRANGE} stays", "and so on"]))
    assert cli.main(["reload"]) == 0
    assert capsys.readouterr() == ("/etc/lxcfs.toml was reloaded\n", f"{ESCAPED} stays\nand so on\n")


def test_an_error_nobody_thought_of_is_one_line_that_names_where_it_came_from(capsys, monkeypatch):
    def broken(options):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("lxcfs_py.commands.check._check", broken)
    assert cli.main(["check"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("lxcfs-py: this is a bug, please report it: ZeroDivisionError: division by zero (cli.py:")
    assert said.count("\n") == 1


def test_every_error_of_the_package_is_one_for_users():
    """All that is raised to say why something cannot be done derives from one class, and so is told in one way."""
    found = subprocess.run(
        ["grep", "-rnE", r"^class \w+Error\((Exception|RuntimeError|ValueError|OSError)\)", "lxcfs_py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
    ).stdout
    assert [line for line in found.splitlines() if "/errors.py:" not in line] == []


def test_a_profile_to_start_from_is_a_file_with_an_end(tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "large", "wb") as large:
        large.truncate((1 << 20) + 1)
    for base, said in (
        (tmp_path / "fifo", "cannot be read: it is no regular file"),
        ("/dev/zero", "cannot be read: it is no regular file"),
        (tmp_path / "large", "has more than 1048576 letters"),
    ):
        assert cli.main(["seccomp", "--config", "/dev/null", "--base", str(base)]) == 1
        assert capsys.readouterr().err == f"lxcfs-py: {base} {said}; --base names the profile to start from\n"


def test_what_is_in_the_way_of_a_directory_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    base = ["--config", "/dev/null", "--base", str(ROOT / "packaging/seccomp/containers.json")]
    assert cli.main(["seccomp", *base, "--output", f"{tmp_path}/file/x/profile.json"]) == 1
    said = f"{tmp_path}/file/x/profile.json cannot be written: {tmp_path}/file is not a directory"
    assert capsys.readouterr().err == f"lxcfs-py: {said}\n"


@pytest.mark.parametrize(
    "module",
    [
        *("tests.soak", "tests.serviced", "tests.hostile", "tests.hostile.soak", "tests.hostile.costs", "tests.fuzz"),
        *("tools.generate", "tools.covered", "tools.picture", "bench"),
    ],
)
def test_the_programs_beside_the_package_say_how_they_are_called(module):
    for arguments, code in (("--help", 0), ("--nope", 2)):
        done = subprocess.run([sys.executable, "-m", module, arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == code, done.stderr
        assert (done.stdout + done.stderr).startswith("usage: ")


def test_scenarios_are_taken_by_name_with_numbers(capsys):
    known = ("kills", "calls")
    assert wanted.scenarios("", known, []) == [("kills", []), ("calls", [])]
    assert wanted.scenarios("", known, ["calls=4+2", "kills"]) == [("calls", [4, 2]), ("kills", [])]
    for wrong in ("kill", "kills=x"):
        with pytest.raises(SystemExit):
            wanted.scenarios("", known, [wrong])
        assert f"{wrong!r} is no scenario; there is: kills, calls" in capsys.readouterr().err


@pytest.mark.parametrize("nothing", ["", ":", ":MemTotal", "/"], ids=ascii)
def test_explain_has_no_suggestion_where_no_file_is_named(nothing, capsys, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert cli.main(["explain", nothing, "--pid", "1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"lxcfs-py: {nothing!r} names no file to explain\n  there is: proc/cpuinfo, ")


def test_check_says_what_comes_of_a_policy_that_enables_what_is_not_enabled_for_all(tmp_path, capsys):
    file = tmp_path / "lxcfs.toml"
    file.write_text(
        "files.enabled = ['proc/meminfo']\n[[policy]]\nlabel = 'a'\nfiles.enabled = ['proc/meminfo']\n"
        "[[policy]]\nlabel = 'b'\nfiles.enabled = ['proc/stat', 'proc/meminfo', 'proc/uptime']\n"
    )
    assert cli.main(["check", str(file)]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "policy" in line] == [
        "lxcfs-py: policy 2 enables what files.enabled does not: proc/stat, proc/uptime; its containers see their own "
        "figures there, but have to mount them by themselves"
    ]


def test_a_seccomp_profile_is_printed_or_written(tmp_path, capsys):
    base, written = ROOT / "packaging/seccomp/containers.json", tmp_path / "profile.json"
    assert cli.main(["seccomp", "--config", "/dev/null", "--base", str(base)]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["syscalls"][-1]["action"] == "SCMP_ACT_NOTIFY"
    assert cli.main(["seccomp", "--config", "/dev/null", "--base", str(base), "--output", str(written)]) == 0
    assert written.read_text() == printed
    assert cli.main(["seccomp", "--config", "/dev/null", "--base", str(base), "--output", "/proc/nowhere"]) == 1
    assert capsys.readouterr().err == "lxcfs-py: /proc/nowhere cannot be written: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["stauts"], "status"), (["mounts", "dokcer"], "docker"), (["top", "--sort", "mem"], "memory")],
)
def test_what_was_misspelt_is_answered_with_what_was_meant(arguments, meant, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert capsys.readouterr().err.endswith(f"; did you mean {meant}?\n")
