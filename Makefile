# Every target works on a fresh Debian 12 or later, as root, and installs what it needs.

# The Debian packages that targets need. Debian 13 renamed libfuse2 and took the client out of docker.io; Debian 14,
# which has no number before its release, has only libfuse 3.
DEBIAN := $(shell . /etc/os-release && echo $$VERSION_CODENAME)
DOCKER := docker.io docker-cli
EMULATION := qemu-user qemu-user-binfmt
ifeq ($(DEBIAN),bookworm)
LIBFUSE := libfuse2
DOCKER := docker.io
EMULATION := qemu-user-static binfmt-support
else ifeq ($(DEBIAN),trixie)
LIBFUSE := libfuse2t64
else
LIBFUSE := libfuse3-4
endif

# fuse3/fuse: either will do, and where neither is there the first is installed.
RUN := python3 python3-venv kmod fuse3/fuse $(LIBFUSE)
TEST_FAST := $(RUN) procps util-linux-extra sysstat tmux busybox-static
DEB := git build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools
RPM := git rpm rpmlint
REPO := $(DEB) $(RPM) apt-utils createrepo-c gpg gpg-agent
# A cross compiler's ARCH in the environment is not meant for the image.
ifneq ($(origin ARCH),command line)
override ARCH :=
endif
# The maintainer scripts of another architecture's packages are run, too.
IMAGE := $(DEB) mmdebstrap $(if $(ARCH),$(if $(filter-out $(shell dpkg --print-architecture),$(ARCH)),arch-test $(EMULATION)))
TEST := $(TEST_FAST) $(DOCKER) lxc lxcfs musl-tools mmdebstrap qemu-system-x86 qemu-utils e2fsprogs openssh-client $(DEB) lintian man-db $(REPO) \
	kubernetes-client/kubectl zsh fish prometheus
SOAK := $(TEST_FAST) systemd
BENCH := $(RUN) lxcfs gcc libc6-dev pkgconf/pkg-config libfuse3-dev

# Tests that need neither Docker nor virtual machines. Some take all daemons and containers of this machine for their own:
# every daemon finds the containerd of NRI's tests, a pod asks which mounts its node's containers have, and a disk that
# comes is in the middle of all texts of disks.
ALONE := tests/kubernetes/test_nri.py tests/fuse/test_pods.py tests/fuse/test_held_pods.py tests/fuse/test_disks.py tests/consistency
FAST := tests/unit tests/fuzz tests/fuse tests/kubernetes $(ALONE:%=--ignore %)
# Workers, none of which sees the daemons and the containers of another.
APART = --dist loadgroup --tx "$(WORKERS)*popen//python=tests/apart .venv/bin/python"
WORKERS := 2

# $(call tests,WAY,SELECTION,UNDER): what fails beside others is tried once more, since a machine may be busy just then.
# Both are shown, and what fails again fails.
tests = $(3) $(PYTHON) $(COVERAGE) -m pytest $(1) $(2) || \
	$(3) $(PYTHON) $(COVERAGE) -m pytest $(1) --last-failed --last-failed-no-failures none $(2)

PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip --quiet --disable-pip-version-check --no-input install --root-user-action=ignore

.DEFAULT_GOAL := help
.PHONY: help run test test-vm test-fast covered vm-images lint generate demo picture soak hostile fuzz bench clean apt-run apt-test-fast apt-test apt-soak apt-bench deb apt-deb image apt-image rpm apt-rpm repo apt-repo wheel release-check

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

run: .venv/.installed ## the daemon in the foreground, with etc/lxcfs.toml; Ctrl-C ends it
	.venv/bin/lxcfs-py run --config etc/lxcfs.toml

test: lint apt-test ## lint and the tests, with Docker and one virtual machine, and what they cover; test-vm has the other machines
	$(MAKE) --no-print-directory -j 2 covered vm-images
	$(call tests,$(APART),-m slow $(FAST))
	$(call tests,,tests/hostile)
	$(call tests,-n 2 --dist loadgroup,tests/docker tests/programs tests/ansible tests/vm/test_podman.py)

test-vm: .venv/.installed apt-test ## all tests in virtual machines: the service and the packages on Debian 12, 13 and 14
	$(PYTHON) -m pytest -n 2 --dist loadgroup tests/vm

test-fast: WORKERS := 3 # much of it waits
test-fast: lint apt-test-fast ## lint and the tests that need neither
	$(PYTHON) -m pytest $(APART) -m "not slow" $(FAST)

