"""A container that reads all the time lives through whatever happens to the daemon."""

import signal
import subprocess
import time

from tests.conftest import ROOT
from tests.docker.conftest import ARTICLE, mounts
from tests.kept import Kept

READ = """
    while [ ! -e /tmp/stop ]; do
        head -n 1 /proc/meminfo && grep -c processor /proc/cpuinfo || echo bad
        free -b >/dev/null && uptime >/dev/null || echo worse
    done 2>&1 | sort | uniq -c
"""


def test_a_container_sees_no_error_while_the_daemon_dies_is_replaced_and_stands_still(docker, start_daemon):
    kept = Kept(start_daemon("kernel"))
    options = ["-m", "256m", "--cpus", "1", *mounts(kept.daemon.mountpoint, ARTICLE)]
    container = docker("run", "--detach", "--network", "none", *options, docker.image, "sh", "-c", READ).strip()
    try:
        for _ in range(10):
            time.sleep(0.3)
            kept.kill()
            kept.start()
        kept.wait_until_it_serves()
        for _ in range(5):
            before = kept.server
            with kept.daemon.log.open("wb") as log:
                kept.server = kept.daemon.process = subprocess.Popen(before.args, cwd=ROOT, stderr=log)
            assert before.wait(60) == 0
            kept.wait_until_it_serves()
            kept.server.send_signal(signal.SIGSTOP)
            time.sleep(0.2)
            kept.server.send_signal(signal.SIGCONT)
        docker.attempt("exec", container, "touch", "/tmp/stop")  # killed where the container was quicker to end
        docker("wait", container)
        seen = [line.split(None, 1)[1] for line in docker("logs", container).splitlines()]
        reads = [int(line.split()[0]) for line in docker("logs", container).splitlines()]
    finally:
        docker("rm", "--force", container)
        kept.close()
    assert sorted(seen) == ["1", "MemTotal:         262144 kB"]
    assert min(reads) > 20
