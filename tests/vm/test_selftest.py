"""One container under one load is asked everything in every way, on the kernels and the systemd that Debian has."""

from __future__ import annotations

SUITES = ("bookworm", "trixie", "forky")


def test_all_ways_to_ask_agree(machine):
    printed = machine.run("lxcfs-py selftest", check=False, timeout=300).stdout
    print(printed)
    assert "differs" not in printed
    assert printed.count("agrees ") >= 20


def test_the_c_program_is_asked_the_same(machine):
    """What it answers is docs/views.md's to say; here, only that each question is asked of it and judged."""
    archives = "/var/cache/apt/archives/lxcfs_*.deb /var/cache/apt/archives/libfuse3*.deb"
    machine.run(f"mkdir -p /root/c /var/lib/lxcfs-c; for deb in $(ls {archives}); do dpkg -x $deb /root/c; done")
    libraries = (
        r"find /root/c \( -name 'liblxcfs.so' -o -name 'libfuse3.so.*' \) -printf '%h\n' | sort -u | paste -sd :"
    )
    library = machine.run(libraries).stdout.strip()
    options = "--enable-loadavg --enable-cfs --enable-pidfd"
    machine.run(
        f"LD_LIBRARY_PATH={library} setsid /root/c/usr/bin/lxcfs {options} /var/lib/lxcfs-c >/root/c.log 2>&1 &"
    )
    try:
        machine.run("timeout 30 sh -c 'until mountpoint -q /var/lib/lxcfs-c; do sleep 0.2; done'")
        printed = machine.run("lxcfs-py selftest --mountpoint /var/lib/lxcfs-c", check=False, timeout=300).stdout
    finally:
        machine.run("umount --lazy /var/lib/lxcfs-c; rm -r /root/c", check=False)
    print(machine.run("cat /root/c.log", check=False).stdout, printed)
    assert printed.count("agrees ") + printed.count("differs ") >= 20
