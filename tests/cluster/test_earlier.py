"""Which checkout a cluster is upgraded from; needs no cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.earlier import earlier

NAMES = ("csi/code.py", "deploy/Dockerfile", "deploy/chart/Chart.yaml", "LICENSE")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout in small, without git."""
    for name in NAMES:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text("first\n")
    (tmp_path / "tree/deploy/Dockerfile").write_text("FROM base\nCOPY csi csi\nCOPY LICENSE ./\n")
    return tmp_path / "tree"


def commit(tree: Path, name: str, text: str) -> None:
    (tree / name).write_text(text)
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", text],
    ):
        subprocess.run(["git", "-C", str(tree), *words], check=True)


def test_it_is_the_commit_before_the_last_change_of_the_programs(tree: Path, tmp_path: Path) -> None:
    for name, text in [
        ("csi/code.py", "second\n"),
        ("csi/code.py", "third\n"),
        ("LICENSE", "another\n"),
        ("notes", "about it\n"),
    ]:
        commit(tree, name, text)
    assert earlier(tree, tmp_path / "before").startswith("commit ")
    assert (tmp_path / "before/csi/code.py").read_text() == "second\n"


def test_it_is_the_last_commit_where_the_programs_were_changed_since(tree: Path, tmp_path: Path) -> None:
    commit(tree, "csi/code.py", "second\n")
    (tree / "csi/new.py").touch()
    assert earlier(tree, tmp_path / "before").startswith("commit ")
    assert [path.name for path in (tmp_path / "before/csi").iterdir()] == ["code.py"]


@pytest.mark.parametrize("commits", [0, 1], ids=["no git", "a single commit"])
def test_without_history_it_says_that_it_is_the_same_with_another_image(
    tree: Path, tmp_path: Path, commits: int
) -> None:
    for _ in range(commits):
        commit(tree, "csi/code.py", "second\n")
    assert "this very checkout" in earlier(tree, tmp_path / "before")
    assert {
        name: (tmp_path / "before" / name).read_text() != (tree / name).read_text() for name in NAMES
    } == {name: name == "LICENSE" for name in NAMES}
