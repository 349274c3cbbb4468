"""What goes into the guest: the working tree as git sees it, and a virtual environment for a python
elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.__main__ import TREE
from tests.guest.payload import link_tree, link_venv

# In the guest there is no git, and these tests have nothing to say about it.
pytestmark = pytest.mark.skipif(
    "IN_TEST_GUEST" in os.environ, reason="NOT RUN in the guest: it is about how a guest comes to be"
)


def git(tree: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words],
        cwd=tree,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    tree = tmp_path / "tree"
    (tree / "deep/er").mkdir(parents=True)
    for name in ("kept", "changed", "removed", "deep/er/name with space", "grün"):
        (tree / name).write_text("committed")
    (tree / ".gitignore").write_text("*.ignored\n")
    (tree / "link").symlink_to("nowhere")
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "first")
    (tree / "changed").write_text("not committed")
    (tree / "removed").unlink()
    (tree / "new").write_text("new")
    (tree / "left.ignored").write_text("")
    yield tree


def test_the_tree_is_what_git_sees_changes_and_new_files_included(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    link_tree(tree, target)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
    assert found == {".gitignore", "kept", "changed", "new", "deep/er/name with space", "grün", "link"}
    assert (target / "changed").read_text() == "not committed"
    assert os.readlink(target / "link") == "nowhere"


def test_the_environment_keeps_packages_and_scripts_and_has_the_guests_python(tmp_path: Path) -> None:
    if TREE.stat().st_dev != tmp_path.stat().st_dev:
        pytest.skip(
            "NOT RUN: the temporary folder is on another file system than the virtual environment, so that "
            "nothing can be linked there"
        )
    venv = tmp_path / "venv"
    link_venv(Path(sys.prefix), venv)
    assert os.readlink(venv / "bin/python3") == os.readlink(venv / "bin/python") == "/usr/bin/python3"
    interpreter = Path((venv / "bin/pytest").read_text().splitlines()[0].removeprefix("#!"))
    assert os.readlink(venv / interpreter.relative_to(sys.prefix)) == "/usr/bin/python3"
    assert (venv / "bin/python-grpc-tools-protoc").is_file()
    assert not [path for path in (venv / "bin").iterdir() if path.is_dir()]
    assert list((venv / "lib").glob("python*/site-packages/pytest/__init__.py"))
    assert "home = /usr/bin" in (venv / "pyvenv.cfg").read_text()
