"""What the packages are made of."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STATUS = "Package: libc6\nStatus: install ok installed\nVersion: 2.41\nArchitecture: amd64\nSource: glibc\n"


@pytest.mark.parametrize(
    ("number", "distribution"), [('VERSION_ID="13"\n', "debian-13"), ("", "debian-forky")], ids=["13", "before 14"]
)
def test_the_bill_of_materials_names_the_distribution(tmp_path, number, distribution):
    files = {
        "./usr/lib/os-release": f"ID=debian\nVERSION_CODENAME=forky\n{number}",
        "./var/lib/dpkg/status": STATUS,
    }
    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    command = [sys.executable, ROOT / "packaging/image/sbom", tmp_path / "root.tar", "lxcfs-py", "1"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
    (component,) = json.loads(subprocess.check_output(command, env=environment, timeout=60))["components"]
    assert f"distro={distribution}&" in component["purl"]


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_an_image_says_of_which_architecture_it_is(tmp_path, architecture):
    with tarfile.open(tmp_path / "root.tar", "w"):
        pass
    command = [sys.executable, ROOT / "packaging/image/archive", tmp_path / "root.tar", "lxcfs-py:1", architecture]
    written = subprocess.check_output(command, env={**os.environ, "SOURCE_DATE_EPOCH": "0"}, timeout=60)
    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))
        assert json.load(archive.extractfile(manifest["Config"]))["architecture"] == architecture


def test_an_emulator_is_installed_for_another_architectures_image_alone(require):
    require(shutil.which("make") and shutil.which("dpkg"), "make and dpkg")
    native = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
    for architecture in ("", "amd64", "arm64"):
        command = ["make", "--dry-run", "image", *([f"ARCH={architecture}"] if architecture else [])]
        said = subprocess.check_output(command, cwd=ROOT, text=True, timeout=60)
        assert f"packaging/image/build dist {architecture}\n" in said
        assert ("qemu-user" in said) == (architecture not in ("", native)), architecture


def test_an_image_whose_programs_do_not_run_here_is_refused_before_anything_is_built(require, tmp_path):
    require(shutil.which("dpkg"), "dpkg")
    (tmp_path / "arch-test").write_text("#!/bin/sh\necho $1: not supported on this machine/kernel\nexit 1\n")
    (tmp_path / "arch-test").chmod(0o755)
    command = [ROOT / "packaging/image/build", tmp_path / "dist", "sh4"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "image: this machine does not run programs of sh4: docs/kubernetes.md, Install, has what it takes\n"
    )
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("options", [(), ("--environment-overrides",)])
def test_an_architecture_in_the_environment_is_not_the_images(require, options):
    require(shutil.which("make"), "make")
    environment = {**os.environ, "ARCH": "mips"}
    command = ["make", *options, "--dry-run", "image"]
    said = subprocess.check_output(command, cwd=ROOT, env=environment, text=True, timeout=60)
    assert "packaging/image/build dist \n" in said


def packed() -> set[str]:
    """The directories that packaging/pypi/build copies."""
    text = (ROOT / "packaging/pypi/build").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^files (.*) \$DOCUMENTS", text, re.MULTILINE)
    return set(line.split())


def test_the_sdist_has_every_directory_from_which_something_is_made():
    there = {path.parent.name for path in ROOT.glob("[a-z]*/*") if path.parent.name not in ("build", "dist")}
    there -= {name for name in there if name.endswith(".egg-info")} | {"docs"}
    assert there <= packed()
    assert there - {"lxcfs_py"} <= set(re.findall("^graft (.+)$", (ROOT / "MANIFEST.in").read_text(), re.MULTILINE))


LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def test_what_the_installed_documents_link_to_is_installed_beside_them():
    text = (ROOT / "packaging/tree").read_text()
    installed = [ROOT / name for name in re.findall(r'^DOCUMENTS="(.+)"$', text, re.MULTILINE)[0].split()]
    pages = [page for path in installed for page in (path.rglob("*.md") if path.is_dir() else [path])]
    assert len(pages) > 10
    for page in pages:
        for link in LINK.findall(page.read_text()):
            target = (page.parent / link).resolve()
            assert target.exists(), f"{page}: {link}"
            assert any(target == path or path in target.parents for path in installed), f"{page}: {link}"


def test_what_the_manual_names_beside_the_documents_is_installed_there():
    text = (ROOT / "packaging/tree").read_text()
    named = {
        name.rstrip("/")
        for page in (ROOT / "docs/man").iterdir()
        for name in re.findall(r"/usr/share/doc/lxcfs-py/([\w/]+)", page.read_text())
    }
    assert named == {"packaging/monitoring"}
    assert named <= set(re.findall(r'^DOCUMENTS="(.+)"$', text, re.MULTILINE)[0].split())
