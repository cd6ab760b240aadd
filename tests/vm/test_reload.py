"""`systemctl reload`: synchronous, and it never takes anything away."""

from __future__ import annotations

from tests.vm.debian import configure, container, main_pid, mount

SUITES = ("bookworm", "trixie")


def test_a_reload_changes_the_cpu_mode_for_a_running_container(machine):
    process, mounted = main_pid(machine), mount(machine)
    with container(machine) as within:
        assert machine.run(f"{within} grep --count ^processor /proc/cpuinfo").stdout == "1\n"
        configure(machine, ('mode = "quota"', 'mode = "cpuset"'))
        machine.run("systemctl reload lxcfs-py")
        assert machine.run(f"{within} grep --count ^processor /proc/cpuinfo").stdout == "2\n"
    assert (main_pid(machine), mount(machine)) == (process, mounted)


def test_a_broken_file_makes_the_reload_fail_and_changes_nothing(machine):
    process = main_pid(machine)
    with container(machine) as within:
        configure(machine, ('mode = "quota"', 'mod = "cpuset"'))
        assert machine.run("systemctl reload lxcfs-py", check=False).returncode != 0
        error = 'unknown key "cpu.mod"; did you mean "cpu.mode"?'
        status = machine.run("systemctl status --no-pager --full lxcfs-py").stdout
        assert "Active: active (running)" in status
        status_line = next(line for line in status.splitlines() if "Status:" in line)
        assert error in status_line
        assert error in status.partition(status_line)[2], "the journal lacks it"
        reload = machine.run("lxcfs-py reload", check=False)
        assert (reload.returncode, error in reload.stderr) == (1, True)
        assert machine.run(f"{within} grep --count ^processor /proc/cpuinfo").stdout == "1\n"
    assert main_pid(machine) == process


def test_a_file_that_is_disabled_goes_and_shows_the_machines_figures_to_who_has_it(machine):
    with container(machine) as within:
        configure(machine, ('  "proc/meminfo",', ""))
        machine.run("systemctl reload lxcfs-py")
        assert machine.run("ls /var/lib/lxcfs/proc/meminfo", check=False).returncode == 2
        total = "grep MemTotal /proc/meminfo"
        assert machine.run(f"{within} {total}").stdout == machine.run(total).stdout
        machine.run("cp /root/lxcfs.toml /etc/ && systemctl reload lxcfs-py")
        assert machine.run(f"{within} {total}").stdout.split()[1] == str(256 << 10)
        machine.run("ls /var/lib/lxcfs/proc/meminfo")


def test_what_cannot_be_reloaded_is_said(machine):
    configure(machine, ("threads = 4", "threads = 3"))
    reload = machine.run("lxcfs-py reload")
    assert "fuse.threads" in reload.stderr
    assert "restarted" in reload.stderr
