"""`python -m tests.vm.images`: build the images of `make test` that are not in the cache yet.

It is done while tests run that need none. All others are built by the first test that needs them.
"""

from __future__ import annotations

from tests import cached
from tests.docker import conftest as docker
from tests.programs import conftest as programs
from tests.vm import machine, test_podman


def main() -> None:
    """Build one after the other: another processor is for the tests."""
    for bootstrap in (docker.BOOTSTRAP, programs.BOOTSTRAP):
        docker.image(cached.directory(), bootstrap)
    machine.image(test_podman.SUITE, test_podman.PACKAGES)


if __name__ == "__main__":
    main()
