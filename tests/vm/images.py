"""`python -m tests.vm.images`: build the images that tests boot and run, those that are not in the cache yet.

It is done while other tests run, which need none. Without it each is built by the first test that needs it.
"""

from __future__ import annotations

from tests.docker import conftest as docker
from tests.programs import conftest as programs
from tests.vm import debian, machine, test_podman, test_rpm


def main() -> None:
    """Build one after the other: another processor is for the tests."""
    for bootstrap in (docker.BOOTSTRAP, programs.BOOTSTRAP):
        docker.image(machine.cache_directory().parent, bootstrap)
    for suite in debian.SUITES:
        machine.image(suite, **debian.image_of(suite))
    for module in (test_podman, test_rpm):
        machine.image(module.SUITE, module.PACKAGES)


if __name__ == "__main__":
    main()
