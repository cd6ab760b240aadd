"""docs/adding-a-file.md holds: who follows it in a copy of the tree has a new file, and all unit tests pass."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/adding-a-file.md").read_text()


def copy_of_the_tree(directory: Path) -> Path:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout
    copy = ["tar", "--create", "--null", "--files-from=-", "--ignore-failed-read"]
    archive = subprocess.run(copy, cwd=ROOT, input=files, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "--extract", "--directory", directory], input=archive, check=True)
    return directory


def run(tree: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_who_follows_the_page_has_a_new_file_and_all_unit_tests_pass(tmp_path):
    tree = copy_of_the_tree(tmp_path)
    view, line, row = re.findall(r"```(?:python|text)\n(.*?)```", PAGE, re.DOTALL)
    (tree / "lxcfs_py/views/version.py").write_text(view)
    table = tree / "lxcfs_py/files.py"
    above = re.search(r'^ *File\("proc/uptime".*\n', table.read_text(), re.MULTILINE)
    assert above
    table.write_text(table.read_text().replace(above[0], above[0] + line))

    with (tree / "docs/views.md").open("a") as page:
        page.write(row)

    written = run(tree, "-m", "tools.generate")
    for file in ("etc/lxcfs.toml", "docs/man/lxcfs.toml.5", "README.md", "docs/architecture.md"):
        assert f"wrote {file}\n" in written
        assert "version" in (tree / file).read_text()
    run(tree, "-m", "tools.generate", "--check")
    assert run(tree, "-m", "lxcfs_py", "show", "version").startswith("Linux version ")
    assert "-v /var/lib/lxcfs/proc/version" not in run(tree, "-m", "lxcfs_py", "mounts", "docker")
    assert "proc/version" in run(tree, "-m", "lxcfs_py", "mounts", "lxc")
    run(tree, "-m", "pytest", "-q", "tests/unit", "-n", "2", "-p", "no:cacheprovider", "-m", "not slow")