# Processes of ordinary users say what they have run, too.
covered: COVERAGE := -m coverage run
covered: .venv/.installed apt-test ## the tests of test-fast and those of pods, and how much of the package they run
	rm -rf .covered && mkdir -m 1777 .covered
	$(call tests,$(APART),-m "not slow" $(FAST))
	for tests in $(ALONE); do $(call tests,,$$tests,tests/apart) || exit; done
	$(PYTHON) -m coverage combine --quiet
	$(PYTHON) -m tools.covered

vm-images: .venv/.installed apt-test ## the images that make test starts from, in ~/.cache/lxcfs-py
	$(PYTHON) -m tests.vm.images

lint: .venv/.installed ## ruff, mypy, vermin for Python 3.9, the contract of imports, and what is generated
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/vermin --quiet --target=3.9- --no-tips --violations lxcfs_py tests bench tools
	.venv/bin/lint-imports --no-logo
	$(PYTHON) -m tools.generate --check

generate: .venv/.installed ## the parts of documents and examples that are made from the code
	$(PYTHON) -m tools.generate

demo: .venv/.installed apt-test-fast ## what a container sees with and without the views
	./demo

picture: .venv/.installed apt-test-fast ## docs/top.svg, the picture in the README
	$(PYTHON) -m tools.picture

soak: .venv/.installed apt-soak ## servers that end in every way, for hours: what readers see, as tables
	tests/apart $(PYTHON) -m tests.soak
	$(PYTHON) -m tests.serviced

hostile: .venv/.installed apt-test ## attacks from containers, beside the C program's: a table; and an hour of all of them at once
	$(PYTHON) -m tests.hostile
	$(PYTHON) -m tests.hostile.soak

fuzz: .venv/.installed ## an hour of inputs that nobody would send, for all that takes bytes from outside; SECONDS=… for less
	$(PYTHON) -m tests.fuzz $(SECONDS)

bench: .venv/.installed apt-bench ## side by side with the C program lxcfs
	$(PYTHON) -m bench

deb: apt-deb ## the Debian package, in dist/
	packaging/deb/build dist

image: apt-image ## the container image for Kubernetes and its bill of materials, in dist/, of ARCH=amd64 or arm64
	packaging/image/build dist $(ARCH)

rpm: .venv/.installed apt-rpm ## the rpm for RHEL 9 and its kin and for Fedora, in dist/
	PYTHON=$(abspath $(PYTHON)) packaging/rpm/build dist

wheel: .venv/.installed ## sdist and wheel, in dist/
	PYTHON=$(abspath $(PYTHON)) packaging/pypi/build dist

repo: apt-repo ## repositories for apt and dnf in dist/repo/, signed with KEY=FINGERPRINT
	@test -n "$(KEY)" || { echo "make repo: which key signs? make repo KEY=FINGERPRINT, of gpg --list-secret-keys" >&2; exit 1; }
	$(MAKE) deb rpm
	packaging/repo/build dist "$(KEY)"

release-check: .venv/.installed apt-repo ## builds the last commit's packages twice, which must give the same bytes
	PYTHON=$(abspath $(PYTHON)) packaging/release-check

clean: ## removes all that the targets made here
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .covered build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# The environment that every target runs in: Debian's Python, with exactly the packages of requirements.txt.
.venv/.installed: requirements.txt pyproject.toml | apt-run
	/usr/bin/python3 -m venv .venv
	$(PIP) --requirement requirements.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

apt-run: PACKAGES := $(RUN)
apt-test-fast: PACKAGES := $(TEST_FAST)
apt-test: PACKAGES := $(TEST)
apt-deb: PACKAGES := $(DEB)
apt-image: PACKAGES := $(IMAGE)
apt-rpm: PACKAGES := $(RPM)
apt-repo: PACKAGES := $(REPO)
apt-soak: PACKAGES := $(SOAK)
apt-bench: PACKAGES := $(BENCH)

# apt-get runs only where a package is missing, so that a machine that has them all starts at once.
apt-run apt-test-fast apt-test apt-soak apt-bench apt-deb apt-image apt-rpm apt-repo:
	@missing=; for package in $(PACKAGES); do \
	  dpkg-query --show --showformat='$${db:Status-Status}\n' $$(echo $$package | tr / ' ') 2>/dev/null \
	    | grep -qx installed || missing="$$missing $${package%%/*}"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "apt-get install$$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get -qq -o DPkg::Lock::Timeout=300 update && \
	  apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --no-install-recommends $$missing >/dev/null; \
	fi
